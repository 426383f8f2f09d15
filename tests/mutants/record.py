"""pytest's part in judging mutants: ``python -m tests.mutants.record JOB PYTEST-OPTION ...``.

JOB is a JSON file {"clauses": {mutant: a clause}, "record": path}; of a mutant that has a clause
there, only the tests of that are run. The record gets a line of JSON for every failure, {"mutant",
"test", "place": in the suite}, and at the end for every mutant {"mutant", "run": how many tests,
"broken": why it could not be judged}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.verdicts.reports import column_of
from helpers.verdicts.session import VERDICTS


class Record:
    """One run's."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.clauses: dict[str, str] = job["clauses"]
        self.path = Path(job["record"])
        self.places: dict[str, int] = {}

    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str]:
        """Those of the clause."""
        self.places = {nodeid: place for place, nodeid in enumerate(items)}
        wanted = self.clauses.get(column)
        return [nodeid for nodeid, item in items.items() if wanted in (None, _clause(item))]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            place = self.places[report.nodeid]
            self.write(mutant=column_of(report), test=report.nodeid, place=place)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for label, tally in session.config.stash[VERDICTS].tallies.items():
            self.write(mutant=label, run=len(tally.results), broken=tally.broken)

    def write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)


def _clause(item: pytest.Item) -> str:
    mark = item.get_closest_marker("clause")
    return mark.args[0].id if mark else ""


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(pytest.main(sys.argv[2:], plugins=[Record(given)]))
