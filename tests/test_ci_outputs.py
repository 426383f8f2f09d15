# SPDX-License-Identifier: GPL-2.0-only
"""What one run with every outcome leaves in KTAP, KCIDB, JUnit's report, logs and the others."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import kunit
from tests.ci_outputs import IT, OTHER, OUTCOMES, STATUSES, check_ktap, kcidb_of, statuses
from tests.copy_of_the_suite import Run, Suite
from tests.result_files import ending


@dataclass(frozen=True)
class Written:
    """A run, and the directory with its files."""

    run: Run
    path: Path

    @property
    def ktap(self) -> str:
        return (self.path / "run.ktap").read_text()

    def log(self, test: str) -> str:
        return (self.path / "logs" / f"test_it.{test}.log").read_text()


@pytest.fixture(scope="module", params=[0, 2], ids="-n{}".format)
def written(request, tmp_path_factory) -> Written:
    """The files of a run with every outcome."""
    suite = Suite(tmp_path_factory.mktemp("written") / "suite")
    suite.add(OUTCOMES)
    suite.add(ending(a="passed"), OTHER)
    files = ["--ktap=run.ktap", "--kcidb=run.json", "--junitxml=run.xml", "--logs=logs"]
    files += ["--results=results.json", "--html=run.html", "-rA", f"-n{request.param}"]
    return Written(suite.run(*files, "--kcidb-url=https://ci.example/42/"), suite.path)


# --- KTAP -----------------------------------------------------------------------------------------


def test_each_outcome_is_a_result_line(written):
    check_ktap(written.ktap)
    assert written.run.exit_code == pytest.ExitCode.TESTS_FAILED
    for line in (
        "ok 3 test_skips # SKIP no SMM # here",
        "ok 4 test_deviates # XFAIL known deviation made-up: A summary.",
        "not ok 5 test_hangs # TIMEOUT 1 seconds",
        "not ok 6 test_errs # ERROR ",
    ):
        assert re.sub(r" \d+", " ", line) in re.sub(r" \d+", " ", written.ktap)
    assert "#   the known deviation made-up (before Linux" in written.ktap


def test_kunit_reads_each_outcome(written):
    parsed = kunit.parse(written.ktap)
    assert parsed.errors == 0
    assert parsed.statuses == {IT: STATUSES, OTHER: {"test_a": "SUCCESS"}}
    assert parsed[IT]["test_skips"].reason == "no SMM # here"
    assert (parsed[IT].status, parsed[OTHER].status) == ("FAILURE", "SUCCESS")


def test_failure_is_explained_before_its_result_line(written):
    lines = [line.strip() for line in written.ktap.splitlines()]
    [end] = [number for number, line in enumerate(lines) if line.endswith(" test_fails")]
    above = [line for line in lines[:end] if not line.startswith("#")][-1]
    text = "\n".join(lines[lines.index(above) + 1 : end])
    assert "return value: expected 0, got 1" in text
    assert "clause msi.flags (documented; api.rst, KVM_SIGNAL_MSI)" in text
    assert "to repeat the test: pytest suites/test_it.py::test_fails" in text


# --- KCIDB ----------------------------------------------------------------------------------------


def test_kcidb_has_each_outcome(written):
    content = kcidb_of(written.path / "run.json")
    found = statuses(content)
    assert found.pop("") == "FAIL"
    assert found == {
        "test_passes": "PASS",
        "test_fails": "FAIL",
        "test_skips": "SKIP",
        "test_deviates": "FAIL",
        "test_hangs": "FAIL",
        "test_errs": "ERROR",
        "test_is_backported": "PASS",
        "test_value[a b]": "PASS",
        "test_value[c#d]": "PASS",
        "test_a": "PASS",
    }
    tests = {test["path"]: test for test in content["tests"]}
    hangs = tests["kvm_signal_msi.test_it.test_hangs"]
    assert hangs["misc"]["outcome"] == "timed out after 1 s"
    assert "vCPU with ID 1: last exit KVM_EXIT_" in hangs["log_excerpt"]
    assert hangs["log_url"] == "https://ci.example/42/logs/test_it.test_hangs.log"
    assert "kvm_signal_msi.test_it.test_value.a_b" in tests
    summary = {each["name"]: each["url"] for each in tests["kvm_signal_msi"]["output_files"]}
    assert summary["run.html"] == "https://ci.example/42/run.html"
    assert {"run.ktap", "run.xml"} <= summary.keys()


def test_known_deviation_is_a_known_issue(written):
    content = kcidb_of(written.path / "run.json")
    nodeids = {test["id"]: test["misc"].get("nodeid", "") for test in content["tests"]}
    present = {
        nodeids[each["test_id"]].partition("::")[2]: each["present"]
        for each in content["incidents"]
    }
    assert present == {"test_deviates": True, "test_is_backported": False}
    assert [each["id"] for each in content["issues"]] == ["kvm_signal_msi:kvm_signal_msi-made-up"]


# --- JUnit ----------------------------------------------------------------------------------------


def test_junit_has_properties(written):
    cases = {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
        for case in ElementTree.parse(written.path / "run.xml").iter("testcase")
    }
    assert len(cases) == 10
    found = cases["test_deviates"]
    assert found["clause"] == "msi.flags"
    assert found["level"] == "documented"
    assert found["source"] == "api.rst, KVM_SIGNAL_MSI"
    assert found["deviation"] == "made-up"
    assert found["repeat"] == "pytest suites/test_it.py::test_deviates"
    assert {"kernel", "vendor", "processor"} <= found.keys()
    outcomes = {name: each["outcome"] for name, each in cases.items()}
    assert outcomes["test_hangs"] == "timeout"
    assert outcomes["test_errs"] == "error"
    assert outcomes["test_passes"] == "passed"


def test_fix_of_a_deviation_is_a_property(suite):
    suite.add("""
@clause("msi.pad")
@known(id="reset-hold-stays")
def test_it(): expect("return value", "1", "x")
""")
    suite.run("--junitxml=run.xml")
    assert '<property name="fixed" value="647daca25d24" />' in (suite.path / "run.xml").read_text()


# --- timeouts -------------------------------------------------------------------------------------


def test_timeout_is_an_outcome_of_its_own_everywhere(written):
    assert written.run.lines_with("TIMED OUT suites/test_it.py::test_hangs - timed out after 1 s")
    results = json.loads((written.path / "results.json").read_text())["results"]
    assert results["test_it.py"]["test_hangs"] == {"": "timeout"}
    assert "timed out after 1 s" in (written.path / "run.xml").read_text()
    html = (written.path / "run.html").read_text()
    assert re.search(r"col-result\\?&#34;&gt;Timeout|col-result[^>]*>Timeout", html)
    assert '<span class="kvm-timeout">1 timeout</span>' in html


def test_timeout_shows_the_vcpu_that_ran(written):
    for text in (written.ktap, written.log("test_hangs")):
        shown = re.search(r"vCPU with ID 1: last exit KVM_EXIT_.*\n\W*rip=(\w+) rflags=", text)
        assert shown
        assert int(shown[1], 16)


@pytest.mark.parametrize("raised", ["GuestError('cannot be kicked')", "OSError(5, 'why')"])
def test_exception_of_the_unwinding_hides_no_timeout(suite, raised):
    suite.add(f"""
import contextlib, time
from helpers.guest import GuestError

@contextlib.contextmanager
def unwinding():
    try: yield
    finally: raise {raised}

@clause("msi.pad")
@pytest.mark.timeout(1)
def test_it():
    with unwinding(): time.sleep(600)
""")
    assert suite.run().lines_with("TIMED OUT suites/test_it.py::test_it - timed out after 1 s")


# --- logs -----------------------------------------------------------------------------------------


def test_failed_tests_alone_have_a_log(written):
    names = sorted(path.name for path in (written.path / "logs").iterdir())
    assert names == ["test_it.test_errs.log", "test_it.test_fails.log", "test_it.test_hangs.log"]


def test_log_has_the_failure_the_ioctls_and_the_command(written):
    text = written.log("test_hangs")
    assert "test: suites/test_it.py::test_hangs\n" in text
    assert "command: pytest suites/test_it.py::test_hangs\n" in text
    assert "outcome: timed out after 1 s\n" in text
    assert re.search(r"--- ioctls\n(?:.*\n)*KVM_RUN\(fd \d+\) = ", text)
    assert "Mismatch: return value: expected 0, got 1" in written.log("test_fails")


def test_log_has_what_the_kernel_logged(suite):
    suite.prepare("""
from helpers.verdicts.kernel_log import KernelLog

lines = []

def new_lines(self):
    found, lines[:] = list(lines), []
    self.recent += found
    return found

KernelLog._new_lines = new_lines
""")
    suite.add("""
from suites.conftest import lines

@clause("msi.pad")
def test_before(): lines.append("of another test")

@clause("msi.pad")
def test_it():
    lines.extend(["a usual line", "WARNING: CPU: 0 PID: 1 at x.c:1 kvm_x+0x1/0x2 [kvm]"])
    assert False
""")
    suite.run("--logs=logs")
    text = (suite.path / "logs/test_it.test_it.log").read_text()
    assert "--- kernel log\na usual line\nWARNING: CPU: 0 PID: 1 at x.c:1" in text
    assert "of another test" not in text


def test_tests_whose_names_look_alike_have_a_log_each(suite):
    suite.add("""
@clause("msi.pad")
@pytest.mark.parametrize("value", ["a/b", "a b"])
def test_it(value): assert False
""")
    suite.run("--logs=logs")
    names = sorted(path.name for path in (suite.path / "logs").iterdir())
    assert names == ["test_it.test_it_a_b-2.log", "test_it.test_it_a_b.log"]


@pytest.mark.parametrize(
    "option, message",
    [
        ("--logs=/dev/null/x", "--logs=/dev/null/x cannot be made: Not a directory"),
        ("--kcidb=/dev/null/x", "--kcidb=/dev/null/x cannot be written: no directory /dev/null"),
        ("--kcidb=/dev/full", "--kcidb=/dev/full cannot be written: it is no file"),
        ("--kcidb=.", "--kcidb=. cannot be written: it is no file"),
        ("--kcidb-origin=A-b", "--kcidb-origin=A-b: a name is of a-z, 0-9 and _"),
        ("--kcidb-build=x", "--kcidb-build=x: an id is ORIGIN:NAME"),
        ("--kcidb-url=x", "--kcidb-url=x: no URL"),
    ],
)
def test_wrong_option_is_one_clear_line(suite, option, message):
    suite.add(ending(a="passed"))
    run = suite.run(*(["--kcidb=run.json"] * ("kcidb-" in option)), option)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == f"ERROR: {message}"
    assert not (suite.path / "run.json").exists()
