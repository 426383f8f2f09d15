"""The clauses of clauses.toml: every checkable statement, where it stands, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.spec.table import read

Level = Literal["documented", "required", "architectural", "observed"]
LEVELS: dict[Level, str] = {
    "documented": "Linux's Documentation/virt/kvm says so",
    "required": "asked of this suite, though no document says it",
    "architectural": "the processor manuals say so",
    "observed": "no document; what the reference kernel does",
}


@dataclass(frozen=True, slots=True)
class Clause:
    """One checkable statement.

    ``source`` is document and section, or file and function. ``since`` is the first kernel version
    that owes the clause. ``unchecked`` says why no x86 kernel can be held to it.
    """

    id: str
    level: Level
    since: str
    source: str
    text: str
    unchecked: str = ""


CLAUSES = read(Path(__file__).with_name("clauses.toml"), Clause)
