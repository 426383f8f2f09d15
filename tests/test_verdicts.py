"""How an outcome becomes a verdict, and what is no verdict at all."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.verdicts.kernel import vendor_of
from tests.copy_of_the_suite import ROOT, Run, Suite, run_pytest

WORKERS = pytest.mark.parametrize("workers", [0, 2], ids="-n{}".format)

# --- known deviations -----------------------------------------------------------------------------

IT_SHOWS = 'expect("return value", "1", "-1 EINVAL")'
"""What the deviations made up here show, unless told otherwise."""


@dataclass(frozen=True)
class Case:
    """A test with a known deviation: how it ends, and what the run says of it."""

    deviation: str
    statement: str
    outcome: str
    said: str = ""


CASES = {
    "as_known": Case("", IT_SHOWS, "XFAIL", "known deviation: as_known, 1 test"),
    "as_known_with_wildcard": Case("shows='*'", IT_SHOWS, "XFAIL"),
    "other_value": Case(
        "",
        'expect("return value", "0", "-1 EINVAL")',
        "FAILED",
        "not the known deviation other_value, which shows otherwise",
    ),
    "other_subject": Case(
        "",
        'expect("acceptors", "1", "0")',
        "FAILED",
        "not the known deviation other_subject, which shows otherwise",
    ),
    "other_kernels": Case(
        "applies=False",
        IT_SHOWS,
        "FAILED",
        "other_kernels is known for before Linux 1.0 only",
    ),
    "other_kernels_passing": Case("applies=False, bound='host'", "pass", "PASSED"),
    "assertion": Case("shows='*'", "assert False", "FAILED"),
    "exception": Case("shows='*'", "raise OSError('1')", "FAILED"),
    "own_failure": Case("shows='*'", "pytest.fail('1')", "FAILED"),
    "own_skip": Case("shows='*'", "pytest.skip('a precondition is missing')", "SKIPPED"),
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
    """One run of a test for each case."""
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
    assert run_of_cases.lines_with(CASES[name].said)


def test_case_that_is_not_known_makes_the_run_fail(run_of_cases):
    assert run_of_cases.exit_code == pytest.ExitCode.TESTS_FAILED


def test_deviation_of_other_kernels_that_does_not_happen_is_not_mentioned(run_of_cases):
    assert not run_of_cases.lines_with("other_kernels_passing (")
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


def test_second_of_two_deviations_may_be_the_one(suite):
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
def test_deviation_is_told_in_one_line(suite, workers):
    suite.add(DEVIATES)
    (told,) = suite.run("-n", str(workers), "--xfail-tb").lines_with("return value")
    assert re.fullmatch(r"suites/test_it.py:\d+: return value: expected -1 EINVAL, got 1", told)


@WORKERS
def test_strict_makes_deviations_fail(suite, workers):
    suite.add(DEVIATES)
    run = suite.run("-n", str(workers), "--strict")
    assert (run.outcomes, run.exit_code) == ({"failed": 1, "passed": 1}, 1)
    assert run.lines_with("known deviation made-up: A summary.")
    assert run.lines_with("again: pytest suites/test_it.py::test_deviates --strict")


# --- what a run says ------------------------------------------------------------------------------


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
    assert "again: pytest 'suites/test_it.py::test_it[2]'" in output


def test_failure_names_the_command_that_explains_its_message(suite):
    suite.add("""
@clause("msi.flags")
def test_it(machines):
    machine = machines(vcpu_ids=[0, 300], x2apic_api=3)
    machine.signal(Message(destination=300), flags=1, devid=7, pad=bytes(11) + b"x").returns(0)
""")
    mark = "what the model says of the last message: python "
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
    assert rows["required"] == ["0", "holds", "1", "deviates", "0", "broken", "0", "not", "tested"]


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


# --- the kernel complains -------------------------------------------------------------------------

COMPLAINING = """
from helpers.verdicts import plugin
from helpers.verdicts.plugin import VERDICTS
from suites.kmsg import Kmsg
import pytest

plugin.KernelLog = Kmsg

@pytest.fixture
def log(request):
    return request.config.stash[VERDICTS].log
"""


@pytest.fixture
def complaining(suite: Suite) -> Suite:
    """A suite whose fixture ``log`` makes the kernel say something."""
    suite.write("suites/kmsg.py", (ROOT / "tests/kmsg.py").read_text())
    suite.prepare(COMPLAINING)
    return suite


@WORKERS
def test_complaint_of_the_kernel_fails_the_running_test(complaining, workers):
    complaining.add("""
@clause("msi.flags")
def test_before():
    pass

@clause("msi.flags")
def test_it(log):
    log.say("nothing to see here")
    log.say("WARNING: CPU: 0 PID: 1 at arch/x86/kvm/lapic.c:1")

@clause("msi.flags")
def test_after():
    pass
""")
    run = complaining.run("-n", str(workers))
    assert (run.outcomes, run.exit_code) == ({"failed": 1, "passed": 2}, 1)
    assert run.lines_with("FAILED suites/test_it.py::test_it")
    assert run.lines_with("WARNING: CPU: 0 PID: 1 at arch/x86/kvm/lapic.c:1")
    assert not run.lines_with("nothing to see here")


def test_complaint_is_not_covered_by_a_known_deviation(complaining):
    complaining.add("""
@clause("msi.pad")
@known(shows="*")
def test_it(log):
    log.say("BUG: kernel NULL pointer dereference")
    expect("return value", "1", "-1 EINVAL")
""")
    assert complaining.run().outcomes == {"failed": 1}


def test_complaint_fails_a_test_that_skips_itself(complaining):
    complaining.add("""
@clause("msi.pad")
def test_it(log):
    log.say("BUG: kernel NULL pointer dereference")
    pytest.skip("no reason")
""")
    assert complaining.run().outcomes == {"failed": 1}


def test_complaint_in_a_fixture_is_not_lost(complaining):
    complaining.add("""
@pytest.fixture
def vm(log):
    yield
    log.say("BUG: sleeping function called from invalid context")

@clause("msi.flags")
def test_it(vm):
    pass
""")
    run = complaining.run()
    assert run.exit_code == pytest.ExitCode.TESTS_FAILED
    assert run.lines_with("ERROR suites/test_it.py::test_it")


def test_taint_fails_the_running_test(suite, tmp_path):
    (tmp_path / "tainted").write_text("0")
    suite.prepare(f"""
from pathlib import Path
from helpers.verdicts import kernel_log
kernel_log.TAINT = Path({str(tmp_path / "tainted")!r})
""")
    suite.add("""
from helpers.verdicts import kernel_log

@clause("msi.flags")
def test_it():
    kernel_log.TAINT.write_text("512")
""")
    run = suite.run()
    assert run.outcomes == {"failed": 1}
    assert run.lines_with("the kernel's taint flags changed from 0 to 512")


@WORKERS
def test_log_that_cannot_be_read_is_said_once(suite, workers):
    suite.prepare("""
from functools import partial
from helpers.verdicts import kernel_log, plugin
plugin.KernelLog = partial(kernel_log.KernelLog, "/no/such/kmsg")
""")
    suite.add(DEVIATES)
    run = suite.run("-n", str(workers))
    assert run.exit_code == 0
    assert len(run.lines_with("the kernel log cannot be read")) == 1


# --- nothing to judge -----------------------------------------------------------------------------

LIES_ABOUT = """
from helpers.kvm import abi, ioctl

kernel = ioctl.raw_ioctl

def raw_ioctl(fd, number, argument):
    if (number, argument) == ({request}.number, {argument}):
        return {answer}, 0
    return kernel(fd, number, argument)

ioctl.raw_ioctl = raw_ioctl
"""

ANOTHER_PATH = """
from functools import partial
from helpers.verdicts import kernel, plugin
plugin.require_testable = partial(kernel.require_testable, {path!r})
"""

WITHOUT_PERMISSION = """
import os
from pathlib import Path
from helpers.verdicts import kernel, plugin

def require_testable():
    Path("kvm").touch(0)
    user = os.getuid()
    other = user or 65534
    os.setresuid(other, other, user)
    try:
        kernel.require_testable("kvm")
    finally:
        os.setresuid(user, user, user)

plugin.require_testable = require_testable
"""

UNTESTABLE = {
    "no-kvm": (
        ANOTHER_PATH.format(path="/no/such/kvm"),
        "no /no/such/kvm: nothing to test. Load KVM",
    ),
    "no-permission": (WITHOUT_PERMISSION, "kvm cannot be opened by user "),
    "directory": (ANOTHER_PATH.format(path="/dev"), "/dev cannot be opened: Is a directory"),
    "not-a-kvm-device": (
        ANOTHER_PATH.format(path="/dev/null"),
        "/dev/null is not a KVM device: KVM_GET_API_VERSION: ENOTTY",
    ),
    "api-version": (
        LIES_ABOUT.format(request="abi.KVM_GET_API_VERSION", argument="0", answer=11),
        "KVM_GET_API_VERSION is 11; this suite is written for 12",
    ),
    "no-irqchip": (
        LIES_ABOUT.format(
            request="abi.KVM_CHECK_EXTENSION", argument="abi.KVM_CAP_IRQCHIP", answer=0
        ),
        "KVM_CAP_IRQCHIP is 0",
    ),
    "not-x86": (
        "import platform\nplatform.machine = lambda: 'aarch64'",
        "this suite judges KVM on x86-64, and this machine is aarch64",
    ),
    "no-gcc": (
        "import os\nos.environ['PATH'] = os.environ['XDG_CACHE_HOME'] = '/no/such/directory'",
        "gcc and ld not found",
    ),
}


@pytest.mark.parametrize("preparation, said", UNTESTABLE.values(), ids=UNTESTABLE)
def test_untestable_machine_is_one_clear_line(suite, preparation, said):
    suite.prepare(preparation)
    suite.add(DEVIATES)
    run = suite.run()
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in run.output.splitlines() if line]
    assert line.startswith(f"ERROR: {said}")


def test_untestable_machine_is_said_once_with_workers(suite):
    suite.prepare(ANOTHER_PATH.format(path="/no/such/kvm"))
    suite.add(DEVIATES)
    run = suite.run("-n", "2")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert len(run.lines_with("no /no/such/kvm")) == 1


NOTHING = "no test was run to a verdict: nothing was judged, and that is not a pass"
SKIPS = """
@clause("msi.flags")
def test_it():
    pytest.skip("a precondition is missing")
"""


@pytest.mark.parametrize(
    "tests, arguments",
    [
        ("", []),
        (DEVIATES, ["-k", "nothing"]),
        (SKIPS, []),
        (SKIPS, ["-n", "2"]),
        ("@pytest.mark.skip(reason='a precondition is missing')" + SKIPS, []),
        ("pytest.skip('a precondition is missing', allow_module_level=True)" + SKIPS, []),
    ],
    ids=["empty", "deselected", "skips", "skips-n2", "skipped", "module-skipped"],
)
def test_run_that_judged_nothing_is_not_a_pass(suite, tests, arguments):
    suite.add(tests)
    run = suite.run(*arguments)
    assert run.exit_code == pytest.ExitCode.NO_TESTS_COLLECTED
    assert run.lines_with(NOTHING)


def test_one_verdict_among_skipped_tests_is_a_run(suite):
    suite.add(SKIPS + DEVIATES)
    run = suite.run()
    assert (run.outcomes, run.exit_code) == ({"passed": 1, "skipped": 1, "xfailed": 1}, 0)
    assert not run.lines_with(NOTHING)


def test_collecting_needs_no_kvm(suite):
    suite.prepare(ANOTHER_PATH.format(path="/no/such/kvm"))
    suite.add(DEVIATES)
    run = suite.run("--collect-only", "-q")
    assert run.exit_code == 0
    assert run.lines_with("suites/test_it.py::test_deviates")


WITHOUT_KVM = """
def pytest_configure():
    from functools import partial
    from helpers.verdicts import plugin
    plugin.require_testable = partial(plugin.require_testable, "/no/such/kvm")
"""


@pytest.fixture
def without_kvm(suite: Suite) -> Suite:
    """A suite on a machine without KVM, with tests that judge it and one that does not."""
    conftest = suite.path / "conftest.py"
    conftest.write_text(conftest.read_text() + WITHOUT_KVM)
    suite.add(DEVIATES)
    suite.write("tests/test_helper.py", "def test_helper():\n    pass\n")
    return suite


@pytest.mark.parametrize(
    "arguments",
    [[], ["."], ["tests", "suites"], ["suites/test_it.py::test_holds"]],
    ids=["none", "all", "both", "one-test"],
)
def test_run_that_judges_a_kernel_needs_kvm(without_kvm, arguments):
    run = run_pytest(without_kvm.path, *arguments)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.lines_with("no /no/such/kvm")


def test_run_that_judges_the_suite_needs_no_kvm(without_kvm):
    run = run_pytest(without_kvm.path, "tests")
    assert (run.outcomes, run.exit_code) == ({"passed": 1}, 0)


@pytest.mark.parametrize(
    "modules, flags, vendor",
    [
        ({"kvm_intel", "kvm_amd"}, {"fpu", "svm"}, "kvm_amd"),
        ({"kvm_intel", "kvm_amd"}, {"fpu", "vmx"}, "kvm_intel"),
        ({"kvm_amd"}, {"svm"}, "kvm_amd"),
        ({"kvm_intel", "kvm_pvm"}, {"fpu"}, "kvm_pvm"),
        (set(), {"svm"}, "unknown"),
    ],
    ids=["both-on-AMD", "both-on-Intel", "one", "pvm", "none"],
)
def test_vendor_is_the_module_the_processor_can_use(modules, flags, vendor):
    assert vendor_of(modules, flags) == vendor
