# SPDX-License-Identifier: GPL-2.0-only
"""A complaint of the kernel fails the running test, unless the complaint is a known deviation."""

from __future__ import annotations

import pytest

from tests.copy_of_the_suite import ROOT, Suite
from tests.test_verdicts import DEVIATES, WORKERS

COMPLAINING = """
from helpers.verdicts import session
from helpers.verdicts.session import VERDICTS
from suites.kmsg import Kmsg
import pytest

session.KernelLog = Kmsg

@pytest.fixture
def log(request):
    return request.config.stash[VERDICTS].log
"""


@pytest.fixture
def complaining(suite: Suite) -> Suite:
    """A suite whose fixture ``log`` writes to the kernel log."""
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
@known()
def test_it(log):
    log.say("BUG: kernel NULL pointer dereference")
    expect("return value", "1", "-1 EINVAL")
""")
    assert complaining.run().outcomes == {"failed": 1}


A_WARNING = "WARNING: CPU: 0 PID: 1 at arch/x86/kvm/lapic.c:1 kvm_f+0x1/0x2 [kvm]"
KNOWN_WARNING = """
from helpers.spec import DEVIATIONS, Deviation

SHOWS = (("kernel log", "no complaint", "WARNING in kvm_f"),)
DEVIATIONS["warns"] = Deviation("warns", "A summary.", SHOWS, "no evidence")
"""


def test_known_warning_of_the_kernel_is_a_known_deviation(complaining):
    complaining.prepare(COMPLAINING + KNOWN_WARNING)
    complaining.add(f"""
from helpers.verdicts import deviation

@clause("msi.pad")
@deviation("warns")
def test_alone(log):
    log.say("{A_WARNING}")
    log.say("Call Trace:")

@clause("msi.pad")
@deviation("warns")
def test_and_a_bug(log):
    log.say("{A_WARNING}")
    log.say("BUG: kernel NULL pointer dereference")

@clause("msi.pad")
@deviation("warns")
@known()
def test_and_a_known_mismatch(log):
    log.say("{A_WARNING}")
    expect("return value", "1", "-1 EINVAL")

@clause("msi.pad")
def test_of_another_deviation(log):
    log.say("{A_WARNING}")
""")
    run = complaining.run()
    assert run.outcomes == {"xfailed": 1, "failed": 3}
    assert run.lines_with("known deviation: warns, 1 test")
    assert run.lines_with("the test raised Mismatch: return value: expected -1 EINVAL, got 1")
    assert run.lines_with(A_WARNING)


def test_known_warning_may_come_from_another_process(complaining):
    complaining.prepare(COMPLAINING + KNOWN_WARNING)
    complaining.add(f"""
@clause("msi.flags")
def test_passes_beside_a_known_warning(log):
    log.say("{A_WARNING}")

@clause("msi.flags")
def test_fails_beside_another_warning(log):
    log.say("{A_WARNING.replace("kvm_f", "kvm_g")}")
""")
    assert complaining.run("-n", "2").outcomes == {"passed": 1, "failed": 1}


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
    assert run.lines_with("new taint flags of the kernel: 512")


@WORKERS
def test_log_that_cannot_be_read_is_mentioned_once(suite, workers):
    suite.prepare("""
from functools import partial
from helpers.verdicts import kernel_log, session
session.KernelLog = partial(kernel_log.KernelLog, "/no/such/kmsg")
""")
    suite.add(DEVIATES)
    run = suite.run("-n", str(workers))
    assert run.exit_code == 0
    assert len(run.lines_with("the kernel log cannot be read")) == 1
