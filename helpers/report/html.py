# SPDX-License-Identifier: GPL-2.0-only
"""The HTML of the report. Templates (templates/*.jinja2) escape all text.

Thousands of tests show the same messages, vCPUs and clauses, and pytest-html draws all rows anew at
every click. A *part* is a piece of HTML that the page stores once, in a <template>. Rows refer to
parts by id: <kvm-part of=p12> becomes the content of part p12 when the row is unfolded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from helpers.apic import Message
from helpers.apic.message import LAYOUT
from helpers.report.details import SentMessage
from helpers.report.matrix import Matrix
from helpers.report.run import Phase
from helpers.report.vcpu import facts, ranges, strips
from helpers.spec import CLAUSES, DEVIATIONS, LEVELS
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import CLAUSE_STATES, Tally

TEMPLATES = Path(__file__).with_name("templates")
_ATTRIBUTE = (
    r' (?:[dxy]|points|viewBox|width|fill|stroke|font-size|text-anchor|stroke-width)="[^"<>]*"'
)
_DRAWING = re.compile(rf"(?:</?(?:svg|path|polyline|text)(?:{_ATTRIBUTE})*/?>|[^<>&])*")
OUTCOMES = ("failed", "timeout", "error", "xfailed", "passed", "skipped")


class Writer:
    """Writes one report."""

    def __init__(self) -> None:
        self._parts: dict[Markup, str] = {}  # ids, by content
        self._references: dict[tuple[str, str], Markup] = {}
        self._numbers: dict[tuple[str, str, str], str] = {}
        self._matrix = Matrix()
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(ranges=ranges, part=self.part, drawing=drawing)
        self._templates.globals.update(clauses=CLAUSES, deviations=DEVIATIONS, levels=LEVELS)
        self._templates.globals.update(outcomes=OUTCOMES, states=CLAUSE_STATES, writer=self)
        self._templates.globals.update(facts=facts, fields_of=fields_of, strips=strips)

    def render(self, template: str, **values: object) -> Markup:
        """Return the HTML of a template."""
        return Markup(self._templates.get_template(template).render(values).strip())

    def _part_id(self, html: Markup) -> str:
        return self._parts.setdefault(html, f"p{len(self._parts)}")

    def part(self, html: Markup) -> Markup:
        """Return the element that shows the part with this content, which is stored once."""
        return Markup(f"<kvm-part of={self._part_id(html)}></kvm-part>")

    def part_of(self, template: str, key: str, **values: object) -> Markup:
        """Return the part with a template's HTML, which is rendered once for each ``key``."""
        name = template, key
        if name not in self._references:
            self._references[name] = self.part(self.render(template, **values))
        return self._references[name]

    def number_of(self, phase: Phase) -> str:
        """Return the number of a phase in links (#test=NUMBER); empty for a phase that has none."""
        return self._numbers.get((phase.column, phase.nodeid, phase.when), "")

    # --- the page ---------------------------------------------------------------------------------

    def matrix(self, tallies: Sequence[Tally], nodeids: Sequence[str]) -> Markup:
        """Return the results of several kernels. ``nodeids`` are the tests, in order."""
        columns = [tally.column for tally in tallies]
        return self.render("matrix.jinja2", columns=columns, groups=self._matrix.groups(nodeids))

    def resources(self, files: Sequence[str]) -> Markup:
        """Return all parts, and the CSS and JavaScript ``files``."""
        # The files are this project's own: nothing to escape.
        texts = {name: Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in files}
        return self.render("resources.jinja2", parts=self._parts, texts=texts)

    # --- the results ------------------------------------------------------------------------------

    def header_cells(self) -> list[str]:
        """Return the head of the results table, in pytest-html's form."""
        heads = {"result": "Outcome", "testId": "Test", "clause": "Clause", "duration": "Duration"}
        cell = Markup('<th class="sortable" data-column-type="{}">{}</th>')
        return [cell.format(*column) for column in heads.items()]

    def row_cells(self, phase: Phase, outcome: str, duration: str) -> list[str]:
        """Return a row of the results table. Pytest-html gives ``outcome`` and ``duration``."""
        verdict = phase.verdict or Verdict("")
        key = phase.column, phase.nodeid, phase.when
        number = self._numbers.setdefault(key, str(len(self._numbers)))
        # No markup inside of a cell: pytest-html unfolds the parent of the element clicked.
        test = Markup('<td class="col-testId">{}</td>').format(phase.name)
        if phase.outcome == "timeout":
            outcome = '<td class="col-result">Timeout</td>'
        clause = Markup('<td class="col-clause" data-test="{}" data-deviation="{}">{}</td>').format(
            number, verdict.deviation, verdict.clause
        )
        return [outcome, test, clause, duration]

    def add_cell(self, phase: Phase, log: str) -> None:
        """Add a phase to the matrix. ``log`` is the traceback and captured output, plain text."""
        parts = [self._part_id(self.render("test.jinja2", phase=phase))]
        if log:
            lines = Markup("\n").join(map(_traceback_line, log.splitlines()))
            parts.append(self._part_id(self.render("log.jinja2", log=lines)))
        cell = self._matrix.add(phase, number=str(len(self._numbers)), parts=parts)
        self._numbers[phase.column, phase.nodeid, phase.when] = cell.number

    def test(self, phase: Phase, log: Markup) -> Markup:
        """Return the unfolded row of a phase. ``log`` is the traceback and captured output."""
        shown = self.part(self.render("test.jinja2", phase=phase))
        return shown + self.render("log.jinja2", log=log) if log else shown

    def message(self, sent: SentMessage, number: int) -> Markup:
        """Return a message with its effects. ``number`` counts from 1; 0 for the only message."""
        decoded = Message.decode(*sent["words"])
        words = dict(zip(("address_lo", "address_hi", "data"), sent["words"], strict=True))
        summary = repr(decoded).removeprefix("<Message ").removesuffix(">")
        values = {"sent": sent, "number": number, "summary": summary}
        return self.render("message.jinja2", words=words, decoded=decoded, **values)

    def trace(self, lines: Iterable[str]) -> Markup:
        """Return an ioctl trace. Indented lines are a part, since most tests have the same."""
        html = Markup()
        for is_indented, run in groupby(lines, key=lambda line: line.startswith(" ")):
            text = Markup("\n").join(map(_trace_line, run))
            html += (self.part(text) if is_indented else text) + "\n"
        return html


def _trace_line(line: str) -> str:
    is_message = line.startswith("KVM_SIGNAL_MSI")
    return Markup(f"<b>{escape(line)}</b>") if is_message else line


def _traceback_line(line: str) -> str:
    """Return a line with pytest-html's colour for errors."""
    return Markup(f'<span class="error">{escape(line)}</span>') if line.startswith("E") else line


def drawing(value: object) -> Markup:
    """Return an SVG that is lines and texts alone as it is. All else is escaped, as text is."""
    text = str(value)
    return Markup(text) if _DRAWING.fullmatch(text) else escape(text)


def fields_of(decoded: Message, word: str) -> list[tuple[str, str, str, str]]:
    """Return (bits, name, value, meaning) of each field in ``word`` of a message."""
    return [
        (bits, name, value, field.meaning)
        for field, (_, bits, name, value) in zip(LAYOUT, decoded.decoded(), strict=True)
        if field.word == word
    ]
