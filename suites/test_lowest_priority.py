# SPDX-License-Identifier: GPL-2.0-only
"""Lowest-priority delivery and the redirection hint: one LAPIC of several, and which.

Clauses: dest.lowest-priority, dest.redirection-hint, dest.hint-broadcast, dest.vector-hashing,
dest.round-robin.

The SDM demands one acceptor and leaves the choice to the platform. KVM chooses by hashing the
vector, or with kvm.vector_hashing=N by turns. Hashing counts the bits of the destination, whether
or not a LAPIC has them.
"""

from dataclasses import replace
from errno import EPERM

import pytest

from helpers.apic import ApicMode, Message
from helpers.apic.lapic import SVR_RESET, bits
from helpers.guest import expect
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import ROUND_ROBIN, VECTOR_HASHING, mix_models, sharing_a_bit, to
from suites.names import BOTH, FIXED, INIT, LOGICAL, LOWEST, NMI, USE_32BIT_IDS


def nth_member(mask, n):
    """Return the vCPU of the n-th set bit of ``mask``."""
    return [*bits(mask)][n]


# --- dest.lowest-priority: exactly one ------------------------------------------------------------


@clause("dest.lowest-priority")
@each.arbitration
def test_one_of_the_destination_accepts(machine, fields):
    for mask in range(1, 16):
        injection = machine.signal(to(mask, LOGICAL, vector=0x40 + mask, **fields)).returns(1)
        [acceptor] = injection.acceptors()
        injection.accepted_by(acceptor)
        expect(f"acceptor in destination {mask:#x}", acceptor in sharing_a_bit(mask), True)


@clause("dest.lowest-priority")
@each.arbitration
@each.apic_mode
def test_there_is_none_of_no_destination(machine, fields):
    injection = machine.signal(to(0, LOGICAL, **fields))
    injection.blocked_or_unmatched().reached_nobody()


@clause("dest.lowest-priority")
@each.arbitration
@each.index(range(4))
def test_physical_destination_accepts(machine, index, fields):
    machine.signal(to(index, **fields)).returns(1).accepted_by(index)


@clause("dest.lowest-priority")
@each.arbitration
@each.apic_mode
def test_one_of_a_logical_broadcast_accepts(machine, fields):
    injection = machine.signal(to(0xFF, LOGICAL, **fields)).returns(1)
    [acceptor] = injection.acceptors()
    injection.accepted_by(acceptor)


# Set-ups that return a message whose hash picks a LAPIC that is missing or disabled.


def absent(_):
    """Vector 0x45 of five destination bits: the fifth, which none of the four vCPUs has."""
    return to(0x1F, LOGICAL, vector=0x45)


def software_disabled(machine):
    machine[1].configure(svr=SVR_RESET)
    return to(0x0F, LOGICAL)


def hardware_disabled(machine):
    machine[1].apic_mode = ApicMode.DISABLED
    return to(0x0F, LOGICAL)


@clause("dest.lowest-priority")
@VECTOR_HASHING
@deviation("lowest-priority-dropped")
@each.arbitration
@pytest.mark.parametrize("setup", [absent, software_disabled, hardware_disabled])
def test_unavailable_candidate_is_passed_over(machine, setup, fields):
    injection = machine.signal(replace(setup(machine), **fields)).returns(1)
    expect("number of acceptors", len(injection.acceptors()), 1)


@clause("dest.lowest-priority")
@each.arbitration
def test_disabled_candidates_are_passed_over_in_a_broadcast(machine, fields):
    machine[1].configure(svr=SVR_RESET)
    machine[2].apic_mode = ApicMode.DISABLED
    for vector in range(0x40, 0x44):
        injection = machine.signal(to(0xFF, LOGICAL, vector=vector, **fields)).returns(1)
        expect("acceptor is enabled", injection.acceptors()[0] in (0, 3), True)


# --- dest.redirection-hint and dest.hint-broadcast ------------------------------------------------


@clause("dest.redirection-hint")
@each.delivery_mode(FIXED, NMI, INIT)
@each.value("mask", [0x1, 0x3, 0x6, 0xF])
def test_hint_keeps_the_delivery_mode(machine, mask, delivery_mode):
    message = to(mask, LOGICAL, delivery_mode=delivery_mode, redirection_hint=1)
    injection = machine.signal(message).returns(1)
    injection.accepted_by(*injection.acceptors())


@clause("dest.redirection-hint")
@each.delivery_mode(FIXED, LOWEST, NMI, INIT)
def test_hint_does_nothing_to_a_single_destination(machine, delivery_mode):
    message = to(2, delivery_mode=delivery_mode, redirection_hint=1)
    machine.signal(message).returns(1).accepted_by(2)


@clause("dest.redirection-hint")
@deviation("hint-broadcast-becomes-fixed")
@each.delivery_mode(NMI, INIT)
def test_hint_keeps_the_delivery_mode_of_a_broadcast(machine, delivery_mode):
    message = to(0xFF, vector=0x52, delivery_mode=delivery_mode, redirection_hint=1)
    injection = machine.signal(message).returns(1)
    injection.accepted_by(*injection.acceptors())


@clause("dest.hint-broadcast")
@VECTOR_HASHING
@each.delivery_mode()
@each.vector([0x52, 0x53])
def test_hint_makes_a_physical_broadcast_fixed_to_one(machine, delivery_mode, vector):
    message = to(0xFF, vector=vector, delivery_mode=delivery_mode, redirection_hint=1)
    injection = machine.signal(message).returns(1)
    expect("acceptors", injection.acceptors(), [vector % 4])
    expect("IRR", machine[vector % 4].lapic.irr, {vector})


@clause("dest.hint-broadcast")
@VECTOR_HASHING
def test_nmi_with_hint_and_vector_0_becomes_irr_bit_0(machine):
    message = to(0xFF, vector=0, delivery_mode=NMI, redirection_hint=1)
    machine.signal(message).returns(1)
    expect("IRR", machine[0].lapic.irr, {0})


# --- dest.vector-hashing and dest.round-robin: which one ------------------------------------------


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.arbitration
@each.value("mask", [0x3, 0x5, 0x7, 0xE, 0xF])
def test_hash_picks_a_bit_of_the_destination(machine, mask, fields):
    for vector in (*range(0x40, 0x44), 0x50, 0x7F, 0xFD, 0xFE, 0xFF):
        member = nth_member(mask, vector % mask.bit_count())
        machine.signal(Message(vector, mask, LOGICAL, **fields)).returns(1).accepted_by(member)


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.vector(range(0x40, 0x45))
def test_hash_counts_absent_vcpus_too(machine, vector):
    message = to(0x1F, LOGICAL, vector=vector, delivery_mode=LOWEST)
    injection = machine.signal(message)
    if vector % 5 == 4:
        injection.blocked().reached_nobody()
    else:
        injection.returns(1).accepted_by(vector % 5)


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.vector(range(0x40, 0x44))
def test_hash_of_a_broadcast_counts_enabled_lapics(machine, vector):
    machine[1].configure(svr=SVR_RESET)
    message = to(0xFF, LOGICAL, vector=vector, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by((0, 2, 3)[vector % 3])


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.vector(range(0x40, 0x44))
def test_hash_of_mixed_modes_counts_matching_lapics(machine, vector):
    mix_models(machine)
    message = to(0x13, LOGICAL, vector=vector, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(vector % 4)


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.vector(range(0x40, 0x44))
def test_hash_in_an_x2apic_cluster(shared_machine, vector):
    ids = (0, 16, 18, 21)
    machine = shared_machine(vcpu_ids=ids, apic_mode=ApicMode.X2APIC, x2apic_api=USE_32BIT_IDS)
    message = to(1 << 16 | 0b100101, LOGICAL, vector=vector, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(1 + vector % 3)


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.vector(range(0x40, 0x44))
def test_hash_of_0xffffffff_picks_one(shared_machine, vector):
    machine = shared_machine(vcpu_ids=range(4), apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)
    message = to(0xFFFFFFFF, vector=vector, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(vector % 4)


@clause("dest.vector-hashing")
@VECTOR_HASHING
@each.value("tpr", [0x10, 0x50, 0xFF])
def test_hash_does_not_look_at_tpr(machine, tpr):
    machine[1].configure(tpr=tpr)
    message = to(0x0F, LOGICAL, delivery_mode=LOWEST)
    machine.signal(message).returns(1).accepted_by(1)


@clause("dest.vector-hashing")
@VECTOR_HASHING
def test_nobody_enabled_in_a_mixed_destination_is_an_error(machine):
    mix_models(machine)
    for cpu in machine.cpus:
        cpu.configure(svr=SVR_RESET)
    message = to(0xFF, LOGICAL, delivery_mode=LOWEST)
    machine.signal(message).fails(EPERM).reached_nobody()


def acceptors_of_nine(machine, **fields):
    """Send nine messages to vCPUs 0, 1 and 2; return the acceptor of each."""
    messages = [to(0b111, LOGICAL, vector=0x40 + number, **fields) for number in range(9)]
    return [machine.signal(message).returns(1).acceptors()[0] for message in messages]


@clause("dest.round-robin")
@ROUND_ROBIN
def test_lowest_priority_goes_round(machine):
    expect("acceptors", acceptors_of_nine(machine, delivery_mode=LOWEST), [0, 1, 2] * 3)


@clause("dest.round-robin")
@ROUND_ROBIN
def test_redirection_hint_does_not_go_round(machine):
    expect("acceptors", acceptors_of_nine(machine, redirection_hint=1), [0] * 9)


@clause("dest.round-robin")
@ROUND_ROBIN
@each.value("mask", [0b0010, 0b0110, 0b1110, 0b11_1010], "{:#x}")
def test_turns_are_of_the_destination(machine, mask):
    members = sharing_a_bit(mask)
    messages = [to(mask, LOGICAL, vector=0x40 + turn, delivery_mode=LOWEST) for turn in range(6)]
    acceptors = [machine.signal(message).returns(1).acceptors()[0] for message in messages]
    expect("acceptors", acceptors, (members * 6)[:6])


@clause("dest.round-robin")
@ROUND_ROBIN
@each.value("mask", [0, 0x10, 0xF0], "{:#x}")
def test_nobody_has_a_turn_in_a_destination_without_vcpus(machine, mask):
    message = to(mask, LOGICAL, delivery_mode=LOWEST)
    machine.signal(message).blocked_or_unmatched().reached_nobody()
