# SPDX-License-Identifier: GPL-2.0-only
"""The results of a run over several kernels: a row for each test, a column for each kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from helpers.report.run import Phase
from helpers.verdicts.reports import Verdict


@dataclass
class Cell:
    """A test on one kernel.

    ``number`` is the cell's number in links, ``parts`` are the ids of the parts (see html.py) that
    the cell unfolds to.
    """

    number: str
    outcome: str
    deviation: str
    parts: list[str] = field(default_factory=list)


@dataclass
class Row:
    """A test. ``cells`` are by column; a kernel that did not run the test has none."""

    name: str
    clause: str
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether kernels that ran the test disagree on the outcome, or show other deviations."""
        cells = self.cells.values()
        return (
            len({(cell.outcome, cell.outcome != "passed" and cell.deviation) for cell in cells}) > 1
        )


class Matrix:
    """The rows of all tests, by node id."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, phase: Phase, number: str, parts: Iterable[str]) -> Cell:
        """Add a phase to its test's cell and return the cell. ``number`` is for a new cell."""
        verdict = phase.verdict or Verdict("")
        cells = self.rows.setdefault(phase.nodeid, Row(phase.test, verdict.clause)).cells
        if phase.column not in cells:
            cells[phase.column] = Cell(number, phase.outcome, verdict.deviation)
        elif phase.outcome == "error":
            cells[phase.column].outcome = phase.outcome
        cells[phase.column].parts.extend(parts)
        return cells[phase.column]

    def groups(self, nodeids: Sequence[str]) -> dict[bool, list[Row]]:
        """Return the rows by ``differs``, in the order of ``nodeids``. Other rows are last."""
        ordered = dict.fromkeys([*nodeids, *self.rows])
        rows = [self.rows[nodeid] for nodeid in ordered if nodeid in self.rows]
        return {
            differs: [row for row in rows if row.differs is differs] for differs in (True, False)
        }
