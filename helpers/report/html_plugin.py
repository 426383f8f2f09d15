# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin behind ``--html``: collects details of tests and fills pytest-html's report.

Tests run in the workers of pytest-xdist or in booted kernels; the controller writes the report.
Details travel from one to the other as details.DETAILS. Without ``--html`` the plugin is inactive.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from datetime import datetime
from typing import Any

import pytest
from markupsafe import Markup

from helpers.report.details import DETAILS, collect
from helpers.report.html import Writer
from helpers.report.run import JudgedRun, Phase
from helpers.verdicts.reports import column_of, outcome_of, skip_reason_of, verdict_of
from helpers.verdicts.session import VERDICTS, Verdicts
from helpers.verdicts.tally import Tally


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector of details if there is a report to write."""
    if config.getoption("htmlpath", None):
        config.pluginmanager.register(DetailsCollector(), "kvm-details")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the HTML report if this process writes the report and the run judges a kernel."""
    config = session.config
    verdicts = config.stash[VERDICTS]
    if config.getoption("htmlpath", None) and verdicts.needs_kvm and not verdicts.is_worker:
        config.pluginmanager.register(HtmlReport(config, verdicts), "kvm-html")


class DetailsCollector:
    """Attaches details to the reports of tests, in the process that runs the tests."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" or not report.passed:
            DETAILS.put(report, collect(item, call.excinfo.value if call.excinfo else None))
        return report


class HtmlReport:
    """Implements pytest-html's hooks, in the process that writes the report."""

    def __init__(self, config: pytest.Config, verdicts: Verdicts) -> None:
        self.config = config
        self.verdicts = verdicts
        self.started = datetime.now().astimezone()
        self.writer = Writer()
        self.page: Any = None
        self.environment: dict[str, Any] = {}
        self.failures: list[Phase] = []
        self.irqchips: set[str] = set()

    @property
    def has_matrix(self) -> bool:
        """Whether a matrix replaces pytest-html's table, since the run judges several kernels.

        The answer may not change within a run, although an added column may be refused.
        """
        return len(self.verdicts.tallies) > 1 or self.verdicts.has_added

    def pytest_html_report_title(self, report: Any) -> None:
        self.page = report
        # The overview shows the environment; pytest-html's own table does not escape text.
        self.environment = dict(report.data["environment"])
        report.set_data("environment", {})
        if self.config.getini("render_collapsed") == "passed":  # pytest-html's default
            report.set_data("renderCollapsed", ["passed", "xfailed", "skipped"])

    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        cells[:] = self.writer.header_cells()

    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        if self.has_matrix:
            cells.clear()  # pytest-html leaves out a row without cells
        elif report.when == "call" or not report.passed:  # pytest-html drops the other rows
            outcome, _, duration, _ = cells
            cells[:] = self.writer.row_cells(_phase_of(report), outcome, duration)

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        if DETAILS.get(report):
            log = [] if data == ["No log output captured."] else data
            # pytest-html has escaped the log.
            data[:] = [self.writer.test(_phase_of(report), Markup("\n".join(log)))]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        details = DETAILS.get(report)
        self.irqchips.update(details["irqchips"] if details else ())
        if report.failed:
            self.failures.append(_phase_of(report))
        if self.has_matrix and (report.when == "call" or not report.passed):
            self.writer.add_cell(_phase_of(report), _log_of(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # pytest-html's table has a row for this failure, the matrix has none.
        if self.has_matrix and report.failed:
            message = report.longreprtext
            self.failures.append(Phase(report.nodeid, "collect", "error", message=message))

    def pytest_html_results_summary(
        self, prefix: list[str], summary: list[str], postfix: list[str], session: pytest.Session
    ) -> None:
        tallies = list(self.verdicts.tallies.values()) or [Tally()]
        kernel = tallies[0].kernel or "an unknown kernel"
        kernels = f"{len(tallies)} kernels" if self.has_matrix else kernel
        self.page.title = f"KVM_SIGNAL_MSI on {kernels}"
        run = JudgedRun(
            tallies=tallies,
            irqchips=sorted(self.irqchips),
            started=self.started,
            command=_command(session.config),
            environment=self.environment,
            cut_short=_cut_short(session),
            failures=self.failures,
        )
        if self.has_matrix:
            prefix.append(self.writer.matrix(tallies, [item.nodeid for item in session.items]))
            files = ["report.css", "matrix.css", "parts.js", "matrix.js"]
        else:
            prefix.append(self.writer.render("results_bar.jinja2"))
            files = ["report.css", "parts.js", "rows.js"]
        summary.append(self.writer.render("overview.jinja2", run=run))
        postfix.append(self.writer.resources(files))


def _phase_of(report: pytest.TestReport) -> Phase:
    return Phase(
        nodeid=report.nodeid,
        when=report.when or "",
        outcome=outcome_of(report),
        column=column_of(report),
        verdict=verdict_of(report),
        details=DETAILS.get(report),
        properties=report.user_properties,
        message=_message_of(report),
    )


def _message_of(report: pytest.TestReport) -> str:
    """Return the reason of a skip, or the end of a test whose process died; else nothing."""
    return skip_reason_of(report) or (report.longrepr if isinstance(report.longrepr, str) else "")


def _log_of(report: pytest.TestReport) -> str:
    """Return the traceback and the captured output, as pytest-html shows them."""
    sections = [f"{f' {title} ':-^80}\n{text}" for title, text in report.sections]
    return "\n".join([report.longreprtext, *sections]).strip()


def _cut_short(session: pytest.Session) -> str:
    """Return why tests are missing from the run; empty if all tests ran."""
    if reason := session.shouldfail or session.shouldstop:
        return str(reason)
    return "interrupted" if session.exitstatus == pytest.ExitCode.INTERRUPTED else ""


def _command(config: pytest.Config) -> str:
    options = os.environ.get("PYTEST_ADDOPTS", "")
    command = shlex.join(["pytest", *config.invocation_params.args])
    return f"PYTEST_ADDOPTS={shlex.quote(options)} {command}" if options else command
