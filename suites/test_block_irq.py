# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GUESTDBG_BLOCKIRQ: a debugger holds back all interrupts of a vCPU.

Clauses: debug.block-irq.

A debugger that steps a guest must not end up in an interrupt handler. The message is delivered all
the same, and is taken once the debugger lets go.
"""

import pytest

from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause
from suites.common import NEEDS_BLOCK_IRQ, NEEDS_SMM, expect_mp_state, expect_taken, fixed, to
from suites.names import INIT, NMI, SMI

pytestmark = NEEDS_BLOCK_IRQ


def block(cpu):
    cpu.vcpu.set_guest_debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_BLOCKIRQ)


def unblock(cpu):
    cpu.vcpu.set_guest_debug(0)


@pytest.fixture
def blocked(machines):
    """Two vCPUs. A debugger blocks the interrupts of vCPU 1."""
    machine = machines(vcpu_ids=range(2))
    block(machine[1])
    return machine


@clause("debug.block-irq")
def test_blocked_interrupt_waits(blocked):
    blocked.signal(fixed(0x41)).returns(1).accepted_by(1)
    expect_taken(blocked[1])
    expect("IRR", blocked[1].lapic.irr, {0x41})
    unblock(blocked[1])
    expect_taken(blocked[1], 0x41)


@clause("debug.block-irq")
def test_blocked_interrupts_are_taken_in_order_of_priority(blocked):
    for vector in (0x41, 0x91, 0x61):
        blocked.signal(fixed(vector)).returns(1).accepted_by(1)
        expect_taken(blocked[1])
    unblock(blocked[1])
    expect_taken(blocked[1], 0x91, 0x61, 0x41)


@clause("debug.block-irq")
def test_blocked_nmi_waits(blocked):
    blocked.signal(to(1, delivery_mode=NMI)).returns(1).accepted_by(1)
    expect_taken(blocked[1])
    expect("NMIs pending", blocked[1].vcpu.get_events().nmi.pending, 1)
    unblock(blocked[1])
    expect_taken(blocked[1], 2)


@clause("debug.block-irq")
@NEEDS_SMM
def test_blocked_smi_waits(blocked):
    blocked.signal(to(1, delivery_mode=SMI)).returns(1).accepted_by(1)
    blocked[1].step()
    expect("SMIs handled while blocked", blocked.smis_handled, 0)
    unblock(blocked[1])
    blocked[1].step()
    expect("SMIs handled", blocked.smis_handled, 1)


@clause("debug.block-irq")
def test_init_is_not_blocked(blocked):
    blocked.send(to(1, delivery_mode=INIT))
    expect_mp_state(blocked[1], MpState.INIT_RECEIVED)


@clause("debug.block-irq")
def test_other_vcpus_are_not_blocked(blocked):
    blocked.signal(to(0xFF)).returns(2).accepted_by(0, 1)
    expect_taken(blocked[0], 0x41)
    expect_taken(blocked[1])


@clause("debug.block-irq")
def test_vector_pending_when_the_debugger_blocks_waits(blocked):
    blocked.signal(to(0)).returns(1).accepted_by(0)
    block(blocked[0])
    expect_taken(blocked[0])
    unblock(blocked[0])
    expect_taken(blocked[0], 0x41)
