# SPDX-License-Identifier: GPL-2.0-only
"""--results: the files, and when they are not written."""

from __future__ import annotations

import difflib
import json
from platform import release

import pytest

from helpers.report.results import file_name, read
from helpers.verdicts.kernel import Kernel
from tests.copy_of_the_suite import Run, Suite, run_pytest
from tests.result_files import (
    EVERY,
    TWO_KERNELS,
    WORKERS,
    add_two_files,
    ending,
    record,
    results,
    write,
)

# --- the file -------------------------------------------------------------------------------------


@WORKERS
def test_file_has_the_kernel_and_every_verdict(suite, workers):
    suite.add(ending(**EVERY))
    write(suite, "-n", str(workers))
    written = json.loads((suite.path / "a.json").read_text())
    assert written["kernel"]["release"] == release()
    assert set(written["kernel"]) == {"release", "vendor", "processor", "parameters"}
    expected = {f"test_{name}": {"": verdict} for name, verdict in EVERY.items()}
    assert written["results"] == {"test_it.py": expected}


@pytest.mark.parametrize(
    "vendor, column, name",
    [
        ("kvm_amd", "", "6.12.9.json"),
        ("kvm_intel", "", "6.12.9.json"),
        ("kvm_amd", "6.12", "6.12.json"),
        ("kvm_amd", "6.12-amd avic=N", "6.12-amd avic=N.json"),
        ("kvm_intel", "6.12", "6.12-intel.json"),
        ("kvm_intel", "6.12 enable_apicv=1", "6.12-intel enable_apicv=1.json"),
        ("kvm_intel", "6.12-intel enable_apicv=1", "6.12-intel enable_apicv=1.json"),
    ],
)
def test_file_of_an_intel_names_the_processor(vendor, column, name):
    kernel = Kernel("6.12.9", (6, 12), vendor, "some processor", {}, {})
    assert file_name(kernel, column) == name


def test_file_that_is_read_has_the_node_ids(suite):
    suite.add("""
class TestGroup:
    @clause("msi.flags")
    @pytest.mark.parametrize("value", ["a::b", "[c]", ""])
    def test_it(self, value):
        pass
""")
    write(suite)
    ids = {f"suites/test_it.py::TestGroup::test_it[{value}]" for value in ("a::b", "[c]", "")}
    assert set(read(suite.path / "a.json").verdicts) == ids


def test_file_is_the_same_for_every_run(suite):
    suite.add(ending(**EVERY), name="suites/test_one.py")
    suite.add(ending(**dict(reversed(EVERY.items()))), name="suites/test_two.py")
    texts = set()
    for arguments in ([], ["-n", "2"], ["--random-order"]):
        write(suite, *arguments)
        texts.add((suite.path / "a.json").read_text())
    assert len(texts) == 1


def test_other_verdict_is_one_other_line(suite):
    texts = []
    for verdict in ("passed", "skipped"):
        suite.add(ending(**EVERY | {"d": verdict}))
        write(suite)
        texts.append((suite.path / "a.json").read_text().splitlines())
    changed = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
    assert changed == ['- "": "passed"', '+ "": "skipped"']


def test_nothing_but_the_file_is_left(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=new/directory/a.json")
    assert run.lines_with("new/directory/a.json written")
    assert [file.name for file in (suite.path / "new/directory").iterdir()] == ["a.json"]


def test_directory_gets_a_file_named_after_the_kernel(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=kernels")
    assert run.exit_code == 0
    assert [file.name for file in (suite.path / "kernels").iterdir()] == [f"{release()}.json"]


# --- not written ----------------------------------------------------------------------------------

CUT_SHORT = {
    "first-failure": ("def test_b():\n    assert False\n", ["-x"], "1 of 3 tests"),
    "first-failure-n1": ("def test_b():\n    assert False\n", ["-x", "-n1"], "1 of 3 tests"),
    "interrupt": ("def test_b():\n    raise KeyboardInterrupt\n", [], "2 of 3 tests"),
    "dead-worker": (
        "def test_b():\n    import os\n    os._exit(1)\n",
        ["-n1", "--max-worker-restart=0"],
        "1 of 3 tests",
    ),
    "broken-file": (
        "def test_b():\n    pass\nassert False\n",
        ["--continue-on-collection-errors"],
        "suites/test_it.py could not be collected",
    ),
    "broken-file-n2": (
        "def test_b():\n    pass\nassert False\n",
        ["--continue-on-collection-errors", "-n2"],
        "suites/test_it.py could not be collected",
    ),
    "nothing-judged": (
        "def test_b():\n    pass\npytest.skip('', allow_module_level=True)\n",
        [],
        "no test came to a verdict",
    ),
}


@pytest.mark.parametrize("test, arguments, why", CUT_SHORT.values(), ids=CUT_SHORT)
def test_run_that_was_cut_short_leaves_the_file_alone(suite, test, arguments, why):
    (suite.path / "a.json").write_text("untouched")
    around = [ending(**{name: "passed"}) for name in "ac"]
    suite.add(f'{around[0]}@clause("msi.flags")\n{test}\n{around[1]}')
    run = suite.run("--results=a.json", *arguments)
    [line] = run.lines_with("a.json not written: ")
    assert why in line
    assert run.exit_code != 0
    assert (suite.path / "a.json").read_text() == "untouched"


def test_worker_that_died_is_no_reason_when_another_goes_on(suite):
    suite.add(ending(a="passed", c="passed"))
    dies = '@clause("msi.flags")\ndef test_b():\n    import os\n    os._exit(1)\n'
    suite.add(dies, name="suites/test_b.py")
    write(suite, "-n1")
    assert results(suite.path / "a.json")["test_b.py"] == {"test_b": {"": "error"}}


SELECTIONS = {
    "keyword": ["-k", "test_a"],
    "keyword-n2": ["-k", "test_a", "-n2"],
    "node-id": ["suites/test_it.py::test_a"],
    "file": ["suites/test_it.py"],
    "ignored": ["--ignore=suites/test_other.py"],
}


@pytest.fixture
def two_files(suite: Suite) -> Suite:
    """A suite of two files, and its a.json."""
    return add_two_files(suite)


def run_selection(suite: Suite, selection: list[str], *arguments: str) -> Run:
    directories = [] if selection[0].startswith("suites") else ["suites"]
    return run_pytest(suite.path, *directories, *selection, *arguments)


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_part_of_the_suite_does_not_replace_the_whole(two_files, selection):
    before = (two_files.path / "a.json").read_text()
    run = run_selection(two_files, selection, "--results=a.json")
    assert run.lines_with("of the file's tests; run all of suites/")
    assert run.exit_code == 1
    assert (two_files.path / "a.json").read_text() == before


def test_part_of_the_suite_may_have_a_file_of_its_own(two_files):
    for _ in range(2):
        run = run_selection(two_files, ["-k", "test_a"], "--results=part.json")
        assert run.exit_code == 0, run.output
    assert results(two_files.path / "part.json") == {"test_it.py": {"test_a": {"": "passed"}}}


def test_tests_that_are_no_more_do_not_stay(two_files):
    two_files.add(ending(a="passed"))
    (two_files.path / "suites/test_other.py").unlink()
    write(two_files)
    assert results(two_files.path / "a.json") == {"test_it.py": {"test_a": {"": "passed"}}}


def test_tests_left_out_by_maxfail_each_may_be_missing(suite):
    suite.prepare("""
import pytest
from helpers.verdicts.session import VERDICTS

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    session.config.stash[VERDICTS].tally("").left = 1
""")
    suite.add(ending(a="passed", b="failed", c="passed"))
    write(suite, "-x")
    assert set(results(suite.path / "a.json")["test_it.py"]) == {"test_a", "test_b"}
    record(suite, it={"c": "passed"})
    run = suite.run("--results=a.json", "-x")
    assert run.lines_with("a.json not written: the run left out 1 of the file's tests")


def test_file_that_cannot_be_written_is_a_failure(suite):
    suite.add(ending(a="passed"))
    (suite.path / "a.json").mkdir()
    run = suite.run("--results=a.json")
    assert run.lines_with("a.json not written: Is a directory")
    assert run.exit_code == 1
    assert not list(suite.path.glob(".a.json*"))


# --- several kernels ------------------------------------------------------------------------------


@pytest.fixture
def two_kernels(suite: Suite) -> Suite:
    suite.prepare(TWO_KERNELS)
    suite.add(ending(a="passed", b="passed"))
    return suite


@WORKERS
def test_every_kernel_has_a_file(two_kernels, workers):
    run = two_kernels.run("--results=kernels", "-n", str(workers))
    assert len(run.lines_with(".json written: Linux ")) == 2
    for column, verdict in (("5.10", "failed"), ("6.12", "passed")):
        file = two_kernels.path / f"kernels/{column}.json"
        assert read(file).kernel.startswith(f"Linux {column}.99, ")
        assert results(file)["test_it.py"]["test_b"] == {"": verdict}


def test_file_for_several_kernels_is_refused_before_they_are_booted(suite):
    suite.prepare("""
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.kernel = ["5.10", "6.12"]
""")
    suite.add(ending(a="passed"))
    run = suite.run("--results=a.json")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output == (
        "ERROR: --results=a.json: --kernel names 2 kernels, and a .json file has the results of "
        "one kernel; name a directory\n\n"
    )


@pytest.mark.parametrize("columns", ["--kvm-param=avic=0,1", "--kvm-param=matrix"])
def test_file_for_several_columns_is_refused_before_they_are_booted(suite, columns):
    suite.prepare("""
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.kernel = ["6.12"]
""")
    suite.add(ending(a="passed"))
    run = suite.run("--results=a.json", columns)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.lines_with("ERROR: --results=a.json: each kernel has several columns; a .json file")


def test_file_for_kernels_that_turn_out_to_be_several_is_not_written(two_kernels):
    run = two_kernels.run("--results=a.json")
    assert len(run.lines_with("a.json not written: a .json file has the results of one")) == 2
    assert run.exit_code == 1
    assert not (two_kernels.path / "a.json").exists()


def test_kernel_that_did_not_say_which_it_is_has_no_file(suite):
    suite.prepare("""
import pytest
from helpers.verdicts.session import VERDICTS

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    session.config.stash[VERDICTS].tally("").kernel = None
""")
    suite.add(ending(a="passed"))
    run = suite.run("--results=kernels")
    assert run.lines_with("kernels not written: the kernel did not report its release")
    assert run.exit_code == 1


# --- bad input ------------------------------------------------------------------------------------

OPTIONS = pytest.mark.parametrize("option", ["--results=b.json", "--compare=a.json"])


@OPTIONS
def test_strict_run_has_no_results(suite, option):
    suite.add(ending(a="passed"))
    record(suite, it={"a": "passed"})
    run = suite.run(option, "--strict")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == (
        "ERROR: --results and --compare record known deviations, which --strict turns into "
        "failures: leave out --strict"
    )


def test_directory_that_cannot_be_made_is_said_before_any_test(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=pytest.ini")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == (
        "ERROR: --results=pytest.ini: cannot make the directory pytest.ini: File exists; "
        "name a directory, or a file that ends in .json"
    )


@OPTIONS
def test_run_that_judges_no_kernel_says_so(suite, option):
    suite.add(ending(a="passed"))
    record(suite, it={"a": "passed"})
    suite.write("tests/test_helper.py", "def test_helper():\n    pass\n")
    run = run_pytest(suite.path, "tests", option)
    assert run.lines_with("no kernel was judged: there are no results to write or to compare")
    assert run.exit_code == 0
    assert not (suite.path / "b.json").exists()


@OPTIONS
def test_collecting_is_no_run(suite, option):
    suite.add(ending(a="passed"))
    run = suite.run(option, "--collect-only", "-q")
    assert (run.exit_code, (suite.path / "b.json").exists()) == (0, False)
