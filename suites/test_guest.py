"""What the guest sees: taken once, where it should be, in order, in service until EOI."""

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.lapic import SVR_RESET
from helpers.guest import expect
from helpers.verdicts import clause, deviation

PHYSICAL, LOGICAL = DestinationMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

HEX = "{:#04x}".format
MODES = pytest.mark.parametrize(
    "apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name
)


@pytest.fixture
def guest(shared_machine, apic_mode):
    """Four vCPUs in APIC apic_mode ``apic_mode``: the handler reads by MMIO or by MSR."""
    return shared_machine(vcpu_ids=range(4), apic_mode=apic_mode)


def vectors(taken):
    return [record.vector for record in taken]


def show_list(taken):
    return "[" + " ".join(f"{vector:#04x}" for vector in taken) + "]"


def expect_taken(cpu, *expected):
    """Run ``cpu`` until nothing is left to take: these vectors, in this order."""
    expect("vectors taken", vectors(cpu.take()), list(expected), show=show_list)


def fixed(vector, destination=1, **fields):
    return Message(vector=vector, destination=destination, **fields)


# --- taken once, by the right one -----------------------------------------------------------------


@clause("guest.taken-once")
@pytest.mark.parametrize("irqchip", ["full", "split"])
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
@MODES
@pytest.mark.parametrize("index", range(4), ids="to-{}".format)
def test_only_the_destination_takes_it(guest, index):
    guest.signal(fixed(0x41, index)).returns(1)
    for cpu in guest.cpus:
        expect_taken(cpu, *([0x41] if cpu.index == index else []))


@clause("guest.taken-once")
@MODES
def test_broadcast_is_taken_once_by_each(guest):
    guest.signal(fixed(0x41, 0xFF)).returns(4)
    for cpu in guest.cpus:
        expect_taken(cpu, 0x41)


@clause("guest.taken-once")
@pytest.mark.parametrize("mask", range(1, 16), ids="{:04b}".format)
def test_logical_destination_is_taken_by_its_members(machine, mask):
    machine.signal(fixed(0x41, mask, destination_mode=LOGICAL))
    for cpu in machine.cpus:
        expect_taken(cpu, *([0x41] if mask >> cpu.index & 1 else []))


@clause("guest.taken-once")
@pytest.mark.parametrize("mode", [FIXED, LOWEST], ids=lambda mode: mode.name)
@pytest.mark.parametrize("trigger", TriggerMode, ids=lambda mode: mode.name)
def test_handler_sees_its_lapic(machine, mode, trigger):
    machine.signal(fixed(0x41, 2, delivery_mode=mode, trigger_mode=trigger))
    [record] = machine[2].take()
    expect("ID", record.id >> 24, 2)
    expect("IRR", record.irr, set())
    expect("TMR", record.tmr, {0x41} if trigger else set())
    expect("SVR", record.svr, 0x1FF)


@clause("guest.taken-once")
def test_handler_sees_its_x2apic(shared_machine):
    machine = shared_machine(vcpu_ids=(0, 0x11), apic_mode=ApicMode.X2APIC)
    machine.signal(fixed(0x41, 0x11))
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


# --- coalescing -----------------------------------------------------------------------------------


@clause("guest.coalesced")
@MODES
@pytest.mark.parametrize("times", [2, 3, 10], ids="{}-times".format)
def test_pending_vector_is_taken_once(guest, times):
    for _ in range(times):
        guest.signal(fixed(0x41)).returns(1)
    expect_taken(guest[1], 0x41)


@clause("guest.coalesced")
@MODES
def test_vector_sent_in_its_handler_is_taken_once_more(guest):
    guest[1].handler(pause=True)
    guest.signal(fixed(0x41))
    guest[1].run_to_handler()
    guest.signal(fixed(0x41)).returns(1)
    guest.signal(fixed(0x41)).returns(1)
    guest[1].handler()
    expect_taken(guest[1], 0x41, 0x41)


# --- in service -----------------------------------------------------------------------------------


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@MODES
@pytest.mark.parametrize("vector", [0x10, 0x41, 0x9F, 0xFF], ids=HEX)
def test_taken_vector_is_in_service(guest, vector):
    guest.signal(fixed(vector))
    [record] = guest[1].take()
    expect("ISR in the handler", record.isr, {vector})


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@MODES
@pytest.mark.parametrize("vector", [0x10, 0x41, 0x9F, 0xFF], ids=HEX)
def test_ppr_holds_the_class_in_service(guest, vector):
    guest.signal(fixed(vector))
    [record] = guest[1].take()
    expect("PPR in the handler", record.ppr, vector & 0xF0)


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@MODES
def test_host_sees_the_vector_in_service(guest):
    guest[1].handler(pause=True)
    guest.signal(fixed(0x41))
    guest[1].run_to_handler()
    expect("ISR at the host", guest[1].lapic.isr, {0x41})


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
@MODES
@pytest.mark.parametrize("vector", [0x31, 0x4F, 0x41, 0x40], ids=HEX)
def test_class_in_service_and_below_waits(guest, vector):
    guest[1].handler(eoi=False)
    guest.signal(fixed(0x42))
    expect_taken(guest[1], 0x42)
    guest.signal(fixed(vector)).returns(1)
    expect_taken(guest[1])
    expect("pending", guest[1].lapic.irr, {vector})


@clause("guest.in-service-holds")
@MODES
def test_class_above_the_one_in_service_is_taken(guest):
    guest[1].handler(eoi=False)
    guest.signal(fixed(0x42))
    expect_taken(guest[1], 0x42)
    guest.signal(fixed(0x51)).returns(1)
    expect_taken(guest[1], 0x51)


@clause("guest.in-service-holds")
@pytest.mark.parametrize("vector", [0x31, 0x4F], ids=HEX)
def test_restored_in_service_vector_holds(machine, vector):
    machine[1].configure_vectors(Register.ISR, [0x42])
    machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1])
    machine[1].eoi()
    expect_taken(machine[1], vector)


@clause("guest.in-service")
@deviation("pvm-never-in-service")
@MODES
def test_interrupted_and_interrupting_vector_are_in_service(guest):
    guest[1].handler(pause=True, nest=True)
    guest.signal(fixed(0x42))
    guest[1].run_to_handler()
    guest.signal(fixed(0x61))
    guest[1].run_to_handler()
    outer, inner = guest[1].log()
    expect("vectors taken", vectors([outer, inner]), [0x42, 0x61], show=show_list)
    expect("ISR in the inner handler", inner.isr, {0x42, 0x61})


# --- priority and EOI -----------------------------------------------------------------------------


@clause("guest.priority")
@MODES
@pytest.mark.parametrize(
    "sent",
    [(0x31, 0x52, 0x73), (0x73, 0x52, 0x31), (0x52, 0x73, 0x31), (0x41, 0x42, 0x43)],
    ids=lambda sent: "-".join(map(HEX, sent)),
)
def test_highest_pending_vector_is_taken_first(guest, sent):
    guest[1].cli()
    for vector in sent:
        guest.signal(fixed(vector)).returns(1)
    guest[1].sti()
    expect_taken(guest[1], *sorted(sent, reverse=True))


@clause("guest.priority")
def test_hundred_pending_vectors_are_taken_in_order(machine):
    sent = range(0x40, 0xA4)
    for vector in sent:
        machine.signal(fixed(vector)).returns(1)
    expect_taken(machine[1], *reversed(sent))


@clause("guest.eoi")
@deviation("pvm-never-in-service")
@MODES
def test_eoi_releases_the_next(guest):
    guest[1].handler(eoi=False)
    for vector in (0x61, 0x41, 0x21):
        guest.signal(fixed(vector))
    expect_taken(guest[1], 0x61)
    guest[1].eoi()
    expect_taken(guest[1], 0x41)
    guest[1].eoi()
    expect_taken(guest[1], 0x21)


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
@MODES
def test_eoi_leaves_nothing_in_service(guest):
    guest.signal(fixed(0x41))
    expect_taken(guest[1], 0x41)
    expect("ISR", guest[1].lapic.isr, set())
    expect("PPR", guest[1].lapic[Register.PPR], 0)


# --- TPR and IF -----------------------------------------------------------------------------------


@clause("guest.tpr")
@MODES
def test_tpr_holds_its_class_and_lets_go(guest):
    for tpr in range(0x10, 0x100, 0x10):
        guest[1].write(Register.TPR, tpr)
        guest.signal(fixed(tpr | 0xF)).returns(1)
        expect_taken(guest[1])
        guest[1].write(Register.TPR, tpr - 0x10)
        expect_taken(guest[1], tpr | 0xF)


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
@MODES
@pytest.mark.parametrize("vector", [0x10, 0x41, 0xFF], ids=HEX)
def test_cleared_if_holds_and_lets_go(guest, vector):
    guest[1].cli()
    guest.signal(fixed(vector)).returns(1)
    expect_taken(guest[1])
    guest[1].sti()
    expect_taken(guest[1], vector)


# --- software-disabled ----------------------------------------------------------------------------


@clause("lapic.software-disabled")
def test_blocked_message_is_never_taken(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(fixed(0x41)).blocked()
    machine[1].write(Register.SVR, 0x1FF)
    expect_taken(machine[1])


@clause("lapic.software-disabled")
def test_vector_pending_when_the_lapic_is_disabled_is_still_taken(machine):
    machine[1].cli()
    machine.signal(fixed(0x41)).returns(1)
    machine[1].write(Register.SVR, SVR_RESET)
    machine[1].sti()
    expect_taken(machine[1], 0x41)


@clause("lapic.hardware-disabled")
def test_vector_pending_when_the_lapic_is_turned_off_is_not_taken(machine):
    machine[1].cli()
    machine.signal(fixed(0x41)).returns(1)
    machine[1].apic_mode = ApicMode.DISABLED
    machine[1].sti()
    expect_taken(machine[1])


# --- NMI and SMI ----------------------------------------------------------------------------------


@clause("guest.nmi")
@MODES
@pytest.mark.parametrize("vector", [0, 2, 0x41, 0xFF], ids=HEX)
def test_nmi_is_taken_through_vector_2(guest, vector):
    guest.signal(fixed(vector, delivery_mode=NMI)).returns(1)
    expect_taken(guest[1], 2)


@clause("guest.nmi")
def test_nmi_is_taken_whatever_if_and_tpr_say(machine):
    machine[1].write(Register.TPR, 0xFF)
    machine[1].cli()
    machine.signal(fixed(0x41, delivery_mode=NMI)).returns(1)
    expect_taken(machine[1], 2)


@clause("guest.if")
def test_cleared_if_does_not_hold_an_nmi_before_a_vector(machine):
    machine[1].cli()
    machine.signal(fixed(0x41))
    machine.signal(fixed(0x41, delivery_mode=NMI))
    expect_taken(machine[1], 2)
    machine[1].sti()
    expect_taken(machine[1], 0x41)


@clause("guest.nmi")
def test_many_nmis_are_taken_once_or_twice(machine):
    for _ in range(5):
        machine.signal(fixed(0, delivery_mode=NMI)).returns(1)
    expect("one or two NMIs", vectors(machine[1].take()) in ([2], [2, 2]), True)


@clause("guest.nmi")
def test_nmi_to_all_is_taken_by_each(machine):
    machine.signal(fixed(0, 0xFF, delivery_mode=NMI)).returns(4)
    for cpu in machine.cpus:
        expect_taken(cpu, 2)


@clause("guest.nmi")
def test_software_disabled_lapic_passes_the_nmi_on(machine):
    machine[1].write(Register.SVR, SVR_RESET)
    machine.signal(fixed(0, delivery_mode=NMI)).returns(1)
    expect_taken(machine[1], 2)


@clause("guest.smi")
@pytest.mark.parametrize("state", ["runnable", "if-cleared", "software-disabled"])
def test_smi_enters_its_handler_once(machine, kernel, state):
    if not kernel.has_smm:
        pytest.skip("the kernel has no SMM (KVM_CAP_X86_SMM is 0)")
    if state == "if-cleared":
        machine[1].cli()
    elif state == "software-disabled":
        machine[1].write(Register.SVR, SVR_RESET)
    machine.signal(fixed(0x41, delivery_mode=SMI)).returns(1)
    expect_taken(machine[1])
    expect("SMIs handled", machine.smis_handled, 1)


# --- a guest that is not stepped ------------------------------------------------------------------


@clause("guest.running")
@pytest.mark.parametrize("vectors_", [(0x41,), tuple(range(0x20, 0x100, 7))], ids=["one", "many"])
def test_running_guest_takes_each_message(machine, vectors_):
    with machine[1].spinning() as running:
        for count, vector in enumerate(vectors_, start=1):
            machine.send(fixed(vector))
            running.wait_until_taken(count)
    expect("vectors taken", vectors(machine[1].log()), list(vectors_), show=show_list)


@clause("guest.running")
def test_running_guest_takes_an_nmi(machine):
    with machine[1].spinning() as running:
        machine.send(fixed(0, delivery_mode=NMI))
        running.wait_until_taken(1)
    expect("vectors taken", vectors(machine[1].log()), [2], show=show_list)


@clause("guest.running")
def test_running_guests_take_a_broadcast(machine):
    with machine[1].spinning() as one, machine[2].spinning() as two:
        machine.send(fixed(0x41, 6, destination_mode=LOGICAL))
        one.wait_until_taken(1)
        two.wait_until_taken(1)
    expect("vectors taken by 1", vectors(machine[1].log()), [0x41], show=show_list)
    expect("vectors taken by 2", vectors(machine[2].log()), [0x41], show=show_list)


@clause("guest.running")
def test_running_guest_is_not_disturbed_by_messages_to_others(machine):
    with machine[1].spinning() as running:
        machine.send(fixed(0x41, 2))
        machine.send(fixed(0x42, 1))
        running.wait_until_taken(1)
    expect("vectors taken", vectors(machine[1].log()), [0x42], show=show_list)
