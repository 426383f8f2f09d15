# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts as the guest takes them: once, on the right vCPU, in order, in service until EOI.

Clauses: guest.taken-once, guest.coalesced, guest.in-service, guest.in-service-holds,
guest.priority, guest.eoi, guest.tpr, guest.if, lapic.software-disabled, lapic.hardware-disabled,
guest.nmi, guest.smi, guest.running.

The guest's handler logs each interrupt with the LAPIC's state. Guest and host must see the same.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import SVR_RESET
from helpers.guest import expect
from helpers.verdicts import clause, deviation, parallel
from suites import each
from suites.common import NEEDS_SMM, enter_handler, expect_logged, expect_taken, fixed, to
from suites.names import FIXED, LOGICAL, LOWEST, NMI, SMI, SVR_ENABLED

# --- guest.taken-once -----------------------------------------------------------------------------


@clause("guest.taken-once")
@each.irqchip
def test_vector_is_taken_once(machine):
    for vector in (*range(0x10, 0x20), *range(0x20, 0x100, 0x11), 0xFF):
        machine.signal(fixed(vector)).returns(1)
        expect_taken(machine[1], vector)
        expect_taken(machine[1])


@clause("guest.taken-once")
def test_every_vector_is_taken_once(machine):
    for vector in range(16, 256):
        machine.signal(fixed(vector)).returns(1)
        expect_taken(machine[1], vector)


@clause("guest.taken-once")
@each.apic_mode
@each.index(range(4))
def test_only_the_destination_takes_it(machine, index):
    machine.signal(to(index)).returns(1)
    for cpu in machine.cpus:
        expect_taken(cpu, *([0x41] if cpu.index == index else []))


@clause("guest.taken-once")
@each.apic_mode
def test_broadcast_is_taken_once_by_each(machine):
    machine.signal(to(0xFF)).returns(4)
    for cpu in machine.cpus:
        expect_taken(cpu, 0x41)


@clause("guest.taken-once")
@each.value("mask", range(1, 16), "{:04b}")
def test_logical_destination_is_taken_by_its_members(machine, mask):
    machine.signal(to(mask, LOGICAL))
    for cpu in machine.cpus:
        expect_taken(cpu, *([0x41] if mask >> cpu.index & 1 else []))


@clause("guest.taken-once")
@each.delivery_mode(FIXED, LOWEST)
@each.trigger_mode
def test_handler_sees_its_lapic(machine, delivery_mode, trigger_mode):
    machine.signal(to(2, delivery_mode=delivery_mode, trigger_mode=trigger_mode))
    [record] = machine[2].take()
    expect("ID", record.id >> 24, 2)
    expect("IRR", record.irr, set())
    expect("TMR", record.tmr, {0x41} if trigger_mode else set())
    expect("SVR", record.svr, SVR_ENABLED)


@clause("guest.taken-once")
def test_handler_sees_its_x2apic(shared_machine):
    machine = shared_machine(vcpu_ids=(0, 0x11), apic_mode=ApicMode.X2APIC)
    machine.signal(to(0x11))
    [record] = machine[1].take()
    expect("ID", record.id, 0x11)
    expect("LDR", hex(record.ldr), "0x10002")
    expect("IRR", record.irr, set())


@clause("guest.taken-once")
def test_host_and_guest_agree_after_delivery(machine):
    machine.signal(fixed(0x41)).accepted_by(1)
    machine[1].take()
    expect("pending at the host", machine[1].lapic.irr, set())
    expect("IRR at the guest", machine[1].read(Register.IRR + 0x20), 0)


# --- guest.coalesced ------------------------------------------------------------------------------


@clause("guest.coalesced")
@each.apic_mode
@each.value("times", [2, 3, 10], "{}-times")
def test_pending_vector_is_taken_once(machine, times):
    for _ in range(times):
        machine.signal(fixed(0x41)).returns(1)
    expect_taken(machine[1], 0x41)


@clause("guest.coalesced")
@each.apic_mode
def test_vector_sent_in_its_handler_is_taken_once_more(machine):
    machine.signal(fixed(0x41))
    enter_handler(machine[1])
    machine.signal(fixed(0x41)).returns(1)
    machine.signal(fixed(0x41)).returns(1)
    expect_taken(machine[1], 0x41, 0x41)


# --- guest.in-service and guest.in-service-holds --------------------------------------------------


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@each.apic_mode
@each.vector([0x10, 0x41, 0x9F, 0xFF])
def test_taken_vector_is_in_service(machine, vector):
    machine.signal(fixed(vector))
    [record] = machine[1].take()
    expect("ISR in the handler", record.isr, {vector})


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@each.apic_mode
@each.vector([0x10, 0x41, 0x9F, 0xFF])
def test_ppr_holds_the_class_in_service(machine, vector):
    machine.signal(fixed(vector))
    [record] = machine[1].take()
    expect("PPR in the handler", record.ppr, vector & 0xF0)


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@each.apic_mode
def test_host_sees_the_vector_in_service(machine):
    machine[1].handler(pause=True)
    machine.signal(fixed(0x41))
    machine[1].run_to_handler()
    expect("ISR at the host", machine[1].lapic.isr, {0x41})


@clause("guest.in-service")
@deviation("pvm-never-in-service")
def test_vector_stays_in_service_without_eoi(machine):
    machine[1].handler(eoi=False)
    machine.signal(fixed(0x41))
    expect_taken(machine[1], 0x41)
    expect("ISR after the handler", machine[1].lapic.isr, {0x41})


@clause("guest.in-service")
@deviation("pvm-never-in-service")
def test_vectors_of_nested_handlers_are_in_service_together(machine):
    machine[1].handler(eoi=False)
    for vector in (0x41, 0x61, 0x82):
        machine.signal(fixed(vector))
        machine[1].take()
    expect("ISR after three handlers", machine[1].lapic.isr, {0x41, 0x61, 0x82})


@clause("guest.in-service-holds")
@deviation("pvm-never-in-service")
@each.apic_mode
@each.vector([0x31, 0x4F, 0x41, 0x40])
def test_class_in_service_and_below_waits(machine, vector):
    machine[1].handler(eoi=False)
    machine.signal(fixed(0x42))
    expect_taken(machine[1], 0x42)
    machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1])
    expect("pending", machine[1].lapic.irr, {vector})


@clause("guest.in-service-holds")
@each.apic_mode
def test_class_above_the_one_in_service_is_taken(machine):
    machine[1].handler(eoi=False)
    machine.signal(fixed(0x42))
    expect_taken(machine[1], 0x42)
    machine.signal(fixed(0x51)).returns(1)
    expect_taken(machine[1], 0x51)


@clause("guest.in-service-holds")
@each.vector([0x31, 0x4F])
def test_restored_in_service_vector_holds(machine, vector):
    machine[1].configure_vectors(Register.ISR, [0x42])
    machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1])
    machine[1].eoi()
    expect_taken(machine[1], vector)


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@each.apic_mode
def test_interrupted_and_interrupting_vector_are_in_service(machine):
    machine[1].handler(pause=True, nest=True)
    for vector in (0x42, 0x61):
        machine.signal(fixed(vector))
        machine[1].run_to_handler()
    outer, inner = machine[1].log()
    expect("vectors taken", [outer.vector, inner.vector], [0x42, 0x61])
    expect("ISR in the inner handler", inner.isr, {0x42, 0x61})


# --- guest.priority and guest.eoi -----------------------------------------------------------------


@clause("guest.priority")
@each.apic_mode
@pytest.mark.parametrize(
    "sent",
    [(0x31, 0x52, 0x73), (0x73, 0x52, 0x31), (0x52, 0x73, 0x31), (0x41, 0x42, 0x43)],
    ids=lambda sent: "-".join(map(hex, sent)),
)
def test_highest_pending_vector_is_taken_first(machine, sent):
    machine[1].cli()
    for vector in sent:
        machine.signal(fixed(vector)).returns(1)
    machine[1].sti()
    expect_taken(machine[1], *sorted(sent, reverse=True))


@clause("guest.priority")
def test_hundred_pending_vectors_are_taken_in_order(machine):
    sent = range(0x40, 0xA4)
    for vector in sent:
        machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1], *reversed(sent))


@clause("guest.eoi")
@deviation("pvm-never-in-service")
@each.apic_mode
def test_eoi_releases_the_next(machine):
    machine[1].handler(eoi=False)
    for vector in (0x61, 0x41, 0x21):
        machine.signal(fixed(vector))
    for vector in (0x61, 0x41, 0x21):
        expect_taken(machine[1], vector)
        machine[1].eoi()


@clause("guest.eoi")
@deviation("pvm-never-in-service")
def test_eoi_ends_the_highest_in_service(machine):
    machine[1].handler(eoi=False)
    for vector in (0x41, 0x61):
        machine.signal(fixed(vector))
        expect_taken(machine[1], vector)
    machine[1].eoi()
    expect("ISR after one EOI", machine[1].lapic.isr, {0x41})


@clause("guest.eoi")
@each.apic_mode
def test_eoi_leaves_nothing_in_service(machine):
    machine.signal(fixed(0x41))
    expect_taken(machine[1], 0x41)
    expect("ISR", machine[1].lapic.isr, set())
    expect("PPR", machine[1].lapic[Register.PPR], 0)


# --- guest.tpr and guest.if -----------------------------------------------------------------------


@clause("guest.tpr")
@each.apic_mode
def test_tpr_holds_its_class_and_lets_go(machine):
    for tpr in range(0x10, 0x100, 0x10):
        machine[1].write(Register.TPR, tpr)
        machine.signal(fixed(tpr | 0xF)).returns(1)
        expect_taken(machine[1])
        machine[1].write(Register.TPR, tpr - 0x10)
        expect_taken(machine[1], tpr | 0xF)


@clause("guest.tpr")
def test_tpr_lets_higher_classes_through(machine):
    for tpr in range(0x10, 0xF0, 0x10):
        machine[1].write(Register.TPR, tpr | 0xF)
        machine.signal(fixed(tpr + 0x10))
        expect_taken(machine[1], tpr + 0x10)


@clause("guest.tpr")
def test_tpr_set_by_the_host_holds(machine):
    machine[1].configure(tpr=0x50)
    machine.signal(fixed(0x51)).returns(1)
    expect_taken(machine[1])
    machine[1].configure(tpr=0x40)
    expect_taken(machine[1], 0x51)


@clause("guest.if")
@each.apic_mode
@each.vector([0x10, 0x41, 0xFF])
def test_cleared_if_holds_and_lets_go(machine, vector):
    machine[1].cli()
    machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1])
    machine[1].sti()
    expect_taken(machine[1], vector)


# --- lapic.software-disabled and lapic.hardware-disabled ------------------------------------------


@clause("lapic.software-disabled")
def test_blocked_message_is_never_taken(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(fixed(0x41)).blocked()
    machine[1].write(Register.SVR, SVR_ENABLED)
    expect_taken(machine[1])


@clause("lapic.software-disabled")
def test_vector_pending_when_the_lapic_is_disabled_is_still_taken(machine):
    machine[1].cli()
    machine.signal(fixed(0x41)).returns(1)
    machine[1].write(Register.SVR, SVR_RESET)
    machine[1].sti()
    expect_taken(machine[1], 0x41)


@clause("lapic.hardware-disabled")
@deviation("apicv-delivers-while-disabled")
def test_vector_pending_when_the_lapic_is_turned_off_is_not_taken(machine):
    machine[1].cli()
    machine.signal(fixed(0x41)).returns(1)
    machine[1].apic_mode = ApicMode.DISABLED
    machine[1].sti()
    expect_taken(machine[1])


# --- guest.nmi and guest.smi ----------------------------------------------------------------------


@clause("guest.nmi")
@each.apic_mode
@each.vector([0, 2, 0x41, 0xFF])
def test_nmi_is_taken_through_vector_2(machine, vector):
    machine.signal(to(1, vector=vector, delivery_mode=NMI)).returns(1)
    expect_taken(machine[1], 2)


@clause("guest.nmi")
def test_nmi_is_taken_whatever_if_and_tpr_say(machine):
    machine[1].write(Register.TPR, 0xFF)
    machine[1].cli()
    machine.signal(to(1, delivery_mode=NMI)).returns(1)
    expect_taken(machine[1], 2)


@clause("guest.if")
def test_cleared_if_does_not_hold_an_nmi_before_a_vector(machine):
    machine[1].cli()
    machine.signal(fixed(0x41))
    machine.signal(to(1, delivery_mode=NMI))
    expect_taken(machine[1], 2)
    machine[1].sti()
    expect_taken(machine[1], 0x41)


@clause("guest.nmi")
def test_many_nmis_are_taken_once_or_twice(machine):
    for _ in range(5):
        machine.signal(to(1, delivery_mode=NMI)).returns(1)
    taken = [record.vector for record in machine[1].take()]
    expect("one or two NMIs taken", taken in ([2], [2, 2]), True)


@clause("guest.nmi")
def test_nmi_to_all_is_taken_by_each(machine):
    machine.signal(to(0xFF, delivery_mode=NMI)).returns(4)
    for cpu in machine.cpus:
        expect_taken(cpu, 2)


@clause("guest.nmi")
def test_software_disabled_lapic_passes_the_nmi_on(machine):
    machine[1].write(Register.SVR, SVR_RESET)
    machine.signal(to(1, delivery_mode=NMI)).returns(1)
    expect_taken(machine[1], 2)


@clause("guest.smi")
@NEEDS_SMM
@pytest.mark.parametrize("state", ["runnable", "if-cleared", "software-disabled"])
def test_smi_enters_its_handler_once(machine, state):
    if state == "if-cleared":
        machine[1].cli()
    elif state == "software-disabled":
        machine[1].write(Register.SVR, SVR_RESET)
    machine.signal(to(1, delivery_mode=SMI)).returns(1)
    expect_taken(machine[1])
    expect("SMIs handled", machine.smis_handled, 1)


# --- guest.running: the vCPU runs in a thread -----------------------------------------------------


@clause("guest.running")
@parallel
@pytest.mark.parametrize("vectors", [(0x41,), tuple(range(0x20, 0x100, 7))], ids=["one", "many"])
def test_running_guest_takes_each_message(machine, vectors):
    with machine[1].spinning() as running:
        for count, vector in enumerate(vectors, start=1):
            machine.send(fixed(vector))
            running.wait_until_taken(count)
    expect_logged(machine[1], *vectors)


@clause("guest.running")
@parallel
def test_running_guest_takes_an_nmi(machine):
    with machine[1].spinning() as running:
        machine.send(to(1, delivery_mode=NMI))
        running.wait_until_taken(1)
    expect_logged(machine[1], 2)


@clause("guest.running")
@parallel
def test_running_guests_take_a_broadcast(machine):
    with machine[1].spinning() as one, machine[2].spinning() as two:
        machine.send(to(0b110, LOGICAL))
        one.wait_until_taken(1)
        two.wait_until_taken(1)
    expect_logged(machine[1], 0x41)
    expect_logged(machine[2], 0x41)


@clause("guest.running")
@parallel
def test_running_guest_is_not_disturbed_by_messages_to_others(machine):
    with machine[1].spinning() as running:
        machine.send(to(2))
        machine.send(fixed(0x42, 1))
        running.wait_until_taken(1)
    expect_logged(machine[1], 0x42)
