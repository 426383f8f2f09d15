"""pytest's part in judging mutants: ``python -m tests.mutants.record JOB PYTEST-OPTION ...``.

JOB is a JSON file {"clauses": {mutant: the clause that must catch it}, "record": path}. A mutant's
clause is tested first. The record gets a line of JSON for every failure, {"mutant", "test",
"clause"}, and at the end for every mutant {"mutant", "run": how many tests, "left": how many were
not run after enough had failed, "broken": why it could not be judged}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


class Record:
    """One run's."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.clauses: dict[str, str] = job["clauses"]
        self.path = Path(job["record"])

    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str]:
        """Those of the mutant's clause first."""
        wanted = self.clauses.get(column)

        def is_later(nodeid: str) -> bool:
            mark = items[nodeid].get_closest_marker("clause")
            return mark is None or mark.args[0].id != wanted

        return sorted(items, key=is_later)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            verdict = getattr(report, "verdict", {})
            self.write(mutant=report.column, test=report.nodeid, clause=verdict.get("clause", ""))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for label, tally in session.config.pluginmanager.getplugin("kvm-verdicts").tallies.items():
            self.write(mutant=label, run=len(tally.results), left=tally.left, broken=tally.broken)

    def write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(pytest.main(sys.argv[2:], plugins=[Record(given)]))
