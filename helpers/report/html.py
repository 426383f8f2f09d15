"""Plain data to HTML. All text goes through templates that escape it (templates/*.jinja2).

A report has thousands of tests that show the same messages, vCPUs and clauses, and pytest-html
draws all its rows anew at every click. So each distinct part is stored once, in a <template>, and
rows name the parts they show: <kvm-part of=p12> becomes part p12 when its row is unfolded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from helpers.apic import Message
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, SVR_ENABLE
from helpers.apic.message import LAYOUT
from helpers.report.details import Details, Failed, Sent, State, VcpuChange
from helpers.report.matrix import Cell, Row, ordered
from helpers.spec import CLAUSES, DEVIATIONS, LEVELS
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import CLAUSE_STATES, Tally

TEMPLATES = Path(__file__).with_name("templates")
OUTCOMES = ("failed", "error", "xfailed", "passed", "skipped")


@dataclass(frozen=True)
class TestResult:
    """One phase of a test, as reported."""

    __test__ = False  # pytest collects classes of this name otherwise

    nodeid: str
    when: str
    outcome: str
    column: str = ""
    verdict: Verdict | None = None
    details: Details | None = None
    properties: Sequence[tuple[str, object]] = ()
    message: str = ""

    @property
    def test(self) -> str:
        """The test id, without the directory all of them share."""
        return self.nodeid.removeprefix("suites/")

    @property
    def name(self) -> str:
        """The test, and the phase if it is another than its call."""
        phase = f"::{self.when}" if self.when in ("setup", "teardown") else ""
        return self.test + phase

    @property
    def mismatch(self) -> Failed | None:
        """What was compared, if that is what the test failed by."""
        return self.details["mismatch"] if self.details else None

    @property
    def reason(self) -> str:
        """Why it failed or was skipped, if not by a mismatch."""
        return self.message or (self.details["error"] if self.details else "")


@dataclass(frozen=True)
class Run:
    """A whole run; it has several ``tallies`` where it judges several kernels."""

    tallies: Sequence[Tally]
    irqchips: Sequence[str]
    started: datetime
    command: str
    environment: dict[str, Any]
    cut_short: str
    failures: Sequence[TestResult]

    @property
    def totals(self) -> Counter[str]:
        """How many tests had which outcome, on all kernels."""
        return sum((tally.totals for tally in self.tallies), Counter())

    @property
    def is_good(self) -> bool:
        """Whether every kernel was judged to the end, and found as expected."""
        judged = all(tally.judged and not tally.broken for tally in self.tallies)
        return judged and not self.failures and not self.cut_short

    @property
    def failing(self) -> list[str]:
        """The columns with failures."""
        return [
            tally.column
            for tally in self.tallies
            if tally.totals["failed"] or tally.totals["error"]
        ]

    @property
    def clause_states(self) -> list[dict[str, str]]:
        """The states of all clauses, kernel by kernel."""
        return [tally.clause_states() for tally in self.tallies]

    @property
    def tested(self) -> set[str]:
        """The clauses that have tests."""
        return {id for tally in self.tallies for id in tally.outcomes}

    @property
    def capabilities(self) -> list[str]:
        """The names of those that any kernel was asked for."""
        kernels = (tally.kernel for tally in self.tallies)
        return list(
            dict.fromkeys(name for kernel in kernels if kernel for name in kernel.capabilities)
        )


class Writer:
    """Writes one report."""

    def __init__(self) -> None:
        self._parts: dict[Markup, str] = {}
        self._rendered: dict[tuple[str, str], Markup] = {}
        self._places: dict[tuple[str, str, str], str] = {}
        self._matrix: dict[str, Row] = {}
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(ranges=ranges, part=self.part)
        self._templates.globals.update(
            clauses=CLAUSES,
            deviations=DEVIATIONS,
            levels=LEVELS,
            outcomes=OUTCOMES,
            states=CLAUSE_STATES,
            message=self.message,
            part_of=self.part_of,
            place_of=self.place_of,
            trace=self.trace,
            facts=facts,
            fields_of=fields_of,
            strips=strips,
        )

    def render(self, template: str, **values: object) -> Markup:
        """A template, filled in; a part of a page, so safe to put into another."""
        return Markup(self._templates.get_template(template).render(values).strip())

    def part(self, html: Markup) -> Markup:
        """What stands where ``html`` is to be shown."""
        return Markup(f"<kvm-part of={self._name(html)}></kvm-part>")

    def _name(self, html: Markup) -> str:
        return self._parts.setdefault(html, f"p{len(self._parts)}")

    def part_of(self, template: str, key: str, **values: object) -> Markup:
        """The part that ``template`` makes of ``values``, of which there is one set for ``key``."""
        name = template, key
        if name not in self._rendered:
            self._rendered[name] = self.part(self.render(template, **values))
        return self._rendered[name]

    def place_of(self, result: TestResult) -> str:
        """Where a link leads to that result, #test=...; empty if it is shown nowhere."""
        return self._places.get((result.column, result.nodeid, result.when), "")

    def _new_place(self, result: TestResult, number: str = "") -> str:
        place = result.column, result.nodeid, result.when
        return self._places.setdefault(place, number or str(len(self._places)))

    # --- the page ---------------------------------------------------------------------------------

    def overview(self, run: Run) -> Markup:
        """The run, its failures, the clauses, and the known deviations that were met."""
        return self.render("overview.jinja2", run=run)

    def results_bar(self) -> Markup:
        """What stands above the results table: heading, search, what is filtered."""
        return self.render("results_bar.jinja2")

    def matrix(self, tallies: Sequence[Tally], nodeids: Sequence[str]) -> Markup:
        """The results of several kernels, in place of the results table; ``nodeids`` order them."""
        rows = ordered(self._matrix, nodeids)
        return self.render(
            "matrix.jinja2",
            columns=[tally.column for tally in tallies],
            groups={
                differ: [row for row in rows if row.differs is differ] for differ in (True, False)
            },
        )

    def resources(self, files: Sequence[str]) -> Markup:
        """All parts, and the styles and scripts that the rest relies on."""
        # Our own files, so nothing to escape.
        texts = {name: Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in files}
        return self.render("resources.jinja2", parts=self._parts, texts=texts)

    # --- the results table ------------------------------------------------------------------------

    def header_cells(self) -> list[str]:
        """The head of the results table, in pytest-html's form."""
        columns = {"result": "Outcome", "testId": "Test", "clause": "Clause"}
        columns["duration"] = "Duration"
        cell = Markup('<th class="sortable" data-column-type="{}">{}</th>')
        return [cell.format(*column) for column in columns.items()]

    def row_cells(self, result: TestResult, outcome: str, duration: str) -> list[str]:
        """A row of the results table; ``outcome`` and ``duration`` are pytest-html's own cells."""
        verdict = result.verdict or Verdict("")
        # Text only: pytest-html unfolds a row by the parent of what was clicked.
        test = Markup('<td class="col-testId">{}</td>').format(result.name)
        clause = Markup('<td class="col-clause" data-test="{}" data-deviation="{}">{}</td>').format(
            self._new_place(result), verdict.deviation, verdict.clause
        )
        return [outcome, test, clause, duration]

    def add_cell(self, result: TestResult, log: str) -> None:
        """Add a result to the matrix; ``log`` as for :meth:`test`, but plain text."""
        verdict = result.verdict or Verdict("")
        row = self._matrix.setdefault(result.nodeid, Row(result.test, verdict.clause))
        cell = row.cells.get(result.column)
        number = self._new_place(result, cell.number if cell else "")
        if cell is None:
            cell = Cell(number, result.outcome, verdict.deviation)
            row.cells[result.column] = cell
        elif result.outcome == "error":
            cell.outcome = result.outcome
        cell.parts.append(
            self._name(self.render("test.jinja2", result=result, details=result.details))
        )
        if log:
            lines = Markup("\n").join(_reddened(line) for line in log.splitlines())
            cell.parts.append(self._name(self.render("log.jinja2", log=lines)))

    def test(self, result: TestResult, log: Markup) -> Markup:
        """What a test did; ``log`` is what pytest has to say: traceback, captured output."""
        shown = self.part(self.render("test.jinja2", result=result, details=result.details))
        return shown + self.render("log.jinja2", log=log) if log else shown

    def message(self, sent: Sent, number: int) -> Markup:
        """A message of a test, the ``number``-th."""
        decoded = Message.decode(*sent["words"])
        words = dict(zip(("address_lo", "address_hi", "data"), sent["words"], strict=True))
        summary = repr(decoded).removeprefix("<Message ").removesuffix(">")
        values = {"sent": sent, "number": number, "summary": summary}
        return self.render("message.jinja2", words=words, decoded=decoded, **values)

    def trace(self, lines: Iterable[str]) -> Markup:
        """An ioctl trace; what was done to several vCPUs is the same in most tests."""
        html = Markup()
        for is_indented, run in groupby(lines, key=lambda line: line.startswith(" ")):
            text = Markup("\n").join(map(_marked, run))
            html += (self.part(text) if is_indented else text) + "\n"
        return html


def _marked(line: str) -> str:
    is_message = line.startswith("KVM_SIGNAL_MSI")
    return Markup(f"<b>{escape(line)}</b>") if is_message else line


def _reddened(line: str) -> str:
    """A line of a traceback, as pytest-html has it."""
    return Markup(f'<span class="error">{escape(line)}</span>') if line.startswith("E") else line


def fields_of(decoded: Message, word: str) -> list[tuple[str, str, str, str]]:
    """The fields of one word of a message: bits, name, value, meaning."""
    return [
        (bits, name, value, field.meaning)
        for field, (_, bits, name, value) in zip(LAYOUT, decoded.decoded(), strict=True)
        if field.word == word
    ]


# --- vCPUs ----------------------------------------------------------------------------------------


def facts(state: State) -> dict[str, str]:
    """A vCPU's registers and what else is known of it but for its vectors, name to text."""
    shown = {name: _register(name, value) for name, value in state["registers"].items()}
    shown["pending"] = " ".join(state["pending"]) or "none"
    shown["mp_state"] = state["mp_state"]
    return shown


def _register(name: str, value: int) -> str:
    match name:
        case "SVR":
            return f"{value:#x} {'enabled' if value & SVR_ENABLE else 'software-disabled'}"
        case "DFR":
            return {DFR_FLAT: "flat", DFR_CLUSTER: "cluster"}.get(value, f"{value:#x}")
        case "ID" | "LDR":
            return f"{value:#010x}"
    return f"{value:#04x}"


@dataclass(frozen=True)
class Strip:
    """A 256-bit register as a picture: 256 wide, before in the upper half, after in the lower."""

    name: str
    before: Sequence[int]
    after: Sequence[int]

    @property
    def kept(self) -> list[int]:
        return sorted(set(self.before) & set(self.after))

    @property
    def gained(self) -> list[int]:
        return sorted(set(self.after) - set(self.before))

    @property
    def lost(self) -> list[int]:
        return sorted(set(self.before) - set(self.after))

    @property
    def marks(self) -> dict[str, str]:
        """SVG paths by CSS class."""
        lanes = {"kept": (0, 12), "lost": (0, 6), "gained": (6, 6)}
        marks = {}
        for name, (top, height) in lanes.items():
            if vectors := getattr(self, name):
                runs = ((first, last - first + 1) for first, last in _runs(vectors))
                marks[name] = "".join(
                    f"M{first} {top}h{width}v{height}h-{width}z" for first, width in runs
                )
        return marks


def strips(change: VcpuChange) -> list[Strip]:
    """The vector registers of a vCPU, but for those that are and were empty."""
    before, after = change["before"], change["after"] or change["before"]
    every = [
        Strip("IRR", before["irr"], after["irr"]),
        Strip("ISR", before["isr"], after["isr"]),
        Strip("TMR", before["tmr"], after["tmr"]),
    ]
    return [strip for strip in every if strip.before or strip.after]


def ranges(vectors: Iterable[int]) -> str:
    """``0x41 0x60-0x7f`` for sorted vectors."""
    return " ".join(
        f"{first:#04x}" if first == last else f"{first:#04x}-{last:#04x}"
        for first, last in _runs(vectors)
    )


def _runs(vectors: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The runs of successive numbers in sorted ``vectors``: (first, last)."""
    for _, run in groupby(enumerate(vectors), key=lambda numbered: numbered[1] - numbered[0]):
        numbers = [number for _, number in run]
        yield numbers[0], numbers[-1]
