"""Tests by kernels: what a run over several kernels came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Cell:
    """A test on one kernel; ``parts`` are the names of those that show what it did."""

    number: str
    outcome: str
    deviation: str
    parts: list[str] = field(default_factory=list)

    @property
    def shows(self) -> tuple[str, str]:
        """What is compared between kernels: a deviation that did not happen makes no difference."""
        return self.outcome, "" if self.outcome == "passed" else self.deviation


@dataclass
class Row:
    """A test; ``cells`` by column, without those of kernels that did not come to it."""

    name: str
    clause: str
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether kernels that ran the test do not agree."""
        return len({cell.shows for cell in self.cells.values()}) > 1


def ordered(rows: Mapping[str, Row], nodeids: Sequence[str]) -> list[Row]:
    """The rows, which come by node id, in the order of ``nodeids``; others are last."""
    place = {nodeid: number for number, nodeid in enumerate(nodeids)}
    return [rows[nodeid] for nodeid in sorted(rows, key=lambda id: place.get(id, len(place)))]
