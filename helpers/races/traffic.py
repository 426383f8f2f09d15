# SPDX-License-Identifier: GPL-2.0-only
"""Messages from many threads and processes to guests that run, made by traffic.c.

A stream is one vector with its destination. The sender of a stream raises ``sent`` of layout.Count
before each message; the guest counts what it takes. Where a stream does not overlap, a message is
sent after the last one was taken: all are taken, each once. Where a stream overlaps, KVM merges
messages of a pending vector: the last one must have been seen.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from ctypes import c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from helpers.apic import Message
from helpers.guest import Cpu, GuestError, Machine, Mismatch, layout, msi_of
from helpers.guest.assemble import library
from helpers.kvm import abi, recording
from helpers.kvm.abi import fields
from helpers.races.counting import count_interrupts
from helpers.races.race import show

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

PATIENCE = 20
"""Seconds until a message counts as lost."""

_MAX_VCPUS, _MAX_SENDERS, _MAX_TARGETS = 16, 16, 8
_COUNT = ctypes.sizeof(layout.Count)


@dataclass(frozen=True, slots=True)
class Stream:
    """One vector and its destination.

    ``message`` has the vector and reaches the vCPUs ``targets``. ``irqfd``: an eventfd whose GSI is
    routed to the message; None sends by KVM_SIGNAL_MSI. ``overlaps``: send again before the vector
    was taken. ``exits``: the EOI of the vector exits to user space (KVM_EXIT_IOAPIC_EOI).
    """

    message: Message
    targets: Sequence[int]
    irqfd: int | None = None
    overlaps: bool = False
    exits: bool = False

    @property
    def vector(self) -> int:
        return self.message.vector


@dataclass(frozen=True, slots=True)
class Sender:
    """The streams of one thread, or of one process."""

    streams: Sequence[Stream]
    is_process: bool = False


@dataclass(slots=True)
class Account:
    """The messages of a run, counted once for each vCPU that a message is for.

    ``coalesced``: merged with a pending message. ``lost``: neither taken nor merged. ``repeated``:
    taken once more, or pending when all were taken. ``misdirected``: taken by another vCPU.
    """

    sent: int = 0
    taken: int = 0
    coalesced: int = 0
    lost: int = 0
    repeated: int = 0
    misdirected: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Account) -> None:
        """Add the numbers of another account."""
        for name in ("sent", "taken", "coalesced", "lost", "repeated", "misdirected"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wrong += other.wrong


class _Stream(ctypes.Structure):
    _fields_ = [
        ("counts", c_void_p * _MAX_TARGETS),
        *fields(c_void_p, "eois", "message"),
        *fields(c_int32, "fd", "targets", "overlaps", "got"),
    ]


class _Sender(ctypes.Structure):
    _fields_ = [
        ("streams", ctypes.POINTER(_Stream)),
        *fields(c_int32, "count", "is_process", "wrong", "late"),
    ]


class _Vcpu(ctypes.Structure):
    _fields_ = [
        *fields(c_void_p, "operation", "stop", "immediate_exit", "exit_reason"),
        *fields(c_void_p, "port", "eoi_vector", "eois"),
        ("fd", c_int32),
        *fields(c_uint32, "does", "exits"),
        ("unexpected", c_int32),
    ]


class _Traffic(ctypes.Structure):
    _fields_ = [
        ("vcpus", ctypes.POINTER(_Vcpu)),
        ("senders", ctypes.POINTER(_Sender)),
        *fields(c_uint64, "run", "signal_msi"),
        *fields(c_int32, "vcpu_count", "sender_count"),
        *fields(c_uint32, "milliseconds", "patience", "idle_port"),
        *fields(c_int32, "late", "stop", "unused"),
        *fields(c_int64, "end", "deadline"),
    ]


class Traffic:
    """Guests that do ``operation`` again and again, and the senders of messages to them.

    The machine serves no other purpose. A run that is given up leaves threads behind:
    ``_abandoned`` keeps what they use.
    """

    _abandoned: ClassVar[list[Traffic]] = []

    def __init__(self, machine: Machine, operation: str, senders: Sequence[Sender]) -> None:
        self.machine = machine
        self._operation = layout.OPERATIONS.index(operation)
        self._senders = senders
        self._kept: list[Any] = []
        self._counts = [count_interrupts(machine, cpu) for cpu in machine.cpus]
        self._eois = [(c_uint32 * 256)() for _ in machine.cpus]
        self._streams = [list(map(self._stream, sender.streams)) for sender in senders]

    def _stream(self, stream: Stream) -> _Stream:
        made = _Stream(
            fd=self.machine.fd if stream.irqfd is None else stream.irqfd,
            targets=len(stream.targets),
            overlaps=stream.overlaps,
        )
        for place, target in enumerate(stream.targets):
            made.counts[place] = ctypes.addressof(self._counts[target]) + stream.vector * _COUNT
        if stream.exits:
            made.eois = ctypes.addressof(self._eois[stream.targets[0]]) + 4 * stream.vector
        if stream.irqfd is None:
            self._kept.append(msi_of(stream.message))
            made.message = ctypes.addressof(self._kept[-1])
        return made

    def _vcpu(self, cpu: Cpu) -> _Vcpu:
        control = ctypes.addressof(cpu.control)
        page, exits = ctypes.addressof(cpu.vcpu.kvm_run), cpu.vcpu.kvm_run.u
        cpu.control.stop = 0
        cpu.control.operation = self._operation
        return _Vcpu(
            control + layout.Control.operation.offset,
            control + layout.Control.stop.offset,
            page + abi.kvm_run.immediate_exit.offset,
            page + abi.kvm_run.exit_reason.offset,
            ctypes.addressof(exits.io) + type(exits.io).port.offset,
            ctypes.addressof(exits.eoi) + type(exits.eoi).vector.offset,
            ctypes.addressof(self._eois[cpu.index]),
            cpu.vcpu.fd,
            self._operation,
        )

    def run(self, milliseconds: int) -> Account:
        """Send for some time, then wait for all messages. Return what became of them.

        Raises Mismatch for a message with a wrong return value, GuestError if a thread does not end
        or a vCPU leaves KVM_RUN unexpectedly.
        """
        recording.leave_out("vCPUs and senders in threads")
        arrays = [(_Stream * len(streams))(*streams) for streams in self._streams]
        senders = (_Sender * len(arrays))(
            *(
                _Sender(array, len(array), sender.is_process)
                for array, sender in zip(arrays, self._senders, strict=True)
            )
        )
        vcpus = (_Vcpu * len(self.machine.cpus))(*map(self._vcpu, self.machine.cpus))
        traffic = _Traffic(
            *(vcpus, senders, abi.KVM_RUN.number, abi.KVM_SIGNAL_MSI.number),
            *(len(vcpus), len(senders), milliseconds, int(PATIENCE * 1000), layout.PORT_IDLE),
        )
        if code := _library().traffic_run(ctypes.byref(traffic)):
            raise OSError(code, os.strerror(code))
        if traffic.late >= 0:
            self._kept += [traffic, vcpus, senders, *arrays]
            self._abandoned.append(self)
            raise GuestError(f"thread {traffic.late} did not end in {PATIENCE} s")
        for index, vcpu in enumerate(vcpus):
            if vcpu.unexpected:
                raise GuestError(f"vCPU {index}: unexpected {vcpu.unexpected} of KVM_RUN")
        self._expect_results(senders)
        return self._account()

    def _expect_results(self, senders: Iterable[_Sender]) -> None:
        for sender, made in zip(self._senders, senders, strict=True):
            if made.wrong >= 0:
                stream = sender.streams[made.wrong]
                expected = str(len(stream.targets))
                got = show(made.streams[made.wrong].got)
                raise Mismatch("return value", expected, got, str(stream.message))

    def _account(self) -> Account:
        account = Account()
        overlaps: dict[tuple[int, int], bool] = {}  # by vCPU and vector
        for sender in self._senders:
            for stream in sender.streams:
                for target in stream.targets:
                    overlaps[target, stream.vector] = stream.overlaps
                    self._add(account, stream, target)
        for index, cpu in enumerate(self.machine.cpus):
            pending = cpu.lapic.irr
            for vector in range(256):
                taken = int(self._counts[index][vector].taken)
                if taken and (index, vector) not in overlaps:
                    account.misdirected += taken
                    account.wrong.append(f"vCPU {index} took {vector:#04x} of others {taken} times")
                # The handler of one message may have seen the number of the next. A message that
                # is pending, and was not taken, is lost.
                sent = int(self._counts[index][vector].sent)
                if vector in pending and taken >= sent and not overlaps.get((index, vector)):
                    account.repeated += 1
                    account.wrong.append(f"vCPU {index} has {vector:#04x} pending at the end")
        return account

    def _add(self, account: Account, stream: Stream, target: int) -> None:
        count = self._counts[target][stream.vector]
        sent, seen, taken = int(count.sent), int(count.seen), int(count.taken)
        account.sent += sent
        account.taken += taken
        name = f"vCPU {target}, {stream.message}: {sent} sent, {taken} taken, the last is {seen}"
        if taken > sent:
            account.repeated += taken - sent
            account.wrong.append(name)
        elif stream.overlaps and seen == sent:
            account.coalesced += sent - taken
        elif taken < sent:
            account.lost += 1 if stream.overlaps else sent - taken
            account.wrong.append(name)
        eois = int(self._eois[target][stream.vector])
        if stream.exits and eois != taken:
            account.wrong.append(f"{name}, {eois} EOIs")


def expect_complete(account: Account) -> None:
    """Raise Mismatch if a message was lost, repeated or misdirected, or an EOI is missing."""
    if account.wrong:
        got = f"{account.lost}, {account.repeated}, {account.misdirected}"
        mismatch = Mismatch("messages lost, repeated, misdirected", "0, 0, 0", got)
        mismatch.add_note("\n".join(account.wrong[:10]))
        raise mismatch


@cache
def _library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library(Path(__file__).with_suffix(".c"))))
    loaded.traffic_run.argtypes = (c_void_p,)
    return loaded
