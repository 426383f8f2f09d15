# SPDX-License-Identifier: GPL-2.0-only
"""The plugin that keeps --html and --junitxml from losing a run, an older report, or each other.

Both plugins open their file after the last test. A file that cannot be opened is refused before the
first; on a full disk the older file is restored, and the other reports are written. An option of a
path that is empty, as a script's unset variable is, is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pluggy
import pytest

PATHS = {"--html": "htmlpath", "--junitxml": "xmlpath"}
OTHERS = ("results", "compare", "ktap", "kcidb", "logs", "tests", "reproducers")
"""The other options whose value is a path."""

_WRITERS = {"Report": "htmlpath", "SelfContainedReport": "htmlpath", "LogXML": "xmlpath"}
"""The classes of the plugins that write, of pytest-html and pytest."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Refuse paths that cannot be written, before a kernel is fetched or booted."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    for option, name in (PATHS | {f"--{name}": name for name in OTHERS}).items():
        given = config.getoption(name, None)
        if given == "":
            raise pytest.UsageError(f"{option}= is empty: name a file")
        if given is None or option not in PATHS:
            continue
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
    """Keeps each older report until the new one is written. ``lost`` is for the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.lost: dict[Path, str] = {}

    # Inside of the terminal's wrapper, which prints the summary.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Guard the plugins that write: pytest ends the others with the first that raises."""
        self._wrap(session.config.hook.pytest_sessionfinish, partial(self._write, session))
        self._wrap(session.config.hook.pytest_terminal_summary, self._say)
        return (yield)

    def _wrap(self, hook: pluggy.HookCaller, wrapper: Callable[..., object]) -> None:
        """Call ``wrapper`` with path and function in place of the plugins that write.

        pluggy has wrappers of all implementations of a hook, and none of one.
        """
        for impl in hook.get_hookimpls():
            if path := self._written_by(impl.plugin):
                impl.function = partial(wrapper, path, impl.function)  # type: ignore[misc]

    def _written_by(self, plugin: object) -> Path | None:
        """Return the path of the report that a plugin writes."""
        name = _WRITERS.get(type(plugin).__name__)
        return _path(self.config, self.config.getoption(name)) if name else None

    def _write(
        self, session: pytest.Session, path: Path, write: Callable[..., None], *arguments: object
    ) -> None:
        file = path.resolve()
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        is_kept = file.is_file() or not file.exists()  # and no device
        if is_kept:
            with contextlib.suppress(OSError):
                file.replace(aside)
        is_written = False
        try:
            write(*arguments)
            is_written = True
        except OSError as error:
            self.lost[path] = f"{path} not written: {error.strerror}"
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        finally:
            if is_kept and not is_written:
                file.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    aside.replace(file)
            aside.unlink(missing_ok=True)

    def _say(self, path: Path, say: Callable[..., object], *arguments: object) -> None:
        """Leave out that a report is written, if it is not."""
        if path not in self.lost:
            say(*arguments)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lost.values():
            terminalreporter.write_line(line, red=True)


def _path(config: pytest.Config, given: str) -> Path:
    return config.invocation_params.dir / os.path.expandvars(os.path.expanduser(given))
