# SPDX-License-Identifier: GPL-2.0-only
"""The HTML report on one kernel: contents, escaping and size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.kvm import abi
from helpers.kvm.ioctl import Call
from helpers.report.details import collapse
from helpers.report.vcpu import Strip, ranges
from helpers.spec import CLAUSES, DEVIATIONS
from helpers.spec.architectures import X86_64
from tests.copy_of_the_suite import Suite, run_pytest
from tests.html_report import HOSTILE, TESTS, Report, plain, report_of


@pytest.fixture(scope="module", params=[0, 2], ids="-n{}".format)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on TESTS, run in one process and by workers."""
    suite = Suite(tmp_path_factory.mktemp("report") / "suite")
    suite.add(TESTS)
    return report_of(suite, "-n", str(request.param))


# --- the overview ---------------------------------------------------------------------------------


def test_kernel_and_command_are_named(report):
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert f'<title id="head-title">KVM_SIGNAL_MSI on Linux {release}' in report.text
    assert f"Kernel Linux {release}" in report.overview
    assert "KVM_CAP_SIGNAL_MSI = 1" in report.overview
    assert "Irqchip modes full" in report.overview
    assert "suites --html=report.html -n" in report.overview


def test_every_clause_is_listed_with_its_text_and_source(report):
    listed = [clause for clause in CLAUSES.values() if X86_64.owes(clause.id)]
    for clause in listed:
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


def test_failures_of_one_kind_are_listed_once(suite):
    suite.add("""
@clause("msi.pad")
@pytest.mark.parametrize("number", range(60))
def test_it(number):
    expect("return value", "1", "x" if number % 2 else "other")

@clause("msi.flags")
def test_other():
    expect("return value", "1", "x")
""")
    report = report_of(suite)
    listed = report.overview_markup.partition('class="kvm-failures"')[2].partition("</ol>")[0]
    assert listed.count("<li>") == 3
    assert listed.count("and 29 more tests in the same way") == 2
    assert len(set(re.findall(r'href="#test=(\d+)"', listed))) == 61


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


def test_failed_test_shows_the_model_s_prediction_for_its_last_message(report):
    shown = report.unfolded("test_fails")
    assert (
        "What the model predicts for the last message rules that applied: 1. address_hi is" in shown
    )
    assert f"here: 0x1 is vCPU 1 [dest.physical] {CLAUSES['dest.physical'].source}" in shown
    assert (
        "outcome on the reference kernel: returns 1"
        " vCPU 1 accepts the message: IRR SET {0x41}, TMR SET {0x41} no change on vCPU 0, 2, 3"
    ) in shown
    assert "\n  vCPU 1 accepts the message: IRR SET {0x41}" in report.rows["test_fails"]["unfolded"]


def test_known_deviation_shows_the_model_s_prediction(report):
    shown = report.unfolded("test_deviates[0]")
    assert (
        "What the model predicts for this message rules that applied: 1. devid and padding" in shown
    )
    assert "here: devid 0x7, padding 010000000000000000000000 [abi.ignored]" in shown


@pytest.mark.parametrize("test", ["test_passes[200]", "test_has_an_error", "test_is_skipped"])
def test_other_outcomes_have_no_prediction(report, test):
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


def test_messages_of_earlier_tests_are_not_shown(report):
    shown = report.rows["test_passes[200]"]["unfolded"]
    assert shown.count("<h4>") == 1
    assert "FIXED vector 0xc8, to physical 0x1" in shown
    assert "Recorded recorded: something" in plain(shown)


def test_changed_vcpu_comes_first_and_vcpus_left_out_are_counted(report):
    shown = report.unfolded("test_passes_on_many_vcpus")
    assert re.findall(r"vCPU (\d+)", shown) == ["18", "0", "1", "2", "3", "4", "5", "6"]
    assert "pending none → NMI" in shown
    assert "12 more vCPUs are not shown; the message changed none of them." in shown


def test_messages_left_out_are_counted(report):
    shown = report.unfolded("test_passes_with_many_messages")
    assert "The last 12 of 16 messages:" in shown
    assert "12. FIXED vector 0x2f" in shown


def test_skip_and_error_say_why(report):
    assert "Not run a precondition is missing" in report.unfolded("test_is_skipped")
    assert "RuntimeError: a broken fixture" in report.unfolded("test_has_an_error")


def test_report_of_thousands_of_tests_is_small_enough(report):
    style_script_and_clauses = 200_000
    per_test = (len(report.text) - style_script_and_clauses) / len(report.rows)
    assert per_test * 3000 < 10_000_000


def test_one_booted_kernel_has_the_report_of_a_running_one(suite):
    suite.prepare("""
import pytest
from helpers.verdicts.session import VERDICTS

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


HOSTILE_KERNEL = f"""
import dataclasses
import helpers.verdicts.kernel as k

real = k.running_kernel()
hostile = dataclasses.replace(
    real, release={HOSTILE!r}, vendor={HOSTILE!r}, cpu={HOSTILE!r},
    parameters={{"kvm.x": {HOSTILE!r}}}, capabilities=real.capabilities | {{{HOSTILE!r}: 1}},
)
import helpers.verdicts.session
helpers.verdicts.session.running_kernel = lambda: hostile

def pytest_configure(config):
    from pytest_metadata.plugin import metadata_key
    config.stash[metadata_key][{HOSTILE!r}] = {{"a": {HOSTILE!r}}}
"""
"""A conftest.py that puts HOSTILE into all facts about the kernel."""

HOSTILE_TESTS = f"""
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
"""
"""A suite that puts HOSTILE into test ids, messages and output."""


def test_nothing_from_outside_becomes_markup(suite):
    suite.prepare(HOSTILE_KERNEL)
    suite.add(HOSTILE_TESTS)
    report = report_of(suite)
    assert report.run.outcomes == {"failed": 2, "skipped": 1}
    shown = [report.text, *(row["cells"] + row["unfolded"] for row in report.rows.values())]
    assert not [text for text in shown if "<img src=x" in text]
    assert "<img src=x onerror=alert(1)>" in report.overview
    [mismatch] = [name for name in report.rows if name.startswith("test_mismatch")]
    assert f"Happened {HOSTILE}: {HOSTILE}" in report.unfolded(mismatch)


def test_machine_without_lapics_has_no_prediction(suite):
    suite.add("""
@clause("msi.needs-irqchip")
def test_fails(machines):
    machines(irqchip="none").signal(Message()).returns(1)
""")
    report = report_of(suite)
    assert "What the model predicts" not in report.unfolded("test_fails")
    assert "helpers.apic explain" not in report.run.output


# --- incomplete and strict runs ------------------------------------------------------------------


def test_run_that_judged_nothing_is_not_green(suite):
    suite.add("""
@clause("return.count")
def test_it():
    pytest.skip()
""")
    assert "Nothing was judged. This is not a pass." in report_of(suite).overview


def test_run_that_stopped_early_says_so(suite):
    suite.add(TESTS)
    report = report_of(suite, "-x")
    assert "The run ended early (stopping after 1 failures): tests are missing." in report.overview


def test_strict_run_counts_its_known_deviations(suite):
    suite.add(TESTS)
    report = report_of(suite, "--strict", "-k", "test_deviates or test_fails")
    assert "13 failures (known deviations counted by --strict: 12). 0 passed," in report.overview
    assert "Known deviation pad-not-checked" in report.unfolded("test_deviates[0]")
    assert "Note" not in report.unfolded("test_deviates[0]")


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


def test_strip_shows_vectors_kept_lost_and_gained():
    assert Strip("IRR", [1, 2, 3, 9], [2, 3, 255]).paths == {
        "kept": "M2 0h2v12h-2z",
        "lost": "M1 0h1v6h-1zM9 0h1v6h-1z",
        "gained": "M255 6h1v6h-1z",
    }


def test_vectors_are_shown_as_ranges():
    assert ranges([0, 0x41, 0x42, 0x43, 0xFF]) == "0x00 0x41-0x43 0xff"
