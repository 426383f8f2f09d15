# SPDX-License-Identifier: GPL-2.0-only
"""State that changes between the sending of a message and its EOI.

Clauses: split.eoi-exit, ioapic.remote-irr, ioapic.own-eoi, guest.tpr, guest.nmi-held,
guest.init-in-smm.

A guest moves an interrupt to another vCPU while the vector is pending or in service. A host writes
CR8 while a vector is pending, and has a vCPU leave SMM while an INIT is latched.
"""

import pytest

from helpers.apic import Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    EACH_STAGE,
    NEEDS_IN_SERVICE,
    NEEDS_SMM,
    PIN,
    enter_handler,
    expect_eoi_exit,
    expect_mp_state,
    expect_remote_irr,
    expect_taken,
    fixed,
    level_entry,
    program_pin,
    raise_pin,
    restore_cr8,
    route_pin_to,
    set_events,
    to,
)
from suites.names import INIT, LEVEL, NMI, SIPI, SVR_ENABLED

# --- split.eoi-exit: the route of an IOAPIC pin moves to another vCPU -----------------------------


@pytest.fixture
def split(machines, apic_mode):
    """A split irqchip, with a level-triggered route of vector 0x61 to vCPU 0."""
    machine = machines(irqchip="split", vcpu_ids=range(2), apic_mode=apic_mode)
    route_pin_to(machine, 0)
    machine[0].step()  # KVM scans the routes when a vCPU is entered.
    return machine


def move_route(machine, when):
    """Move the route to vCPU 1 while vector 0x61 is pending or in service on vCPU 0."""
    machine.signal(to(0, vector=0x61, trigger_mode=LEVEL, level=1)).returns(1).accepted_by(0)
    if when == "in-service":
        enter_handler(machine[0])
    route_pin_to(machine, 1)


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
@each.apic_mode
@EACH_STAGE
def test_eoi_exits_after_the_route_moved(split, when):
    move_route(split, when)
    expect_eoi_exit(split[0], 0x61)


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
@deviation("moved-route-keeps-exiting")
@each.apic_mode
@EACH_STAGE
def test_eoi_exits_once_after_the_route_moved(split, when):
    move_route(split, when)
    expect_eoi_exit(split[0], 0x61)
    split.send(to(0, vector=0x61))
    expect_eoi_exit(split[0], None)


@clause("split.eoi-exit")
@each.apic_mode
@EACH_STAGE
def test_eoi_exits_where_the_route_moved_to(split, when):
    move_route(split, when)
    split.send(fixed(0x61))
    expect_eoi_exit(split[1], 0x61)


# --- ioapic.remote-irr: a level-triggered pin of the IOAPIC in the kernel -------------------------


def nothing(machine):
    pass


def level_message(machine):
    machine.send(to(0, vector=0x61, trigger_mode=LEVEL))


def moved_pin(machine):
    program_pin(machine, level_entry(1))


def each_change(*changes):
    return pytest.mark.parametrize("change", changes, ids=lambda change: change.__name__)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@each_change(nothing, level_message, moved_pin)
def test_eoi_clears_remote_irr(pin_to_0, change):
    raise_pin(pin_to_0)
    change(pin_to_0)
    pin_to_0.vm.irq_line_status(PIN, 0)
    pin_to_0[0].eoi()
    expect_remote_irr(pin_to_0, 0)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@each_change(nothing, level_message, moved_pin)
def test_high_line_sends_again_after_the_eoi(pin_to_0, change):
    raise_pin(pin_to_0)
    change(pin_to_0)
    pin_to_0[0].eoi()
    expect_remote_irr(pin_to_0, 1)
    receiver = pin_to_0[1 if change is moved_pin else 0].lapic
    expect("vector sent again", 0x61 in receiver.irr | receiver.isr, True)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
def test_edge_message_of_the_same_vector_hides_the_eoi(pin_to_0):
    raise_pin(pin_to_0)
    pin_to_0.send(to(0, vector=0x61))
    pin_to_0.vm.irq_line_status(PIN, 0)
    for _ in range(2):
        pin_to_0[0].eoi()
        expect_remote_irr(pin_to_0, 1)


# --- ioapic.own-eoi -------------------------------------------------------------------------------


@clause("ioapic.own-eoi")
@NEEDS_IN_SERVICE
def test_eoi_of_a_vcpu_that_the_pin_does_not_send_to_leaves_remote_irr(pin_to_0):
    pin_to_0[1].step()  # KVM scans the pins when a vCPU is entered.
    raise_pin(pin_to_0)
    pin_to_0.vm.irq_line_status(PIN, 0)  # A high line would set Remote IRR again.
    pin_to_0.send(to(1, vector=0x61, trigger_mode=LEVEL))
    expect_taken(pin_to_0[1], 0x61)
    expect("ISR", pin_to_0[1].lapic.isr, set())
    expect_remote_irr(pin_to_0, 1)


# --- guest.tpr ------------------------------------------------------------------------------------


@clause("guest.tpr")
@each.apic_mode
@each.value("priority", range(1, 16), "class{:#x}")
def test_restored_cr8_holds_its_class_and_lets_go(machine, priority):
    vector = priority << 4 | 0xF
    restore_cr8(machine[1], priority)
    machine.signal(fixed(vector)).returns(1).accepted_by(1)
    expect_taken(machine[1])
    restore_cr8(machine[1], priority - 1)
    expect_taken(machine[1], vector)


@clause("guest.tpr")
@each.apic_mode
def test_tpr_is_cr8(machine):
    restore_cr8(machine[1], 0xA)
    expect("TPR at the host", machine[1].lapic[Register.TPR], 0xA0)
    expect("TPR at the guest", machine[1].read(Register.TPR), 0xA0)
    machine[1].write(Register.TPR, 0x3C)
    expect("CR8", machine[1].vcpu.get_sregs().cr8, 3)


# --- guest.nmi-held -------------------------------------------------------------------------------


@clause("guest.nmi-held")
@each.value("times", [1, 2, 3, 10], "{}-times")
def test_nmis_sent_in_the_handler_are_taken_once_more(machine, times):
    machine[1].handler(pause=True)
    machine.send(to(1, delivery_mode=NMI))
    machine[1].run_to_handler()
    for _ in range(times):
        machine.signal(to(1, delivery_mode=NMI)).returns(1)
    nmi = machine[1].vcpu.get_events().nmi
    expect("NMIs masked, pending", (nmi.masked, nmi.pending), (1, 1))
    machine[1].handler()
    expect_taken(machine[1], 2, 2)


# --- guest.init-in-smm ----------------------------------------------------------------------------


@clause("guest.init-in-smm")
@NEEDS_SMM
def test_init_waits_for_the_end_of_smm(machines):
    machine = machines(vcpu_ids=range(2))
    set_events(machine[1], smi_smm=1)
    machine.send(to(1, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.RUNNABLE)
    expect("latched INIT", machine[1].vcpu.get_events().smi.latched_init, 1)
    expect("SVR in SMM", machine[1].lapic[Register.SVR], SVR_ENABLED)
    set_events(machine[1], smi_smm=0)
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("SVR after SMM", machine[1].lapic[Register.SVR], SVR_RESET)


@clause("guest.init-in-smm")
@NEEDS_SMM
def test_sipi_in_smm_is_dropped(machines):
    machine = machines(vcpu_ids=range(2))
    set_events(machine[1], smi_smm=1)
    for delivery_mode in (INIT, SIPI):
        machine.send(to(1, vector=machine.start_page, delivery_mode=delivery_mode))
    expect_mp_state(machine[1], MpState.RUNNABLE)
    set_events(machine[1], smi_smm=0)
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
