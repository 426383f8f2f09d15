# SPDX-License-Identifier: GPL-2.0-only
"""--ktap: the kernel's parser reads what a run writes, however the run ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from helpers.ci.ended import Ended
from helpers.ci.ktap import MAX_LINES, Ktap, Line
from tests import kunit
from tests.ci_outputs import IT, OTHER, OUTCOMES, check_ktap, ended, kcidb_of, statuses
from tests.copy_of_the_suite import Run, Suite, run_pytest
from tests.result_files import WORKERS, ending


def ktap_of(suite: Suite, *arguments: str) -> tuple[Run, str]:
    """Run a suite; return the run and its document."""
    run = suite.run("--ktap=run.ktap", *arguments)
    return run, (suite.path / "run.ktap").read_text()


# --- several files and kernels --------------------------------------------------------------------


def test_order_of_the_tests_does_not_mix_files(suite):
    for name in ("it", "other"):
        suite.add(ending(a="passed", b="failed", c="passed"), f"suites/test_{name}.py")
    _, text = ktap_of(suite, "--random-order", "--random-order-bucket=global")
    found = check_ktap(text)
    assert {file: len(tests) for file, tests in found.items()} == {IT: 3, OTHER: 3}


def test_several_kernels_are_a_level_of_their_own():
    columns = {"5.10": {IT: ["test_a", "test_b"]}, "6.12 intel": {IT: ["test_a"], OTHER: ["x"]}}
    text = document(
        columns,
        ended("6.12 intel", IT, "test_a"),
        ended("5.10", IT, "test_b", outcome="failed"),
        ended("5.10", IT, "test_a"),
        ended("6.12 intel", OTHER, "x"),
    )
    assert check_ktap(text) == {
        "5.10": {IT: {"test_b": "FAILURE", "test_a": "SUCCESS"}},
        "6.12 intel": {IT: {"test_a": "SUCCESS"}, OTHER: {"x": "SUCCESS"}},
    }
    assert text.startswith("KTAP version 1\n1..2\n")
    assert re.findall(r"^(?:not )?ok .*", text, re.M) == ["not ok 1 5.10", "ok 2 6.12 intel"]


def document(columns: dict[str, dict[str, list[str]]], *ends: Ended, failure: str = "") -> str:
    """Return the document of a run in which these tests ended."""
    written: list[str] = []
    ktap = Ktap(written.append)
    ktap.begin(columns)
    for each in ends:
        ktap.add(each)
    ktap.finish(lambda _, nodeid: Line(nodeid.partition("::")[2], False, "ERROR lost"), failure)
    return "".join(written)


def test_diagnostics_of_a_dead_kernel_end_nothing():
    said = ["Kernel panic - not syncing: VFS: no root", "reboot: System halted", "Subtest: x", ""]
    said += ["ok 7 test_z", "1..3", "KTAP version 1"]
    dead = ended("", IT, "test_a", "failed", *said, *["line"] * MAX_LINES)
    text = document({"": {IT: ["test_a", "test_b"]}}, dead, ended("", IT, "test_b"))
    assert check_ktap(text) == {IT: {"test_a": "FAILURE", "test_b": "SUCCESS"}}
    assert f"... {len(said)} more lines" in text


def test_test_without_a_result_fails():
    text = document({"": {IT: ["test_a", "test_b"], OTHER: ["x"]}}, ended("", IT, "test_b"))
    assert check_ktap(text) == {
        IT: {"test_b": "SUCCESS", "test_a": "FAILURE"},
        OTHER: {"x": "FAILURE"},
    }
    assert "  not ok 2 test_a # ERROR lost\n" in text


def test_run_that_fails_in_spite_of_its_results_has_a_failure():
    text = document({"": {IT: ["a"]}}, ended("", IT, "a"), failure="pytest failed")
    check_ktap(text)
    assert text.endswith(f"not ok 1 {IT} # ERROR pytest failed\n")


def test_kunit_takes_the_failure_of_a_parent_for_one():
    text = document({"": {IT: ["a"]}}, ended("", IT, "a"), failure="pytest failed")
    assert kunit.parse(text).status == "FAILURE"


def test_columns_that_are_added_are_the_last():
    written: list[str] = []
    ktap = Ktap(written.append)
    ktap.begin({"6.12": {IT: ["a"]}}, may_grow=True)
    ktap.add(ended("6.12", IT, "a"))
    ktap.add_column("6.12 avic=Y", {IT: ["a"]})
    ktap.add(ended("6.12 avic=Y", IT, "a", "failed"))
    ktap.finish(lambda *_: Line("", False), "")
    assert "\n1.." not in "".join(written)  # at the top, where columns may follow
    assert check_ktap("".join(written)) == {
        "6.12": {IT: {"a": "SUCCESS"}},
        "6.12 avic=Y": {IT: {"a": "FAILURE"}},
    }


# --- runs that end early --------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, time

@clause("msi.pad")
def test_before(): pass

@clause("msi.pad")
def test_during():
    {statement}

@clause("msi.pad")
def test_after(): pass
"""


@pytest.mark.parametrize(
    "statement, said",
    [
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", "the run was interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", "interrupted: SIGTERM"),
        ("pytest.exit('enough')", "the run was interrupted: enough"),
    ],
    ids=["Ctrl-C", "SIGTERM", "exit"],
)
def test_interrupted_run_is_complete(suite, statement, said):
    suite.add(INTERRUPTED.format(statement=statement))
    _, text = ktap_of(suite, "--kcidb=run.json")
    check_ktap(text)
    assert statuses(kcidb_of(suite.path / "run.json")) == {
        "test_before": "PASS",
        "test_during": "MISS",
        "test_after": "MISS",
        "": "MISS",
    }
    assert re.search(rf"not ok 2 test_during # ERROR [^\n]*{said}[^\n]*, in this test\n", text)
    assert re.search(rf"not ok 3 test_after # ERROR not run: [^\n]*{said}", text)


INTERNAL = """
def pytest_runtest_logreport(report):
    if "test_during" in report.nodeid:
        raise RuntimeError("the reporter failed")
"""


@WORKERS
def test_internal_error_leaves_a_complete_document(suite, workers):
    suite.add(INTERRUPTED.format(statement="pass"))
    conftest = suite.path / "conftest.py"
    conftest.write_text(conftest.read_text() + INTERNAL)
    run, text = ktap_of(suite, "-n", str(workers))
    assert "FAILURE" in check_ktap(text)[IT].values()
    assert run.exit_code != 0
    assert "the reporter failed" in text


def test_worker_that_dies_fails_its_test(suite):
    suite.add(INTERRUPTED.format(statement="os._exit(9)"))
    _, text = ktap_of(suite, "-n", "1")
    assert check_ktap(text)[IT] == {
        "test_before": "SUCCESS",
        "test_during": "FAILURE",
        "test_after": "SUCCESS",
    }


@WORKERS
def test_tests_left_out_by_maxfail_are_skipped(suite, workers):
    suite.add(INTERRUPTED.format(statement="assert False"))
    _, text = ktap_of(suite, "-x", "-n", str(min(workers, 1)))
    check_ktap(text)
    assert re.search(r"\n  ok . test_after # SKIP not run: stopping after 1 failures\n", text)


def test_file_that_cannot_be_collected_is_a_failure(suite):
    suite.add(ending(a="passed"))
    suite.write(OTHER, "import no_such_module\n")
    _, text = ktap_of(suite)
    check_ktap(text)
    assert f"not ok 2 {OTHER} # ERROR could not be collected" in text
    assert "not ok 1 test_a # ERROR not run" in text


@pytest.mark.parametrize(
    "arguments, said",
    [(["-k", "nothing"], "no test was collected"), (["--kernel=nonsense"], "no such file or dir")],
    ids=["empty", "refused"],
)
def test_run_without_tests_is_one_failure(suite, arguments, said):
    suite.add(ending(a="passed"))
    _, text = ktap_of(suite, *arguments)
    check_ktap(text)
    assert text.startswith("KTAP version 1\n1..1\nnot ok 1 run # ERROR ")
    assert said in text


def test_machine_without_kvm_is_skipped(suite):
    suite.add(ending(a="passed"))
    suite.prepare("import platform\nplatform.machine = lambda: 'riscv64'")
    _, text = ktap_of(suite)
    assert text.startswith("KTAP version 1\n1..0 # SKIP this suite tests KVM on x86-64")


# --- the stream -----------------------------------------------------------------------------------


def test_results_are_written_while_the_run_goes_on(suite):
    suite.add(INTERRUPTED.format(statement="time.sleep(600)"))
    command = [sys.executable, "-m", "pytest", "suites", "--ktap=-", "-p", "no:cacheprovider"]
    run = subprocess.Popen(
        command,
        cwd=suite.path,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout
    lines = []
    while "ok 1 test_before" not in "".join(lines[-1:]):
        lines.append(run.stdout.readline())
        assert run.poll() is None
    time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    rest, _ = run.communicate(timeout=60)
    check_ktap("".join(lines) + rest)


@pytest.mark.parametrize("arguments", [[], ["-s"], ["-n2"], ["-v"]], ids=" ".join)
def test_standard_output_has_nothing_else(suite, arguments):
    suite.add(OUTCOMES.replace("def test_passes(): pass", "def test_passes(): print('noise')"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", "--ktap=-", *arguments],
        cwd=suite.path,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("KTAP version 1\n1..1\n")
    check_ktap(done.stdout)
    assert "test session starts" in done.stderr


def test_unwritable_file_is_one_clear_line(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--ktap=/dev/null/file")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == ("ERROR: --ktap=/dev/null/file cannot be written: Not a directory")


def test_full_disk_fails_the_run_and_says_so(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--ktap=/dev/full")
    assert run.exit_code == pytest.ExitCode.INTERNAL_ERROR
    assert run.lines_with("/dev/full is not complete: No space left on device")


# --- the exit code --------------------------------------------------------------------------------

ON_ANOTHER_MACHINE = "import platform\nplatform.machine = lambda: 'riscv64'"


@pytest.mark.parametrize(
    "verdict, preparation, arguments, code",
    [
        ("passed", "", [], 0),
        ("xfailed: made-up", "", [], 0),
        ("failed", "", [], 1),
        ("passed", ON_ANOTHER_MACHINE, [], 4),
        ("skipped", "", [], 4),
        ("passed", "", ["-k", "nothing"], 1),
        ("passed", "", ["--kernel=nonsense"], 1),
        ("passed", "", ["suites/test_no.py"], 1),
    ],
    ids=["passed", "deviation", "failed", "no-kvm", "skipped", "nothing", "no-kernel", "no-file"],
)
def test_exit_codes_are_those_of_kselftest(suite, verdict, preparation, arguments, code):
    suite.add(ending(a=verdict))
    suite.prepare(preparation)
    run = run_pytest(suite.path, "suites", *arguments, "--exit-codes=kselftest")
    assert run.exit_code == code, run.output
    assert "Traceback" not in run.output
