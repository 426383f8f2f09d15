# SPDX-License-Identifier: GPL-2.0-only
"""Count the results of one kernel's tests, by test and by clause."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers.spec import CLAUSES, LEVELS, Clause
from helpers.spec.architectures import ARCHITECTURES, X86_64
from helpers.verdicts.kernel import Kernel

FAILURES = frozenset({"failed", "timeout", "error"})
"""The outcomes that fail a run."""
CLAUSE_STATES = ("holds", "deviates", "broken", "not tested")


@dataclass(frozen=True, slots=True)
class Result:
    """One test's result.

    ``outcome`` is passed, failed, timeout, error, skipped or xfailed. ``deviation`` is the id of
    the known deviation that the test showed, or, with ``backport``, did not show. ``reason`` is why
    the test was skipped.
    """

    outcome: str
    deviation: str = ""
    backport: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if self.backport:
            return f"{self.outcome}, without {self.deviation}"
        return f"{self.outcome}: {self.deviation}" if self.deviation else self.outcome


@dataclass
class Tally:
    """One kernel's results.

    ``column`` names the kernel in a run over several kernels. ``kernel`` is None until the kernel
    has reported the facts. ``tree`` is the kernel's build tree, where there is one. ``broken`` is
    the reason why some or all tests could not be run. ``left`` is the number of tests not run after
    --maxfail-each failures. ``results`` is {node id: result}, ``outcomes`` {clause id: {outcome:
    number of tests}}.
    """

    column: str = ""
    kernel: Kernel | None = None
    tree: Path | None = None
    broken: str = ""
    left: int = 0
    results: dict[str, Result] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def count(self, nodeid: str, clause: str, result: Result) -> None:
        """Add a result. A test that fails and whose teardown fails too has two results."""
        self.outcomes[clause][result.outcome] += 1
        if result.outcome == "error" or nodeid not in self.results:
            self.results[nodeid] = result

    @property
    def judged(self) -> bool:
        """Whether any test came to a verdict; a skipped test did not."""
        return any(result.outcome != "skipped" for result in self.results.values())

    @property
    def owed(self) -> dict[str, Clause]:
        """The clauses of the kernel's architecture, by id."""
        architecture = ARCHITECTURES[self.kernel.architecture] if self.kernel else X86_64
        return {id: clause for id, clause in CLAUSES.items() if architecture.owes(id)}

    @property
    def totals(self) -> Counter[str]:
        """{outcome: number of results}."""
        return sum(self.outcomes.values(), Counter())

    @property
    def deviations(self) -> Counter[str]:
        """{deviation id: number of tests that showed the deviation}."""
        shown = (result for result in self.results.values() if result.outcome == "xfailed")
        return Counter(result.deviation for result in shown)

    @property
    def backports(self) -> Counter[str]:
        """{deviation id: number of tests that passed in spite of the deviation}."""
        return Counter(result.deviation for result in self.results.values() if result.backport)

    @property
    def not_judged(self) -> Counter[str]:
        """{reason: number of tests skipped for the reason}, the most frequent first."""
        skipped = (result for result in self.results.values() if result.outcome == "skipped")
        return Counter(dict(Counter(result.reason for result in skipped).most_common()))

    def state(self, clause: str) -> str:
        """Return the state of a clause, one of CLAUSE_STATES.

        One failure makes a clause broken, else one known deviation makes the clause deviate.
        """
        outcomes = self.outcomes.get(clause, Counter())
        if outcomes.keys() & FAILURES:
            return "broken"
        if "xfailed" in outcomes:
            return "deviates"
        return "holds" if "passed" in outcomes else "not tested"

    def levels(self) -> dict[str, Counter[str]]:
        """Return {level: {state: number of clauses}}."""
        return {
            level: Counter(self.state(id) for id, each in self.owed.items() if each.level == level)
            for level in LEVELS
        }

    def summary(self) -> Iterator[str]:
        """Yield lines for the terminal.

        The levels, the clauses without a passing test, what was not judged, and the deviations.
        """
        for level, counts in self.levels().items():
            numbers = "  ".join(f"{counts[state]:3} {state}" for state in CLAUSE_STATES)
            yield f"{level:<14}{numbers}"
        not_run = 0
        for id, entry in sorted(self.owed.items()):
            outcomes = self.outcomes.get(id, Counter())
            counted = (f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
            if why := entry.unchecked or ", ".join(counted):
                if "passed" not in outcomes:
                    yield f"no passing test: {id} ({entry.level}): {why}"
            else:
                not_run += 1
        if not_run:
            yield f"no passing test: {not_run} clauses, whose tests were not run"
        for reason, number in self.not_judged.items():
            yield f"{number} not judged: {reason}"
        for name, counter in (("known deviation", self.deviations), ("backport", self.backports)):
            for id, number in sorted(counter.items()):
                yield f"{name}: {id}, {number} test{'s' * (number != 1)}"
