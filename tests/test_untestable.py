# SPDX-License-Identifier: GPL-2.0-only
"""A run that cannot judge a kernel, or did not judge one, is not a pass."""

from __future__ import annotations

import pytest

from helpers.verdicts.kernel import vendor_of
from tests.copy_of_the_suite import Suite, run_pytest

HOLDS = """
@clause("msi.flags")
def test_holds():
    pass
"""

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
from helpers.verdicts import kernel, session
session.require_testable = partial(kernel.require_testable, {path!r})
"""

WITHOUT_PERMISSION = """
import os
from pathlib import Path
from helpers.verdicts import kernel, session

def require_testable():
    Path("kvm").touch(0)
    user = os.getuid()
    other = user or 65534
    os.setresuid(other, other, user)
    try:
        kernel.require_testable("kvm")
    finally:
        os.setresuid(user, user, user)

session.require_testable = require_testable
"""

UNTESTABLE = {
    "no-kvm": (
        ANOTHER_PATH.format(path="/no/such/kvm"),
        "no /no/such/kvm: load KVM (modprobe kvm_intel or kvm_amd)",
    ),
    "no-permission": (WITHOUT_PERMISSION, "kvm cannot be opened by user "),
    "directory": (ANOTHER_PATH.format(path="/dev"), "/dev cannot be opened: Is a directory"),
    "not-a-kvm-device": (
        ANOTHER_PATH.format(path="/dev/null"),
        "/dev/null is not a KVM device: KVM_GET_API_VERSION: ENOTTY",
    ),
    "api-version": (
        LIES_ABOUT.format(request="abi.KVM_GET_API_VERSION", argument="0", answer=11),
        "KVM_GET_API_VERSION is 11, and this suite is written for 12: run Linux 2.6.22 or later",
    ),
    "no-irqchip": (
        LIES_ABOUT.format(
            request="abi.KVM_CHECK_EXTENSION", argument="abi.KVM_CAP_IRQCHIP", answer=0
        ),
        "KVM_CAP_IRQCHIP is 0, and KVM_SIGNAL_MSI needs an in-kernel irqchip: use a KVM module",
    ),
    "other-architecture": (
        "import platform\nplatform.machine = lambda: 'riscv64'",
        "this suite tests KVM on x86-64 and arm64, and this machine is riscv64: run the suite on",
    ),
    "no-gcc": (
        "import os\nos.environ['PATH'] = os.environ['XDG_CACHE_HOME'] = '/no/such/directory'",
        "gcc and ld not found",
    ),
}


@pytest.mark.parametrize("preparation, message", UNTESTABLE.values(), ids=UNTESTABLE)
def test_untestable_machine_is_one_clear_line(suite, preparation, message):
    suite.prepare(preparation)
    suite.add(HOLDS)
    run = suite.run()
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in run.output.splitlines() if line]
    assert line.startswith(f"ERROR: {message}")


def test_untestable_machine_is_reported_once_with_workers(suite):
    suite.prepare(ANOTHER_PATH.format(path="/no/such/kvm"))
    suite.add(HOLDS)
    run = suite.run("-n", "2")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert len(run.lines_with("no /no/such/kvm")) == 1


NOTHING = "no test came to a verdict: the run judged no kernel, and is not a pass"
SKIPS = """
@clause("msi.flags")
def test_it():
    pytest.skip("a precondition is missing")
"""


@pytest.mark.parametrize(
    "tests, arguments",
    [
        ("", []),
        (HOLDS, ["-k", "nothing"]),
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
    suite.add(SKIPS + HOLDS)
    run = suite.run()
    assert (run.outcomes, run.exit_code) == ({"passed": 1, "skipped": 1}, 0)
    assert not run.lines_with(NOTHING)


def test_collecting_needs_no_kvm(suite):
    suite.prepare(ANOTHER_PATH.format(path="/no/such/kvm"))
    suite.add(HOLDS)
    run = suite.run("--collect-only", "-q")
    assert run.exit_code == 0
    assert run.lines_with("suites/test_it.py::test_holds")


WITHOUT_KVM = """
def pytest_configure():
    from functools import partial
    from helpers.verdicts import session
    session.require_testable = partial(session.require_testable, "/no/such/kvm")
"""


@pytest.fixture
def without_kvm(suite: Suite) -> Suite:
    """A suite on a machine without KVM: tests that judge a kernel, and one that does not."""
    conftest = suite.path / "conftest.py"
    conftest.write_text(conftest.read_text() + WITHOUT_KVM)
    suite.add(HOLDS)
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
