# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes become verdicts, and a failure explains itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.copy_of_the_suite import ROOT, Run, Suite

WORKERS = pytest.mark.parametrize("workers", [0, 2], ids="-n{}".format)

# --- known deviations -----------------------------------------------------------------------------

IT_SHOWS = 'expect("return value", "1", "-1 EINVAL")'
"""The mismatch that the made-up deviations show by default."""


@dataclass(frozen=True)
class Case:
    """A test that names a deviation: the outcome, and a line of the output."""

    deviation: str
    statement: str
    outcome: str
    line: str = ""


CASES = {
    "as_known": Case("", IT_SHOWS, "XFAIL", "known deviation: as_known, 1 test"),
    "as_known_with_wildcard": Case("shows='?'", IT_SHOWS, "XFAIL"),
    "other_value": Case(
        "",
        'expect("return value", "0", "-1 EINVAL")',
        "FAILED",
        "the known deviation other_value does not explain this mismatch",
    ),
    "other_subject": Case(
        "",
        'expect("acceptors", "1", "0")',
        "FAILED",
        "the known deviation other_subject does not explain this mismatch",
    ),
    "other_expected_value": Case(
        "",
        'expect("return value", "1", "4")',
        "FAILED",
        "the known deviation other_expected_value does not explain this mismatch",
    ),
    "other_kernels": Case(
        "applies=False",
        IT_SHOWS,
        "FAILED",
        "the known deviation other_kernels (before Linux 1.0) does not apply to this kernel",
    ),
    "other_kernels_passing": Case("applies=False, bound='host'", "pass", "PASSED"),
    "assertion": Case("", "assert False", "FAILED"),
    "exception": Case("", "raise OSError('1')", "FAILED"),
    "own_failure": Case("", "pytest.fail('1')", "FAILED"),
    "own_skip": Case("", "pytest.skip('a precondition is missing')", "SKIPPED"),
    "host_without_it": Case(
        "bound='host'",
        "pass",
        "FAILED",
        "the known deviation host_without_it (a /dev/kvm driven by",
    ),
    "version_with_backport": Case(
        "bound='version'",
        "pass",
        "PASSED",
        "backport: version_with_backport, 1 test",
    ),
}

TEST = """
@clause("msi.pad")
@known({deviation}, id={name!r})
def test_{name}():
    {statement}
"""


@pytest.fixture(scope="module")
def run_of_cases(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a test for each case in one run."""
    suite = Suite(tmp_path_factory.mktemp("cases") / "suite")
    for name, case in CASES.items():
        arguments = case.deviation or "shows='1'"
        test = TEST.format(name=name, deviation=arguments, statement=case.statement)
        suite.add(test, name=f"suites/test_{name}.py")
    return suite.run("-rA")


@pytest.mark.parametrize("name", CASES)
def test_outcome_with_a_known_deviation(run_of_cases, name):
    outcomes = [line.split()[0] for line in run_of_cases.lines_with(f"suites/test_{name}.py")]
    assert CASES[name].outcome in outcomes
    assert run_of_cases.lines_with(CASES[name].line)


def test_unknown_failure_makes_the_run_fail(run_of_cases):
    assert run_of_cases.exit_code == pytest.ExitCode.TESTS_FAILED


def test_deviation_of_other_kernels_that_does_not_occur_is_not_mentioned(run_of_cases):
    assert not run_of_cases.lines_with("known deviation other_kernels_passing")
    assert not run_of_cases.lines_with("backport: other_kernels_passing")


def test_failing_fixture_of_a_test_with_a_deviation_is_an_error(suite):
    suite.add("""
@pytest.fixture
def broken():
    expect("return value", "1", "0")

@clause("msi.pad")
@known(shows="1")
def test_it(broken):
    pass
""")
    run = suite.run()
    assert (run.outcomes, run.exit_code) == ({"error": 1}, 1)


def test_second_of_two_deviations_explains_the_mismatch(suite):
    suite.add("""
@clause("msi.pad")
@known(id="another", shows="2")
@known(shows="1")
def test_it():
    expect("return value", "1", "-1 EINVAL")
""")
    run = suite.run()
    assert run.outcomes == {"xfailed": 1}
    assert run.lines_with("known deviation: made-up")


DEVIATES = """
@clause("msi.pad")
@known(shows="1")
def test_deviates():
    expect("return value", "1", "-1 EINVAL")

@clause("msi.flags")
def test_holds():
    pass
"""


@WORKERS
def test_deviation_is_expected_with_workers_too(suite, workers):
    suite.add(DEVIATES)
    run = suite.run("-n", str(workers))
    assert (run.outcomes, run.exit_code) == ({"passed": 1, "xfailed": 1}, 0)
    assert run.lines_with("known deviation: made-up, 1 test")


@WORKERS
def test_deviation_is_shown_in_one_line(suite, workers):
    suite.add(DEVIATES)
    (shown,) = suite.run("-n", str(workers), "--xfail-tb").lines_with("return value")
    assert re.fullmatch(r"suites/test_it.py:\d+: return value: expected -1 EINVAL, got 1", shown)


@WORKERS
def test_strict_makes_deviations_fail(suite, workers):
    suite.add(DEVIATES)
    run = suite.run("-n", str(workers), "--strict")
    assert (run.outcomes, run.exit_code) == ({"failed": 1, "passed": 1}, 1)
    assert run.lines_with("known deviation made-up: A summary.")
    assert run.lines_with("to repeat the test: pytest suites/test_it.py::test_deviates --strict")


# --- a part that the kernel lacks -----------------------------------------------------------------

LACKS = """
from helpers.kvm import MissingPart

@pytest.fixture
def lacking():
    raise MissingPart("no such part")

@clause("msi.pad")
def test_in_the_fixture(lacking):
    pass

@clause("msi.pad")
def test_in_the_body():
    raise MissingPart("no such part")

@clause("msi.flags")
def test_holds():
    pass
"""


@WORKERS
def test_test_of_a_missing_part_is_skipped_and_counted(suite, workers):
    suite.add(LACKS)
    run = suite.run("-n", str(workers))
    assert (run.outcomes, run.exit_code) == ({"passed": 1, "skipped": 2}, 0)
    assert run.lines_with("2 not judged: no such part")


# --- the output of a run --------------------------------------------------------------------------


def test_failure_explains_itself(suite):
    suite.add("""
@clause("msi.flags")
@pytest.mark.parametrize("flags", [2])
def test_it(machine, flags):
    machine.signal(Message(destination=1), flags=flags).returns(1)
""")
    output = suite.run().output
    assert "clause msi.flags (documented; api.rst, KVM_SIGNAL_MSI" in output
    assert "KVM_MSI_VALID_DEVID is the only flag" in output
    assert "return value: expected 1, got -1 EINVAL" in output
    assert "<Message FIXED vector 0x41, to physical 0x1>" in output
    assert "vCPU 1: nothing; before it RUNNABLE <LAPIC ID=0x01000000" in output
    assert "to repeat the test: pytest 'suites/test_it.py::test_it[2]'" in output


def test_failure_names_the_command_that_explains_its_message(suite):
    suite.add("""
@clause("msi.flags")
def test_it(machines):
    machine = machines(vcpu_ids=[0, 300], x2apic_api=3)
    machine.signal(Message(destination=300), flags=1, devid=7, pad=bytes(11) + b"x").returns(0)
""")
    mark = "the model's prediction for the last message: python "
    [line] = suite.run().lines_with(mark)
    command = shlex.split(line.removeprefix(mark))
    explained = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "message: vector=0x41 destination=0x12c\n" in explained
    assert "  flags 0x1, devid 0x7, pad 000000000000000000000078\n" in explained
    assert "  vCPU 1: vCPU ID 300, xAPIC with ID 0x2c, logical ID 0x02, DFR flat, en" in explained
    assert "vCPU 1 accepts the message: IRR SET {0x41}" in explained


def test_clauses_are_counted_by_level_and_state(suite):
    suite.add(
        DEVIATES
        + """
@clause("kvm.api-version")
def test_breaks():
    assert False

@clause("kvm.api-version")
def test_breaks_here_only():
    pass
"""
    )
    rows = {line.split()[0]: line.split()[1:] for line in suite.run().output.splitlines() if line}
    assert rows["documented"][:6] == ["1", "holds", "0", "deviates", "1", "broken"]
    assert rows["required"] == ["0", "holds", "1", "deviates", "0", "broken", "2", "not", "tested"]


def test_kernel_under_test_is_named(suite):
    suite.add(DEVIATES)
    [line] = suite.run().lines_with("kernel under test: Linux")
    assert Path("/proc/sys/kernel/osrelease").read_text().strip() in line


# --- clauses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "marks, number",
    [("", 0), ("@clause('msi.pad')\n@clause('msi.flags')\n", 2)],
    ids=["no-clause", "two-clauses"],
)
def test_test_names_one_clause(suite, marks, number):
    suite.add(DEVIATES + f"{marks}def test_it():\n    pass\n")
    run = suite.run()
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.lines_with(f"test_it names {number} clauses, not one")
    assert not run.lines_with("passed")


def test_test_of_a_class_may_not_name_another_clause_than_its_class(suite):
    suite.add("""
@clause("msi.pad")
class TestIt:
    @clause("msi.flags")
    def test_it(self):
        pass
""")
    assert suite.run().lines_with("test_it names 2 clauses, not one")


# --- booted kernels -------------------------------------------------------------------------------

WORKER_BEFORE_CONFTEST = """
import sys
import helpers.kernels.worker
from conftest import pytest_plugins

print(sys.modules.keys() & set(pytest_plugins))
"""


def test_worker_in_a_guest_imports_no_plugin_before_pytest_does():
    done = subprocess.run(
        [sys.executable, "-c", WORKER_BEFORE_CONFTEST],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
