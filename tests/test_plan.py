# SPDX-License-Identifier: GPL-2.0-only
"""The plan of a sweep: classes, bursts and batches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.apic import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.model import REFERENCE, X2APIC_BROADCAST, XAPIC_BROADCAST, Model
from helpers.apic.topologies import TOPOLOGIES
from helpers.apic.topology import MpState, Topology, VcpuState
from helpers.sweep import plan
from helpers.sweep.plan import BURSTS_PER_BATCH, EVERY_VECTOR

EVERY_TOPOLOGY = pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
FIXED, LOWEST, NMI = DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY, DeliveryMode.NMI
EDGE, LEVEL = TriggerMode
BROADCASTS = (XAPIC_BROADCAST, X2APIC_BROADCAST)


def burst(topology, message, vectors=b"\x40\x41"):
    return plan.burst_of(Model(Topology.parse(topology)), message, vectors)


def to(destination, delivery_mode=FIXED):
    return Message(destination=destination, delivery_mode=delivery_mode)


def grouped(*bursts):
    """The sizes of the batches."""
    return sorted(len(batch.bursts) for batch in plan.batches(bursts))


# --- classes --------------------------------------------------------------------------------------


@EVERY_TOPOLOGY
@pytest.mark.parametrize("delivery_mode", [LOWEST, NMI], ids=["LOWEST_PRIORITY", "NMI"])
def test_one_of_each_class_is_sent(topology, delivery_mode):
    model = Model(topology)

    def classes(messages):
        return {plan.class_of(model.route(message)) for message in messages}

    every = classes(plan.to_every_destination(topology, delivery_mode))
    assert classes(plan.to_each_class(model, delivery_mode)) == every


def test_every_destination_is_256_in_both_modes_with_and_without_hint():
    messages = set(plan.to_every_destination(TOPOLOGIES["xapic-flat"], NMI))
    assert len(messages) == 256 * 2 * 2


@EVERY_TOPOLOGY
def test_every_vcpu_with_a_logical_id_is_reached_logically(topology):
    model = Model(topology)

    def reached(messages):
        return {index for message in messages for index in model.route(message).slots} - {None}

    logical = DestinationMode.LOGICAL
    own = [vcpu.ldr if vcpu.is_x2apic else vcpu.ldr >> 24 for vcpu in topology.vcpus]
    sent = [
        message
        for message in plan.to_each_class(model, NMI)
        if message.destination_mode is logical and message.destination not in BROADCASTS
    ]
    assert reached(sent) >= reached(Message(destination=id, destination_mode=logical) for id in own)


# --- bursts ---------------------------------------------------------------------------------------


@EVERY_TOPOLOGY
@pytest.mark.parametrize("delivery_mode", [LOWEST, NMI], ids=["LOWEST_PRIORITY", "NMI"])
def test_every_candidate_is_chosen_once(topology, delivery_mode):
    model = Model(topology)
    for batch in plan.plan(model, delivery_mode, exhaustive=False):
        for sent in batch.bursts:
            route = sent.route
            chosen = {index for vector in sent.vectors for index in model.choose(route, vector)}
            assert chosen == set(route.slots) - {None}


def test_exhaustive_plan_is_every_message_once():
    batches = plan.plan(Model(TOPOLOGIES["no-vcpu"]), NMI, exhaustive=True)
    bursts = [burst for batch in batches for burst in batch.bursts]
    assert len(bursts) == len({burst.message for burst in bursts}) == 256 * 2 * 2 * 2 * 2
    assert all(burst.vectors == EVERY_VECTOR for burst in bursts)


def test_message_to_a_chosen_vcpu_is_left_out_without_hashing():
    model = Model(replace(TOPOLOGIES["xapic-flat"], vector_hashing=False))
    batches = plan.plan(model, LOWEST, exhaustive=False)
    assert not any(burst.route.one for batch in batches for burst in batch.bursts)


def test_candidates_accept_alternate_vectors():
    message = replace(to(3, LOWEST), destination_mode=DestinationMode.LOGICAL)
    both = burst("0/ldr=0x01000000 1/ldr=0x02000000", message, bytes(range(64, 68)))
    assert both.accepted == {0: b"\x40\x42", 1: b"\x41\x43"}


def test_result_is_the_return_value_or_the_errno():
    assert burst("0", to(0)).results == (1,)
    assert burst("none 0", to(0)).results == (-22,)


# --- batches --------------------------------------------------------------------------------------


def test_delivery_modes_are_read_apart():
    assert grouped(burst("0", to(0, NMI)), burst("0", to(0, DeliveryMode.SMI))) == [1, 1]


def test_messages_that_no_vcpu_accepts_are_read_together():
    assert grouped(burst("0", to(4)), burst("0", to(5))) == [2]


def test_accepted_and_refused_messages_are_read_apart():
    assert grouped(burst("0", to(0)), burst("0", to(5), b"\x50")) == [1, 1]


def test_fixed_interrupts_are_read_together_where_vectors_differ():
    assert grouped(burst("0 1", to(0), b"\x40"), burst("0 1", to(1), b"\x41")) == [2]
    assert grouped(burst("0 1", to(0), b"\x40"), burst("0 1", to(1), b"\x40")) == [1, 1]


def test_other_messages_are_read_together_where_acceptors_are_the_same():
    assert grouped(burst("0 1", to(0, NMI)), burst("0 1", to(0, NMI))) == [2]
    assert grouped(burst("0 1", to(0, NMI)), burst("0 1", to(1, NMI))) == [1, 1]


def test_batch_is_bounded():
    refused = burst("0", to(5), EVERY_VECTOR)
    assert grouped(*[refused] * (BURSTS_PER_BATCH + 1)) == [1, BURSTS_PER_BATCH]


# --- the state afterwards -------------------------------------------------------------------------


def test_fixed_interrupts_set_irr_and_their_trigger_mode():
    before = VcpuState(0, tmr=frozenset({0x41}))
    after = plan.state_after(before, FIXED, ((EDGE, b"\x41"), (LEVEL, b"\x42\x43")), REFERENCE)
    assert after == VcpuState(0, irr=frozenset({0x41, 0x42, 0x43}), tmr=frozenset({0x42, 0x43}))


@pytest.mark.parametrize("count, pending", [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_nmis_add_up_to_two(count, pending):
    accepted = ((EDGE, bytes(count)),)
    assert plan.state_after(VcpuState(0), NMI, accepted, REFERENCE) == VcpuState(0, nmi=pending)


def test_vcpu_starts_in_the_state_that_shows_the_message():
    states = [plan.first_mp_state(VcpuState(0), delivery_mode) for delivery_mode in DeliveryMode]
    runs = MpState.RUNNABLE
    assert states == [runs, runs, runs, MpState.HALTED, runs, runs, MpState.INIT_RECEIVED, runs]
