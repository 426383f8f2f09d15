# SPDX-License-Identifier: GPL-2.0-only
"""Run tests with --record, and keep their tapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from helpers.record.reports import tape_of
from helpers.record.tape import Tape


@dataclass
class Collector:
    """The tapes of the tests that a session judged, by node id. A skipped test has none."""

    tapes: dict[str, Tape] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tape = tape_of(report)
        if tape is None or (report.skipped and not hasattr(report, "wasxfail")):
            return
        # A test that went on after a known deviation fails, since the deviation then did not occur.
        if tape.shown or not report.failed:
            self.tapes[report.nodeid] = tape


def record(arguments: Sequence[str]) -> dict[str, Tape]:
    """Run pytest with ``arguments``; return the tapes, and print what pytest prints."""
    collector = Collector()
    pytest.main(["--record", "--tb=no", "-q", *arguments], plugins=[collector])
    return collector.tapes
