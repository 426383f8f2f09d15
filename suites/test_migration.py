# SPDX-License-Identifier: GPL-2.0-only
"""Messages in every stage of delivery, when the whole VM moves to another one.

Clauses: state.order, state.saved, guest.in-service, state.bsp-flag.

Live migration reads the state of each vCPU, and writes the state to a vCPU that has never run. A
message that is pending, in service or held back has to be taken there exactly once, and in the
order of priority. The guest's memory, with its log, moves as well. test_saved_state.py has the
states without a guest in the middle of a handler.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.guest.ledger import IA32_APIC_BASE
from helpers.guest.saved import ORDERS, SavedVcpu, migrate
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    EACH_STAGE,
    NEEDS_IN_SERVICE,
    NEEDS_SMM,
    NEEDS_SREGS2,
    PIN,
    enter_handler,
    expect_eoi_exit,
    expect_mp_state,
    expect_remote_irr,
    expect_taken,
    fixed,
    level_entry,
    program_pin,
    route_pin_to,
    set_events,
    to,
)
from suites.names import INIT, LEVEL, NMI, SIPI, SMI

# --- states of vCPU 1 -----------------------------------------------------------------------------


def interrupt(machine, message, **flags):
    """Send ``message`` to vCPU 1, and have its handler stop."""
    machine.send(message)
    enter_handler(machine[1], **flags)


def pending(machine):
    """One pending vector is edge-triggered, one level-triggered, and one the highest."""
    for message in (fixed(0x31), to(1, vector=0x41, trigger_mode=LEVEL), fixed(0xFF)):
        machine.signal(message).returns(1)


def pending_in_x2apic_mode(machine):
    machine[1].apic_mode = ApicMode.X2APIC
    pending(machine)


def in_service(machine):
    """The handler of 0x61 has stopped, and other vectors are pending, 0x61 once more."""
    interrupt(machine, fixed(0x61))
    for vector in (0x31, 0x61, 0x81, 0x81):
        machine.signal(fixed(vector)).returns(1)


def held_back(machine):
    """The guest has raised TPR: vector 0x41 waits, 0x71 does not."""
    machine[1].write(Register.TPR, 0x50)
    for vector in (0x41, 0x71):
        machine.signal(fixed(vector)).returns(1)


def in_nmi_handler(machine):
    """NMIs are masked, and an NMI and a vector are pending."""
    interrupt(machine, to(1, delivery_mode=NMI))
    for message in (to(1, delivery_mode=NMI), fixed(0x41)):
        machine.signal(message).returns(1)


def halted(machine):
    """The vCPU is in HLT, and a vector is pending."""
    machine[1].mp_state = MpState.HALTED
    machine.signal(fixed(0x41)).returns(1)


def smi_pending(machine):
    for message in (to(1, delivery_mode=SMI), fixed(0x41)):
        machine.signal(message).returns(1)


def in_smm(machine):
    """The vCPU is in SMM, an INIT is latched, an NMI and a vector are pending."""
    set_events(machine[1], smi_smm=1)
    for message in (to(1, delivery_mode=INIT), to(1, delivery_mode=NMI), fixed(0x41)):
        machine.send(message)


def waiting_for_sipi(machine):
    machine.send(to(1, delivery_mode=INIT))


def started(machine):
    """INIT and SIPI were sent, and the vCPU has not run since."""
    for delivery_mode in (INIT, SIPI):
        machine.send(to(1, vector=machine.start_page, delivery_mode=delivery_mode))


def uninitialized(machine):
    machine[1].mp_state = MpState.UNINITIALIZED


def software_disabled(machine):
    """A vector is pending, and the guest has disabled the LAPIC since."""
    machine.signal(fixed(0x41)).returns(1)
    machine[1].configure(svr=SVR_RESET)


def disabled(machine):
    machine[1].apic_mode = ApicMode.DISABLED


# --- state.order ----------------------------------------------------------------------------------


@clause("state.order")
@pytest.mark.parametrize(
    "state",
    [
        *(pending, pending_in_x2apic_mode, in_service, held_back, in_nmi_handler, halted),
        pytest.param(smi_pending, marks=NEEDS_SMM),
        pytest.param(in_smm, marks=NEEDS_SMM),
        *(waiting_for_sipi, started, uninitialized, software_disabled, disabled),
    ],
    ids=lambda state: state.__name__.replace("_", "-"),
)
def test_state_is_the_same_in_every_order(machines, state):
    old, new = machines(vcpu_ids=range(2)), machines(vcpu_ids=range(2))
    state(old)
    saved, reset = SavedVcpu.read(old[1]), SavedVcpu.read(new[1])
    for order in ORDERS:
        reset.restore(new[1])
        saved.restore(new[1], order)
        expect(f"changed by {' '.join(order)}", saved.differing(SavedVcpu.read(new[1])), [])


# --- state.saved: what the guest takes ------------------------------------------------------------


@clause("state.saved")
@pytest.mark.parametrize(
    "state, vectors",
    [
        pytest.param(pending, [0xFF, 0x41, 0x31], id="pending"),
        pytest.param(pending_in_x2apic_mode, [0xFF, 0x41, 0x31], id="pending-in-x2apic-mode"),
        pytest.param(in_service, [0x61, 0x81, 0x61, 0x31], id="in-service"),
        pytest.param(held_back, [0x71], id="held-back"),
        pytest.param(in_nmi_handler, [2, 2, 0x41], id="in-nmi-handler"),
        pytest.param(halted, [0x41], id="halted"),
        pytest.param(smi_pending, [0x41], id="smi-pending", marks=NEEDS_SMM),
    ],
)
def test_guest_takes_each_interrupt_once(machine, migrated, state, vectors):
    state(machine)
    new = migrated(machine)
    expect_taken(new[1], *vectors)
    new.signal(fixed(0x91)).returns(1).accepted_by(1)
    expect_taken(new[1], 0x91)


@clause("state.saved")
@NEEDS_IN_SERVICE
@each.apic_mode
def test_vector_in_service_holds_lower_vectors_back(machine, migrated):
    interrupt(machine, fixed(0x61), nest=True)
    machine.signal(fixed(0x41)).returns(1)
    new = migrated(machine)
    new.signal(fixed(0x81)).returns(1).accepted_by(1)
    read = [(record.vector, sorted(record.isr)) for record in new[1].take()]
    expect("vector, ISR", read, [(0x61, [0x61]), (0x81, [0x61, 0x81]), (0x41, [0x41])])


@clause("state.saved")
@NEEDS_IN_SERVICE
def test_earlier_state_replaces_a_higher_vector_in_service(machine):
    interrupt(machine, fixed(0x61), nest=True)
    machine.send(fixed(0x31))
    earlier = SavedVcpu.read(machine[1])
    interrupt(machine, fixed(0xF1))
    earlier.restore(machine[1])
    machine[1].log()  # 0x61 and 0xf1
    expect_taken(machine[1], 0x31)


@clause("guest.in-service")
@deviation("restored-ppr-stale")
def test_restored_ppr_is_the_class_of_the_vector_in_service(machine):
    machine[1].configure_vectors(Register.ISR, [0x61])
    expect("PPR at the host", machine[1].lapic[Register.PPR], 0x60)


@clause("guest.in-service")
def test_guest_reads_the_ppr_of_a_restored_vector_in_service(machine):
    machine[1].configure_vectors(Register.ISR, [0x61])
    expect("PPR at the guest", machine[1].read(Register.PPR), 0x60)


@clause("guest.in-service")
def test_each_eoi_ends_the_highest_restored_vector(machine):
    vectors = list(range(0x21, 0x100, 0x10))
    machine[1].configure_vectors(Register.ISR, vectors)
    while vectors:
        expect("ISR", machine[1].lapic.isr, set(vectors))
        machine[1].eoi()
        vectors.pop()
    expect("ISR", machine[1].lapic.isr, set())


@clause("state.saved")
@each.apic_mode
def test_restored_tpr_holds_a_vector_until_the_guest_lowers_it(machine, migrated):
    held_back(machine)
    new = migrated(machine)
    expect_taken(new[1], 0x71)
    new[1].write(Register.TPR, 0)
    expect_taken(new[1], 0x41)


@clause("state.saved")
def test_masked_processor_keeps_one_nmi(machine, migrated):
    in_nmi_handler(machine)
    new = migrated(machine)
    new.signal(to(1, delivery_mode=NMI)).returns(1)
    expect_taken(new[1], 2, 2, 0x41)


@clause("state.saved")
def test_message_wakes_the_halted_processor(machine, migrated):
    machine[1].mp_state = MpState.HALTED
    new = migrated(machine)
    with new[1].waiting() as running:
        new.send(fixed(0x41))
        running.finish()
    expect_taken(new[1], 0x41)


@clause("state.saved")
@NEEDS_SMM
def test_latched_init_takes_effect_after_smm(machine, migrated):
    in_smm(machine)
    new = migrated(machine)
    expect_mp_state(new[1], MpState.RUNNABLE)
    set_events(new[1], smi_smm=0)
    expect_mp_state(new[1], MpState.INIT_RECEIVED)


@clause("state.saved")
@NEEDS_SMM
def test_smi_handler_that_moved_ends_with_the_interrupts_it_held(machine, migrated):
    machine.pause_smis()
    machine.send(to(1, delivery_mode=SMI))
    machine[1].run_to_smi_handler()
    for message in (to(1, delivery_mode=NMI), fixed(0x41)):
        machine.signal(message).returns(1)
    new = migrated(machine)
    new.pause_smis(False)
    expect_taken(new[1], 2, 0x41)
    expect("SMIs handled", new.smis_handled, 1)


@clause("state.saved")
def test_processor_starts_at_the_page_of_a_sipi_before_it_moved(machine, migrated):
    started(machine)
    migrated(machine)[1].step()


@clause("state.saved")
@pytest.mark.parametrize("events_first", [True, False], ids=["events-first", "mp-state-first"])
def test_restored_sipi_starts_the_processor(machines, events_first):
    machine = machines(vcpu_ids=range(2), power_on=False)
    machine[1].set_cpuid()
    events = abi.kvm_vcpu_events(sipi_vector=0x12, flags=abi.KVM_VCPUEVENT_VALID_SIPI_VECTOR)
    machine[1].mp_state = MpState.INIT_RECEIVED
    if events_first:
        machine[1].vcpu.set_events(events)
    machine[1].vcpu.set_mp_state(MpState.SIPI_RECEIVED)
    if not events_first:
        machine[1].vcpu.set_events(events)
    expect_mp_state(machine[1], MpState.RUNNABLE)
    expect("CS base", machine[1].vcpu.get_sregs().cs.base, 0x12000)


# --- state.saved: IA32_APIC_BASE ------------------------------------------------------------------


def by_sregs(vcpu, apic_base):
    sregs = vcpu.get_sregs()
    sregs.apic_base = apic_base
    vcpu.set_sregs(sregs)


def by_sregs2(vcpu, apic_base):
    sregs = vcpu.get_sregs2()
    sregs.apic_base = apic_base
    vcpu.set_sregs2(sregs)


def by_msr(vcpu, apic_base):
    vcpu.set_msr(IA32_APIC_BASE, apic_base)


@clause("state.saved")
@pytest.mark.parametrize(
    "restore",
    [
        pytest.param(by_sregs, id="sregs"),
        pytest.param(by_sregs2, id="sregs2", marks=NEEDS_SREGS2),
        pytest.param(by_msr, id="msr"),
    ],
)
def test_x2apic_mode_is_restored_before_the_lapic(machine, machines, restore):
    pending_in_x2apic_mode(machine)
    new = machines(vcpu_ids=range(2))
    restore(new[1].vcpu, machine[1].vcpu.get_sregs().apic_base)
    expect("APIC mode", new[1].apic_mode, ApicMode.X2APIC)
    new[1].lapic = machine[1].lapic
    expect_taken(new[1], 0xFF, 0x41, 0x31)


@clause("state.bsp-flag")
def test_init_restarts_the_bsp_that_was_chosen_before_the_move(machines, migrated):
    machine = machines(vcpu_ids=())
    machine.vm.set_boot_cpu_id(1)
    for vcpu_id in range(2):
        machine.add_cpu(vcpu_id).power_on()
    new = migrated(machine)
    new.send(to(0xFF, delivery_mode=INIT))
    expect_mp_state(new[0], MpState.INIT_RECEIVED)
    expect_mp_state(new[1], MpState.RUNNABLE)


# --- state.saved: EOI -----------------------------------------------------------------------------


@clause("state.saved")
@EACH_STAGE
@pytest.mark.parametrize("routed_first", [True, False], ids=["routes-first", "routes-last"])
@each.apic_mode
def test_eoi_of_a_restored_vector_exits(machines, apic_mode, when, routed_first):
    old, new = (machines(irqchip="split", vcpu_ids=range(2), apic_mode=apic_mode) for _ in range(2))
    message = to(1, vector=0x61, trigger_mode=LEVEL, level=1)
    route_pin_to(old, 1)
    old.send(message)
    if when == "in-service":
        enter_handler(old[1])
    if routed_first:
        route_pin_to(new, 1)
    migrate(old, new)
    if not routed_first:
        route_pin_to(new, 1)
    expect_eoi_exit(new[1], 0x61)


# --- state.saved: a pin of the IOAPIC in the kernel -----------------------------------------------


def copy_ioapic(old, new):
    new.vm.set_ioapic(old.vm.get_ioapic())


@pytest.fixture(params=[True, False], ids=["ioapic-first", "ioapic-last"])
def moved(request, machines):
    """A machine that took the vector of a high, level-triggered pin before it moved, and no EOI."""
    old, new = (machines(irqchip="full", vcpu_ids=range(2)) for _ in range(2))
    program_pin(old, level_entry(0))
    old[0].handler(eoi=False)
    old.vm.irq_line_status(PIN, 1)
    old[0].take()
    if request.param:
        copy_ioapic(old, new)
    migrate(old, new)
    if not request.param:
        copy_ioapic(old, new)
    return new


@clause("state.saved")
@NEEDS_IN_SERVICE
def test_eoi_after_the_move_clears_remote_irr(moved):
    expect_remote_irr(moved, 1)
    moved.vm.irq_line_status(PIN, 0)
    moved[0].eoi()
    expect_remote_irr(moved, 0)


@clause("state.saved")
@NEEDS_IN_SERVICE
def test_pin_that_stayed_high_sends_again_after_the_eoi(moved):
    moved[0].eoi()
    expect_remote_irr(moved, 1)
    expect_taken(moved[0], 0x61)
