# SPDX-License-Identifier: GPL-2.0-only
"""NMIs while NMIs are masked, while a vCPU sleeps, and saved on the way.

Clauses: guest.nmi-held, state.nmi-pending, guest.hlt.

The mask of NMIs is state of the processor, which an NMI sets and IRET clears. A host restores the
mask by KVM_SET_VCPU_EVENTS (nmi.masked).
"""

import pytest

from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import expect_asleep, expect_logged, expect_taken, fixed, set_events, to
from suites.names import NMI

AN_NMI = to(1, delivery_mode=NMI)


def expect_nmi(cpu, masked, pending):
    nmi = cpu.vcpu.get_events().nmi
    expect("NMIs masked, pending", (nmi.masked, nmi.pending), (masked, pending))


@pytest.fixture
def masked(machine):
    """The host has masked NMIs on vCPU 1."""
    set_events(machine[1], nmi_masked=1)
    return machine


# --- guest.nmi-held -------------------------------------------------------------------------------

TIMES = each.value("times", [1, 3], "{}-times")


@clause("guest.nmi-held")
@TIMES
def test_masked_nmis_wait_for_the_host_to_unmask(masked, times):
    for _ in range(times):
        masked.signal(AN_NMI).returns(1)
    expect_nmi(masked[1], 1, 1)
    expect_taken(masked[1])
    set_events(masked[1], nmi_masked=0)
    expect_taken(masked[1], 2)


@clause("guest.nmi-held")
@TIMES
def test_masked_nmis_wait_for_an_iret(masked, times):
    for _ in range(times):
        masked.signal(AN_NMI).returns(1)
    expect_taken(masked[1])
    masked.signal(fixed(0x41)).returns(1)
    expect_taken(masked[1], 0x41, 2)  # The handler of vector 0x41 ends with IRET.
    expect_nmi(masked[1], 0, 0)


@clause("guest.nmi-held")
def test_masked_nmi_does_not_hold_a_vector(masked):
    for message in (AN_NMI, fixed(0x41)):
        masked.signal(message).returns(1)
    expect_taken(masked[1], 0x41, 2)


@clause("guest.nmi-held")
def test_iret_unmasks_without_an_nmi(masked):
    masked.signal(fixed(0x41)).returns(1)
    expect_taken(masked[1], 0x41)
    expect_nmi(masked[1], 0, 0)
    masked.signal(AN_NMI).returns(1)
    expect_taken(masked[1], 2)


@clause("guest.nmi-held")
def test_handler_of_a_restored_nmi_holds_the_next(machine):
    set_events(machine[1], nmi_injected=1)  # The saved vCPU was about to enter the handler.
    machine[1].handler(pause=True)
    machine[1].run_to_handler()
    machine.signal(AN_NMI).returns(1)
    expect_nmi(machine[1], 1, 1)
    machine[1].handler()
    expect_taken(machine[1], 2, 2)


# --- state.nmi-pending ----------------------------------------------------------------------------

EACH_MASK = pytest.mark.parametrize("mask", [0, 1], ids=["unmasked", "masked"])


@clause("state.nmi-pending")
@EACH_MASK
@each.value("pending", [0, 1], "pending{}")
def test_pending_nmi_is_restored(machine, mask, pending):
    machine.signal(AN_NMI).returns(1)
    set_events(machine[1], nmi_masked=mask, nmi_pending=pending)
    expect_nmi(machine[1], mask, pending)
    set_events(machine[1], nmi_masked=0)
    expect_taken(machine[1], *[2] * pending)


@clause("state.nmi-pending")
@EACH_MASK
@each.value("pending", [0, 1], "pending{}")
def test_without_its_flag_pending_does_not_count(machine, mask, pending):
    if not pending:
        machine.signal(AN_NMI).returns(1)
    without = abi.KVM_VCPUEVENT_VALID_NMI_PENDING
    set_events(machine[1], without=without, nmi_masked=mask, nmi_pending=pending)
    expect_nmi(machine[1], mask, 1 - pending)


@clause("state.nmi-pending")
def test_nmi_held_by_a_handler_survives_a_save(machine):
    machine[1].handler(pause=True)
    machine.send(AN_NMI)
    machine[1].run_to_handler()
    machine.send(AN_NMI)
    set_events(machine[1])
    expect_nmi(machine[1], 1, 1)
    machine[1].handler()
    expect_taken(machine[1], 2, 2)


# --- guest.hlt ------------------------------------------------------------------------------------


@clause("guest.hlt")
@deviation("masked-nmi-wakes")
def test_masked_nmi_does_not_wake(masked):
    with masked[1].halted() as running:
        masked.send(AN_NMI)
        expect_asleep(masked[1], running)


@clause("guest.hlt")
@deviation("masked-nmi-wakes")
def test_masked_nmi_does_not_wake_a_vcpu_halted_by_the_host(masked):
    masked[1].mp_state = MpState.HALTED
    masked.send(AN_NMI)
    with masked[1].waiting() as running:
        expect_asleep(masked[1], running)


@clause("guest.hlt")
@pytest.mark.parametrize("by", ["guest", "host"])
def test_processor_halts_while_a_masked_nmi_is_pending(masked, by):
    masked.signal(AN_NMI).returns(1)
    expect_taken(masked[1])  # KVM has tried to inject the NMI.
    if by == "host":
        masked[1].mp_state = MpState.HALTED
    with masked[1].waiting() if by == "host" else masked[1].halted() as running:
        expect_asleep(masked[1], running)
    expect_nmi(masked[1], 1, 1)


@clause("guest.hlt")
def test_restored_events_without_an_nmi_do_not_wake(machine):
    machine[1].mp_state = MpState.HALTED
    set_events(machine[1], nmi_pending=0)
    with machine[1].waiting() as running:
        expect_asleep(machine[1], running)


@clause("guest.hlt")
@pytest.mark.parametrize("by", ["guest", "host"])
def test_nmi_wakes_once_it_is_unmasked(masked, by):
    if by == "guest":
        with masked[1].halted() as running:
            running.kick()
    masked[1].mp_state = MpState.HALTED
    masked.signal(AN_NMI).returns(1).accepted_by(1)
    set_events(masked[1], nmi_masked=0)
    masked[1].step()
    expect_logged(masked[1], 2)
