# SPDX-License-Identifier: GPL-2.0-only
"""The end of a test, put together from the reports of its setup, call and teardown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from helpers.verdicts.reports import (
    REPRODUCER,
    Verdict,
    column_of,
    outcome_of,
    skip_reason_of,
    verdict_of,
)


@dataclass(frozen=True)
class Ended:
    """A test that has ended on the kernel of a column.

    ``outcome`` is an outcome of helpers.verdicts.tally. ``reason`` is why the test was skipped,
    which deviation it showed, or the first words of its failure. ``explanation`` are the lines that
    explain a failure. ``reports`` are those of the test. Times are seconds.
    """

    nodeid: str
    column: str
    outcome: str
    reason: str
    explanation: Sequence[str]
    verdict: Verdict
    reports: Sequence[pytest.TestReport]
    start: float
    duration: float

    @property
    def reproducer(self) -> str:
        """The path of the test's C program; empty without one."""
        return "".join(filter(None, map(REPRODUCER.get, self.reports)))

    @property
    def file(self) -> str:
        return self.nodeid.partition("::")[0]

    @property
    def test(self) -> str:
        """The node id without the file."""
        return self.nodeid.partition("::")[2] or self.nodeid


class Reports:
    """The reports of the tests that have not ended yet: {(column, node id): reports}."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], list[pytest.TestReport]] = {}

    def add(self, report: pytest.TestReport) -> Ended | None:
        """Add a report. Return the end of the test if the report is the last one of a test."""
        key = column_of(report), report.nodeid
        self._open.setdefault(key, []).append(report)
        # "???" is pytest-xdist's report of a test whose worker died.
        if str(report.when) not in ("teardown", "???"):
            return None
        return _ended(self._open.pop(key))

    @property
    def running(self) -> set[tuple[str, str]]:
        """Column and node id of each test that has begun and not ended."""
        return set(self._open)


def _ended(reports: Sequence[pytest.TestReport]) -> Ended:
    failures = [report for report in reports if report.failed]
    calls = [report for report in reports if report.when == "call"]
    # A failed teardown counts more than the call, as in the tally.
    errors = [report for report in failures if report.when != "call"]
    decisive = [*errors, *failures, *(r for r in reports if r.skipped), *calls, *reports][0]
    verdicts = [each for report in [decisive, *reports] if (each := verdict_of(report))]
    verdict = next(iter(verdicts), Verdict(""))
    return Ended(
        nodeid=decisive.nodeid,
        column=column_of(decisive),
        outcome=outcome_of(decisive),
        reason=_reason(decisive, verdict),
        explanation=[line for report in failures for line in _explanation(report)],
        verdict=verdict,
        reports=reports,
        start=reports[0].start or time.time(),
        duration=sum(report.duration for report in reports),
    )


def _reason(report: pytest.TestReport, verdict: Verdict) -> str:
    if report.failed:
        return next(iter(_failure(report).splitlines()), "")
    last = verdict.note.splitlines()[-1:]
    return skip_reason_of(report) or "".join(last) or str(getattr(report, "wasxfail", ""))


def _failure(report: pytest.TestReport) -> str:
    """Return a failure without its traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash else report.longreprtext


def _explanation(report: pytest.TestReport) -> list[str]:
    crash = getattr(report.longrepr, "reprcrash", None)
    place = [f"{crash.path}:{crash.lineno}"] if crash else []
    lines = [*place, *_failure(report).splitlines()]
    for title, text in report.sections:
        lines += [f"{title}:", *(f"  {line}" for line in text.splitlines())]
    return lines
