# SPDX-License-Identifier: GPL-2.0-only
"""``--clause`` runs the tests of some clauses, ``--clauses`` lists the clauses."""

from __future__ import annotations

import pytest

from helpers.spec import CLAUSES
from helpers.spec.architectures import ARCHITECTURES, X86_64
from tests.copy_of_the_suite import ROOT, Suite, run_pytest

TESTS = """
@clause("msi.flags")
@pytest.mark.parametrize("bit", range(3))
def test_flags(bit):
    pass

@clause("msi.pad")
def test_pad():
    pass

@clause("guest.nmi")
def test_nmi():
    pass
"""

WITHOUT_KVM = """
from helpers.verdicts import session

def require_testable():
    raise session.Untestable("no KVM")

session.require_testable = require_testable
"""


@pytest.fixture
def tests(suite: Suite) -> Suite:
    """A suite with five tests of three clauses."""
    suite.add(TESTS)
    return suite


def rows(output: str) -> dict[str, list[str]]:
    """Return {clause id: [level, number of tests, source]} that --clauses lists."""
    lines = (line.split(maxsplit=3) for line in output.splitlines())
    return {words[0]: words[1:] for words in lines if words and words[0] in CLAUSES}


# --- --clause -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patterns, passed",
    [
        (["msi.flags"], 3),
        (["msi.*"], 4),
        (["msi.pad", "guest.*"], 2),
        (["m*", "*.pad"], 4),
        (["*"], 5),
    ],
    ids=["id", "glob", "two", "overlapping", "all"],
)
def test_tests_of_matching_clauses_run(tests, patterns, passed):
    run = tests.run(*(f"--clause={pattern}" for pattern in patterns))
    outcomes = {"passed": passed} | ({"deselected": 5 - passed} if passed < 5 else {})
    assert (run.outcomes, run.exit_code) == (outcomes, 0)


def test_clause_narrows_another_selection(tests):
    run = tests.run("--clause=msi.*", "-k", "flags and 1")
    assert run.outcomes == {"passed": 1, "deselected": 4}


def test_workers_run_the_tests_of_the_clause(tests):
    run = tests.run("--clause=msi.flags", "-n", "2")
    assert (run.outcomes, run.exit_code) == ({"passed": 3}, 0)


def test_tests_that_judge_no_kernel_have_no_clause(tests):
    tests.write("tests/test_helper.py", "def test_helper():\n    pass\n")
    run = run_pytest(tests.path, "suites", "tests", "--clause=*")
    assert run.outcomes == {"passed": 5, "deselected": 1}


def test_test_without_a_clause_is_an_error_all_the_same(tests):
    tests.add("def test_it():\n    pass\n", name="suites/test_other.py")
    run = tests.run("--clause=msi.flags")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.lines_with("test_it names 0 clauses, not one")


@pytest.mark.parametrize("workers", ["0", "2"], ids="-n{}".format)
def test_pattern_without_a_clause_is_one_clear_line(tests, workers):
    run = tests.run("--clause=msi.*", "--clause=msi.flgas", "-n", workers)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in run.output.splitlines() if line]
    assert line == (
        "ERROR: --clause=msi.flgas: no clause matches; 'pytest suites/ --clauses' lists all"
    )


def test_clause_without_tests_is_not_a_pass(tests):
    run = tests.run("--clause=msi.devid-meaning")
    assert run.exit_code == pytest.ExitCode.NO_TESTS_COLLECTED
    assert run.lines_with("no test came to a verdict")


@pytest.mark.parametrize("workers", ["0", "2"], ids="-n{}".format)
def test_tests_of_other_clauses_are_not_gone_from_the_results(tests, workers):
    tests.run("--results=all.json")
    run = tests.run("--clause=msi.flags", "--compare=all.json", "-n", workers)
    assert run.lines_with("0 worse, 0 better, 0 changed, 0 new, 0 gone, 3 the same")
    run = tests.run("--clause=msi.flags", "--results=all.json", "-n", workers)
    assert run.lines_with("all.json not written: ")


@pytest.mark.timeout(900)
def test_booted_kernel_runs_the_tests_of_the_clause(tests):
    run = tests.run("--kernel=6.12", "--clause=msi.*", "--timeout=300")
    assert (run.outcomes, run.exit_code) == ({"passed": 4, "deselected": 1}, 0)


# --- --clauses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["-q"], ["-n", "2"], ["--kernel=6.12"]], ids=["", "-q", "-n2", "--kernel"]
)
def test_list_has_each_clause_with_level_tests_and_source(tests, arguments):
    tests.prepare(WITHOUT_KVM)
    run = tests.run("--clauses", *arguments)
    assert run.exit_code == 0
    numbers = dict.fromkeys(CLAUSES, "0") | {"msi.flags": "3", "msi.pad": "1", "guest.nmi": "1"}
    assert rows(run.output) == {
        id: [clause.level, numbers[id], clause.source]
        for id, clause in CLAUSES.items()
        if X86_64.owes(id)
    }
    assert not run.lines_with("test_flags")
    assert "passed" not in run.outcomes


def test_list_counts_the_selected_tests_of_the_given_files(tests):
    tests.add(TESTS, name="suites/test_other.py")
    run = run_pytest(tests.path, "suites/test_other.py", "--clauses", "-k", "flags or nmi")
    assert {id: number for id, (_, number, _) in rows(run.output).items() if number != "0"} == {
        "msi.flags": "3",
        "guest.nmi": "1",
    }


def test_list_of_some_clauses(tests):
    run = tests.run("--clauses", "--clause=guest.n*", "--clause=msi.pad")
    assert list(rows(run.output)) == ["msi.pad", "guest.nmi", "guest.nmi-held"]


def test_list_with_an_error_of_collection_is_a_failure(tests):
    tests.add("import no_such_module\n", name="suites/test_other.py")
    run = tests.run("--clauses")
    assert run.exit_code == pytest.ExitCode.INTERRUPTED
    assert run.lines_with("No module named 'no_such_module'")


def test_collecting_still_lists_tests(tests):
    run = tests.run("--collect-only", "-q", "--clause=msi.pad")
    assert run.lines_with("suites/test_it.py::test_pad")
    assert not run.lines_with("test_nmi")


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_list_of_this_suite_has_all_tests(architecture):
    run = run_pytest(ROOT, "suites", "--clauses", "-q", f"--arch={architecture.name}")
    numbers = {id: int(number) for id, (_, number, _) in rows(run.output).items()}
    assert numbers.keys() == set(filter(architecture.owes, CLAUSES))
    assert run.lines_with(f"{sum(numbers.values())} tests collected")
