"""The sweep: every message there is, or one of each kind, sent to a topology and compared.

Messages that differ in their vector only are sent one after another, with every return value
compared; then every vCPU is read and compared to the bit. Of a fixed interrupt that tells who got
which vector. Of the others it tells who got any, and the return values how many got each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from itertools import product
from typing import Any, NoReturn

from helpers.apic import (
    DeliveryMode,
    DestinationMode,
    LapicPage,
    Message,
    Register,
    TriggerMode,
)
from helpers.apic.lapic import bits
from helpers.apic.model import Model, Outcome, Route, Switches, effect_of
from helpers.apic.topology import MpState, Topology
from helpers.guest import Mismatch, Snapshot, build, disagreement, effect_between, journal, sender
from helpers.guest.sender import Results, Values
from helpers.kvm import System, abi

__tracebackhide__ = True  # a failure is shown where the test asked

EVERY_VECTOR = bytes(range(256))
FEW = 5
"""Vectors of one kind of message, in a row: as many as bits that one of may be chosen."""

WIDE_DESTINATIONS = (0x100, 0x101, 300, 0x1FF, 0x10001, 0x1000F, 0x12000, 0xFFFF00FF, 0xFFFFFFFF)
"""With 32-bit IDs: the low byte of present IDs, present ones, clusters 1 and 18, broadcasts."""

# From which mp_state on a message shows: only HALTED is ended by REMRD, only waiting by SIPI.
_SHOWS_FROM = {
    DeliveryMode.REMRD: MpState.HALTED,
    DeliveryMode.SIPI: MpState.INIT_RECEIVED,
}

# What these do to a vCPU shows which vector they had.
_OF_VECTORS = (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)

MOST_SERIES = 64
"""What is sent before the vCPUs are read, where one can tell the series apart."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A message without its vector, trigger mode and level: what decides whom it addresses."""

    destination: int
    destination_mode: DestinationMode
    redirection_hint: int
    delivery_mode: DeliveryMode

    def message(
        self, vector: int = 0, trigger: TriggerMode = TriggerMode.EDGE, level: int = 0
    ) -> Message:
        return Message(
            vector,
            self.destination,
            self.destination_mode,
            self.delivery_mode,
            self.redirection_hint,
            trigger,
            level,
        )


def aims(topology: Topology, mode: DeliveryMode) -> Iterator[Aim]:
    """Every destination in both modes, with and without redirection hint."""
    for destination_mode, hint in product(DestinationMode, (0, 1)):
        for destination in _destinations(topology):
            yield Aim(destination, destination_mode, hint, mode)


def _destinations(topology: Topology) -> list[int]:
    return [*range(256), *(WIDE_DESTINATIONS if topology.has_32bit_ids else ())]


def one_of_each(model: Model, mode: DeliveryMode) -> Iterator[Aim]:
    """Of the aims that address the same, the first and, where that is nobody, the last.

    The same is: these vCPUs and, where one is chosen, with or without bits that are nobody's.
    """
    lowest = DeliveryMode.LOWEST_PRIORITY
    for destination_mode, hint in product(DestinationMode, (0, 1)):
        # Which is the same for all other delivery modes, and for all with redirection hint.
        like = lowest if hint or mode is lowest else DeliveryMode.FIXED
        for destination in _kinds(model, destination_mode, like):
            yield Aim(destination, destination_mode, hint, mode)


@cache
def _kinds(model: Model, destination_mode: DestinationMode, mode: DeliveryMode) -> list[int]:
    """A destination of each kind."""
    firsts: dict[object, int] = {}
    lasts: dict[object, int] = {}
    for destination in _destinations(model.topology):
        route = model.route(Aim(destination, destination_mode, 0, mode).message())
        present = tuple(slot for slot in route.slots if slot is not None)
        may_miss = route.one and len(present) < len(route.slots)
        kind = (present, may_miss, route.delivery_mode, route.nobody)
        firsts.setdefault(kind, destination)
        if not present:
            lasts[kind] = destination
    return sorted({*firsts.values(), *lasts.values()})


@dataclass(frozen=True, slots=True)
class Series:
    """Messages to one aim, a vector each; ``outcomes`` repeat along the vectors' numbers.

    ``acceptors``: the vCPUs that accept any of it.
    """

    aim: Aim
    trigger: TriggerMode
    level: int
    vectors: bytes
    route: Route
    outcomes: Sequence[Outcome]
    acceptors: frozenset[int]

    def message(self, vector: int) -> Message:
        return self.aim.message(vector, self.trigger, self.level)

    def taken_by(self, index: int) -> bytes:
        """The vectors that a vCPU accepts."""
        return _taken(tuple(index in each.accepted for each in self.outcomes), self.vectors)

    @property
    def expected(self) -> Results:
        """Return values, or -errno, one for each vector."""
        results = [each.result if each.result >= 0 else -each.errno for each in self.outcomes]
        return _repeated(tuple(results), self.vectors)


@cache
def _message(vector: int, trigger: TriggerMode) -> Message:
    return Message(vector, trigger_mode=trigger)


@cache
def _taken(takes: tuple[bool, ...], vectors: bytes) -> bytes:
    return bytes(vector for vector in vectors if takes[vector % len(takes)])


@cache
def _array(vectors: bytes) -> Values:
    return (ctypes.c_uint32 * len(vectors))(*vectors)


@cache
def _repeated(results: tuple[int, ...], vectors: bytes) -> Results:
    return (ctypes.c_int16 * len(vectors))(*(results[v % len(results)] for v in vectors))


def _batches(series: Iterable[Series]) -> Iterator[list[Series]]:
    """Series that can be read together: what any of them did to whom can be told.

    Nobody accepts them, or they are fixed interrupts of different vectors, or other signals to the
    same vCPUs, of which then a missing one shows in a return value.
    """
    waiting: dict[object, list[Series]] = {}
    used: dict[object, set[int]] = {}
    for each in series:
        mode, acceptors = each.route.delivery_mode, each.acceptors
        fixed = mode in _OF_VECTORS
        key = (mode, frozenset() if fixed and acceptors else acceptors, bool(acceptors))
        batch, vectors = waiting.setdefault(key, []), used.setdefault(key, set())
        collides = fixed and acceptors and not vectors.isdisjoint(each.vectors)
        if collides or len(batch) == MOST_SERIES:
            yield batch
            waiting[key], used[key] = batch, vectors = [], set()
        batch.append(each)
        vectors.update(each.vectors)
    yield from waiting.values()


# A process that judges several kernels predicts the same for each.
_model = cache(Model)


@lru_cache(maxsize=1 << 13)  # one of each kind is fewer, for all topologies together
def _predict(model: Model, aim: Aim) -> tuple[Route, list[Outcome], frozenset[int]]:
    route = model.route(aim.message())
    period = max(1, len(route.slots)) if route.one else 1
    outcomes = [model.predict(aim.message(vector)) for vector in range(period)]
    return route, outcomes, frozenset(index for each in outcomes for index in each.accepted)


@cache
def _some(model: Model, mode: DeliveryMode) -> list[Series]:
    """Trigger modes and levels in turn, and vectors: so many can be read at once."""
    series = []
    first = 0
    for number, aim in enumerate(one_of_each(model, mode)):
        trigger, level = TriggerMode(number // 2 % 2), number % 2
        vectors = EVERY_VECTOR[first : first + FEW]
        first = (first + FEW) % (len(EVERY_VECTOR) - FEW)
        series.append(Series(aim, trigger, level, vectors, *_predict(model, aim)))
    return series


@lru_cache(maxsize=1 << 13)
def _after(
    model: Model,
    index: int,
    preset: MpState,
    page: bytes,
    mode: DeliveryMode,
    taken: tuple[tuple[TriggerMode, bytes], ...],
) -> Snapshot:
    """What the host sees of a vCPU that has accepted these (trigger mode, vectors).

    ``page`` is its LAPIC before that.
    """
    vcpu = replace(model.topology.vcpus[index], mp_state=preset)
    messages = [_message(vector, trigger) for trigger, vectors in taken for vector in vectors]
    if mode in _OF_VECTORS:  # different ones, so each message does what it would alone
        effects = [effect_of(message, vcpu, mode, model.switches) for message in messages]
        irr = vcpu.irr.union(*(effect.irr_set for effect in effects))
        tmr = vcpu.tmr.difference(*(effect.tmr_cleared for effect in effects))
        vcpu = replace(vcpu, irr=irr, tmr=tmr.union(*(effect.tmr_set for effect in effects)))
    else:
        for message in messages:
            effect = effect_of(message, vcpu, mode, model.switches)
            if not effect:
                break  # and nor do the others, which differ in their vector only
            vcpu = effect.on(vcpu)
    lapic = LapicPage(page)
    lapic.set_vectors(Register.IRR, vcpu.irr)
    lapic.set_vectors(Register.TMR, vcpu.tmr)
    return Snapshot(lapic, vcpu.nmi, vcpu.smi, vcpu.init, vcpu.mp_state)


class Sweep:
    """One topology, held to the model."""

    def __init__(self, system: System, topology: Topology, switches: Switches) -> None:
        self._system = system
        self._topology = topology
        self._switches = switches
        self._model = _model(topology, switches)
        self.machine = build(system, topology)
        self._fresh = self.machine.snapshots()
        self._pages = [bytes(snapshot.lapic.raw) for snapshot in self._fresh]
        self._cpus = self.machine.cpus[: len(self._fresh)]
        self._msi = abi.kvm_msi()

    def close(self) -> None:
        self.machine.close()

    def run(self, mode: DeliveryMode, *, exhaustive: bool) -> int:
        """Send all messages of a delivery mode, or one of each kind; how many it were.

        Raises Mismatch at the first that is not answered as the model says. INIT and SIPI leave
        vCPUs that cannot be run again.
        """
        for index, cpu in enumerate(self._cpus):
            cpu.mp_state = self._preset(index, mode)
        series = list(self._every(mode) if exhaustive else _some(self._model, mode))
        if not self._topology.vector_hashing:
            # Who is chosen then depends on what was sent before: generated sequences count that.
            series = [each for each in series if not each.route.one]
        for batch in _batches(series):
            for each in batch:
                self._send(each)
            self._compare(batch)
        return sum(len(each.vectors) for each in series)

    def _every(self, mode: DeliveryMode) -> Iterator[Series]:
        for aim in aims(self._topology, mode):
            predicted = _predict(self._model, aim)
            for trigger, level in product(TriggerMode, (0, 1)):
                yield Series(aim, trigger, level, EVERY_VECTOR, *predicted)

    def _send(self, series: Series) -> None:
        message = series.message(0)
        msi = self._msi
        msi.address_lo, msi.address_hi = message.address_lo, message.address_hi
        msi.data = message.data
        expected = series.expected
        sent, got = sender.send_values(
            self.machine.fd, msi, "data", _array(series.vectors), expected
        )
        if sent < len(series.vectors):
            wrong = [series.message(series.vectors[sent])]
            self._report(series, wrong, "return value", str(expected[sent]), str(got))

    def _compare(self, batch: Sequence[Series]) -> None:
        """Read all vCPUs, and undo what the batch did to them."""
        mode = batch[0].aim.delivery_mode
        for index, cpu in enumerate(self._cpus):
            preset = self._preset(index, mode)
            taken = tuple(
                (each.trigger, vectors) for each in batch if (vectors := each.taken_by(index))
            )
            page = self._pages[index]
            after = _after(self._model, index, preset, page, batch[0].route.delivery_mode, taken)
            seen = cpu.snapshot()
            if seen != after:
                before = self._fresh[index]._replace(mp_state=preset)
                effects = [str(effect_between(before, each)) for each in (after, seen)]
                messages = [each.message(vector) for each in batch for vector in each.vectors]
                self._report(batch[0], messages, f"effect on vCPU {index}", *effects)
            if taken:
                self._restore(index, batch[0])

    def _preset(self, index: int, mode: DeliveryMode) -> MpState:
        return _SHOWS_FROM.get(mode, self._topology.vcpus[index].mp_state)

    def _restore(self, index: int, series: Series) -> None:
        """Undo what accepting the series did."""
        cpu = self.machine[index]
        match mode := series.route.delivery_mode:
            case DeliveryMode.NMI | DeliveryMode.SMI:
                flags = abi.KVM_VCPUEVENT_VALID_NMI_PENDING
                flags |= abi.KVM_VCPUEVENT_VALID_SMM if mode is DeliveryMode.SMI else 0
                cpu.vcpu.set_events(abi.kvm_vcpu_events(flags=flags))
            case DeliveryMode.REMRD:
                cpu.step()  # only running forgets an un-halt (e9cb61055fee, 6.15)
            case _:
                cpu.lapic = self._fresh[index].lapic
        cpu.mp_state = self._preset(index, series.aim.delivery_mode)

    def _report(
        self, series: Series, messages: list[Message], subject: str, expected: str, actual: str
    ) -> NoReturn:
        """Raise a Mismatch that names the smallest case, if a message alone is enough for it."""
        for message in messages:
            if case := smallest(self._system, self._topology, message, self._switches):
                raise case
        first = series.aim.message(0, series.trigger, series.level)
        raise Mismatch(subject, expected, actual, f"{first} and others, to '{self._topology}'")


# --- one message, and the smallest ----------------------------------------------------------------


class SmallestCase(Mismatch):
    """A mismatch of a topology and a message of which nothing can be left out."""

    def __init__(self, found: Mismatch, topology: Topology, message: Message) -> None:
        sent = f"{message} to {topology}"
        super().__init__(found.subject, found.expected, found.actual, sent)
        self.topology = topology
        self.message = message


def smallest(
    system: System, topology: Topology, message: Message, switches: Switches
) -> SmallestCase | None:
    """What is left of a case that disagrees with the model; None if it does not."""
    case = None
    candidates = iter([(topology, message)])
    while candidate := next(candidates, None):
        try:
            mismatch = disagreement(system, *candidate, switches)
        except ValueError:
            continue
        if mismatch:
            case = SmallestCase(mismatch, *candidate)
            candidates = _simpler(*candidate)
    if case:
        journal.clear()
        disagreement(system, case.topology, case.message, switches)  # the last that is reported
    return case


def _simpler(topology: Topology, message: Message) -> Iterator[tuple[Topology, Message]]:
    """Each with one thing less."""
    words = str(topology).split()
    for number, word in enumerate(words):
        parts = word.split("/")
        for left in ("", *("/".join(parts[:i] + parts[i + 1 :]) for i in range(1, len(parts)))):
            yield Topology.parse(" ".join([*words[:number], left, *words[number + 1 :]])), message
    for each in fields(message):
        default: Any = each.default
        plainer = replace(message, **{each.name: default})
        if plainer != message:
            yield topology, plainer
    for bit in bits(message.destination):
        yield topology, replace(message, destination=message.destination & ~(1 << bit))
