# SPDX-License-Identifier: GPL-2.0-only
"""Write KTAP 1: a subtest per file, and with several kernels, one level above it per kernel.

A subtest is written as a whole. The results of the first file that has not ended are written as
they arrive, those of later files wait. Source: Documentation/dev-tools/ktap.rst.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from helpers.ci.ended import Ended

VERSION = "KTAP version 1"
MAX_LINES = 200
"""Diagnostic lines per test."""

# The kernel's parser takes these for the end of a kernel's output, wherever they stand in a line.
_ENDS = ("List of all partitions:", "Kernel panic - not syncing: VFS:", "reboot: System halted")


@dataclass(frozen=True)
class Line:
    """A result line without its number, and the diagnostic lines before it.

    ``directive`` is the text behind the hash sign, such as "SKIP no SMM"; empty for none.
    """

    name: str
    is_ok: bool
    directive: str = ""
    diagnostics: Sequence[str] = ()


@dataclass
class Group:
    """A file of a column. ``owed`` are the tests without a result, ``waiting`` are unwritten.

    ``uncollectable`` is why a file has no tests.
    """

    column: str
    file: str
    owed: dict[str, None]
    waiting: list[Line] = field(default_factory=list)
    uncollectable: str = ""
    size: int = 0
    number: int = 0
    is_ok: bool = True
    is_open: bool = False

    def __post_init__(self) -> None:
        self.size = len(self.owed)


@dataclass
class _Parent:
    """A test whose subtests are files: the document, or the column being written."""

    name: str
    level: int
    number: int = 0
    is_ok: bool = True


class Ktap:
    """One document. ``write`` takes text, whole lines at a time."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._groups: deque[Group] = deque()
        self._sizes: dict[str, int] = {}  # the number of files, by column
        self._root = _Parent("", 0)
        self._column: _Parent | None = None
        self.is_begun = False

    # --- the document -----------------------------------------------------------------------------

    def refuse(self, reason: str, *, is_skip: bool) -> None:
        """Write the document of a run without tests: skipped as a whole, or one failure."""
        if is_skip:
            self._write(f"{VERSION}\n1..0 # SKIP {one_line(reason)}\n")
        else:
            self._write(f"{VERSION}\n1..1\nnot ok 1 run # ERROR {one_line(reason)}\n")
        self.is_begun = True

    def begin(
        self, columns: Mapping[str, Mapping[str, Sequence[str]]], *, may_grow: bool = False
    ) -> None:
        """Write the head: ``columns`` are the tests of each file of each column.

        The column "" alone has no level of its own. Columns may be added if the number of columns
        ``may_grow``; the document has no plan of them then.
        """
        self.is_begun = True
        size = len(columns[""]) if "" in columns else len(columns)
        plan = "" if may_grow else f"1..{size}\n"
        self._write(f"{VERSION}\n{plan}")
        for column, files in columns.items():
            self.add_column(column, files)

    def add_column(self, column: str, files: Mapping[str, Sequence[str]]) -> None:
        """Add a column after the others."""
        self._sizes[column] = len(files)
        for file, tests in files.items():
            self._groups.append(Group(column, file, dict.fromkeys(tests)))

    def uncollectable(self, file: str, reason: str) -> None:
        """Give the reason why a file of the plan has no tests."""
        for group in self._groups:
            if group.file == file:
                group.uncollectable = reason

    def note(self, text: str) -> None:
        """Write ``text`` as a diagnostic line of the document."""
        self._write(f"# {one_line(text)}\n")

    def add(self, ended: Ended) -> None:
        """Add the result of a test. A test outside of the plan is left out."""
        for group in self._groups:
            if (group.column, group.file) == (ended.column, ended.file):
                if group.owed.pop(ended.test, ended) is None:
                    group.waiting.append(line_of(ended))
                    self._flush()
                return

    def finish(self, missing: Callable[[str, str], Line], failure: str) -> None:
        """Write what is left.

        ``missing`` returns the line of a test without a result, by column and node id. ``failure``
        is why the run is not good in spite of its results; empty for a good run.
        """
        for group in self._groups:
            tests = list(group.owed)
            group.owed.clear()
            group.waiting += [missing(group.column, f"{group.file}::{test}") for test in tests]
        self._flush(is_last=True, failure=failure)

    # --- subtests ---------------------------------------------------------------------------------

    def _flush(self, *, is_last: bool = False, failure: str = "") -> None:
        """Write what can be written. The last subtest is closed when the run ends."""
        while self._groups:
            group = self._groups[0]
            self._open(group)
            for line in group.waiting:
                group.number += 1
                group.is_ok &= line.is_ok
                self._write_line(self._parent.level + 1, group.number, line)
            group.waiting.clear()
            is_alone = len(self._groups) == 1
            if group.owed or (is_alone and not is_last):
                return
            has_failed = not (group.is_ok and self._parent.is_ok and self._root.is_ok)
            self._close(group, failure if is_alone and not has_failed else "")

    def _open(self, group: Group) -> None:
        if group.column and self._column is None:
            self._column = _Parent(group.column, 1)
            self._write_head(1, group.column, self._sizes[group.column])
        if not (group.is_open or group.uncollectable):
            group.is_open = True
            self._write_head(self._parent.level + 1, group.file, group.size)

    @property
    def _parent(self) -> _Parent:
        return self._column or self._root

    def _close(self, group: Group, failure: str) -> None:
        error = group.uncollectable or failure
        is_ok = group.is_ok and not error
        self._end(self._parent, Line(group.file, is_ok, f"ERROR {error}" if error else ""))
        self._groups.popleft()
        column = self._column
        if column and not any(each.column == column.name for each in self._groups):
            self._column = None
            self._end(self._root, Line(column.name, column.is_ok))

    def _end(self, parent: _Parent, line: Line) -> None:
        """Write the result of a subtest of ``parent``."""
        parent.number += 1
        parent.is_ok &= line.is_ok
        self._write_line(parent.level, parent.number, line)

    # --- lines ------------------------------------------------------------------------------------

    def _write_head(self, level: int, name: str, size: int) -> None:
        indent = "  " * level
        self._write(f"{indent}{VERSION}\n{indent}# Subtest: {_name(name)}\n{indent}1..{size}\n")

    def _write_line(self, level: int, number: int, line: Line) -> None:
        indent = "  " * level
        said = [_diagnostic(each) for each in line.diagnostics[:MAX_LINES]]
        if more := len(line.diagnostics) - MAX_LINES:
            said += [f"# ... {more} more lines"] if more > 0 else []
        result = f"{'ok' if line.is_ok else 'not ok'} {number} {_name(line.name)}"
        result += f" # {one_line(line.directive)}" if line.directive else ""
        self._write("".join(f"{indent}{each}\n" for each in [*said, result]))


def line_of(ended: Ended) -> Line:
    """Return the result line of a test that has ended."""
    verdict = ended.verdict
    match ended.outcome:
        case "passed":
            note = verdict.note.splitlines() if verdict.backport else ()
            return Line(ended.test, True, diagnostics=note)
        case "skipped":
            return Line(ended.test, True, f"SKIP {ended.reason}")
        case "xfailed":
            return Line(ended.test, True, f"XFAIL {ended.reason}")
        case "timeout":
            return Line(
                ended.test, False, f"TIMEOUT {verdict.timeout:g} seconds", ended.explanation
            )
        case "error":
            return Line(ended.test, False, f"ERROR {ended.reason}", ended.explanation)
    return Line(ended.test, False, diagnostics=ended.explanation)


def one_line(text: str) -> str:
    """Return text with single spaces between its words."""
    return " ".join(text.split())


def _name(text: str) -> str:
    """Return a test's name, in which KTAP allows no hash sign."""
    return one_line(text).replace("#", "%23")


def _diagnostic(text: str) -> str:
    for end in _ENDS:
        text = text.replace(end, end.replace(":", " :"))
    # Three spaces: "# Subtest:" would begin a subtest.
    return f"#   {text}".rstrip()
