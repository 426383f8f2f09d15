"""The sweep: send the batches of a plan to one topology, and compare each answer with the model."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache, lru_cache
from typing import NoReturn

from helpers.apic import DeliveryMode, LapicPage, Message, Register
from helpers.apic.model import Model, Switches
from helpers.apic.topology import MpState, Topology
from helpers.guest import Mismatch, Snapshot, build, effect_between, sender
from helpers.guest.sender import Results, Values
from helpers.kvm import System, abi
from helpers.kvm.closing import Closing
from helpers.sweep.plan import Accepted, Batch, Burst, first_mp_state, plan, state_after
from helpers.sweep.smallest import smallest

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

# One model per topology, so that a process that judges several kernels predicts once.
_model = cache(Model)


class Sweep(Closing):
    """A machine made from one topology. Every message to it must do what the model says."""

    def __init__(self, system: System, topology: Topology, switches: Switches) -> None:
        self._system = system
        self._topology = topology
        self._switches = switches
        self._model = _model(topology, switches)
        self._msi = abi.kvm_msi()
        self.machine = build(system, topology)
        self._first = self.machine.snapshots()
        self._pages = [bytes(snapshot.lapic.raw) for snapshot in self._first]
        self._cpus = self.machine.cpus[: len(self._first)]
        self._mp_states: list[MpState] = []  # before each batch

    def close(self) -> None:
        self.machine.close()

    def run(self, delivery_mode: DeliveryMode, *, exhaustive: bool) -> int:
        """Send every message of a delivery mode, or a burst per class. Return their number.

        INIT and SIPI leave vCPUs that cannot run again: sweep the other delivery modes before.
        Raises Mismatch for the first batch with a wrong answer, SmallestCase where a message of
        the batch fails alone.
        """
        self._mp_states = [first_mp_state(v, delivery_mode) for v in self._topology.vcpus]
        for cpu, mp_state in zip(self._cpus, self._mp_states, strict=False):
            cpu.mp_state = mp_state
        sent = 0
        for batch in plan(self._model, delivery_mode, exhaustive=exhaustive):
            for burst in batch.bursts:
                self._send(burst)
                sent += len(burst.vectors)
            self._compare(batch)
        return sent

    def _send(self, burst: Burst) -> None:
        message, msi = burst.message, self._msi
        msi.address_lo, msi.address_hi = message.address_lo, message.address_hi
        msi.data = message.data
        expected = _results(burst.vectors, burst.results)
        sent, got = sender.send_values(
            self.machine.fd, msi, "data", _values(burst.vectors), expected
        )
        if sent < len(burst.vectors):
            wrong = replace(message, vector=burst.vectors[sent])
            self._report([wrong], "return value", str(expected[sent]), str(got))

    def _compare(self, batch: Batch) -> None:
        """Read every vCPU, compare with the model to the bit, and undo what the batch did."""
        for index, cpu in enumerate(self._cpus):
            accepted = batch.accepted_by(index)
            mp_state, page = self._mp_states[index], self._pages[index]
            expected = _expected(self._model, index, mp_state, page, batch.delivery_mode, accepted)
            seen = cpu.snapshot()
            if seen != expected:
                before = self._first[index]._replace(mp_state=mp_state)
                effects = [str(effect_between(before, each)) for each in (expected, seen)]
                messages = [message for burst in batch.bursts for message in burst.messages()]
                self._report(messages, f"effect on vCPU {index}", *effects)
            if accepted:
                self._restore(index, batch.delivery_mode, mp_state)

    def _restore(self, index: int, delivery_mode: DeliveryMode, mp_state: MpState) -> None:
        """Undo what messages of a delivery mode did to a vCPU that accepted them.

        The comparison before has shown that fixed interrupts, NMIs and SMIs left the mp_state.
        """
        cpu = self._cpus[index]
        match delivery_mode:
            case DeliveryMode.FIXED | DeliveryMode.LOWEST_PRIORITY:
                cpu.lapic = self._first[index].lapic
            case DeliveryMode.NMI | DeliveryMode.SMI:
                flags = abi.KVM_VCPUEVENT_VALID_NMI_PENDING
                flags |= abi.KVM_VCPUEVENT_VALID_SMM if delivery_mode is DeliveryMode.SMI else 0
                cpu.vcpu.set_events(abi.kvm_vcpu_events(flags=flags))
            case DeliveryMode.REMRD:
                cpu.step()  # KVM forgets an un-halt only when the vCPU runs (e9cb61055fee, 6.15).
                cpu.mp_state = mp_state
            case DeliveryMode.INIT | DeliveryMode.SIPI:
                cpu.lapic = self._first[index].lapic
                cpu.mp_state = mp_state

    def _report(
        self, messages: list[Message], subject: str, expected: str, actual: str
    ) -> NoReturn:
        """Raise SmallestCase if one of ``messages`` fails alone, Mismatch otherwise."""
        for message in messages:
            if case := smallest(self._system, self._topology, message, self._switches):
                raise case
        sent = f"{messages[0]} and others, to '{self._topology}'"
        raise Mismatch(subject, expected, actual, sent)


@lru_cache(maxsize=1 << 13)
def _expected(
    model: Model,
    index: int,
    mp_state: MpState,
    page: bytes,
    delivery_mode: DeliveryMode,
    accepted: Accepted,
) -> Snapshot:
    """Return the snapshot of a vCPU that had this mp_state and LAPIC page before a batch."""
    before = replace(model.topology.vcpus[index], mp_state=mp_state)
    after = state_after(before, delivery_mode, accepted, model.switches)
    lapic = LapicPage(page)
    lapic.set_vectors(Register.IRR, after.irr)
    lapic.set_vectors(Register.TMR, after.tmr)
    return Snapshot(lapic, after.nmi, after.smi, after.init, after.mp_state)


@cache
def _values(vectors: bytes) -> Values:
    return (ctypes.c_uint32 * len(vectors))(*vectors)


@cache
def _results(vectors: bytes, results: tuple[int, ...]) -> Results:
    """Return the result of each vector: vector v has result v modulo their number."""
    repeated = (results[vector % len(results)] for vector in vectors)
    return (ctypes.c_int16 * len(vectors))(*repeated)
