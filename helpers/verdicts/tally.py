"""What a run's tests came to, kernel by kernel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from helpers.spec import CLAUSES, LEVELS
from helpers.verdicts.kernel import Kernel

CLAUSE_STATES = ("holds", "deviates", "broken", "not tested")


@dataclass(frozen=True, slots=True)
class Result:
    """How one test ended: passed, failed, error, skipped or xfailed.

    ``deviation`` is the one it showed, or, if ``backport``, was expected to show and did not.
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
    """One kernel's results. ``column`` names it in a run of several; ``kernel`` is None until it
    has said what it is; ``broken`` is why it could not be judged, or not to the end; ``left`` is
    how many tests were not run because enough others had failed (--maxfail-each).
    """

    column: str = ""
    kernel: Kernel | None = None
    broken: str = ""
    left: int = 0
    results: dict[str, Result] = field(default_factory=dict)
    """By node id."""
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By clause."""

    def count(self, nodeid: str, clause: str, result: Result) -> None:
        """Add a test's result; a test that failed and then could not clean up has two."""
        self.outcomes[clause][result.outcome] += 1
        if result.outcome == "error" or nodeid not in self.results:
            self.results[nodeid] = result

    @property
    def judged(self) -> bool:
        """Whether any test came to a verdict."""
        return any(result.outcome != "skipped" for result in self.results.values())

    @property
    def totals(self) -> Counter[str]:
        """How many tests had which outcome."""
        return sum(self.outcomes.values(), Counter())

    @property
    def deviations(self) -> Counter[str]:
        """How many tests showed which known deviation."""
        shown = (result for result in self.results.values() if result.outcome == "xfailed")
        return Counter(result.deviation for result in shown)

    @property
    def backports(self) -> Counter[str]:
        """How many tests passed where a deviation is known."""
        return Counter(result.deviation for result in self.results.values() if result.backport)

    def clause_states(self) -> dict[str, str]:
        """Every clause's state, one of CLAUSE_STATES."""
        return {id: clause_state(self.outcomes.get(id, Counter())) for id in CLAUSES}

    def levels(self) -> dict[str, dict[str, str]]:
        """The clause states by level."""
        states = self.clause_states()
        return {
            level: {id: states[id] for id, entry in CLAUSES.items() if entry.level == level}
            for level in LEVELS
        }

    def summary(self) -> Iterator[str]:
        """Lines for the terminal: clauses by level, those that no test confirmed, deviations."""
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
            yield f"no passing test: {not_run} clauses whose tests were not run"
        for name, counter in (("known deviation", self.deviations), ("backport", self.backports)):
            for id, number in sorted(counter.items()):
                yield f"{name}: {id}, {number} test{'s' * (number != 1)}"


def clause_state(outcomes: Counter[str]) -> str:
    """``broken`` by any failure, ``deviates`` by any known deviation, ``holds`` by passes alone."""
    if outcomes["failed"] or outcomes["error"]:
        return "broken"
    if outcomes["xfailed"]:
        return "deviates"
    return "holds" if outcomes["passed"] else "not tested"


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
