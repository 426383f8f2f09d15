# SPDX-License-Identifier: GPL-2.0-only
"""KernelLog reports each complaint of the kernel once, and no other line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from helpers.verdicts import kernel_log
from helpers.verdicts.kernel_log import KernelLog, normalized
from tests.kmsg import Kmsg

COMPLAINTS = {
    "warning": "WARNING: CPU: 1 PID: 42 at arch/x86/kvm/lapic.c:1234 __apic_accept_irq+0x1/0x2",
    "null-pointer": "BUG: kernel NULL pointer dereference, address: 0000000000000010",
    "bug": "kernel BUG at arch/x86/kvm/irq_comm.c:77!",
    "oops": "Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "protection-fault": "general protection fault, probably for non-canonical address",
    "rcu-stall": "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "rcu-stalls": "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "soft-lockup": "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [pytest:42]",
    "hung-task": "INFO: task pytest:42 blocked for more than 120 seconds.",
    "kasan": "BUG: KASAN: slab-use-after-free in kvm_irq_delivery_to_apic+0x1/0x2",
    "ubsan": "UBSAN: shift-out-of-bounds in arch/x86/kvm/lapic.c:99:1",
    "kcsan": "BUG: KCSAN: data-race in kvm_set_msi / kvm_set_routing_entry",
    "lockdep": "WARNING: possible circular locking dependency detected",
    "irq-lock": "WARNING: possible recursive locking detected",
    "trace": "Call Trace:",
}

HARMLESS = {
    "disabled-lapic": "kvm: apic: phys broadcast and lowest prio",
    "dropped": "Disabled LAPIC found during irq injection",
    "guest-msr": "kvm [42]: vcpu0, guest rIP: 0xa2a8 ignored wrmsr: 0x11e data 0x0",
    "perf": "perf: interrupt took too long (2510 > 2500)",
    "empty": "",
}


@pytest.fixture
def log() -> Iterator[Kmsg]:
    """An empty kernel log."""
    kmsg = Kmsg()
    yield kmsg
    kmsg.close()


@contextmanager
def taint_flags(directory: Path) -> Iterator[Path]:
    """Replace the kernel's taint flags by a file with 0, for the body of the ``with`` alone."""
    file = directory / "tainted"
    file.write_text("0\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernel_log, "TAINT", file)
        yield file


@pytest.mark.parametrize("text", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaint_is_seen(log, text):
    log.say(text, " SUBSYSTEM=cpu\n DEVICE=+cpu:cpu0\n")
    assert log.complaints() == [text]


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_other_lines_are_no_complaints(log, text):
    log.say(text, " SUBSYSTEM=BUG:\n")
    assert log.complaints() == []


def test_complaints_are_reported_in_order_and_once(log):
    for text in ("WARNING: one", "nothing", "BUG: two"):
        log.say(text)
    assert log.complaints() == ["WARNING: one", "BUG: two"]
    assert log.complaints() == []
    log.say("WARNING: three")
    assert log.complaints() == ["WARNING: three"]


def test_reading_goes_on_when_the_log_was_overrun(log, monkeypatch):
    read = Mock(side_effect=[BrokenPipeError, b"4,1,1,-;WARNING: late\n", BlockingIOError])
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", read)
        complaints = log.complaints()
    assert complaints == ["WARNING: late"]


def test_this_machines_log_is_read_from_now_on():
    log = KernelLog()
    assert log.complaints() == []
    log.close()


@pytest.mark.timeout(2)
def test_log_that_is_no_kernel_log_has_no_complaints():
    log = KernelLog(os.devnull)
    assert log.complaints() == []
    log.close()


def test_missing_log_is_not_readable(tmp_path):
    with closing(KernelLog(str(tmp_path / "kmsg"))) as log:
        assert not log.readable
        assert log.complaints() == []


def test_log_that_cannot_be_positioned_is_not_readable_and_closed(tmp_path):
    os.mkfifo(tmp_path / "kmsg")
    before = os.listdir("/proc/self/fd")
    with closing(KernelLog(str(tmp_path / "kmsg"))) as log:
        assert not log.readable
    assert os.listdir("/proc/self/fd") == before


def test_new_taint_is_a_complaint_once(tmp_path):
    with taint_flags(tmp_path) as taint, closing(Kmsg()) as log:
        assert log.complaints() == []
        taint.write_text("512\n")
        assert log.complaints() == ["new taint flags of the kernel: 512"]
        assert log.complaints() == []


def test_taint_is_watched_where_the_log_cannot_be_read(tmp_path):
    with taint_flags(tmp_path) as taint, closing(KernelLog(str(tmp_path / "kmsg"))) as log:
        taint.write_text("128\n")
        assert log.complaints() == ["new taint flags of the kernel: 128"]


def test_taint_that_cannot_be_read_is_0(tmp_path):
    with taint_flags(tmp_path) as taint:
        taint.unlink()
        with closing(Kmsg()) as log:
            assert log.complaints() == []


def test_taint_of_a_warning_is_part_of_the_warning(tmp_path):
    with taint_flags(tmp_path) as taint, closing(Kmsg()) as log:
        log.say("WARNING: one")
        taint.write_text("512\n")
        assert log.complaints() == ["WARNING: one"]
        log.say("WARNING: two")
        taint.write_text("640\n")
        assert log.complaints() == ["WARNING: two", "new taint flags of the kernel: 128"]


def test_complaint_re_arms_what_warns_once(tmp_path, monkeypatch):
    rearm = tmp_path / "clear_warn_once"
    rearm.touch()
    monkeypatch.setattr(kernel_log, "CLEAR_WARN_ONCE", rearm)
    with taint_flags(tmp_path) as taint, closing(Kmsg()) as log:
        assert log.complaints() == []
        assert (rearm.read_text(), log.muted) == ("", False)
        log.say("WARNING: one")
        taint.write_text("512\n")
        log.complaints()
        assert (rearm.read_text(), log.muted) == ("1", False)
        rearm.write_text("")
        KernelLog(os.devnull).close()  # The next session starts with the taint.
        assert rearm.read_text() == "1"


def test_log_without_debugfs_is_muted_by_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_log, "CLEAR_WARN_ONCE", tmp_path / "no-such")
    with taint_flags(tmp_path) as taint, closing(Kmsg()) as log:
        assert not log.muted
        log.say("WARNING: one")
        taint.write_text("512\n")
        log.complaints()
        assert log.muted


# --- the words of known deviations ----------------------------------------------------------------

WARNINGS = {
    "5.10": "WARNING: CPU: 1 PID: 42 at arch/x86/kvm/lapic.c:1234 kvm_f+0x1/0x2 [kvm]",
    "path": "WARNING: CPU: 0 PID: 4 at /build/linux/arch/x86/kvm/x86.c:7 kvm_f+0xa/0xb0 [kvm]",
    "7.3": "WARNING: arch/x86/kvm/lapic.c:3441 at kvm_f+0x1/0x2 [kvm], CPU#0: python3/1",
    "condition": "WARNING: [vcpu->a == 2] arch/x86/kvm/lapic.c:3 at kvm_f+0x1/0x2, CPU#0: a/1",
    "no-file": "WARNING: CPU: 1 PID: 42 at kvm_f+0x1/0x2",
    "gcc": "WARNING: CPU: 1 PID: 42 at arch/x86/kvm/lapic.c:1 kvm_f.constprop.0.isra.0+0x1/0x2",
}


@pytest.mark.parametrize("line", WARNINGS.values(), ids=WARNINGS)
def test_warning_is_named_by_its_function(line):
    assert normalized([line, "Call Trace:", line]) == "WARNING in kvm_f"


def test_every_complaint_is_named():
    lines = [WARNINGS["5.10"], "Call Trace:", "BUG: one", WARNINGS["7.3"].replace("kvm_f", "kvm_g")]
    assert normalized(lines) == "WARNING in kvm_f, BUG: one, WARNING in kvm_g"
    assert normalized(["Call Trace:"]) == "Call Trace:"
    assert normalized(["WARNING: possible recursive locking detected"]) == (
        "WARNING: possible recursive locking detected"
    )
