"""What the ioctl returns: delivered and to how many, blocked, error."""

from errno import EPERM
from itertools import product

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation

EVERY_MODE = pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
PHYSICAL, LOGICAL = DestinationMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

VECTOR_MODES = (FIXED, LOWEST)
SIGNAL_MODES = (SMI, NMI, INIT, SIPI)


def modes(*which):
    return pytest.mark.parametrize("mode", which, ids=lambda mode: mode.name)


def need_smm(kernel, mode):
    """An SMI needs SMM, which a kernel may be built without."""
    if mode is SMI and not kernel.has_smm:
        pytest.skip("the kernel has no SMM (KVM_CAP_X86_SMM is 0)")


# --- delivered: how many --------------------------------------------------------------------------


@clause("msi.returns-delivered")
@pytest.mark.parametrize("irqchip", ["full", "split"])
@pytest.mark.parametrize("index", range(4), ids="to-{}".format)
def test_delivered_message_returns_above_0(machine, index):
    machine.signal(Message(destination=index)).delivered().accepted_by(index)


@clause("return.count")
@pytest.mark.parametrize("vcpus", [1, 2, 3, 4, 5, 6, 7, 8, 16, 64], ids="{}-vcpus".format)
def test_broadcast_returns_the_number_of_vcpus(machines, vcpus):
    machine = machines(vcpu_ids=range(vcpus))
    machine.signal(Message(destination=0xFF)).returns(vcpus).accepted_by(*range(vcpus))


@clause("return.count")
@pytest.mark.parametrize("mask", range(1, 16), ids="mask{:04b}".format)
def test_logical_destination_returns_the_number_of_its_vcpus(machine, mask):
    members = [index for index in range(4) if mask >> index & 1]
    shot = machine.signal(Message(destination=mask, destination_mode=LOGICAL))
    shot.returns(len(members)).accepted_by(*members)


@clause("return.count")
def test_only_acceptors_are_counted(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(Message(destination=0xFF)).returns(3).accepted_by(0, 2, 3)


# --- by delivery mode and LAPIC state -------------------------------------------------------------


@clause("message.delivery-mode")
@modes(FIXED, LOWEST, SMI, NMI, INIT, SIPI)
def test_enabled_lapic_accepts(machine, kernel, mode):
    need_smm(kernel, mode)
    machine.signal(Message(destination=1, delivery_mode=mode)).returns(1).accepted_by(1)


@clause("lapic.software-disabled")
@modes(*VECTOR_MODES)
def test_software_disabled_lapic_blocks_vectors(machine, mode):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(Message(destination=1, delivery_mode=mode)).blocked().reached_nobody()


@clause("lapic.software-disabled")
@modes(*SIGNAL_MODES)
def test_software_disabled_lapic_accepts_signals(machine, kernel, mode):
    need_smm(kernel, mode)
    machine[1].configure(svr=SVR_RESET)
    machine.signal(Message(destination=1, delivery_mode=mode)).returns(1).accepted_by(1)


@clause("lapic.software-disabled")
@deviation("logical-nmi-lost")
@modes(*SIGNAL_MODES)
def test_software_disabled_lapic_accepts_signals_by_its_logical_id(machine, kernel, mode):
    need_smm(kernel, mode)
    machine[1].configure(svr=SVR_RESET)
    shot = machine.signal(Message(destination=2, destination_mode=LOGICAL, delivery_mode=mode))
    shot.returns(1).accepted_by(1)


@clause("lapic.hardware-disabled")
@EVERY_MODE
def test_hardware_disabled_lapic_takes_nothing(machine, mode):
    machine[1].apic_mode = ApicMode.DISABLED
    shot = machine.signal(Message(destination=1, delivery_mode=mode))
    shot.blocked_or_unmatched().reached_nobody()


@clause("lapic.hardware-disabled")
@EVERY_MODE
def test_broadcast_passes_a_hardware_disabled_lapic_by(machine, mode):
    machine[1].apic_mode = ApicMode.DISABLED
    shot = machine.signal(Message(destination=0xFF, delivery_mode=mode))
    expect("vCPU 1", 1 in shot.acceptors(), False)


@clause("return.extint")
@pytest.mark.parametrize("state", ["enabled", "software-disabled"])
@pytest.mark.parametrize("destination", [1, 0xFF], ids=["unicast", "broadcast"])
def test_extint_is_never_accepted(machine, state, destination):
    if state == "software-disabled":
        machine[1].configure(svr=SVR_RESET)
    shot = machine.signal(Message(destination=destination, delivery_mode=EXTINT))
    shot.blocked().reached_nobody()


@clause("return.remrd")
@pytest.mark.parametrize("svr", [0x1FF, SVR_RESET], ids=["enabled", "software-disabled"])
def test_reserved_mode_unhalts(machine, svr):
    machine[1].configure(svr=svr).mp_state = abi.KVM_MP_STATE_HALTED
    machine.signal(Message(destination=1, delivery_mode=REMRD)).returns(1).accepted_by(1)


# --- a vCPU that nobody has touched yet -----------------------------------------------------------


@clause("lapic.fresh")
@modes(*SIGNAL_MODES)
def test_fresh_vcpu_accepts_signals(machines, kernel, mode):
    need_smm(kernel, mode)
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine.signal(Message(destination=1, delivery_mode=mode)).returns(1).accepted_by(1)


@clause("lapic.fresh")
@deviation("newest-vcpu-unreachable")
@modes(*SIGNAL_MODES)
def test_newest_vcpu_accepts_signals(machines, kernel, mode):
    need_smm(kernel, mode)
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine.signal(Message(destination=2, delivery_mode=mode)).returns(1).accepted_by(2)


@clause("lapic.fresh")
@modes(*SIGNAL_MODES)
def test_newest_vcpu_accepts_signals_after_set_lapic(machines, kernel, mode):
    need_smm(kernel, mode)
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine[2].lapic = machine[2].lapic
    machine.signal(Message(destination=2, delivery_mode=mode)).returns(1).accepted_by(2)


@clause("lapic.fresh")
def test_broadcast_reaches_the_newest_vcpu(machines):
    machine = machines(vcpu_ids=range(3), power_on=False)
    shot = machine.signal(Message(destination=0xFF, delivery_mode=NMI))
    shot.returns(3).accepted_by(0, 1, 2)


@clause("lapic.software-disabled")
@modes(*VECTOR_MODES)
@pytest.mark.parametrize("index", range(3), ids="to-{}".format)
def test_fresh_vcpu_blocks_vectors(machines, mode, index):
    machine = machines(vcpu_ids=range(3), power_on=False)
    shot = machine.signal(Message(destination=index, delivery_mode=mode))
    shot.blocked().reached_nobody()


# --- blocked --------------------------------------------------------------------------------------


def all_cpus(**registers):
    def setup(machine):
        for cpu in machine.cpus:
            cpu.configure(**registers)

    return setup


def one_cpu(index, **registers):
    return lambda machine: machine[index].configure(**registers)


def all_off(machine):
    for cpu in machine.cpus:
        cpu.apic_mode = ApicMode.DISABLED


def one_x2apic(machine):
    machine[3].apic_mode = ApicMode.X2APIC


def all_x2apic(machine):
    for cpu in machine.cpus:
        cpu.apic_mode = ApicMode.X2APIC


def untouched(machine):
    pass


disabled = all_cpus(svr=SVR_RESET)

# name: (set-up, message, what the reference kernel returns, deviation before 6.3)
NOBODY = {
    "absent-id": (untouched, Message(destination=5), "0", None),
    "id-above-all": (untouched, Message(destination=0xFE), "0", None),
    "absent-id-beside-aliases": (
        one_cpu(1, id=2), Message(destination=5), "-1 EPERM", "alias-one-receives",
    ),
    "software-disabled": (one_cpu(1, svr=SVR_RESET), Message(destination=1), "0", None),
    "logical-all-software-disabled": (
        disabled, Message(destination=1, destination_mode=LOGICAL), "0", None,
    ),
    "logical-no-ldr": (
        all_cpus(ldr=0), Message(destination=1, destination_mode=LOGICAL), "0", "nobody-is-eperm",
    ),
    "logical-absent-all-software-disabled": (
        disabled, Message(destination=0x20, destination_mode=LOGICAL), "0", "nobody-is-eperm",
    ),
    "logical-no-such-bit": (
        untouched, Message(destination=0xF0, destination_mode=LOGICAL), "0", None,
    ),
    "logical-no-bit": (untouched, Message(destination=0, destination_mode=LOGICAL), "0", None),
    "logical-no-such-cluster": (
        all_cpus(dfr=DFR_CLUSTER), Message(destination=0x71, destination_mode=LOGICAL), "0", None,
    ),
    "logical-flat-and-cluster": (
        one_cpu(3, dfr=DFR_CLUSTER, ldr=0x11),
        Message(destination=0x20, destination_mode=LOGICAL), "-1 EPERM", None,
    ),
    "logical-xapic-and-x2apic": (
        one_x2apic, Message(destination=0x20, destination_mode=LOGICAL), "-1 EPERM", None,
    ),
    "logical-all-x2apic": (
        all_x2apic, Message(destination=0x20, destination_mode=LOGICAL), "0", None,
    ),
    "logical-beside-aliases": (
        one_cpu(1, ldr=1), Message(destination=0x20, destination_mode=LOGICAL), "-1 EPERM",
        "logical-alias-one-receives",
    ),
    "logical-beside-an-ldr-of-several-bits": (
        one_cpu(1, ldr=6), Message(destination=0x20, destination_mode=LOGICAL), "-1 EPERM",
        "logical-alias-one-receives",
    ),
    "logical-beside-aliased-ids": (
        one_cpu(1, id=2), Message(destination=0x20, destination_mode=LOGICAL), "-1 EPERM",
        "alias-one-receives",
    ),
    "logical-beside-a-cluster-lapic-without-ldr": (
        one_cpu(3, dfr=DFR_CLUSTER, ldr=0),
        Message(destination=0x20, destination_mode=LOGICAL), "0", None,
    ),
    "broadcast-all-off": (all_off, Message(destination=0xFF), "-1 EPERM", None),
    "broadcast-all-off-logical": (
        all_off, Message(destination=0xFF, destination_mode=LOGICAL), "-1 EPERM", None,
    ),
    "broadcast-software-disabled": (disabled, Message(destination=0xFF), "0", None),
    "broadcast-software-disabled-lowest": (
        disabled, Message(destination=0xFF, delivery_mode=LOWEST), "0", None,
    ),
    "broadcast-software-disabled-hint": (
        disabled, Message(destination=0xFF, redirection_hint=1), "-1 EPERM", None,
    ),
    "broadcast-software-disabled-logical-lowest": (
        disabled,
        Message(destination=0xFF, destination_mode=LOGICAL, delivery_mode=LOWEST),
        "-1 EPERM", None,
    ),
}  # fmt: skip


@clause("msi.returns-blocked")
@pytest.mark.parametrize("situation", NOBODY)
def test_message_that_nobody_accepts_is_blocked(machine, situation, record_property):
    setup, message, _, _ = NOBODY[situation]
    setup(machine)
    shot = machine.signal(message)
    record_property("outcome", shot.returned)
    shot.blocked_or_unmatched().reached_nobody()


@clause("return.nobody")
@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(name, marks=[deviation(known)] if known else [])
        for name, (_, _, _, known) in NOBODY.items()
    ],
)
def test_return_value_when_nobody_accepts(machine, situation):
    setup, message, expected, _ = NOBODY[situation]
    setup(machine)
    expect("return value", machine.signal(message).returned, expected)


@clause("return.nobody")
@EVERY_MODE
def test_irqchip_without_vcpus_is_an_error(shared_machine, mode):
    machine = shared_machine(vcpu_ids=())
    for destination, destination_mode in product((0, 0xFF), DestinationMode):
        machine.signal(Message(0x41, destination, destination_mode, mode)).fails(EPERM)


# --- what is not blocked --------------------------------------------------------------------------


@clause("return.masked")
@pytest.mark.parametrize("tpr", range(0x10, 0x100, 0x10), ids="tpr{:#x}".format)
def test_masked_by_tpr_is_not_blocked(machine, tpr):
    machine[1].configure(tpr=tpr)
    machine.signal(Message(destination=1, vector=0x41)).returns(1).accepted_by(1)


@clause("return.masked")
def test_masked_by_if_is_not_blocked(machine):
    machine[1].cli()
    machine.signal(Message(destination=1)).returns(1).accepted_by(1)


@clause("return.masked")
@pytest.mark.parametrize("in_service", [0x31, 0x41, 0x51, 0xF1], ids="{:#x}".format)
def test_in_service_vector_is_not_blocked(machine, in_service):
    machine[1].configure_vectors(Register.ISR, [in_service])
    machine.signal(Message(destination=1, vector=0x41)).returns(1).accepted_by(1)


@clause("return.masked")
@modes(*VECTOR_MODES)
def test_pending_vector_is_not_blocked(machine, mode):
    message = Message(destination=1, delivery_mode=mode)
    machine.signal(message).returns(1).accepted_by(1)
    for _ in range(3):
        machine.signal(message).returns(1).reached_nobody()


@clause("return.masked")
def test_pending_nmi_is_not_blocked(machine):
    message = Message(destination=1, delivery_mode=NMI)
    machine.signal(message).returns(1).accepted_by(1)
    for _ in range(5):
        machine.signal(message).returns(1)


@clause("message.nmi-count")
@pytest.mark.parametrize(
    "sent, pending",
    [
        pytest.param(1, 1, id="1-sent"),
        pytest.param(2, 2, id="2-sent", marks=deviation("one-nmi-shown")),
        pytest.param(5, 2, id="5-sent", marks=deviation("one-nmi-shown")),
    ],
)
def test_host_sees_at_most_two_nmis_pending(machine, sent, pending):
    for _ in range(sent):
        machine.signal(Message(destination=1, delivery_mode=NMI)).returns(1)
    expect("NMIs pending", machine[1].vcpu.get_events().nmi.pending, pending)


@clause("message.nmi-count")
@pytest.mark.parametrize(
    "sent, taken", [(1, 1), (2, 2), (5, 2)], ids=["1-sent", "2-sent", "5-sent"]
)
def test_guest_takes_at_most_two_pending_nmis(machine, sent, taken):
    for _ in range(sent):
        machine.signal(Message(destination=1, delivery_mode=NMI)).returns(1)
    expect("NMIs taken", len(machine[1].take()), taken)


@clause("return.mp-state")
@modes(FIXED, LOWEST, NMI, REMRD, INIT, SIPI)
@pytest.mark.parametrize("state", MpState, ids=lambda state: state.name)
def test_mp_state_does_not_change_the_return_value(machine, mode, state):
    if state is MpState.SIPI_RECEIVED:
        machine[1].mp_state = MpState.INIT_RECEIVED
    machine[1].mp_state = state
    machine.signal(Message(destination=1, delivery_mode=mode)).returns(1)


@clause("return.mp-state")
@modes(*VECTOR_MODES)
@pytest.mark.parametrize(
    "state",
    [MpState.UNINITIALIZED, MpState.INIT_RECEIVED, MpState.HALTED],
    ids=lambda state: state.name,
)
def test_vector_is_pending_whatever_the_mp_state(machine, mode, state):
    machine[1].mp_state = state
    shot = machine.signal(Message(destination=1, delivery_mode=mode)).accepted_by(1)
    expect("mp_state", shot.after[1].mp_state, state)
