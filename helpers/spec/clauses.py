# SPDX-License-Identifier: GPL-2.0-only
"""The clauses of clauses.toml: each checkable statement, with the document that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.spec.table import read

Level = Literal["documented", "required", "architectural", "observed"]
LEVELS: dict[Level, str] = {
    "documented": "Linux's Documentation/virt/kvm makes the statement",
    "required": "this suite makes the statement, and no document does",
    "architectural": "the processor manuals make the statement",
    "observed": "no document makes the statement: the reference kernel behaves so",
}


@dataclass(frozen=True, slots=True)
class Clause:
    """One checkable statement.

    ``source`` names document and section, or file and function. ``since`` is the first kernel
    version that owes the clause. ``unchecked`` says why no x86 kernel can break the clause; empty
    for a clause that has tests.
    """

    id: str
    level: Level
    since: str
    source: str
    text: str
    unchecked: str = ""


CLAUSES = read(Path(__file__).with_name("clauses.toml"), Clause)
