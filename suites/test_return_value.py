# SPDX-License-Identifier: GPL-2.0-only
"""The return value: delivered and to how many, blocked, error.

Clauses: msi.returns-delivered, return.count, message.delivery-mode, lapic.software-disabled,
lapic.hardware-disabled, return.extint, return.remrd, lapic.fresh, msi.returns-blocked,
return.nobody, return.masked, message.nmi-count, return.mp-state.

api.rst promises a value above 0 for a delivered message and 0 for a message that the guest blocks.
KVM goes further: the value is the number of acceptors, and -1 EPERM can say that no LAPIC matched.
A message that waits behind TPR, RFLAGS.IF or a vector in service counts as delivered, since a LAPIC
has accepted it.
"""

from errno import EPERM
from itertools import product

import pytest

from helpers.apic import ApicMode, DestinationMode, Message, Register
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import SMI_IF_SUPPORTED, expect_mp_state, sharing_a_bit, to
from suites.names import EXTINT, FIXED, INIT, LOGICAL, LOWEST, NMI, REMRD, SIPI, SVR_ENABLED

VECTOR_MODES = (FIXED, LOWEST)
SIGNAL_MODES = (SMI_IF_SUPPORTED, NMI, INIT, SIPI)

# --- msi.returns-delivered and return.count -------------------------------------------------------


@clause("msi.returns-delivered")
@each.irqchip
@each.index(range(4))
def test_delivered_message_returns_above_0(machine, index):
    machine.signal(to(index)).delivered().accepted_by(index)


@clause("return.count")
@each.value("vcpus", [1, 2, 3, 4, 5, 6, 7, 8, 16, 64], "{}-vcpus")
def test_broadcast_returns_the_number_of_vcpus(machines, vcpus):
    machine = machines(vcpu_ids=range(vcpus))
    machine.signal(to(0xFF)).returns(vcpus).accepted_by(*range(vcpus))


@clause("return.count")
@each.value("mask", range(1, 16), "mask{:04b}")
def test_logical_destination_returns_the_number_of_its_vcpus(machine, mask):
    members = sharing_a_bit(mask)
    machine.signal(to(mask, LOGICAL)).returns(len(members)).accepted_by(*members)


@clause("return.count")
def test_only_acceptors_are_counted(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(to(0xFF)).returns(3).accepted_by(0, 2, 3)


# --- by delivery mode and LAPIC state -------------------------------------------------------------


@clause("message.delivery-mode")
@each.delivery_mode(*VECTOR_MODES, *SIGNAL_MODES)
def test_enabled_lapic_accepts(machine, delivery_mode):
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1).accepted_by(1)


@clause("lapic.software-disabled")
@each.delivery_mode(*VECTOR_MODES)
def test_software_disabled_lapic_blocks_vectors(machine, delivery_mode):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(to(1, delivery_mode=delivery_mode)).blocked().reached_nobody()


@clause("lapic.software-disabled")
@each.delivery_mode(*SIGNAL_MODES)
def test_software_disabled_lapic_accepts_signals(machine, delivery_mode):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1).accepted_by(1)


@clause("lapic.software-disabled")
@deviation("logical-nmi-lost")
@each.delivery_mode(*SIGNAL_MODES)
def test_software_disabled_lapic_accepts_signals_by_its_logical_id(machine, delivery_mode):
    machine[1].configure(svr=SVR_RESET)
    injection = machine.signal(to(2, LOGICAL, delivery_mode=delivery_mode))
    injection.returns(1).accepted_by(1)


@clause("lapic.hardware-disabled")
@each.delivery_mode()
def test_hardware_disabled_lapic_takes_nothing(machine, delivery_mode):
    machine[1].apic_mode = ApicMode.DISABLED
    injection = machine.signal(to(1, delivery_mode=delivery_mode))
    injection.blocked_or_unmatched().reached_nobody()


@clause("lapic.hardware-disabled")
@each.delivery_mode()
def test_broadcast_passes_a_hardware_disabled_lapic_by(machine, delivery_mode):
    machine[1].apic_mode = ApicMode.DISABLED
    injection = machine.signal(to(0xFF, delivery_mode=delivery_mode))
    expect("vCPU 1 among the acceptors", 1 in injection.acceptors(), False)


@clause("return.extint")
@pytest.mark.parametrize("state", ["enabled", "software-disabled"])
@pytest.mark.parametrize("destination", [1, 0xFF], ids=["unicast", "broadcast"])
def test_extint_is_never_accepted(machine, state, destination):
    if state == "software-disabled":
        machine[1].configure(svr=SVR_RESET)
    injection = machine.signal(to(destination, delivery_mode=EXTINT))
    injection.blocked().reached_nobody()


@clause("return.remrd")
@pytest.mark.parametrize("svr", [SVR_ENABLED, SVR_RESET], ids=["enabled", "software-disabled"])
def test_reserved_mode_unhalts(machine, svr):
    machine[1].configure(svr=svr).mp_state = MpState.HALTED
    machine.signal(to(1, delivery_mode=REMRD)).returns(1).accepted_by(1)


# --- lapic.fresh: neither host nor guest has written the vCPU's state -----------------------------


@clause("lapic.fresh")
@each.delivery_mode(*SIGNAL_MODES)
def test_fresh_vcpu_accepts_signals(machines, delivery_mode):
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1).accepted_by(1)


@clause("lapic.fresh")
@deviation("newest-vcpu-unreachable")
@each.delivery_mode(*SIGNAL_MODES)
def test_newest_vcpu_accepts_signals(machines, delivery_mode):
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine.signal(to(2, delivery_mode=delivery_mode)).returns(1).accepted_by(2)


@clause("lapic.fresh")
@each.delivery_mode(*SIGNAL_MODES)
def test_newest_vcpu_accepts_signals_after_set_lapic(machines, delivery_mode):
    machine = machines(vcpu_ids=range(3), power_on=False)
    machine[2].lapic = machine[2].lapic
    machine.signal(to(2, delivery_mode=delivery_mode)).returns(1).accepted_by(2)


@clause("lapic.fresh")
def test_broadcast_reaches_the_newest_vcpu(machines):
    machine = machines(vcpu_ids=range(3), power_on=False)
    injection = machine.signal(to(0xFF, delivery_mode=NMI))
    injection.returns(3).accepted_by(0, 1, 2)


@clause("lapic.software-disabled")
@each.delivery_mode(*VECTOR_MODES)
@each.index(range(3))
def test_fresh_vcpu_blocks_vectors(machines, delivery_mode, index):
    machine = machines(vcpu_ids=range(3), power_on=False)
    injection = machine.signal(to(index, delivery_mode=delivery_mode))
    injection.blocked().reached_nobody()


# --- msi.returns-blocked and return.nobody --------------------------------------------------------


def unchanged(_):
    pass


def on_all(**registers):
    """Return a set-up that writes ``registers`` of every LAPIC."""

    def setup(machine):
        for cpu in machine.cpus:
            cpu.configure(**registers)

    return setup


def on(index, **registers):
    """Return a set-up that writes ``registers`` of one LAPIC."""
    return lambda machine: machine[index].configure(**registers)


def switched(apic_mode, *indices):
    """Return a set-up that switches LAPICs, to another APIC mode."""

    def setup(machine):
        for index in indices:
            machine[index].apic_mode = apic_mode

    return setup


all_software_disabled = on_all(svr=SVR_RESET)
all_hardware_disabled = switched(ApicMode.DISABLED, *range(4))

# name: (set-up, message, return value of the reference kernel, known deviation of older kernels)
NOBODY = {
    "absent-id": (unchanged, to(5), "0", None),
    "id-above-all": (unchanged, to(0xFE), "0", None),
    "absent-id-beside-aliases": (on(1, id=2), to(5), "-1 EPERM", "alias-one-receives"),
    "software-disabled": (on(1, svr=SVR_RESET), to(1), "0", None),
    "logical-all-software-disabled": (all_software_disabled, to(1, LOGICAL), "0", None),
    "logical-no-ldr": (on_all(ldr=0), to(1, LOGICAL), "0", "nobody-is-eperm"),
    "logical-absent-all-software-disabled": (
        all_software_disabled, to(0x20, LOGICAL), "0", "nobody-is-eperm",
    ),
    "logical-no-such-bit": (unchanged, to(0xF0, LOGICAL), "0", None),
    "logical-no-bit": (unchanged, to(0, LOGICAL), "0", None),
    "logical-no-such-cluster": (on_all(dfr=DFR_CLUSTER), to(0x71, LOGICAL), "0", None),
    "logical-flat-and-cluster": (
        on(3, dfr=DFR_CLUSTER, ldr=0x11), to(0x20, LOGICAL), "-1 EPERM", None,
    ),
    "logical-xapic-and-x2apic": (
        switched(ApicMode.X2APIC, 3), to(0x20, LOGICAL), "-1 EPERM", None,
    ),
    "logical-all-x2apic": (switched(ApicMode.X2APIC, *range(4)), to(0x20, LOGICAL), "0", None),
    "logical-beside-aliases": (
        on(1, ldr=1), to(0x20, LOGICAL), "-1 EPERM", "logical-alias-one-receives",
    ),
    "logical-beside-an-ldr-of-several-bits": (
        on(1, ldr=6), to(0x20, LOGICAL), "-1 EPERM", "logical-alias-one-receives",
    ),
    "logical-beside-aliased-ids": (
        on(1, id=2), to(0x20, LOGICAL), "-1 EPERM", "alias-one-receives",
    ),
    "logical-beside-a-cluster-lapic-without-ldr": (
        on(3, dfr=DFR_CLUSTER, ldr=0), to(0x20, LOGICAL), "0", None,
    ),
    "broadcast-all-off": (all_hardware_disabled, to(0xFF), "-1 EPERM", None),
    "broadcast-all-off-logical": (all_hardware_disabled, to(0xFF, LOGICAL), "-1 EPERM", None),
    "broadcast-software-disabled": (all_software_disabled, to(0xFF), "0", None),
    "broadcast-software-disabled-lowest": (
        all_software_disabled, to(0xFF, delivery_mode=LOWEST), "0", None,
    ),
    "broadcast-software-disabled-hint": (
        all_software_disabled, to(0xFF, redirection_hint=1), "-1 EPERM", None,
    ),
    "broadcast-software-disabled-logical-lowest": (
        all_software_disabled, to(0xFF, LOGICAL, delivery_mode=LOWEST), "-1 EPERM", None,
    ),
}  # fmt: skip


@clause("msi.returns-blocked")
@pytest.mark.parametrize("situation", NOBODY)
def test_message_that_nobody_accepts_is_blocked(machine, situation, record_property):
    setup, message, _, _ = NOBODY[situation]
    setup(machine)
    injection = machine.signal(message)
    record_property("outcome", injection.returned)
    injection.blocked_or_unmatched().reached_nobody()


@clause("return.nobody")
@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(situation, marks=[deviation(known)] if known else [])
        for situation, (_, _, _, known) in NOBODY.items()
    ],
)
def test_return_value_when_nobody_accepts(machine, situation):
    setup, message, expected, _ = NOBODY[situation]
    setup(machine)
    expect("return value", machine.signal(message).returned, expected)


@clause("return.nobody")
@each.delivery_mode()
def test_irqchip_without_vcpus_is_an_error(shared_machine, delivery_mode):
    machine = shared_machine(vcpu_ids=())
    for destination, destination_mode in product((0, 0xFF), DestinationMode):
        machine.signal(Message(0x41, destination, destination_mode, delivery_mode)).fails(EPERM)


# --- return.masked and message.nmi-count: the guest takes it later --------------------------------


@clause("return.masked")
@each.value("tpr", range(0x10, 0x100, 0x10), "tpr{:#x}")
def test_masked_by_tpr_is_not_blocked(machine, tpr):
    machine[1].configure(tpr=tpr)
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("return.masked")
def test_masked_by_if_is_not_blocked(machine):
    machine[1].cli()
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("return.masked")
@each.value("in_service", [0x31, 0x41, 0x51, 0xF1])
def test_in_service_vector_is_not_blocked(machine, in_service):
    machine[1].configure_vectors(Register.ISR, [in_service])
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("return.masked")
@each.delivery_mode(*VECTOR_MODES)
def test_pending_vector_is_not_blocked(machine, delivery_mode):
    message = to(1, delivery_mode=delivery_mode)
    machine.signal(message).returns(1).accepted_by(1)
    for _ in range(3):
        machine.signal(message).returns(1).reached_nobody()


@clause("return.masked")
def test_pending_nmi_is_not_blocked(machine):
    message = to(1, delivery_mode=NMI)
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
        machine.signal(to(1, delivery_mode=NMI)).returns(1)
    expect("NMIs pending", machine[1].vcpu.get_events().nmi.pending, pending)


@clause("message.nmi-count")
@pytest.mark.parametrize(
    "sent, taken", [(1, 1), (2, 2), (5, 2)], ids=["1-sent", "2-sent", "5-sent"]
)
def test_guest_takes_at_most_two_pending_nmis(machine, sent, taken):
    for _ in range(sent):
        machine.signal(to(1, delivery_mode=NMI)).returns(1)
    expect("NMIs taken", len(machine[1].take()), taken)


# --- return.mp-state ------------------------------------------------------------------------------


@clause("return.mp-state")
@each.delivery_mode(FIXED, LOWEST, NMI, REMRD, INIT, SIPI)
@each.member("state", MpState)
def test_mp_state_does_not_change_the_return_value(machine, delivery_mode, state):
    if state is MpState.SIPI_RECEIVED:
        machine[1].mp_state = MpState.INIT_RECEIVED
    machine[1].mp_state = state
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1)


@clause("return.mp-state")
@each.delivery_mode(*VECTOR_MODES)
@each.member("state", [MpState.UNINITIALIZED, MpState.INIT_RECEIVED, MpState.HALTED])
def test_vector_is_pending_whatever_the_mp_state(machine, delivery_mode, state):
    machine[1].mp_state = state
    machine.signal(to(1, delivery_mode=delivery_mode)).accepted_by(1)
    expect_mp_state(machine[1], state)
