# SPDX-License-Identifier: GPL-2.0-only
"""Data that travels on a test report, from the process that runs a test to the reporting process.

pytest, pytest-xdist and helpers/kernels transfer each attribute of a report that is plain data.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast, get_args

import pytest

from helpers.verdicts.plain import fits

T = TypeVar("T")


class Carried(Generic[T]):
    """An attribute of test reports. ``T`` is plain data: dicts, lists, strings, bytes, numbers."""

    known: ClassVar[list[Carried[Any]]] = []
    __orig_class__: Any  # set by typing: Carried[T]

    def __init__(self, name: str) -> None:
        self._name = f"kvm_{name}"
        self.known.append(self)

    def put(self, report: pytest.TestReport, value: T) -> None:
        setattr(report, self._name, value)

    def get(self, report: pytest.TestReport) -> T | None:
        """Return the value; None for a report without the attribute."""
        return cast("T | None", getattr(report, self._name, None))

    def is_sound(self, report: pytest.TestReport) -> bool:
        """Return whether the value of a guest's report is of type ``T``, or absent."""
        value = self.get(report)
        return value is None or fits(value, get_args(self.__orig_class__)[0])


class Verdict(NamedTuple):
    """The meaning of a test's outcome.

    ``clause`` is the id of a clause. ``deviation`` is the id of the known deviation that the test
    showed, or, with ``backport``, did not show. ``note`` is for the reader. ``repeat`` is the
    command that repeats the test. ``timeout`` is the time limit in seconds that ended the test; 0
    for a test that ended by itself.
    """

    clause: str
    deviation: str = ""
    backport: bool = False
    note: str = ""
    repeat: str = ""
    timeout: float = 0.0


CONSOLE = Carried[list[str]]("console")
"""The whole console of a kernel that died in a test."""

REPRODUCER = Carried[str]("reproducer")
"""The path of the C program that --reproducers has written for a failed test."""
_COLUMN = Carried[str]("column")
_VERDICT = Carried[dict[str, Any]]("verdict")


def put_column(report: pytest.TestReport, column: str) -> None:
    """Attach the name of the column, in a run over several kernels."""
    _COLUMN.put(report, column)


def column_of(report: pytest.TestReport) -> str:
    """Return the name of a report's column; empty in a run over one kernel."""
    return _COLUMN.get(report) or ""


def put_verdict(report: pytest.TestReport, verdict: Verdict) -> None:
    """Attach a verdict."""
    _VERDICT.put(report, verdict._asdict())


def verdict_of(report: pytest.TestReport) -> Verdict | None:
    """Return a report's verdict; None for a test that judges no kernel."""
    carried = _VERDICT.get(report)
    return Verdict(**carried) if carried else None


def skip_reason_of(report: pytest.TestReport) -> str:
    """Return why a test was skipped; empty for a test that was not."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return ""


def outcome_of(report: pytest.TestReport) -> str:
    """Return passed, failed, timeout, error, skipped or xfailed."""
    if hasattr(report, "wasxfail"):
        return "xfailed"
    if report.failed and (verdict := verdict_of(report)) and verdict.timeout:
        return "timeout"
    if report.failed and report.when != "call":
        return "error"
    return str(report.outcome)
