# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_MP_STATE and KVM_SET_MP_STATE.

Clauses: state.mp-state, state.mp-state-refused, state.smm-or-waiting.
"""

import pytest

from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import NEEDS_SMM, expect_mp_state, outcome_of, to
from suites.names import SIPI

KEPT = [state for state in MpState if state is not MpState.SIPI_RECEIVED]
"""States that KVM_GET_MP_STATE returns as KVM_SET_MP_STATE wrote them."""

# --- state.mp-state -------------------------------------------------------------------------------


@clause("state.mp-state")
@each.member("state", KEPT)
@each.member("before", KEPT)
def test_state_is_restored(machine, before, state):
    for written in (before, state):
        machine[1].mp_state = written
        expect_mp_state(machine[1], written)
    expect_mp_state(machine[0], MpState.RUNNABLE)


@clause("state.mp-state")
@each.member("before", KEPT)
def test_received_sipi_starts_the_processor(machine, before):
    machine[1].mp_state = MpState.INIT_RECEIVED
    machine.send(to(1, vector=machine.start_page, delivery_mode=SIPI))
    machine[1].mp_state = before
    machine[1].mp_state = MpState.SIPI_RECEIVED
    expect_mp_state(machine[1], MpState.RUNNABLE)
    sregs = machine[1].vcpu.get_sregs()
    expect("CS selector", sregs.cs.selector, machine.start_page << 8)
    expect("CS base", sregs.cs.base, machine.start_page << 12)
    expect("RIP", machine[1].vcpu.get_regs().rip, 0)


# --- state.mp-state-refused -----------------------------------------------------------------------

UNKNOWN = (5, 6, 7, 8, 10, 11, 0x103, 0xFFFFFFFF)
"""States of other architectures, and numbers without a meaning."""


@clause("state.mp-state-refused")
@pytest.mark.skipif(
    "kernel.version < (6, 1)", reason="KVM_SET_MP_STATE of Linux 5.10 accepts any number"
)
@pytest.mark.parametrize("number", UNKNOWN)
def test_unknown_state_is_refused(machine, number):
    machine[1].mp_state = MpState.HALTED
    expect("outcome", outcome_of(machine[1].vcpu.set_mp_state, number), "EINVAL")
    expect_mp_state(machine[1], MpState.HALTED)


@clause("state.mp-state-refused")
@each.member("state", MpState)
def test_without_irqchip_a_processor_only_runs(machines, state):
    vcpu = machines(irqchip="none", vcpu_ids=(0,), power_on=False)[0].vcpu
    expected = "accepted" if state is MpState.RUNNABLE else "EINVAL"
    expect("outcome", outcome_of(vcpu.set_mp_state, state), expected)


# --- state.smm-or-waiting: a vCPU in SMM does not wait for SIPI, or may do both -------------------


@pytest.fixture
def fresh(machines):
    """Return a function that creates a vCPU of its own machine."""
    return lambda: machines(vcpu_ids=range(2))[1]


def set_smi(cpu, field):
    """Put ``cpu`` into SMM, or make an SMI pending; return the outcome."""
    events = cpu.vcpu.get_events()
    setattr(events.smi, field, 1)
    events.flags = abi.KVM_VCPUEVENT_VALID_SMM
    return outcome_of(cpu.vcpu.set_events, events)


EACH_SMI = pytest.mark.parametrize("field", ["smm", "pending"])


@clause("state.smm-or-waiting")
@NEEDS_SMM
@EACH_SMI
@each.member("state", [MpState.INIT_RECEIVED, MpState.SIPI_RECEIVED])
def test_smi_and_wait_for_sipi_exclude_each_other_both_ways_or_neither(fresh, field, state):
    in_smm, waiting = fresh(), fresh()
    expect("outcome", set_smi(in_smm, field), "accepted")
    waiting.mp_state = MpState.INIT_RECEIVED
    outcomes = outcome_of(in_smm.vcpu.set_mp_state, state), set_smi(waiting, field)
    expect(
        "both outcomes",
        outcomes,
        ("accepted", "accepted") if "accepted" in outcomes else ("EINVAL", "EINVAL"),
    )
    kept = MpState.RUNNABLE if "EINVAL" in outcomes else MpState.INIT_RECEIVED
    if state is MpState.INIT_RECEIVED:
        expect_mp_state(in_smm, kept)


@clause("state.smm-or-waiting")
@NEEDS_SMM
@EACH_SMI
@each.member("state", [state for state in KEPT if state is not MpState.INIT_RECEIVED])
def test_smi_does_not_exclude_other_states(fresh, field, state):
    cpu = fresh()
    set_smi(cpu, field)
    expect("outcome", outcome_of(cpu.vcpu.set_mp_state, state), "accepted")
    expect_mp_state(cpu, state)


@clause("state.smm-or-waiting")
@NEEDS_SMM
def test_processor_that_waits_may_leave_smm(fresh):
    cpu = fresh()
    cpu.mp_state = MpState.INIT_RECEIVED
    events = cpu.vcpu.get_events()
    for flags, smm in ((abi.KVM_VCPUEVENT_VALID_SMM, 0), (0, 1)):
        events.flags, events.smi.smm = flags, smm
        expect("outcome", outcome_of(cpu.vcpu.set_events, events), "accepted")
    expect("SMM", cpu.vcpu.get_events().smi.smm, 0)
