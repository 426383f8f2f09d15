"""The pytest plugin behind ``--html``: records what tests do, and puts it into its report.

With xdist the tests run in workers and the report is written by the controller; what they know
travels as ``report.details``. Without ``--html`` none of this is active.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import Any

import pytest
from markupsafe import Markup

from helpers.report import details
from helpers.report.html import Run, TestResult, Writer
from helpers.verdicts.reports import column_of, outcome_of, verdict_of
from helpers.verdicts.session import VERDICTS, Verdicts
from helpers.verdicts.tally import Tally


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder where there is a report to be written."""
    if config.getoption("htmlpath", None):
        config.pluginmanager.register(Recorder(), "kvm-report-recorder")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the HTML part where this run judges a kernel, and where its report is written."""
    config = session.config
    verdicts = config.stash.get(VERDICTS, None)
    is_worker = hasattr(config, "workerinput")
    if config.getoption("htmlpath", None) and verdicts and verdicts.needs_kvm and not is_worker:
        config.pluginmanager.register(HtmlReport(config, verdicts), "kvm-report-html")


class Recorder:
    """Attaches to each report what its test did; lives where the tests run."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" or not report.passed:
            error = call.excinfo.value if call.excinfo else None
            details.DETAILS.put(report, details.collect(item, error))
        return report


class HtmlReport:
    """Fills pytest-html's hooks; lives where the report is written."""

    def __init__(self, config: pytest.Config, verdicts: Verdicts) -> None:
        self.config = config
        self.verdicts = verdicts
        self.started = datetime.now().astimezone()
        self.writer = Writer()
        self.page: Any = None
        self.environment: dict[str, Any] = {}
        self.failures: list[TestResult] = []
        self.irqchips: set[str] = set()

    @property
    def several(self) -> bool:
        """Whether several kernels are judged: results in a matrix, not in pytest-html's table."""
        return len(self.verdicts.tallies) > 1

    def pytest_html_report_title(self, report: Any) -> None:
        self.page = report
        # Shown by the overview instead, escaped, which pytest-html's own table is not.
        self.environment = dict(report.data["environment"])
        report.set_data("environment", {})
        if self.config.getini("render_collapsed") == "passed":  # pytest-html's default
            report.set_data("renderCollapsed", ["passed", "xfailed", "skipped"])

    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        cells[:] = self.writer.header_cells()

    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        if self.several:
            cells.clear()  # which is how pytest-html is told to leave out a row
        elif report.when == "call" or not report.passed:  # pytest-html drops the other rows
            outcome, _, duration, _ = cells
            cells[:] = self.writer.row_cells(_result_of(report), outcome, duration)

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        if details.DETAILS.get(report):
            log = [] if data == ["No log output captured."] else data
            # It is escaped already.
            data[:] = [self.writer.test(_result_of(report), Markup("\n".join(log)))]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        recorded = details.DETAILS.get(report)
        self.irqchips.update(recorded["irqchips"] if recorded else ())
        if report.failed:
            self.failures.append(_result_of(report))
        if self.several and (report.when == "call" or not report.passed):
            self.writer.add_cell(_result_of(report), _log_of(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self.several and report.failed:  # it has a row in pytest-html's table only
            self.failures.append(
                TestResult(report.nodeid, "collect", "error", message=report.longreprtext)
            )

    def pytest_html_results_summary(
        self, prefix: list[str], summary: list[str], postfix: list[str], session: pytest.Session
    ) -> None:
        tallies = list(self.verdicts.tallies.values()) or [Tally()]
        self.page.title = f"KVM_SIGNAL_MSI on {_name_of(tallies)}"
        run = Run(
            tallies=tallies,
            irqchips=sorted(self.irqchips),
            started=self.started,
            command=_command(session.config),
            environment=self.environment,
            cut_short=_cut_short(session),
            failures=self.failures,
        )
        if self.several:
            nodeids = [item.nodeid for item in session.items]
            prefix.append(self.writer.matrix(tallies, nodeids))
            files = ["report.css", "matrix.css", "parts.js", "matrix.js"]
        else:
            prefix.append(self.writer.results_bar())
            files = ["report.css", "parts.js", "rows.js"]
        summary.append(self.writer.overview(run))
        postfix.append(self.writer.resources(files))


def _name_of(tallies: Sequence[Tally]) -> str:
    if len(tallies) > 1:
        return f"{len(tallies)} kernels"
    return str(tallies[0].kernel or "a kernel that did not say which")


def _result_of(report: pytest.TestReport) -> TestResult:
    return TestResult(
        nodeid=report.nodeid,
        when=report.when or "",
        outcome=outcome_of(report),
        column=column_of(report),
        verdict=verdict_of(report),
        details=details.DETAILS.get(report),
        properties=getattr(report, "user_properties", ()),
        message=_message_of(report),
    )


def _message_of(report: pytest.TestReport) -> str:
    """The reason of a skip; what is known of a test whose process died."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return report.longrepr if isinstance(report.longrepr, str) else ""


def _log_of(report: pytest.TestReport) -> str:
    """As pytest-html has it: the traceback, and sections of captured output."""
    sections = [f"{f' {title} ':-^80}\n{text}" for title, text in report.sections]
    return "\n".join([report.longreprtext, *sections]).strip()


def _cut_short(session: pytest.Session) -> str:
    """Why tests are missing from the run; empty if none are."""
    if reason := session.shouldfail or session.shouldstop:
        return str(reason)
    return "interrupted" if session.exitstatus == pytest.ExitCode.INTERRUPTED else ""


def _command(config: pytest.Config) -> str:
    options = os.environ.get("PYTEST_ADDOPTS", "")
    command = shlex.join(["pytest", *config.invocation_params.args])
    return f"PYTEST_ADDOPTS={shlex.quote(options)} {command}" if options else command
