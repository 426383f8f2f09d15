# SPDX-License-Identifier: GPL-2.0-only
"""CR8 written by guest and host, while one vector is in service and another is pending.

Clauses: guest.tpr.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.guest import expect
from helpers.guest.running import GuestError
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import NEEDS_IN_SERVICE, WITHOUT_APICV, expect_taken, fixed, restore_cr8


def guest_cr8(cpu, priority):
    """Write CR8 in the guest, which may never come back from the write."""
    cpu.prepare_cr8(priority)
    with cpu.in_thread() as running:
        expect("guest", outcome_of(running), "runs on")


def outcome_of(running):
    try:
        running.finish()
    except GuestError as error:
        return str(error)
    return "runs on"


EACH_WRITE = pytest.mark.parametrize("write", [guest_cr8, restore_cr8], ids=["guest", "host"])


@pytest.fixture
def serving(machine):
    """Vector 0x61 is in service on vCPU 1. The handlers of vCPU 1 write no EOI."""
    machine[1].handler(eoi=False)
    machine.send(fixed(0x61))
    machine[1].step()
    machine[1].log()
    return machine


def expect_ppr(cpu, value):
    expect("PPR at the guest", cpu.read(Register.PPR), value)
    expect("PPR at the host", cpu.lapic[Register.PPR], value)


@clause("guest.tpr")
@NEEDS_IN_SERVICE
@each.apic_mode
@EACH_WRITE
def test_tpr_holds_a_vector_above_the_one_in_service(serving, write):
    write(serving[1], 8)
    serving.signal(fixed(0x81)).returns(1)
    expect_taken(serving[1])
    expect_ppr(serving[1], 0x80)
    write(serving[1], 7)
    expect_taken(serving[1], 0x81)
    expect_ppr(serving[1], 0x80)  # 0x81 is in service.


@clause("guest.tpr")
@NEEDS_IN_SERVICE
@each.apic_mode
@pytest.mark.parametrize(
    "write",
    [pytest.param(guest_cr8, marks=deviation("lowered-tpr-keeps-threshold")), restore_cr8],
    ids=["guest", "host"],
)
def test_lowered_tpr_leaves_the_class_in_service_held(serving, write):
    write(serving[1], 9)
    serving.signal(fixed(0x6F)).returns(1)
    for priority in (6, 5, 0):
        write(serving[1], priority)
        expect_taken(serving[1])
        expect_ppr(serving[1], 0x60)
    serving[1].eoi()
    expect_taken(serving[1], 0x6F)


@clause("guest.tpr")
@NEEDS_IN_SERVICE
@each.apic_mode
@EACH_WRITE
def test_eoi_leaves_the_class_in_tpr_held(serving, write):
    write(serving[1], 5)
    serving.signal(fixed(0x5F)).returns(1)
    serving[1].eoi()
    expect_taken(serving[1])
    expect_ppr(serving[1], 0x50)
    write(serving[1], 4)
    expect_taken(serving[1], 0x5F)


@clause("guest.tpr")
@each.apic_mode
def test_guest_cr8_is_tpr(machine):
    machine[1].write_cr8(0xA)
    expect("TPR at the host", machine[1].lapic[Register.TPR], 0xA0)
    expect("TPR at the guest", machine[1].read(Register.TPR), 0xA0)
    expect("CR8 at the host", machine[1].vcpu.get_sregs().cr8, 0xA)
    machine[1].write(Register.TPR, 0x3C)
    expect("CR8 at the guest", machine[1].read_cr8(), 3)


@clause("guest.tpr")
@each.apic_mode
def test_guest_cr8_holds_its_class_and_lets_go(machine):
    for priority in range(1, 16):
        vector = priority << 4 | 0xF
        machine[1].write_cr8(priority)
        machine.signal(fixed(vector)).returns(1)
        expect_taken(machine[1])
        machine[1].write_cr8(priority - 1)
        expect_taken(machine[1], vector)


@clause("guest.tpr")
@WITHOUT_APICV
@deviation("disabled-lapic-keeps-tpr-threshold")
def test_processor_runs_after_tpr_is_lowered_while_the_lapic_is_disabled(machines):
    machine = machines(vcpu_ids=range(2))
    machine[1].write_cr8(4)
    machine.signal(fixed(0x31)).returns(1)
    expect_taken(machine[1])
    machine[1].apic_mode = ApicMode.DISABLED
    restore_cr8(machine[1], 0)
    machine[1].vcpu.run()
    expect("exit", machine[1].vcpu.describe_exit(), "KVM_EXIT_IO port 0x1f0")
