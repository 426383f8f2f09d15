# SPDX-License-Identifier: GPL-2.0-only
"""The other ioctls of a VMM that sends messages: return values, and state that must not change.

Clauses: abi.zero, lapic.eoi-alone, lapic.bsp-lint0, dest.round-robin, split.eoi-exit,
state.events.
"""

import pytest

from helpers.apic import Register
from helpers.apic.lapic import DFR_FLAT
from helpers.apic.topology import MpState
from helpers.guest import expect, msi_route
from helpers.guest.running import GuestError
from helpers.kvm import abi
from helpers.kvm.ioctl import attempt
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    NEEDS_PAYLOAD,
    ROUND_ROBIN,
    expect_eoi_exit,
    expect_mp_state,
    route_pin_to,
    to,
)
from suites.names import INIT, LEVEL, LOGICAL, LOWEST, SVR_ENABLED

# --- abi.zero -------------------------------------------------------------------------------------

STATE = {
    "mp-state": (abi.KVM_GET_MP_STATE, abi.KVM_SET_MP_STATE, abi.kvm_mp_state),
    "lapic": (abi.KVM_GET_LAPIC, abi.KVM_SET_LAPIC, abi.kvm_lapic_state),
    "vcpu-events": (abi.KVM_GET_VCPU_EVENTS, abi.KVM_SET_VCPU_EVENTS, abi.kvm_vcpu_events),
    "sregs": (abi.KVM_GET_SREGS, abi.KVM_SET_SREGS, abi.kvm_sregs),
    "regs": (abi.KVM_GET_REGS, abi.KVM_SET_REGS, abi.kvm_regs),
}


@clause("abi.zero")
@each.apic_mode
@pytest.mark.parametrize("getter, setter, structure", STATE.values(), ids=STATE)
def test_state_is_read_and_written_with_0(machine, getter, setter, structure):
    state = structure()
    for request in (getter, setter):
        expect(request.name, attempt(machine[1].vcpu.fd, request, state), (0, 0))


@clause("abi.zero")
@each.irqchip
def test_routes_are_set_with_0(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=(0,))
    result = attempt(machine.vm.fd, abi.KVM_SET_GSI_ROUTING, abi.kvm_irq_routing())
    expect("KVM_SET_GSI_ROUTING", result, (0, 0))


# --- lapic.eoi-alone ------------------------------------------------------------------------------


@clause("lapic.eoi-alone")
@each.apic_mode
def test_eoi_without_a_vector_in_service_changes_nothing(machine):
    page = machine[1].lapic
    page[Register.SVR] |= 0x80000000
    page.set_vectors(Register.TMR, range(256))
    machine[1].lapic = page
    before = machine[1].lapic
    machine[1].eoi()
    expect("registers", bytes(machine[1].lapic.raw).hex(), bytes(before.raw).hex())


@clause("lapic.eoi-alone")
@each.vector([pytest.param(0, marks=deviation("apicv-exits-for-vector-0")), 0xFF])
def test_eoi_without_a_vector_in_service_does_not_exit(machines, vector):
    machine = machines(irqchip="split", vcpu_ids=range(2))
    message = to(1, vector=vector, trigger_mode=LEVEL, level=1)
    machine.vm.set_gsi_routing([msi_route(5, message)])
    machine[1].step()
    machine[1].prepare_write(Register.EOI, 0)
    expect_eoi_exit(machine[1], None)


# --- lapic.bsp-lint0 ------------------------------------------------------------------------------

EXTINT_UNMASKED = 0x700


@clause("lapic.bsp-lint0")
def test_lint0_of_the_bsp_is_extint_after_power_on(machines):
    machine = machines(vcpu_ids=range(3), power_on=False)
    found = [cpu.lapic[Register.LVT_LINT0] for cpu in machine.cpus]
    expect("LVT LINT0", found, [EXTINT_UNMASKED, 0x10000, 0x10000])
    for register in (Register.LVT_THERMAL, Register.LVT_LINT1):
        expect(register.name, [cpu.lapic[register] for cpu in machine.cpus], [0x10000] * 3)


@clause("lapic.bsp-lint0")
def test_init_resets_the_bsp(machines):
    bsp = machines(vcpu_ids=range(2), power_on=False)[0]
    bsp.set_cpuid()  # LVR depends on CPUID
    fresh = bsp.lapic
    machine = machines(vcpu_ids=range(2))
    page = machine[0].lapic
    for offset in range(Register.LVT_TIMER, Register.TIMER_INITIAL, 0x10):
        page[offset] ^= 0x000000FF
    machine[0].lapic = page
    machine.send(to(0, delivery_mode=INIT))
    expect_mp_state(machine[0], MpState.RUNNABLE)
    for offset in range(0, 0x400, 0x10):
        expect(f"register {offset:#x}", hex(machine[0].lapic[offset]), hex(fresh[offset]))


# --- dest.round-robin -----------------------------------------------------------------------------


@clause("dest.round-robin")
@ROUND_ROBIN
@each.value("index", range(4), "vcpu{}")
def test_restored_lapic_is_the_next(machine, index):
    for vector in range(0x30, 0x34):
        machine.signal(to(0xF, LOGICAL, vector=vector, delivery_mode=LOWEST)).returns(1)
    machine[index].configure(dfr=DFR_FLAT)
    for vector, acceptor in ((0x40, index), (0x41, 0)):
        message = to(0xF, LOGICAL, vector=vector, delivery_mode=LOWEST)
        machine.signal(message).returns(1).accepted_by(acceptor)


@clause("dest.round-robin")
@ROUND_ROBIN
@each.value("restored", [1, 2], "vcpu{}")
def test_restored_lapic_and_one_after_init_are_equal(machine, restored):
    fresh = 3 - restored
    machine.boot(fresh)
    machine[fresh].write(Register.SVR, SVR_ENABLED)
    machine[fresh].write(Register.LDR, 1 << 24 + fresh)
    machine[restored].configure(ldr=1 << restored)
    for vector, acceptor in ((0x40, 1), (0x41, 2), (0x42, 1)):
        message = to(0b110, LOGICAL, vector=vector, delivery_mode=LOWEST)
        machine.signal(message).returns(1).accepted_by(acceptor)


# --- split.eoi-exit: the routes of vCPUs that have run --------------------------------------------


@pytest.fixture
def entered(machines, apic_mode):
    """A split irqchip without routes; both vCPUs have been entered."""
    machine = machines(irqchip="split", vcpu_ids=range(2), apic_mode=apic_mode)
    for cpu in machine.cpus:
        cpu.step()
    return machine


def send_level(machine, index, vector=0x61):
    machine.send(to(index, vector=vector, trigger_mode=LEVEL, level=1))


@clause("split.eoi-exit")
@each.apic_mode
def test_eoi_exits_by_a_route_set_after_the_entry(entered):
    for index in (0, 1, 0):
        route_pin_to(entered, index)
        entered[index].step()  # KVM scans the routes before the vector is pending.
        send_level(entered, index)
        expect_eoi_exit(entered[index], 0x61)


@clause("split.eoi-exit")
@each.apic_mode
def test_eoi_does_not_exit_after_the_route_is_gone(entered):
    route_pin_to(entered, 1)
    send_level(entered, 1)
    expect_eoi_exit(entered[1], 0x61)
    entered.vm.set_gsi_routing([])
    send_level(entered, 1)
    expect_eoi_exit(entered[1], None)


@clause("split.eoi-exit")
@each.apic_mode
@each.vector([0x31, 0x71, 0x91, 0xF1])
def test_eoi_exits_for_the_vector_of_its_route(entered, vector):
    route_pin_to(entered, 1, vector=vector)
    entered[1].step()
    for other in (0x21, 0x61, 0x81, 0xE1):
        entered.send(to(1, vector=other))
        expect_eoi_exit(entered[1], None)
    send_level(entered, 1, vector)
    expect_eoi_exit(entered[1], vector)


# --- state.events: a pending exception ends HLT ---------------------------------------------------


@clause("state.events")
@NEEDS_PAYLOAD
def test_pending_exception_wakes_a_halted_processor(machines):
    machine = machines(vcpu_ids=range(2))
    machine.vm.enable_cap(abi.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    machine[1].mp_state = MpState.HALTED
    events = machine[1].vcpu.get_events()
    events.flags = abi.KVM_VCPUEVENT_VALID_PAYLOAD
    events.exception.pending, events.exception.nr = 1, 6
    machine[1].vcpu.set_events(events)
    with machine[1].in_thread() as running, pytest.raises(GuestError, match="exception 6"):
        running.finish()
