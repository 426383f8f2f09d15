"""The HTML report: what stands in it, that it is escaped, that its links work, and its size."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from helpers.kvm import abi
from helpers.kvm.ioctl import Call
from helpers.report.details import collapse
from helpers.report.html import Strip, ranges
from helpers.spec import CLAUSES, DEVIATIONS
from tests.copy_of_the_suite import Run, Suite, run_pytest

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


@dataclass(frozen=True)
class MatrixRow:
    """A test's row in the report of several kernels; ``unfolded`` as text, the others as HTML."""

    cells: list[str]
    unfolded: list[str]

    @property
    def outcomes(self) -> list[str]:
        return [plain("<td" + cell) for cell in self.cells]


@dataclass(frozen=True)
class Report:
    """A report as a browser sees it, before its scripts run."""

    run: Run
    text: str

    @cached_property
    def parts(self) -> dict[str, str]:
        found = re.findall(r'<template id="(p\d+)">(.*?)</template>', self.text, re.DOTALL)
        return dict(found)

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """pytest-html's rows by test name, with ``cells`` and ``unfolded`` as HTML."""
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
        """The rows of the report of several kernels, by test name."""
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
        """What stands above the results table."""
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
        """The text that a test's row unfolds to, without markup."""
        return plain(self.rows[test]["unfolded"])


def plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def report_of(suite: Suite, *arguments: str) -> Report:
    run = suite.run("--html=report.html", *arguments)
    file = suite.path / "report.html"
    assert file.exists(), run.output
    return Report(run, file.read_text())


@pytest.fixture(scope="module", params=[0, 2], ids="-n{}".format)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a run of TESTS, in one process and with workers."""
    suite = Suite(tmp_path_factory.mktemp("report") / "suite")
    suite.add(TESTS)
    return report_of(suite, "-n", str(request.param))


# --- the overview ---------------------------------------------------------------------------------


def test_kernel_and_command_are_named(report):
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert f'<title id="head-title">KVM_SIGNAL_MSI on Linux {release}' in report.text
    assert f"Kernel Linux {release}" in report.overview
    assert "KVM_CAP_SIGNAL_MSI = 1" in report.overview
    assert "irqchip full" in report.overview
    assert "suites --html=report.html -n" in report.overview


def test_every_clause_is_listed_with_its_text_and_source(report):
    for clause in CLAUSES.values():
        assert " ".join(f"{clause.id} {clause.text}".split()) in report.overview
        assert clause.source in report.overview


@pytest.mark.parametrize(
    "clause, state, counts",
    [
        ("msi.pad", "deviates", "12 xfailed"),
        ("return.count", "holds", "242 passed"),
        ("dest.physical", "broken", "1 failed"),
        ("return.masked", "broken", "1 error 1 skipped"),
        ("msi.flags", "not tested", ""),
    ],
)
def test_clause_has_its_state_and_counts(report, clause, state, counts):
    entry = CLAUSES[clause]
    row = f"{clause} {entry.text} {entry.source} {entry.since} {state} {counts}"
    assert row.strip() in report.overview


def test_known_deviation_that_happened_is_listed(report):
    entry = DEVIATIONS["pad-not-checked"]
    row = f"{entry.id} {entry.condition} {entry.summary} {entry.evidence} not fixed 12"
    assert row in report.overview


def test_failures_are_listed_with_what_happened(report):
    assert "test_fails dest.physical effect on vCPU 1: expected nothing" in report.overview
    assert "test_has_an_error::setup return.masked RuntimeError: a broken" in report.overview


def test_clause_is_linked_to_its_tests(report):
    linked = set(re.findall(r'href="#clause=([^"]*)"', report.overview_markup))
    named = {row["clause"] for row in report.rows.values()}
    assert linked == named


def test_failure_is_linked_to_its_row(report):
    [number] = re.findall(r'href="#test=(\d+)">test_it.py::test_fails<', report.text)
    assert f'data-test="{number}"' in report.rows["test_fails"]["cells"]


# --- the results ----------------------------------------------------------------------------------


def test_row_has_outcome_test_clause_and_duration(report):
    assert re.fullmatch(
        r"Passed test_it.py::test_passes\[16\] return.count \d+ ms",
        plain(" ".join(report.rows["test_passes[16]"]["resultsTableRow"])),
    )


def test_failed_test_says_what_was_expected_and_what_happened(report):
    shown = report.unfolded("test_fails")
    assert f"Clause dest.physical {CLAUSES['dest.physical'].text} architectural:" in shown
    assert "Expected effect on vCPU 1: nothing" in shown
    assert "Happened effect on vCPU 1: IRR SET {0x41}, TMR SET {0x41}" in shown
    assert "Repeat pytest suites/test_it.py::test_fails" in shown


def test_failed_test_says_what_the_model_says_of_its_last_message(report):
    shown = report.unfolded("test_fails")
    assert "What the model says of the last message rules that applied: 1. address_hi is" in shown
    assert f"here: 0x1 is vCPU 1 [dest.physical] {CLAUSES['dest.physical'].source}" in shown
    assert (
        "outcome on the reference kernel: returns 1"
        " vCPU 1 accepts the message: IRR SET {0x41}, TMR SET {0x41} no change on vCPU 0, 2, 3"
    ) in shown
    assert "\n  vCPU 1 accepts the message: IRR SET {0x41}" in report.rows["test_fails"]["unfolded"]


def test_known_deviation_says_what_the_model_says(report):
    shown = report.unfolded("test_deviates[0]")
    assert "What the model says of this message rules that applied: 1. devid and padding" in shown
    assert "here: devid 0x7, padding 010000000000000000000000 [abi.ignored]" in shown


@pytest.mark.parametrize("test", ["test_passes[200]", "test_has_an_error", "test_is_skipped"])
def test_others_have_no_prediction(report, test):
    assert "model" not in report.unfolded(test)


def test_message_is_decoded(report):
    shown = report.unfolded("test_fails")
    assert "1. FIXED vector 0x41, to physical 0xff, flags 0x80000000 returned -1 EINVAL" in shown
    assert "2. FIXED vector 0x41, to physical 0x1, level-triggered returned 1" in shown
    assert "data 0x00008041 31:16 data_reserved_31_16 0x0 15 trigger_mode 0x1 LEVEL" in shown


def test_vcpus_are_shown_before_and_after(report):
    shown = report.unfolded("test_fails")
    assert "vCPU 0 unchanged ID 0x00000000 SVR 0x1ff enabled LDR 0x01000000 DFR flat" in shown
    assert "vCPU 1 IRR SET {0x41}, TMR SET {0x41} ID 0x01000000" in shown
    assert "IRR + 0x41 0x30-0x32" in shown
    assert '<path class="gained" d="M65 6h1v6h-1z"/>' in report.rows["test_fails"]["unfolded"]
    assert '<path class="kept" d="M48 0h3v12h-3z"/>' in report.rows["test_fails"]["unfolded"]


def test_trace_is_shown(report):
    shown = report.unfolded("test_fails")
    assert re.search(r"KVM_SIGNAL_MSI\(fd \d+, address_lo=0xfee01000, .* = 1", shown)
    assert re.search(r"with fd \d+, \d+, \d+, \d+: KVM_GET_LAPIC\(fd, kvm_lapic_state\) = 0", shown)


def test_known_deviation_is_explained(report):
    entry = DEVIATIONS["pad-not-checked"]
    shown = report.unfolded("test_deviates[0]")
    assert "Expected return value: -1 EINVAL" in shown
    assert f"Known deviation {entry.id} {entry.summary} Kernels: {entry.condition}." in shown
    assert "devid 0x7, pad 010000000000000000000000 returned 1" in shown


def test_journal_is_the_test_s_own(report):
    shown = report.rows["test_passes[200]"]["unfolded"]
    assert shown.count("<h4>") == 1
    assert "FIXED vector 0xc8, to physical 0x1" in shown
    assert "Recorded recorded: something" in plain(shown)


def test_vcpu_with_an_effect_comes_first_and_the_others_are_counted(report):
    shown = report.unfolded("test_passes_on_many_vcpus")
    assert re.findall(r"vCPU (\d+)", shown) == ["18", "0", "1", "2", "3", "4", "5", "6"]
    assert "pending none → NMI" in shown
    assert "12 more vCPUs are left out; the message changed none of them." in shown


def test_messages_left_out_are_counted(report):
    shown = report.unfolded("test_passes_with_many_messages")
    assert "The last 12 of 16 messages:" in shown
    assert "12. FIXED vector 0x2f" in shown


def test_skip_and_error_say_why(report):
    assert "Not run Skipped: a precondition is missing" in report.unfolded("test_is_skipped")
    assert "RuntimeError: a broken fixture" in report.unfolded("test_has_an_error")


def test_report_of_thousands_of_tests_is_small_enough(report):
    style_script_and_clauses = 200_000
    per_test = (len(report.text) - style_script_and_clauses) / len(report.rows)
    assert per_test * 3000 < 10_000_000


# --- several kernels ------------------------------------------------------------------------------

NOT_RUN = "\N{EN DASH}"

SEVERAL = """
import copy
import dataclasses
import pytest
from helpers.verdicts.plugin import VERDICTS

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
    # What was run once is reported of two kernels, with some differences.
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


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of TESTS on three kernels, of which one did not come up."""
    suite = Suite(tmp_path_factory.mktemp("several") / "suite")
    suite.prepare(SEVERAL)
    suite.add(TESTS)
    return report_of(suite)


def test_kernels_are_side_by_side(several):
    assert '<title id="head-title">KVM_SIGNAL_MSI on 3 kernels</title>' in several.text
    assert "5.10 6.12 6.99 Kernel 5.10.0-test 6.12.0-test KVM" in several.overview
    assert (
        "Tests 1 failed 1 error 12 xfailed 242 passed 1 skipped"
        " 2 failed 2 error 11 xfailed 242 passed 1 skipped none not judged irqchip"
    ) in several.overview


def test_headline_is_over_all_kernels(several):
    assert several.overview.startswith(
        "6 failures on 5.10, 6.12. 484 passed, 23 showed a known deviation, 2 were skipped. "
        "6.99 could not be judged: it did not come up"
    )


def test_failure_names_its_kernel(several):
    assert "6.12 test_it.py::test_passes[16] return.count E it fails" in several.overview
    assert "6.12 test_it.py::test_passes[17]::teardown return.count it cannot" in several.overview
    assert "5.10 test_it.py::test_fails dest.physical" in several.overview
    assert "6.12 test_it.py::test_fails dest.physical" in several.overview


def test_clause_has_a_state_per_kernel(several):
    entry = CLAUSES["return.count"]
    row = f"return.count {entry.text} {entry.source} {entry.since} holds broken not tested"
    assert row in several.overview
    assert 'title="1 failed 1 error 241 passed">broken</td>' in several.overview_markup


def test_deviations_and_backports_are_counted_per_kernel(several):
    deviations, backports = several.overview.partition("Known deviations These")[2].split(
        "Backports These"
    )
    assert deviations.strip().endswith(f"not fixed 12 11 {NOT_RUN}")
    assert backports.endswith(f"not fixed {NOT_RUN} 1 {NOT_RUN}")


def test_every_test_has_a_row_and_every_kernel_a_cell(several):
    assert len(several.matrix) == 257
    assert several.matrix["test_passes[18]"].outcomes == ["passed", "passed", NOT_RUN]
    assert several.matrix["test_has_an_error"].outcomes == ["error", "error", NOT_RUN]
    assert several.matrix["test_passes[17]"].outcomes == ["passed", "error", NOT_RUN]
    assert several.matrix["test_deviates[3]"].outcomes == ["xfailed", "passed", NOT_RUN]
    for cell in several.matrix["test_deviates[3]"].cells[:2]:
        assert 'title="pad-not-checked"' in cell


def test_tests_that_differ_come_first(several):
    differ = ["test_deviates[3]", "test_passes[16]", "test_passes[17]"]
    same = ["test_fails", "test_deviates[0]", "test_deviates[1]", "test_deviates[2]"]
    assert list(several.matrix)[:7] == differ + same
    assert "Tests that differ <span>3</span>" in several.text


def test_cell_leads_to_what_the_test_did_on_that_kernel(several):
    here, there, _ = several.matrix["test_passes[16]"].unfolded
    assert "Happened as the clause says" in here
    assert "Happened E it fails there" in there
    assert "Python traceback and captured output" in there
    for shown in (here, there):
        assert f"Clause return.count {CLAUSES['return.count'].text}" in shown
        assert "FIXED vector 0x10, to physical 0x1 returned 1" in shown
        assert "vCPU 1 IRR SET {0x10}" in shown
        assert "KVM_SIGNAL_MSI(fd" in shown


def test_details_of_a_test_that_cannot_be_torn_down_have_both_phases(several):
    _, shown, _ = several.matrix["test_passes[17]"].unfolded
    assert "Happened as the clause says" in shown
    assert "Happened it cannot be torn down" in shown


def test_test_that_killed_its_kernel_has_a_cell(suite):
    suite.prepare(
        SEVERAL
        + """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(call):
    report = yield
    if call.when == "call":
        del report.kvm_details
        report.outcome, report.longrepr = "failed", "Its last words: Oops"
    return report
"""
    )
    suite.add('@clause("return.count")\ndef test_dies():\n    pass\n')
    [shown, *_] = report_of(suite).matrix["test_dies"].unfolded
    assert "Happened Its last words: Oops Repeat pytest suites/test_it.py::test_dies" in shown


def test_file_that_cannot_be_collected_is_listed(suite):
    suite.prepare(SEVERAL)
    suite.add("raise OSError('no such thing')")
    report = report_of(suite)
    assert "1 failure." in report.overview
    assert "OSError: no such thing" in report.overview


def test_failure_is_linked_to_its_cell(several):
    link = r'<b>6.12</b>\s+<a href="#test=(\d+)">test_it.py::test_passes\[16\]<'
    [number] = re.findall(link, several.overview_markup)
    assert f"<a href=#test={number} " in several.matrix["test_passes[16]"].cells[1]


def test_what_kernels_share_is_stored_once(several, report):
    assert several.rows == {}
    assert len(several.text) < 1.3 * len(report.text)


def test_one_booted_kernel_has_the_report_of_a_running_one(suite):
    suite.prepare("""
import pytest
from helpers.verdicts.plugin import VERDICTS

def pytest_sessionstart(session):
    verdicts = session.config.stash[VERDICTS]
    verdicts.tally("6.12").kernel = verdicts.tallies.pop("").kernel

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    report.kvm_column = "6.12"
""")
    suite.add(TESTS)
    report = report_of(suite)
    assert 'id="kvm-matrix"' not in report.text
    assert len(report.rows) == 257
    assert "242 passed" in report.overview
    [number] = re.findall(r'href="#test=(\d+)">test_it.py::test_fails<', report.text)
    assert f'data-test="{number}"' in report.rows["test_fails"]["cells"]


# --- escaping -------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'</script></template>"


def test_nothing_from_outside_becomes_markup(suite):
    suite.prepare(f"""
import dataclasses
import helpers.verdicts.kernel as k

real = k.running_kernel()
hostile = dataclasses.replace(
    real, release={HOSTILE!r}, vendor={HOSTILE!r}, cpu={HOSTILE!r},
    parameters={{"kvm.x": {HOSTILE!r}}}, capabilities=real.capabilities | {{{HOSTILE!r}: 1}},
)
import helpers.verdicts.plugin
helpers.verdicts.plugin.running_kernel = lambda: hostile

def pytest_configure(config):
    from pytest_metadata.plugin import metadata_key
    config.stash[metadata_key][{HOSTILE!r}] = {{"a": {HOSTILE!r}}}
""")
    suite.add(f"""
HOSTILE = {HOSTILE!r}

@clause("return.count")
@pytest.mark.parametrize("text", [HOSTILE])
def test_mismatch(machine, text, record_property):
    record_property(text, text)
    print(text)
    machine.signal(Message())
    expect(text, text, "-" + text)

@clause("return.count")
@pytest.mark.parametrize("text", [HOSTILE])
def test_error(text):
    raise OSError(text)

@clause("return.count")
@pytest.mark.parametrize("text", [HOSTILE])
def test_skip(text):
    pytest.skip(text)
""")
    report = report_of(suite)
    assert report.run.outcomes == {"failed": 2, "skipped": 1}
    shown = [report.text, *(row["cells"] + row["unfolded"] for row in report.rows.values())]
    assert not [text for text in shown if "<img src=x" in text]
    assert "<img src=x onerror=alert(1)>" in report.overview
    [mismatch] = [name for name in report.rows if name.startswith("test_mismatch")]
    assert f"Happened {HOSTILE}: {HOSTILE}" in report.unfolded(mismatch)


def test_nothing_from_booted_kernels_becomes_markup(suite):
    suite.prepare(f"{SEVERAL}\nKERNELS = [{HOSTILE!r}, '6.12', 'x']\nBROKEN = {HOSTILE!r}")
    suite.add(f"""
@clause("return.count")
@pytest.mark.parametrize("text", [{HOSTILE!r}])
def test_fails(machine, text):
    machine.signal(Message())
    raise OSError(text)
""")
    report = report_of(suite)
    assert "<img src=x" not in report.text
    assert f"x could not be judged: {HOSTILE}" in report.overview
    [test] = report.matrix
    assert test == f"test_fails[{HOSTILE}]"
    assert f"OSError: {HOSTILE}" in report.matrix[test].unfolded[0]


def test_machine_without_lapics_has_no_prediction(suite):
    suite.add("""
@clause("msi.needs-irqchip")
def test_fails(machines):
    machines(irqchip="none").signal(Message()).returns(1)
""")
    report = report_of(suite)
    assert "What the model says" not in report.unfolded("test_fails")
    assert "helpers.apic explain" not in report.run.output


# --- runs that are not whole ----------------------------------------------------------------------


def test_run_that_judged_nothing_is_not_green(suite):
    suite.add("""
@clause("return.count")
def test_it():
    pytest.skip()
""")
    assert "Nothing was judged, and that is not a pass." in report_of(suite).overview


def test_run_that_stopped_early_says_so(suite):
    suite.add(TESTS)
    report = report_of(suite, "-x")
    assert (
        "The run was cut short (stopping after 1 failures): tests are missing." in report.overview
    )


def test_test_that_kills_its_worker_is_listed(suite):
    suite.add("""
import os

@clause("return.count")
def test_dies():
    os._exit(1)

@clause("return.count")
def test_lives():
    pass
""")
    report = report_of(suite, "-n1")
    assert "test_it.py::test_dies worker 'gw0' crashed while running" in report.overview
    assert report.rows["test_lives"]["result"] == "Passed"


def test_run_that_judges_no_kernel_has_the_plain_report(suite):
    suite.write("other/test_it.py", "def test_it():\n    pass\n")
    run_pytest(suite.path, "other", "--html=report.html")
    text = (suite.path / "report.html").read_text()
    assert "test_it" in text
    assert "kvm-" not in text


# --- the trace ------------------------------------------------------------------------------------

SNAPSHOT = (abi.KVM_GET_LAPIC, abi.KVM_GET_VCPU_EVENTS, abi.KVM_GET_MP_STATE)


def calls(*fds: int) -> list[Call]:
    return [Call(fd, request, 0, 0, 0) for fd in fds for request in SNAPSHOT]


def test_the_same_calls_on_several_fds_stand_once():
    assert collapse(calls(3, 4, 5)) == [
        "with fd 3, 4, 5:",
        *(f"    {request.name}(fd) = 0" for request in SNAPSHOT),
    ]


def test_rounds_over_the_same_fds_are_counted():
    assert collapse(calls(3, 4, 3, 4))[0] == "with fd 3, 4  (x 2):"


def test_repeated_call_is_counted():
    runs = [Call(7, abi.KVM_RUN, 0, -1, 4)] * 3
    assert collapse(runs) == ["KVM_RUN(fd 7) = -1 EINTR  (x 3)"]


# --- pictures -------------------------------------------------------------------------------------


def test_strip_marks_what_stayed_came_and_went():
    assert Strip("IRR", [1, 2, 3, 9], [2, 3, 255]).marks == {
        "kept": "M2 0h2v12h-2z",
        "lost": "M1 0h1v6h-1zM9 0h1v6h-1z",
        "gained": "M255 6h1v6h-1z",
    }


def test_vectors_are_shown_as_ranges():
    assert ranges([0, 0x41, 0x42, 0x43, 0xFF]) == "0x00 0x41-0x43 0xff"


# --- in a browser ---------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

COUNT = """
<script>
window.addEventListener("load", () => {
  const all = [...document.querySelectorAll("tbody.results-table-row")];
  const rows = all.filter((row) => !row.hidden);
  const unfolded = rows.filter((row) => row.querySelector(".kvm-test"));
  document.body.replaceChildren(`rows: ${rows.length}, unfolded: ${unfolded.length}`);
});
</script>
</body>
"""

COUNT_CELLS = """
<script>
window.addEventListener("load", () => {
  const rows = [...document.querySelectorAll("#kvm-matrix > tbody > tr:not(.kvm-group)")]
    .filter((row) => !row.hidden);
  const unfolded = rows.filter((row) => row.querySelector(".kvm-test"));
  const titles = unfolded.map((row) => row.querySelector("h3").textContent);
  document.body.replaceChildren(
    `rows: ${rows.length - unfolded.length}, unfolded: ${titles.join(", ") || "none"}`
  );
});
</script>
</body>
"""


def counted(report: Report, script: str, directory: Path) -> Path:
    """A page that replaces itself by what is to be seen in the report."""
    if BROWSER is None:
        pytest.skip("no Chromium to try the links in")
    file = directory / "counted.html"
    file.write_text(report.text.replace("</body>", script))
    return file


def seen_by_browser(page: Path, fragment: str, profile: Path) -> str:
    command = [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri() + fragment], capture_output=True, text=True, check=True
    )
    return done.stdout.partition("<body>")[2].partition("</body>")[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one kernel, counted."""
    suite = Suite(tmp_path_factory.mktemp("browser") / "suite")
    suite.add(TESTS)
    return counted(report_of(suite), COUNT, suite.path)


@pytest.mark.parametrize(
    "fragment, seen",
    [
        ("", "rows: 257, unfolded: 2"),
        ("#clause=msi.pad", "rows: 12, unfolded: 0"),
        ("#deviation=pad-not-checked", "rows: 12, unfolded: 0"),
        ("#test=7", "rows: 257, unfolded: 3"),
    ],
)
def test_links_work_from_a_file(page, tmp_path, fragment, seen):
    assert seen_by_browser(page, fragment, tmp_path) == seen


@pytest.mark.parametrize(
    "fragment, done, seen",
    [
        ("", "", "rows: 257, unfolded: none"),
        ("#clause=msi.pad", "", "rows: 12, unfolded: none"),
        ("#deviation=pad-not-checked", "", "rows: 12, unfolded: none"),
        ("#test=0", "", "rows: 257, unfolded: 6.12: failed"),
        ("", "differing.click()", "rows: 3, unfolded: none"),
        ("#test=0", "differing.click()", "rows: 3, unfolded: none"),
        ("", "set(outcome, 'kvm-failed')", "rows: 2, unfolded: none"),
        ("", "set(search, '[16] RETURN.count')", "rows: 1, unfolded: none"),
        (
            "",
            "cells[1].click(); cells[0].click()",
            "rows: 257, unfolded: 5.10: xfailed, 6.12: passed",
        ),
        ("", "cells[0].click(); cells[0].click()", "rows: 257, unfolded: none"),
    ],
)
def test_cells_and_filters_work_from_a_file(several, tmp_path, fragment, done, seen):
    script = f"""
<script>
window.addEventListener("load", () => {{
  const [search, outcome, differing] = ["search", "outcome", "differing"]
    .map((name) => document.getElementById(`kvm-${{name}}`));
  const cells = document.querySelectorAll("#kvm-matrix a[data-parts]");
  const set = (control, value) => {{
    control.value = value;
    control.dispatchEvent(new Event("input"));
  }};
  {done};
}});
</script>
"""
    page = counted(several, script + COUNT_CELLS, tmp_path)
    assert seen_by_browser(page, fragment, tmp_path) == seen
