"""Lowest priority delivery and the redirection hint: one of many, and which."""

from dataclasses import replace
from errno import EPERM

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET
from helpers.guest import expect
from helpers.verdicts import clause, deviation

PHYSICAL, LOGICAL = DestinationMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

HEX = "{:#x}".format

ONE_OF_MANY = pytest.mark.parametrize(
    "fields",
    [{"delivery_mode": LOWEST}, {"redirection_hint": 1}],
    ids=["lowest-priority", "redirection-hint"],
)


HASHING = pytest.mark.usefixtures("hashing")
ROUND_ROBIN = pytest.mark.usefixtures("round_robin")


@pytest.fixture
def hashing(kernel):
    """kvm.vector_hashing=Y, the default."""
    if not kernel.vector_hashing:
        pytest.skip("kvm.vector_hashing=N")


@pytest.fixture
def round_robin(kernel):
    """kvm.vector_hashing=N."""
    if kernel.vector_hashing:
        pytest.skip("kvm.vector_hashing=Y")


def nth_member(mask, n):
    """The n-th set bit of ``mask``."""
    return [bit for bit in range(16) if mask >> bit & 1][n]


# --- exactly one ----------------------------------------------------------------------------------


@clause("dest.lowest-priority")
@ONE_OF_MANY
def test_one_of_the_destination_accepts(machine, fields):
    for mask in range(1, 16):
        shot = machine.signal(Message(0x40 + mask, mask, LOGICAL, **fields)).returns(1)
        [acceptor] = shot.acceptors()
        shot.accepted_by(acceptor)
        expect(f"acceptor in destination {mask:#x}", bool(mask >> acceptor & 1), True)


@clause("dest.lowest-priority")
@ONE_OF_MANY
@pytest.mark.parametrize("apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name)
def test_there_is_none_of_no_destination(shared_machine, apic_mode, fields):
    machine = shared_machine(vcpu_ids=range(4), apic_mode=apic_mode)
    shot = machine.signal(Message(destination=0, destination_mode=LOGICAL, **fields))
    shot.blocked_or_unmatched().reached_nobody()


@clause("dest.lowest-priority")
@ONE_OF_MANY
@pytest.mark.parametrize("index", range(4), ids="to-{}".format)
def test_physical_destination_accepts(machine, index, fields):
    machine.signal(Message(destination=index, **fields)).returns(1).accepted_by(index)


@clause("dest.lowest-priority")
@ONE_OF_MANY
@pytest.mark.parametrize("apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name)
def test_one_of_a_logical_broadcast_accepts(shared_machine, apic_mode, fields):
    machine = shared_machine(vcpu_ids=range(4), apic_mode=apic_mode)
    shot = machine.signal(Message(destination=0xFF, destination_mode=LOGICAL, **fields)).returns(1)
    [acceptor] = shot.acceptors()
    shot.accepted_by(acceptor)


def absent(_):
    """Four vCPUs, five destination bits: the fifth is nobody's."""
    return Message(vector=0x45, destination=0x1F, destination_mode=LOGICAL)


def software_disabled(machine):
    machine[1].configure(svr=SVR_RESET)
    return Message(vector=0x41, destination=0x0F, destination_mode=LOGICAL)


def hardware_disabled(machine):
    machine[1].apic_mode = ApicMode.DISABLED
    return Message(vector=0x41, destination=0x0F, destination_mode=LOGICAL)


@clause("dest.lowest-priority")
@HASHING
@deviation("lowest-priority-dropped")
@ONE_OF_MANY
@pytest.mark.parametrize("setup", [absent, software_disabled, hardware_disabled])
def test_unavailable_candidate_is_passed_over(machine, setup, fields):
    shot = machine.signal(replace(setup(machine), **fields)).returns(1)
    expect("number of acceptors", len(shot.acceptors()), 1)


@clause("dest.lowest-priority")
@ONE_OF_MANY
def test_disabled_candidates_are_passed_over_in_a_broadcast(machine, fields):
    machine[1].configure(svr=SVR_RESET)
    machine[2].apic_mode = ApicMode.DISABLED
    for vector in range(0x40, 0x44):
        message = Message(vector=vector, destination=0xFF, destination_mode=LOGICAL, **fields)
        shot = machine.signal(message).returns(1)
        expect("acceptor is enabled", shot.acceptors()[0] in (0, 3), True)


@clause("dest.redirection-hint")
@pytest.mark.parametrize("mode", [FIXED, NMI, INIT], ids=lambda mode: mode.name)
@pytest.mark.parametrize("mask", [0x1, 0x3, 0x6, 0xF], ids="{:#x}".format)
def test_hint_keeps_the_delivery_mode(machine, mask, mode):
    message = Message(
        destination=mask, destination_mode=LOGICAL, delivery_mode=mode, redirection_hint=1
    )
    shot = machine.signal(message).returns(1)
    shot.accepted_by(*shot.acceptors())


@clause("dest.redirection-hint")
@pytest.mark.parametrize("mode", [FIXED, LOWEST, NMI, INIT], ids=lambda mode: mode.name)
def test_hint_does_nothing_to_a_single_destination(machine, mode):
    message = Message(destination=2, delivery_mode=mode, redirection_hint=1)
    machine.signal(message).returns(1).accepted_by(2)


@clause("dest.redirection-hint")
@deviation("hint-broadcast-becomes-fixed")
@pytest.mark.parametrize("mode", [NMI, INIT], ids=lambda mode: mode.name)
def test_hint_keeps_the_delivery_mode_of_a_broadcast(machine, mode):
    message = Message(vector=0x52, destination=0xFF, delivery_mode=mode, redirection_hint=1)
    shot = machine.signal(message).returns(1)
    shot.accepted_by(*shot.acceptors())


@clause("dest.hint-broadcast")
@HASHING
@pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("vector", [0x52, 0x53], ids=HEX)
def test_hint_makes_a_physical_broadcast_fixed_to_one(machine, mode, vector):
    message = Message(vector=vector, destination=0xFF, delivery_mode=mode, redirection_hint=1)
    shot = machine.signal(message).returns(1)
    expect("acceptors", shot.acceptors(), [vector % 4])
    expect("IRR", shot.after[vector % 4].lapic.irr, {vector})


@clause("dest.hint-broadcast")
@HASHING
def test_nmi_with_hint_and_vector_0_becomes_irr_bit_0(machine):
    message = Message(vector=0, destination=0xFF, delivery_mode=NMI, redirection_hint=1)
    shot = machine.signal(message).returns(1)
    expect("IRR", shot.after[0].lapic.irr, {0})


# --- which one ------------------------------------------------------------------------------------


@clause("dest.vector-hashing")
@HASHING
@ONE_OF_MANY
@pytest.mark.parametrize("mask", [0x3, 0x5, 0x7, 0xE, 0xF], ids="{:#x}".format)
def test_hash_picks_a_bit_of_the_destination(machine, mask, fields):
    for vector in (*range(0x40, 0x44), 0x50, 0x7F, 0xFD, 0xFE, 0xFF):
        member = nth_member(mask, vector % mask.bit_count())
        machine.signal(Message(vector, mask, LOGICAL, **fields)).returns(1).accepted_by(member)


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("vector", range(0x40, 0x45), ids=HEX)
def test_hash_counts_absent_vcpus_too(machine, vector):
    message = Message(
        vector=vector, destination=0x1F, destination_mode=LOGICAL, delivery_mode=LOWEST
    )
    shot = machine.signal(message)
    if vector % 5 == 4:
        shot.blocked().reached_nobody()
    else:
        shot.returns(1).accepted_by(vector % 5)


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("vector", range(0x40, 0x44), ids=HEX)
def test_hash_of_a_broadcast_counts_enabled_lapics(machine, vector):
    machine[1].configure(svr=SVR_RESET)
    message = Message(
        vector=vector, destination=0xFF, destination_mode=LOGICAL, delivery_mode=LOWEST
    )
    machine.signal(message).returns(1).accepted_by((0, 2, 3)[vector % 3])


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("vector", range(0x40, 0x44), ids=HEX)
def test_hash_of_mixed_modes_counts_matching_lapics(machine, vector):
    for index, ldr in ((2, 0x11), (3, 0x12)):
        machine[index].configure(dfr=DFR_CLUSTER, ldr=ldr)
    message = Message(
        vector=vector, destination=0x13, destination_mode=LOGICAL, delivery_mode=LOWEST
    )
    machine.signal(message).returns(1).accepted_by(vector % 4)


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("vector", range(0x40, 0x44), ids=HEX)
def test_hash_in_an_x2apic_cluster(shared_machine, vector):
    ids = (0, 16, 18, 21)
    machine = shared_machine(vcpu_ids=ids, apic_mode=ApicMode.X2APIC, x2apic_api=1)
    message = Message(
        vector=vector,
        destination=1 << 16 | 0b100101,
        destination_mode=LOGICAL,
        delivery_mode=LOWEST,
    )
    machine.signal(message).returns(1).accepted_by(1 + vector % 3)


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("vector", range(0x40, 0x44), ids=HEX)
def test_hash_of_0xffffffff_picks_one(shared_machine, vector):
    machine = shared_machine(vcpu_ids=range(4), apic_mode=ApicMode.X2APIC, x2apic_api=3)
    message = Message(vector=vector, destination=0xFFFFFFFF, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(vector % 4)


@clause("dest.vector-hashing")
@HASHING
@pytest.mark.parametrize("tpr", [0x10, 0x50, 0xFF], ids=HEX)
def test_hash_does_not_look_at_tpr(machine, tpr):
    machine[1].configure(tpr=tpr)
    message = Message(vector=0x41, destination=0x0F, destination_mode=LOGICAL, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(1)


@clause("dest.vector-hashing")
@HASHING
def test_nobody_enabled_in_a_mixed_destination_is_an_error(machine):
    for index, ldr in ((2, 0x11), (3, 0x12)):
        machine[index].configure(dfr=DFR_CLUSTER, ldr=ldr, svr=SVR_RESET)
    message = Message(destination=0xFF, destination_mode=LOGICAL, delivery_mode=LOWEST)
    machine[0].configure(svr=SVR_RESET)
    machine[1].configure(svr=SVR_RESET)
    machine.signal(message).fails(EPERM).reached_nobody()


@clause("dest.round-robin")
@ROUND_ROBIN
def test_lowest_priority_goes_round(machine):
    shots = [
        machine.signal(
            Message(vector=v, destination=7, destination_mode=LOGICAL, delivery_mode=LOWEST)
        )
        for v in range(0x40, 0x49)
    ]
    acceptors = [shot.returns(1).acceptors()[0] for shot in shots]
    expect("acceptors", acceptors, [0, 1, 2] * 3)


@clause("dest.round-robin")
@ROUND_ROBIN
def test_redirection_hint_does_not_go_round(machine):
    shots = [
        machine.signal(
            Message(vector=v, destination=7, destination_mode=LOGICAL, redirection_hint=1)
        )
        for v in range(0x40, 0x49)
    ]
    expect("acceptors", [shot.returns(1).acceptors()[0] for shot in shots], [0] * 9)
