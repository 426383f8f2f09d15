# SPDX-License-Identifier: GPL-2.0-only
"""Run pytest on mutants: ``python -m tests.mutants.record JOB PYTEST-OPTION ...``.

JOB is a JSON file {"clauses": {mutant id: clause id}, "record": path}. A mutant in ``clauses`` gets
the tests of its clause, any other the whole suite.

The record has a line of JSON per failure, {"mutant", "test", "position": index in the suite}, and a
last line per mutant, {"mutant", "tests": number of tests run, "broken": why there is no result}.
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
    """The plugin that selects the tests and writes the record."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.clauses: dict[str, str] = job["clauses"]
        self.path = Path(job["record"])
        self.positions: dict[str, int] = {}

    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str]:
        """Return the ids of the tests that a column runs; a column is a mutant."""
        self.positions = {nodeid: position for position, nodeid in enumerate(items)}
        wanted = self.clauses.get(column)
        return [nodeid for nodeid, item in items.items() if wanted in (None, _clause(item))]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            position = self.positions[report.nodeid]
            self.write(mutant=column_of(report), test=report.nodeid, position=position)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for column, tally in session.config.stash[VERDICTS].tallies.items():
            self.write(mutant=column, tests=len(tally.results), broken=tally.broken)

    def write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)


def _clause(item: pytest.Item) -> str:
    mark = item.get_closest_marker("clause")
    return mark.args[0].id if mark else ""


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(pytest.main(sys.argv[2:], plugins=[Record(given)]))
