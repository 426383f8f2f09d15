# SPDX-License-Identifier: GPL-2.0-only
"""The data that the HTML report shows: phases of tests, and the run as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from helpers.report.details import Compared, Details
from helpers.spec import Clause
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import FAILURES, Tally


@dataclass(frozen=True)
class Phase:
    """The report of a test's setup, call or teardown.

    ``column`` names the kernel in a run of several. ``message`` is the reason of a skip, or the end
    of a test whose process died.
    """

    nodeid: str
    when: str
    outcome: str
    column: str = ""
    verdict: Verdict | None = None
    details: Details | None = None
    properties: Sequence[tuple[str, object]] = ()
    message: str = ""

    @property
    def test(self) -> str:
        """The node id without ``suites/``, which all tests of a report have in common."""
        return self.nodeid.removeprefix("suites/")

    @property
    def name(self) -> str:
        """The test, with the phase behind ``::`` for setup and teardown."""
        return self.test + (f"::{self.when}" if self.when in ("setup", "teardown") else "")

    @property
    def mismatch(self) -> Compared | None:
        """The comparison that failed the test."""
        return self.details["mismatch"] if self.details else None

    @property
    def reason(self) -> str:
        """The reason of a skip, or of a failure other than a mismatch."""
        return self.message or (self.details["error"] if self.details else "")


@dataclass(frozen=True)
class JudgedRun:
    """A run, with a tally for each kernel. ``cut_short`` is why tests are missing from the run."""

    tallies: Sequence[Tally]
    irqchips: Sequence[str]
    started: datetime
    command: str
    environment: dict[str, Any]
    cut_short: str
    failures: Sequence[Phase]

    @property
    def totals(self) -> Counter[str]:
        """The number of tests with each outcome, over all kernels."""
        return sum((tally.totals for tally in self.tallies), Counter())

    @property
    def is_good(self) -> bool:
        """Whether every kernel was judged to the end without a failure."""
        judged = all(tally.judged and not tally.broken for tally in self.tallies)
        return judged and not self.failures and not self.cut_short

    @property
    def alike(self) -> list[list[Phase]]:
        """The failures, in lists of those that broke the same clause in the same way."""
        groups: dict[tuple[object, ...], list[Phase]] = {}
        for phase in self.failures:
            what = tuple(phase.mismatch.values()) if phase.mismatch else phase.reason
            clause = phase.verdict.clause if phase.verdict else ""
            groups.setdefault((phase.column, phase.outcome, clause, what), []).append(phase)
        return list(groups.values())

    @property
    def failing(self) -> list[str]:
        """The columns with failures."""
        return [tally.column for tally in self.tallies if tally.totals.keys() & FAILURES]

    @property
    def known_failures(self) -> int:
        """The number of failures that show a known deviation, as with --strict."""
        verdicts = (phase.verdict for phase in self.failures if phase.mismatch)
        return sum(bool(verdict and verdict.deviation) for verdict in verdicts)

    @property
    def tested(self) -> set[str]:
        """The ids of the clauses that have tests."""
        return {id for tally in self.tallies for id in tally.outcomes}

    @property
    def owed(self) -> dict[str, Clause]:
        """The clauses of the kernels' architecture, by id."""
        return {id: clause for tally in self.tallies for id, clause in tally.owed.items()}

    @property
    def capabilities(self) -> list[str]:
        """The names of the capabilities of the kernels."""
        kernels = [tally.kernel for tally in self.tallies if tally.kernel]
        return list(dict.fromkeys(name for kernel in kernels for name in kernel.known))
