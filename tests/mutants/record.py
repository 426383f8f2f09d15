# SPDX-License-Identifier: GPL-2.0-only
"""Run pytest on mutants: ``python -m tests.mutants.record JOB PYTEST-OPTION ...``.

JOB is a JSON file {"clauses": {mutant id: clause id}, "functions": {mutant id: function},
"caught": [test], "quick": number, "record": path}.
A mutant in ``clauses`` gets the tests of its clause, any other the whole suite. The tests of a
mutant in ``functions`` have the order of order.py, which describes ``caught`` and ``quick``.

The record has a line of JSON per failure, {"mutant", "test", "position": index in the suite,
"reason": the first line of the failure}, and a last line per mutant, {"mutant", "tests": number of
tests run, "broken": why there is no result}.
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
from tests.mutants.order import by_defects_per_second


class Record:
    """The plugin that selects the tests and writes the record."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.clauses: dict[str, str] = job["clauses"]
        self.functions: dict[str, str] = job["functions"]
        self.caught = frozenset(job["caught"])
        self.quick: int = job["quick"]
        self.path = Path(job["record"])
        self.positions: dict[str, dict[str, int]] = {}

    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str]:
        """Return the ids of the tests that a column runs; a column is a mutant."""
        tests = self._tests_of(column, items)
        known = self.positions.setdefault(column, {})  # a column may have two boots
        known |= {nodeid: position for position, nodeid in enumerate(tests, len(known))}
        return tests

    def _tests_of(self, column: str, items: Mapping[str, pytest.Item]) -> Sequence[str]:
        if wanted := self.clauses.get(column):
            return [nodeid for nodeid, item in items.items() if wanted == _clause(item)]
        function = self.functions.get(column)
        if function is None:
            return list(items)
        return by_defects_per_second(items, function, self.caught, self.quick)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            column = column_of(report)
            self.write(
                mutant=column,
                test=report.nodeid,
                position=self.positions[column][report.nodeid],
                reason=_reason(report),
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for column, tally in session.config.stash[VERDICTS].tallies.items():
            self.write(mutant=column, tests=len(tally.results), broken=tally.broken)

    def write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)


def _reason(report: Any) -> str:
    """Return the first line of a failure; for a dead kernel, how it died."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)  # Reports.lose() writes a string
    return str(text.splitlines()[0].partition(" in this test")[0])


def _clause(item: pytest.Item) -> str:
    mark = item.get_closest_marker("clause")
    return mark.args[0].id if mark else ""


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(pytest.main(sys.argv[2:], plugins=[Record(given)]))
