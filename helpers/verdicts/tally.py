"""Count the results of one kernel's tests, by test and by clause."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from helpers.spec import CLAUSES, LEVELS
from helpers.verdicts.kernel import Kernel

CLAUSE_STATES = ("holds", "deviates", "broken", "not tested")


@dataclass(frozen=True, slots=True)
class Result:
    """One test's result.

    ``outcome`` is passed, failed, error, skipped or xfailed. ``deviation`` is the id of the known
    deviation that the test showed, or, with ``backport``, did not show.
    """

    outcome: str
    deviation: str = ""
    backport: bool = False

    def __str__(self) -> str:
        if self.backport:
            return f"{self.outcome}, without {self.deviation}"
        return f"{self.outcome}: {self.deviation}" if self.deviation else self.outcome


@dataclass
class Tally:
    """One kernel's results.

    ``column`` names the kernel in a run over several kernels. ``kernel`` is None until the kernel
    has reported the facts. ``broken`` is the reason why some or all tests could not be run.
    ``left`` is the number of tests not run after --maxfail-each failures. ``results`` is
    {node id: result}, ``outcomes`` {clause id: {outcome: number of tests}}.
    """

    column: str = ""
    kernel: Kernel | None = None
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

    def clause_states(self) -> dict[str, str]:
        """Return {clause id: state} of all clauses; a state is one of CLAUSE_STATES."""
        return {id: clause_state(self.outcomes.get(id, Counter())) for id in CLAUSES}

    def levels(self) -> dict[str, dict[str, str]]:
        """Return {level: {clause id: state}}."""
        states = self.clause_states()
        return {
            level: {id: states[id] for id, entry in CLAUSES.items() if entry.level == level}
            for level in LEVELS
        }

    def summary(self) -> Iterator[str]:
        """Yield lines for the terminal: levels, clauses without a passing test, deviations."""
        for level, states in self.levels().items():
            counts = Counter(states.values())
            numbers = "  ".join(f"{counts[state]:3} {state}" for state in CLAUSE_STATES)
            yield f"{level:<14}{numbers}"
        not_run = 0
        for id, entry in sorted(CLAUSES.items()):
            outcomes = self.outcomes.get(id, Counter())
            if why := entry.unchecked or _counted(outcomes):
                if not outcomes["passed"]:
                    yield f"no passing test: {id} ({entry.level}): {why}"
            else:
                not_run += 1
        if not_run:
            yield f"no passing test: {not_run} clauses, whose tests were not run"
        for name, counter in (("known deviation", self.deviations), ("backport", self.backports)):
            for id, number in sorted(counter.items()):
                yield f"{name}: {id}, {number} test{'s' * (number != 1)}"


def clause_state(outcomes: Counter[str]) -> str:
    """Return the state of a clause, from {outcome: number of tests}.

    One failure makes a clause broken, else one known deviation makes the clause deviate.
    """
    if outcomes["failed"] or outcomes["error"]:
        return "broken"
    if outcomes["xfailed"]:
        return "deviates"
    return "holds" if outcomes["passed"] else "not tested"


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
