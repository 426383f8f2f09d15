# SPDX-License-Identifier: GPL-2.0-only
"""The sweep: send the batches of a plan to one topology, and compare each answer with the model."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache, lru_cache
from typing import NoReturn

from helpers.apic import DeliveryMode, LapicPage, Message, Register
from helpers.apic.model import Model, Switches
from helpers.apic.topology import Topology, VcpuState
from helpers.guest import Mismatch, Snapshot, build, effect_between, msi_of, sender
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
        self._model = _model(topology, switches)
        self.machine = build(system, topology)
        self._first = self.machine.snapshots()
        self._pages = [bytes(snapshot.lapic.raw) for snapshot in self._first]
        self._cpus = self.machine.cpus[: len(self._first)]
        self._vcpus: list[VcpuState] = []  # before each batch

    def close(self) -> None:
        self.machine.close()

    def run(self, delivery_mode: DeliveryMode, *, exhaustive: bool) -> int:
        """Send every message of a delivery mode, or a burst per class. Return their number.

        INIT and SIPI leave vCPUs that cannot run again: sweep the other delivery modes before.
        Raises Mismatch for the first batch with a wrong answer, SmallestCase where a message of
        the batch fails alone.
        """
        vcpus = self._model.topology.vcpus
        self._vcpus = [replace(v, mp_state=first_mp_state(v, delivery_mode)) for v in vcpus]
        for cpu, vcpu in zip(self._cpus, self._vcpus, strict=False):
            cpu.mp_state = vcpu.mp_state
        sent = 0
        for batch in plan(self._model, delivery_mode, exhaustive=exhaustive):
            for burst in batch.bursts:
                self._send(burst)
                sent += len(burst.vectors)
            self._compare(batch)
        return sent

    def _send(self, burst: Burst) -> None:
        values, expected = _arrays(burst.vectors, burst.results)
        msi = msi_of(burst.message)
        sent, got = sender.send_values(self.machine.fd, msi, "data", values, expected)
        if sent < len(burst.vectors):
            wrong = replace(burst.message, vector=burst.vectors[sent])
            self._report([wrong], "return value", str(expected[sent]), str(got))

    def _compare(self, batch: Batch) -> None:
        """Read every vCPU, compare with the model to the bit, and undo what the batch did."""
        for index, cpu in enumerate(self._cpus):
            vcpu, page, accepted = self._vcpus[index], self._pages[index], batch.accepted_by(index)
            expected = _expected(vcpu, page, batch.delivery_mode, accepted, self._model.switches)
            seen = cpu.snapshot()
            if seen != expected:
                before = self._first[index]._replace(mp_state=vcpu.mp_state)
                effects = [str(effect_between(before, each)) for each in (expected, seen)]
                messages = [replace(b.message, vector=v) for b in batch.bursts for v in b.vectors]
                self._report(messages, f"effect on vCPU {index}", *effects)
            if accepted:
                self._restore(index, batch.delivery_mode)

    def _restore(self, index: int, delivery_mode: DeliveryMode) -> None:
        """Undo what messages of a delivery mode did to a vCPU that accepted them.

        The comparison before has shown that fixed interrupts, NMIs and SMIs left the mp_state.
        """
        cpu, mp_state = self._cpus[index], self._vcpus[index].mp_state
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
        topology, switches = self._model.topology, self._model.switches
        for message in messages:
            if case := smallest(self._system, topology, message, switches):
                raise case
        raise Mismatch(subject, expected, actual, f"{messages[0]} and others, to '{topology}'")


@lru_cache(maxsize=1 << 13)
def _expected(
    vcpu: VcpuState,
    page: bytes,
    delivery_mode: DeliveryMode,
    accepted: Accepted,
    switches: Switches,
) -> Snapshot:
    """Return the snapshot of a vCPU that had this state and LAPIC page before a batch."""
    after = state_after(vcpu, delivery_mode, accepted, switches)
    lapic = LapicPage(page)
    lapic.set_vectors(Register.IRR, after.irr)
    lapic.set_vectors(Register.TMR, after.tmr)
    return Snapshot(
        *(lapic, after.nmi, after.smi, after.init, after.mp_state),
        *(after.nmi_masked, after.shadow, after.smm),
    )


@cache
def _arrays(vectors: bytes, results: tuple[int, ...]) -> tuple[Values, Results]:
    """Return the vectors and the result of each: vector v has result v modulo their number."""
    repeated = (results[vector % len(results)] for vector in vectors)
    number = len(vectors)
    return (ctypes.c_uint32 * number)(*vectors), (ctypes.c_int16 * number)(*repeated)
