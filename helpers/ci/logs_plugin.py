# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--logs``: a file for each failed test."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

from helpers.ci.ended import Ended
from helpers.ci.watch import Watch
from helpers.directories import made_directory
from helpers.kvm.ioctl import trace
from helpers.report.details import collapse
from helpers.verdicts.reports import CONSOLE, Carried
from helpers.verdicts.session import VERDICTS
from helpers.verdicts.tally import FAILURES
from helpers.verdicts.timeouts import text as timeout_text

IOCTLS = Carried[list[str]]("ioctls")
"""The ioctls of a failed test."""
KERNEL_LOG = Carried[list[str]]("kernel_log")
"""What the kernel logged during a failed test."""
LOGS = pytest.StashKey[dict[tuple[str, str], Path]]()
"""The key of the files in ``config.stash``: {(column, node id): path}."""

_LONGEST = 120  # characters of a file's name, before the suffix


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --logs."""
    parser.getgroup("kernel CI").addoption(
        "--logs",
        metavar="DIR",
        help="write a file for each failed test into this directory: the failure, the ioctls, the "
        "kernel's log, the console of a kernel that died, and the command that repeats the test",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Make the directory, and register the plugins of this process."""
    option = config.option
    config.stash[LOGS] = {}
    if not option.logs or option.collectonly:
        return
    config.pluginmanager.register(Collector(config), "kvm-log-collector")
    if hasattr(config, "workerinput"):
        return
    logs = Logs(config, made_directory("--logs", option.logs))
    config.pluginmanager.register(Watch(config, [logs]), "kvm-logs-watch")
    config.pluginmanager.register(logs, "kvm-logs")


class Collector:
    """Attaches logs to the reports of failures, in the process that runs the tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            IOCTLS.put(report, collapse(trace))
            KERNEL_LOG.put(report, list(self.config.stash[VERDICTS].log.recent))
        return report


class Logs:
    """Writes the files, in the process that reports."""

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self.files = config.stash[LOGS]
        self.config = config
        self.directory = directory
        self.problem = ""

    def begin(self, watch: Watch) -> None:
        pass

    def add_column(self, column: str, files: Mapping[str, Sequence[str]]) -> None:
        pass

    def ended(self, ended: Ended) -> None:
        if ended.outcome not in FAILURES:
            return
        path = self._path_of(ended)
        tally = self.config.stash[VERDICTS].tallies.get(ended.column)
        kernel = tally.kernel if tally else None
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(log_of(ended, str(kernel or ended.column)), errors="backslashreplace")
        except OSError as error:
            self.problem = f"{path} not written: {error.strerror}"
            return
        self.files[ended.column, ended.nodeid] = path

    def _path_of(self, ended: Ended) -> Path:
        stem = f"{Path(ended.file).stem}.{_plain(ended.test)}"[:_LONGEST]
        path = self.directory / _plain(ended.column) / f"{stem}.log"
        taken = set(self.files.values())
        number = 1
        while path in taken:
            number += 1
            path = path.with_name(f"{stem}-{number}.log")
        return path

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.problem:
            terminalreporter.write_line(self.problem, red=True)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.problem and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _plain(text: str) -> str:
    """Return text that every file system and every archive of artifacts takes for a name."""
    return re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII).strip("_")


def log_of(ended: Ended, kernel: str) -> str:
    """Return the content of a file."""
    verdict = ended.verdict
    outcome = timeout_text(verdict.timeout) if verdict.timeout else ended.outcome
    head = {"test": ended.nodeid, "kernel": kernel, "outcome": outcome, "clause": verdict.clause}
    head |= {"deviation": verdict.deviation, "command": verdict.repeat}
    parts = ["".join(f"{name}: {value}\n" for name, value in head.items() if value)]
    for report in ended.reports:
        if report.failed:
            parts.append(_part(f"failure in {report.when}", report.longreprtext))
            parts += [_part(title, text) for title, text in report.sections]
            carried = {"ioctls": IOCTLS, "kernel log": KERNEL_LOG, "console": CONSOLE}
            for title, lines in carried.items():
                parts.append(_part(title, "\n".join(lines.get(report) or ())))
    return "\n".join(filter(None, parts))


def _part(title: str, text: str) -> str:
    return f"--- {title}\n{text.rstrip()}\n" if text.strip() else ""
