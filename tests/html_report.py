# SPDX-License-Identifier: GPL-2.0-only
"""HTML reports for tests to look at: suites to run, and a report's HTML by rows and cells."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.copy_of_the_suite import Run, Suite

TESTS = """
from errno import EINVAL
from helpers.apic import DeliveryMode, Register, TriggerMode
from helpers.verdicts import deviation

@clause("dest.physical")
def test_fails(machine):
    machine[1].configure_vectors(Register.IRR, [0x30, 0x31, 0x32])
    machine.signal(Message(destination=0xFF), flags=1 << 31)
    machine.signal(Message(destination=1, trigger_mode=TriggerMode.LEVEL)).accepted_by(2)

@clause("msi.pad")
@deviation("pad-not-checked")
@pytest.mark.parametrize("index", range(12))
def test_deviates(machine, index):
    pad = bytes(index == byte for byte in range(12))
    machine.signal(Message(destination=1), devid=7, pad=pad).fails(EINVAL)

@clause("return.count")
@pytest.mark.parametrize("vector", range(16, 256))
def test_passes(machine, vector, record_property):
    record_property("recorded", "something")
    machine.signal(Message(vector, destination=1)).returns(1)

@clause("return.count")
def test_passes_on_many_vcpus(machines):
    machine = machines(vcpu_ids=range(20))
    machine.signal(Message(destination=18, delivery_mode=DeliveryMode.NMI)).returns(1)

@clause("return.count")
def test_passes_with_many_messages(machine):
    for vector in range(0x20, 0x30):
        machine.signal(Message(vector)).returns(1)

@clause("return.masked")
def test_is_skipped():
    pytest.skip("a precondition is missing")

@pytest.fixture
def broken(machine):
    raise RuntimeError("a broken fixture")

@clause("return.masked")
def test_has_an_error(broken):
    pass
"""
"""A suite with each outcome."""


@dataclass(frozen=True)
class MatrixRow:
    """The row of a test in the matrix. ``cells`` are HTML, ``unfolded`` are texts."""

    cells: list[str]
    unfolded: list[str]

    @property
    def outcomes(self) -> list[str]:
        return [plain("<td" + cell) for cell in self.cells]


@dataclass(frozen=True)
class Report:
    """The HTML of a report, before a browser runs scripts."""

    run: Run
    text: str

    @cached_property
    def parts(self) -> dict[str, str]:
        found = re.findall(r'<template id="(p\d+)">(.*?)</template>', self.text, re.DOTALL)
        return dict(found)

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Pytest-html's rows by test name, with ``cells`` and ``unfolded`` as HTML."""
        blob = re.search(r'data-jsonblob="([^"]*)"', self.text)
        assert blob
        data = json.loads(html.unescape(blob[1]))
        return {
            nodeid.partition("::")[2]: row
            | {"cells": "".join(row["resultsTableRow"]), "unfolded": self._resolve(row["log"])}
            for nodeid, rows in data["tests"].items()
            for row in rows
        }

    @cached_property
    def matrix(self) -> dict[str, MatrixRow]:
        """The rows of the matrix by test name."""
        found = re.findall(
            r"<tr><td>[^<]*?::([^<]*)<td>[^<]*<td(.*?)(?=<tr|</tbody)", self.text, re.S
        )
        return {html.unescape(test): self._matrix_row(cells.split("<td")) for test, cells in found}

    def _matrix_row(self, cells: list[str]) -> MatrixRow:
        parts = [
            re.findall(r"p\d+", "".join(re.findall('data-parts="(.*?)"', cell))) for cell in cells
        ]
        unfolded = [
            plain(" ".join(self._resolve(self.parts[name]) for name in names)) for names in parts
        ]
        return MatrixRow(cells, unfolded)

    @cached_property
    def overview_markup(self) -> str:
        """The HTML above the results."""
        start, end = (f'<div class="additional-summary {name}">' for name in ("summary", "postfix"))
        return self.text.partition(start)[2].partition(end)[0]

    @property
    def overview(self) -> str:
        return plain(self.overview_markup)

    def _resolve(self, markup: str) -> str:
        return re.sub(
            r"<kvm-part of=(p\d+)></kvm-part>",
            lambda found: self._resolve(self.parts[found[1]]),
            markup,
        )

    def unfolded(self, test: str) -> str:
        """Return the text of a test's unfolded row."""
        return plain(self.rows[test]["unfolded"])


def plain(markup: str) -> str:
    """Return the text of HTML, without runs of spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def report_of(suite: Suite, *arguments: str) -> Report:
    """Run a suite and return its report."""
    run = suite.run("--html=report.html", *arguments)
    file = suite.path / "report.html"
    assert file.exists(), run.output
    return Report(run, file.read_text())


NOT_RUN = "\N{EN DASH}"
"""The text of a cell for a test that did not run."""

SEVERAL = """
import copy
import dataclasses
import pytest
from helpers.verdicts.session import VERDICTS

KERNELS = ["5.10", "6.12", "6.99"]
BROKEN = "it did not come up"
made = {}

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    made["hook"] = session.config.hook
    verdicts = session.config.stash[VERDICTS]
    kernel = verdicts.tallies.pop("").kernel
    for column in KERNELS[:2]:
        verdicts.tally(column).kernel = dataclasses.replace(kernel, release=f"{column}.0-test")
    verdicts.tally(KERNELS[2]).broken = BROKEN

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    # Report each test for two kernels, with some differences.
    if hasattr(report, "kvm_column"):
        return
    report.kvm_column, other = KERNELS[0], copy.copy(report)
    other.kvm_column = KERNELS[1]
    match report.nodeid.partition("::")[2], report.when:
        case "test_passes[16]", "call":
            other.outcome, other.longrepr = "failed", "E   it fails there"
        case "test_passes[17]", "teardown":
            other.outcome, other.longrepr = "failed", "it cannot be torn down"
        case "test_deviates[3]", "call":
            del other.wasxfail
            other.outcome, other.longrepr = "passed", None
            other.kvm_verdict = report.kvm_verdict | {"backport": True}
    made["hook"].pytest_runtest_logreport(report=other)
"""
"""A conftest.py for a report on three kernels, of which the third did not come up."""

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None
)
"""The program that shows pages; None on a machine without Chromium."""

HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'</script></template>"
"""Text that must not become markup."""


def report_on_several(directory: Path) -> Report:
    """Return the report on TESTS on three kernels, of which the third did not come up."""
    suite = Suite(directory / "suite")
    suite.prepare(SEVERAL)
    suite.add(TESTS)
    return report_of(suite)
