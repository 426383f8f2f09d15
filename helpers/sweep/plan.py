# SPDX-License-Identifier: GPL-2.0-only
"""The plan of a sweep: which messages to send to a topology, and when to read the vCPUs.

The plan is pure: nothing here calls KVM. Its rules:

Class
    The model decides which vCPUs a message addresses from its destination, destination mode,
    redirection hint and delivery mode. Two destinations are of one class if the model

    - addresses the same vCPUs by both, in the same delivery mode,
    - returns the same errno for both where no vCPU is addressed, and
    - where one candidate is chosen, finds a destination bit without vCPU for both or for neither.

    The short sweep sends to the first destination of each class, and to the last one of a class
    that addresses no vCPU. The exhaustive sweep sends to every destination.

Burst
    Messages that differ in their vector only are sent in a row. The return value of each message
    is compared with the model's.

Batch
    Reading all vCPUs takes longer than sending a burst. Bursts therefore share a batch, after which
    the vCPUs are read once, where the wrong effect of any message still shows:

    - All bursts of a batch are delivered in the same delivery mode.
    - A batch of messages that no vCPU accepts: no vCPU may change.
    - A batch of fixed interrupts that some vCPU accepts: no two bursts have a vector in common. IRR
      and TMR of each vCPU show which messages it accepted.
    - A batch of other messages: the same vCPUs accept every burst. The state of each vCPU shows
      that some message arrived, and the return values show that no message was lost.
    - A batch has at most BURSTS_PER_BATCH bursts. A failing batch is searched for a message that
      fails alone, and the search builds a machine for each message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

from helpers.apic import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.model import Model, Route, Switches, effect_of
from helpers.apic.topology import MpState, Topology, VcpuState

EVERY_VECTOR = bytes(range(256))

VECTORS_PER_BURST = 6
"""Vectors per burst of the short sweep. At least as many as a destination of TOPOLOGIES has
candidates, so that each candidate is chosen once."""

BURSTS_PER_BATCH = 64

WIDE_DESTINATIONS = (
    *(0x100, 0x101, 300, 0x1FF),  # IDs, present or not, whose low byte is the ID of a vCPU
    *(0x10001, 0x1000F),  # x2APIC cluster 1, logical
    0xF8000,  # cluster 15: vCPU ID 255
    *(0x121000, 0x121001, 0x12FFFF),  # cluster 18: vCPU ID 300, alone and beside absent ones
    *(0xFFFFFFFF, 0xFFFF00FF),  # the x2APIC broadcast, and the xAPIC broadcast in a low byte
)
"""Destinations above 0xff, sent to topologies with 32-bit IDs."""

# Only a HALTED vCPU shows an un-halt (REMRD), only a vCPU in INIT_RECEIVED a SIPI.
_SHOWS_FROM = {DeliveryMode.REMRD: MpState.HALTED, DeliveryMode.SIPI: MpState.INIT_RECEIVED}

_FIXED = (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)

Accepted = tuple[tuple[TriggerMode, bytes], ...]
"""Messages that one vCPU accepts: a trigger mode and vectors, per burst."""


def first_mp_state(vcpu: VcpuState, delivery_mode: DeliveryMode) -> MpState:
    """Return the mp_state of a vCPU before each batch of a delivery mode."""
    return _SHOWS_FROM.get(delivery_mode, vcpu.mp_state)


# --- destinations and their classes ---------------------------------------------------------------


def to_every_destination(topology: Topology, delivery_mode: DeliveryMode) -> Iterator[Message]:
    """Yield a message per destination, destination mode and redirection hint. Each has vector 0."""
    for destination_mode, hint in product(DestinationMode, (0, 1)):
        for destination in _destinations(topology):
            yield Message(0, destination, destination_mode, delivery_mode, hint)


def to_each_class(model: Model, delivery_mode: DeliveryMode) -> Iterator[Message]:
    """Yield the messages of :func:`to_every_destination` that stand for their class."""
    lowest = DeliveryMode.LOWEST_PRIORITY
    for destination_mode, hint in product(DestinationMode, (0, 1)):
        # Delivery modes differ in their classes only by whether one candidate is chosen.
        same_classes = lowest if hint or delivery_mode is lowest else DeliveryMode.FIXED
        for destination in _one_per_class(model, destination_mode, same_classes):
            yield Message(0, destination, destination_mode, delivery_mode, hint)


def class_of(route: Route) -> object:
    """Return the class of all destinations that the model gives this route."""
    present = tuple(slot for slot in route.slots if slot is not None)
    may_miss = route.one and len(present) < len(route.slots)
    return present, may_miss, route.delivery_mode, route.nobody


def _destinations(topology: Topology) -> list[int]:
    return [*range(256), *(WIDE_DESTINATIONS if topology.has_32bit_ids else ())]


@cache
def _one_per_class(
    model: Model, destination_mode: DestinationMode, delivery_mode: DeliveryMode
) -> list[int]:
    firsts: dict[object, int] = {}
    lasts: dict[object, int] = {}
    for destination in _destinations(model.topology):
        route = model.route(Message(0, destination, destination_mode, delivery_mode))
        found = class_of(route)
        firsts.setdefault(found, destination)
        if all(slot is None for slot in route.slots):
            lasts[found] = destination
    return sorted({*firsts.values(), *lasts.values()})


# --- bursts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Burst:
    """``message``, sent once with each of ``vectors`` in place of its own vector.

    The other attributes are the model's. ``results``: return values or negative errnos; vector v
    has result v modulo their number. ``accepted``: the vectors that each vCPU accepts, by index.
    """

    message: Message
    vectors: bytes
    route: Route
    results: tuple[int, ...]
    accepted: dict[int, bytes]


def burst_of(model: Model, message: Message, vectors: bytes) -> Burst:
    """Return the burst with the predictions of the model."""
    route = model.route(message)
    period = max(1, len(route.slots)) if route.one else 1
    outcomes = [model.predict(replace(message, vector=vector)) for vector in range(period)]
    accepted = {
        index: _selected(vectors, tuple(index in each.accepted for each in outcomes))
        for index in {index for each in outcomes for index in each.accepted}
    }
    results = tuple(each.result if each.result >= 0 else -each.errno for each in outcomes)
    return Burst(message, vectors, route, results, accepted)


@cache
def _selected(vectors: bytes, accepts: tuple[bool, ...]) -> bytes:
    """Return the vectors v for which ``accepts``, at v modulo its length, is true."""
    return bytes(vector for vector in vectors if accepts[vector % len(accepts)])


def _every_burst(model: Model, delivery_mode: DeliveryMode) -> Iterator[Burst]:
    for message in to_every_destination(model.topology, delivery_mode):
        burst = burst_of(model, message, EVERY_VECTOR)
        fields = message.destination, message.destination_mode, delivery_mode
        for trigger, level in product(TriggerMode, (0, 1)):
            # Without replace(), which takes three times as long for each of the 4,096 bursts.
            sent = Message(0, *fields, message.redirection_hint, trigger, level)
            yield Burst(sent, EVERY_VECTOR, burst.route, burst.results, burst.accepted)


@cache
def _short_bursts(model: Model, delivery_mode: DeliveryMode) -> list[Burst]:
    """Return a burst per class. Vectors, trigger mode and level change from burst to burst."""
    bursts = []
    for number, message in enumerate(to_each_class(model, delivery_mode)):
        first = number * VECTORS_PER_BURST % (len(EVERY_VECTOR) - VECTORS_PER_BURST)
        vectors = EVERY_VECTOR[first : first + VECTORS_PER_BURST]
        sent = replace(message, trigger_mode=TriggerMode(number // 2 % 2), level=number % 2)
        bursts.append(burst_of(model, sent, vectors))
    return bursts


# --- batches --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Batch:
    """Bursts after which the vCPUs are read once. All are delivered in the same delivery mode."""

    delivery_mode: DeliveryMode
    bursts: list[Burst] = field(default_factory=list)

    def accepted_by(self, index: int) -> Accepted:
        """Return the messages that a vCPU accepts."""
        return tuple(
            (burst.message.trigger_mode, vectors)
            for burst in self.bursts
            if (vectors := burst.accepted.get(index))
        )


def batches(bursts: Iterable[Burst]) -> Iterator[Batch]:
    """Group bursts by the rules above."""
    waiting: dict[object, Batch] = {}
    for burst in bursts:
        delivery_mode = burst.route.delivery_mode
        by_vector = bool(burst.accepted) and delivery_mode in _FIXED
        group = (delivery_mode, by_vector or frozenset(burst.accepted))
        batch = waiting.setdefault(group, Batch(delivery_mode))
        used = b"".join(each.vectors for each in batch.bursts) if by_vector else b""
        if len(batch.bursts) == BURSTS_PER_BATCH or not set(used).isdisjoint(burst.vectors):
            yield batch
            batch = waiting[group] = Batch(delivery_mode)
        batch.bursts.append(burst)
    yield from waiting.values()


def plan(model: Model, delivery_mode: DeliveryMode, *, exhaustive: bool) -> Iterator[Batch]:
    """Yield the batches of a sweep with one delivery mode."""
    bursts = (_every_burst if exhaustive else _short_bursts)(model, delivery_mode)
    # Without hashing, earlier messages decide which candidate is chosen. The generated sequences
    # keep that count.
    hashing = model.topology.vector_hashing
    return batches(burst for burst in bursts if hashing or not burst.route.one)


def state_after(
    vcpu: VcpuState, delivery_mode: DeliveryMode, accepted: Accepted, switches: Switches
) -> VcpuState:
    """Return the state of a vCPU that has accepted the messages of one batch."""
    for trigger, vectors in accepted:
        for vector in vectors:
            message = Message(vector, trigger_mode=trigger)
            effect = effect_of(message, vcpu, delivery_mode, switches)
            if effect:
                vcpu = effect.on(vcpu)
            elif delivery_mode not in _FIXED:
                return vcpu  # Later messages, with any vector and trigger mode, have none either.
    return vcpu
