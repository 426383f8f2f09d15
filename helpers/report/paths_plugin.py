# SPDX-License-Identifier: GPL-2.0-only
"""The plugin that keeps --html and --junitxml from losing a run, or an older report.

Both plugins open their file after the last test. A file that cannot be opened is refused before the
first; on a full disk the older file is restored, and the other reports are written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

PATHS = {"--html": "htmlpath", "--junitxml": "xmlpath"}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Refuse paths that cannot be written, before a kernel is fetched or booted."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    for option, name in PATHS.items():
        given = config.getoption(name, None)
        if given is None:
            continue
        if not given:
            raise pytest.UsageError(f"{option}= is empty: name a file")
        path = _path(config, given)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            path.open("ab").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise pytest.UsageError(f"{option}={given}: {error.strerror}") from None
    config.pluginmanager.register(Keeper(config), "kvm-report-paths")


class Keeper:
    """Keeps the older reports until the new ones are written. ``lost`` is for the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        given = (config.getoption(name, None) for name in PATHS.values())
        self.paths = [_path(config, path) for path in given if path]
        self.lost = ""

    # Inside of the terminal's wrapper, which prints the summary.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        older = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in self.paths}
        for path, aside in older.items():
            with contextlib.suppress(OSError):
                path.replace(aside)
        is_written = False
        try:
            yield
            is_written = True
        except OSError as error:
            self.lost = f"no report written: {error.strerror}"
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        finally:
            for path, aside in older.items():
                if not is_written:
                    path.unlink(missing_ok=True)
                    with contextlib.suppress(FileNotFoundError):
                        aside.replace(path)
                aside.unlink(missing_ok=True)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.lost:
            terminalreporter.write_line(self.lost, red=True)


def _path(config: pytest.Config, given: str) -> Path:
    return config.invocation_params.dir / os.path.expandvars(os.path.expanduser(given))
