# SPDX-License-Identifier: GPL-2.0-only
"""The HTML report on several kernels: contents and escaping."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from helpers.report.html import Writer
from helpers.report.run import JudgedRun
from helpers.spec import CLAUSES
from helpers.verdicts.tally import Tally
from tests.copy_of_the_suite import Suite
from tests.html_report import (
    HOSTILE,
    NOT_RUN,
    SEVERAL,
    TESTS,
    Report,
    plain,
    report_of,
    report_on_several,
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on TESTS on three kernels, of which the third did not come up."""
    return report_on_several(tmp_path_factory.mktemp("several"))


def test_kernels_are_side_by_side(several):
    assert '<title id="head-title">KVM_SIGNAL_MSI on 3 kernels</title>' in several.text
    facts = "Kernel 5.10.0-test 6.12.0-test Architecture x86_64 x86_64 KVM"
    assert f"5.10 6.12 6.99 {facts}" in several.overview
    assert (
        "Tests 1 failed 1 error 12 xfailed 242 passed 1 skipped"
        " 2 failed 2 error 11 xfailed 242 passed 1 skipped none not judged"
        " Not judged 1 test: a precondition is missing 1 test: a precondition is missing Irqchip"
    ) in several.overview


def test_capability_of_one_arm64_kernel_has_a_cell_for_each(tmp_path):
    suite = Suite(tmp_path / "suite")
    differ = 'architecture="arm64", capabilities={"KVM_CAP_A": int(column > "6"), "KVM_CAP_B": 0}'
    suite.prepare(SEVERAL.replace('release=f"{column}.0-test"', f"release=column, {differ}"))
    suite.add('@clause("arm.pad")\ndef test_it():\n    pass\n')
    overview = report_of(suite).overview
    assert "KVM_CAP_A 0 1 Tests" in overview
    assert "KVM_CAP_B" not in overview


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
    deviations, backports = several.overview.partition("Known deviations These kernels")[2].split(
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
    assert "Tests with different outcomes <span>3</span>" in several.text


def test_cell_unfolds_to_the_details_on_that_kernel(several):
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


def test_details_that_kernels_share_are_stored_once(several, suite):
    suite.add(TESTS)
    assert several.rows == {}
    assert len(several.text) < 1.3 * len(report_of(suite).text)


def test_kernel_that_was_left_early_says_how_many_tests_did_not_run():
    tally = Tally("6.1", left=3)
    run = JudgedRun([tally, tally], [], datetime.now(), "pytest", {}, "", failures=[])
    headline = plain(Writer().render("overview.jinja2", run=run))
    assert "6.1 was left early (--maxfail-each): 3 tests did not run." in headline


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
