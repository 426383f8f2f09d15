"""The sweep: every message there is, or one of each kind, sent to a topology and compared.

Messages that differ in their vector only are sent one after another, with every return value
compared; then every vCPU is read and compared to the bit. Of a fixed interrupt that tells who got
which vector. Of the others it tells who got any, and the return values how many got each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NoReturn

from helpers.apic import DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.model import Model, Outcome, Route, Switches, bits, effect_of
from helpers.apic.topology import MpState, Topology
from helpers.guest.assemble import sender
from helpers.guest.build import build
from helpers.guest.expect import Mismatch
from helpers.guest.injection import Snapshot, effect_between
from helpers.kvm import System, abi

EVERY_VECTOR = bytes(range(256))
SOME_VECTORS = bytes((0x0F, 0x10, 0x41, 0x42, 0x43, 0xFE, 0xFF))
"""The first legal one and the one below it, the last, and some in a row."""

WIDE_DESTINATIONS = (0x100, 0x101, 300, 0x1FF, 0x10001, 0x1000F, 0x12000, 0xFFFF00FF, 0xFFFFFFFF)
"""With 32-bit IDs: the low byte of present IDs, present ones, clusters 1 and 18, broadcasts."""

# From which mp_state on a message shows: only HALTED is ended by REMRD, only waiting by SIPI.
_SHOWS_FROM = {
    DeliveryMode.REMRD: MpState.HALTED,
    DeliveryMode.SIPI: MpState.INIT_RECEIVED,
}

_FLUSH = 64  # series without any effect that are sent before the vCPUs are read


@dataclass(frozen=True, slots=True)
class Aim:
    """A message without its vector, trigger mode and level: what decides whom it addresses."""

    destination: int
    destination_mode: DestinationMode
    redirection_hint: int
    delivery_mode: DeliveryMode

    def message(self, vector: int = 0, trigger: int = 0, level: int = 0) -> Message:
        return Message(
            vector,
            self.destination,
            self.destination_mode,
            self.delivery_mode,
            self.redirection_hint,
            TriggerMode(trigger),
            level,
        )


def aims(topology: Topology, mode: DeliveryMode) -> Iterator[Aim]:
    """Every destination in both modes, with and without redirection hint."""
    wide = WIDE_DESTINATIONS if topology.has_32bit_ids else ()
    for destination_mode in DestinationMode:
        for hint in (0, 1):
            for destination in (*range(256), *wide):
                yield Aim(destination, destination_mode, hint, mode)


def one_of_each(model: Model, aims: Iterable[Aim]) -> list[Aim]:
    """The first and, where nobody is addressed, the last of those that address the same.

    The same is: these vCPUs and, where one is chosen, out of as many bits of the destination.
    """
    firsts: dict[object, Aim] = {}
    lasts: dict[object, Aim] = {}
    for aim in aims:
        route = model.route(aim.message())
        present = tuple(slot for slot in route.slots if slot is not None)
        bits = len(route.slots) if route.one else None
        how = (aim.destination_mode, aim.redirection_hint, route.delivery_mode, route.nobody)
        kind = (how, present, bits)
        firsts.setdefault(kind, aim)
        if not present:
            lasts[kind] = aim
    return list(dict.fromkeys([*firsts.values(), *lasts.values()]))


@dataclass(frozen=True, slots=True)
class Series:
    """Messages to one aim, a vector each; ``outcomes`` repeat along the vectors' numbers.

    ``accepted``: the vCPUs that any of it reaches.
    """

    aim: Aim
    trigger: int
    level: int
    route: Route
    outcomes: Sequence[Outcome]
    accepted: frozenset[int]

    @property
    def results(self) -> list[int]:
        """Return values, or -errno."""
        return [
            outcome.result if outcome.result >= 0 else -outcome.errno for outcome in self.outcomes
        ]

    def taken_by(self, index: int, vectors: bytes) -> bytes:
        """Those of ``vectors`` that a vCPU accepts."""
        takes = [index in outcome.accepted for outcome in self.outcomes]
        return bytes(vector for vector in vectors if takes[vector % len(takes)])


class Sweep:
    """One topology, held to the model."""

    def __init__(self, system: System, topology: Topology, switches: Switches) -> None:
        self._system = system
        self._topology = topology
        self._switches = switches
        self._model = Model(topology, switches)
        self._machine = build(system, topology)
        self._fresh = self._machine.snapshots()
        self._after = cache(self._uncached_after)
        self._msi = abi.kvm_msi()

    def close(self) -> None:
        self._machine.close()

    def run(self, mode: DeliveryMode, *, exhaustive: bool) -> int:
        """Send all messages of a delivery mode, or one of each kind; how many it were.

        Raises Mismatch at the first that is not answered as the model says. INIT and SIPI leave
        vCPUs that cannot be run again.
        """
        vectors = EVERY_VECTOR if exhaustive else SOME_VECTORS
        wanted: Iterable[Aim] = aims(self._topology, mode)
        if not exhaustive:
            wanted = one_of_each(self._model, wanted)
        series = [each for aim in wanted for each in self._series(aim, exhaustive)]
        for index, cpu in enumerate(self._machine.cpus):
            cpu.mp_state = self._preset(index, mode)
        silent = [each for each in series if not each.accepted]
        for first in range(0, len(silent), _FLUSH):
            together = silent[first : first + _FLUSH]
            for each in together:
                self._send(each, vectors)
            self._compare(together, vectors)
        for each in series:
            if each.accepted:
                self._send(each, vectors)
                self._compare([each], vectors)
                for index in each.accepted:
                    if each.taken_by(index, vectors):
                        self._restore(index, each)
        return len(series) * len(vectors)

    def _series(self, aim: Aim, exhaustive: bool) -> Iterator[Series]:
        route = self._model.route(aim.message())
        period = max(1, len(route.slots)) if route.one else 1
        outcomes = [self._model.predict(aim.message(vector)) for vector in range(period)]
        accepted = frozenset(index for outcome in outcomes for index in outcome.accepted)
        all_four = exhaustive or aim.delivery_mode is DeliveryMode.FIXED
        for trigger, level in ((0, 0), (1, 1), (0, 1), (1, 0))[: 4 if all_four else 2]:
            yield Series(aim, trigger, level, route, outcomes, accepted)

    def _send(self, series: Series, vectors: bytes) -> None:
        message = series.aim.message(0, series.trigger, series.level)
        msi = self._msi
        msi.address_lo, msi.address_hi = message.address_lo, message.address_hi
        msi.data = message.data
        results = series.results
        expected = (ctypes.c_int16 * len(vectors))(*(results[v % len(results)] for v in vectors))
        sent, got = send(self._machine.fd, msi, vectors, expected)
        if sent < len(vectors):
            wrong = series.aim.message(vectors[sent], series.trigger, series.level)
            self._report(series, [wrong], "return value", str(expected[sent]), str(got))

    def _compare(self, together: list[Series], vectors: bytes) -> None:
        """Read all vCPUs after ``together``: one series, or several that nobody accepts."""
        series = together[0]
        for index, cpu in enumerate(self._machine.cpus):
            got = series.taken_by(index, vectors) if index in series.accepted else b""
            preset = self._preset(index, series.aim.delivery_mode)
            after = self._after(index, series.route.delivery_mode, series.trigger, got, preset)
            seen = cpu.snapshot()
            if seen != after:
                effects = [
                    str(effect_between(replace(self._fresh[index], mp_state=preset), each))
                    for each in (after, seen)
                ]
                messages = [
                    each.aim.message(vector, each.trigger, each.level)
                    for each in together
                    for vector in vectors
                ]
                self._report(series, messages, f"effect on vCPU {index}", *effects)

    def _uncached_after(
        self,
        index: int,
        mode: DeliveryMode,
        trigger: int,
        vectors: bytes,
        preset: MpState,
    ) -> Snapshot:
        """What the host sees of a vCPU that has accepted these vectors."""
        vcpu = replace(self._topology.vcpus[index], mp_state=preset)
        for vector in vectors:
            message = Message(vector, trigger_mode=TriggerMode(trigger))
            vcpu = effect_of(message, vcpu, mode, self._switches).on(vcpu)
        page = self._fresh[index].lapic.copy()
        page.set_vectors(Register.IRR, vcpu.irr)
        page.set_vectors(Register.TMR, vcpu.tmr)
        return Snapshot(page, vcpu.nmi, vcpu.smi, vcpu.init, vcpu.mp_state)

    def _preset(self, index: int, mode: DeliveryMode) -> MpState:
        return _SHOWS_FROM.get(mode, self._topology.vcpus[index].mp_state)

    def _restore(self, index: int, series: Series) -> None:
        """Undo what accepting the series did."""
        cpu = self._machine[index]
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
            mismatch = disagreement(self._system, self._topology, message, self._switches)
            if mismatch:
                raise smallest(self._system, self._topology, message, self._switches)
        first = series.aim.message(0, series.trigger, series.level)
        raise Mismatch(subject, expected, actual, f"{first} and others, to '{self._topology}'")


def send(
    fd: int, msi: abi.kvm_msi, vectors: bytes, expected: ctypes.Array[ctypes.c_int16]
) -> tuple[int, int]:
    """KVM_SIGNAL_MSI with each of ``vectors`` until a return value, or -errno, is not expected.

    How many were as expected, and what the last returned.
    """
    got = ctypes.c_int()
    sent = _sender().send_vectors(
        fd,
        abi.KVM_SIGNAL_MSI.number,
        ctypes.byref(msi),
        ctypes.byref(msi, abi.kvm_msi.data.offset),
        vectors,
        len(vectors),
        expected,
        ctypes.byref(got),
    )
    return int(sent), got.value


@cache
def _sender() -> ctypes.CDLL:
    library = ctypes.CDLL(str(sender()))
    pointer = ctypes.c_void_p
    library.send_vectors.argtypes = (
        *(ctypes.c_int, ctypes.c_ulong, pointer, pointer),
        *(ctypes.c_char_p, ctypes.c_int, pointer, pointer),
    )
    return library


# --- one message, and the smallest ----------------------------------------------------------------


def disagreement(
    system: System, topology: Topology, message: Message, switches: Switches
) -> Mismatch | None:
    """How the kernel's answer to one message differs from the model's, if it does.

    Raises ValueError for a topology that cannot be made.
    """
    with build(system, topology) as machine:
        shot = machine.signal(message)
    try:
        shot.answers(Model(topology, switches).predict(message))
    except Mismatch as mismatch:
        return mismatch
    return None


def smallest(system: System, topology: Topology, message: Message, switches: Switches) -> Mismatch:
    """A mismatch of a topology and a message of which nothing can be left out."""
    found = disagreement(system, topology, message, switches)
    assert found is not None
    simpler = True
    while simpler:
        simpler = False
        for fewer, plainer in _simpler(topology, message):
            try:
                mismatch = disagreement(system, fewer, plainer, switches)
            except ValueError:
                continue
            if mismatch:
                found, topology, message, simpler = mismatch, fewer, plainer, True
                break
    case = f"--topology='{topology}' --message='{message.text}'"
    command = f"pytest suites/test_sweep.py::test_given_message {case}"
    return Mismatch(found.subject, found.expected, found.actual, f"{message}; alone: {command}")


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
