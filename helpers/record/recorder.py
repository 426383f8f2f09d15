# SPDX-License-Identifier: GPL-2.0-only
"""The recorder: hears of each call and each check of a test, and writes the tape.

The hooks are in helpers/kvm (each ioctl, guest memory) and helpers/guest (snapshots, injections,
the log of the guest, ``expect()``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from helpers.guest import layout
from helpers.kvm import KvmError, abi
from helpers.record.checks import Checks, Seen
from helpers.record.memory import GuestMemory
from helpers.record.tape import (
    SYSTEM,
    Block,
    Call,
    Compared,
    Memory,
    Observed,
    Owed,
    Run,
    Save,
    SendEach,
    Snapshots,
    Step,
    Take,
    Target,
)
from helpers.record.watch import WatchedPage, WatchedRecord, plain, watched

_OF_SYSTEM = {
    *(abi.KVM_GET_API_VERSION, abi.KVM_CREATE_VM, abi.KVM_CHECK_EXTENSION),
    *(abi.KVM_GET_VCPU_MMAP_SIZE, abi.KVM_GET_SUPPORTED_CPUID),
}
S = TypeVar("S", bound=ctypes.Structure)


@dataclass(slots=True)
class Recorder(Checks):
    """Writes the steps of a test; see Checks for what is owed."""

    _machines: list[GuestMemory] = field(default_factory=list)
    _fds: dict[int, Target] = field(default_factory=dict)
    _pages: dict[int, abi.kvm_run] = field(default_factory=dict)
    _sinks: list[list[Step]] = field(default_factory=list)
    _hidden: int = 0
    _saves: int = 0
    _restored: int = -1
    _ports: Sequence[int] = (layout.PORT_IDLE,)
    _resets: list[Callable[[], bool]] = field(default_factory=list)

    def successor(self) -> Recorder:
        """Return a recorder of the same test that has recorded no step."""
        tape = replace(self.tape, steps=[], left_out="", shown=[])
        return Recorder(self.explains, self.ends, tape)

    # --- what the hooks tell ----------------------------------------------------------------------

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Record nothing of the calls in the block: another step stands for them all."""
        self._hidden += 1
        try:
            yield
        finally:
            self._hidden -= 1

    @contextlib.contextmanager
    def _into(self, steps: list[Step]) -> Iterator[None]:
        self._sinks.append(steps)
        try:
            yield
        finally:
            self._sinks.pop()

    @contextlib.contextmanager
    def making_machine(self, resets: Callable[[], bool]) -> Iterator[None]:
        """Record the block as the steps that make a machine, which ``resets`` undoes changes of."""
        self._resets.append(resets)
        block = Block(len(self._machines))
        self._append(block)
        with self._into(block.steps):
            yield

    @contextlib.contextmanager
    def observing(self, fd: int) -> Iterator[Observed]:
        """Record the block as the injection of a message, between two reads of all vCPUs."""
        step = Observed(self._target(fd).machine)
        self._append(step)
        with self._into(step.inner):
            yield step
        self.last = step

    @contextlib.contextmanager
    def taking(self, fd: int, *, runs: bool = True, exits: bool = False) -> Iterator[Take]:
        """Record the block as reads of the log of the guest; see Take."""
        target = self._target(fd)
        self._write_memory(target)
        step = Take(target, runs, exits=[] if exits else None)
        with self.hidden():
            yield step
        self._memory(target).keep()
        self._append(step)

    @contextlib.contextmanager
    def setting_up(self, fd: int) -> Iterator[None]:
        """Record the block as the steps that set up a vCPU."""
        target = self._target(fd)
        block = Block(target.machine, target.vcpu)
        self._write_memory(target)
        self._append(block)
        with self._into(block.steps):
            yield
            self._write_memory(target)

    def snapshots_read(self, fd: int, vcpus: int) -> None:
        """Note a read of the state of all vCPUs."""
        self._append(Snapshots(self._target(fd).machine, vcpus))

    def state_saved(self, fd: int) -> int:
        """Note a Save of the state of a vCPU, which the test has just read. Return its number."""
        self._saves += 1
        self._append(Save(self._target(fd), self._saves - 1))
        return self._saves - 1

    @contextlib.contextmanager
    def restoring(self, saved: int) -> Iterator[None]:
        """Record each KVM_SET_* of the block as one of the state with this number."""
        self._restored = saved
        try:
            yield
        finally:
            self._restored = -1

    def states_compared(self, one: int, other: int) -> None:
        """Note that the test compares the states saved as these two numbers."""
        self._append(Compared(one, other))

    def any_outcome(self) -> None:
        """Note that the kernel may accept or refuse the last ioctl."""
        if isinstance(self.last, Call):
            self.last.outcome = "any"

    def vcpu_mapped(self, fd: int, page: abi.kvm_run) -> None:
        """Note the kvm_run page of a vCPU."""
        self._pages[fd] = page

    def memory_added(self, fd: int, memory: mmap.mmap, address: int) -> None:
        """Note new memory of a VM."""
        target = self._target(fd)
        machine = self._memory(target)
        if machine.memory is not None or address:
            self.leave_out("a VM with several pieces of memory")
            return
        machine.memory = memory
        machine.keep()
        self._append(Memory(target.machine, address, len(memory)))

    def guest_loaded(self, fd: int) -> None:
        """Note that the memory just added has the probe and its tables."""
        if isinstance(self.last, Memory):
            self.last.guest = True
        self._memory(self._target(fd)).keep()

    def cpuid_set(self, fd: int) -> None:
        """Note that the vCPU has all CPUID features that KVM supports."""
        self._append(Call(self._target(fd), abi.KVM_SET_CPUID2))

    def sent_each(
        self, fd: int, content: bytes, word: str, values: Sequence[int], results: set[int]
    ) -> None:
        """Note messages that a C function is about to send."""
        if len(results) != 1:
            self.leave_out("messages of a sweep")
            return
        self._append(SendEach(self._target(fd).machine, content, word, values, *results))

    def before(self, fd: int, request: abi.Request, argument: Any) -> int | bytes:
        """Return the argument of an ioctl that is about to be called, as the tape keeps it."""
        if request == abi.KVM_RUN and fd in self._fds and not self._hidden:
            self._write_memory(self._fds[fd])
        if isinstance(argument, int):
            return argument
        return ctypes.string_at(ctypes.addressof(argument), ctypes.sizeof(argument))

    def called(
        self,
        fd: int,
        request: abi.Request,
        argument: Any,
        sent: int | bytes,
        result: int,
        code: int,
    ) -> None:
        """Note an ioctl with its argument before and after the call."""
        target = self._target(fd, request)
        if request == abi.KVM_RUN:
            self._ran(target, fd, result, code)
            return
        if request == abi.KVM_CREATE_VM and result >= 0:
            self._fds[result] = Target(len(self._machines))
            self._machines.append(GuestMemory(len(self._machines)))
        elif request == abi.KVM_CREATE_VCPU and result >= 0:
            machine = self._memory(target)
            self._fds[result] = Target(target.machine, machine.vcpus)
            machine.vcpus += 1
        if self._hidden:
            return
        step = Call(target, request, sent, result=result, errno=code, saved=self._restored)
        if not isinstance(argument, int):
            step.struct = plain(argument)
            step.output = ctypes.string_at(ctypes.addressof(argument), ctypes.sizeof(argument))
        step.outcome = "accepted" if result >= 0 else "refused"
        if request == abi.KVM_SET_MSRS:
            step.outcome = "1"
        self._check_recordable(step)
        self._append(step)
        if step.struct not in (None, type(argument)) and result >= 0:  # made by watched()
            argument.look = self._looker(step.owed)

    def watched(self, struct: type[S]) -> type[S]:
        """Return the type that KVM is to fill in place of ``struct``."""
        return struct if self._hidden else watched(struct)

    def page(self, state: ctypes.Structure) -> WatchedPage | None:
        """Return the answer of KVM_GET_LAPIC as a page; None where nothing is watched."""
        look = state.__dict__.get("look") if hasattr(state, "__dict__") else None
        return WatchedPage(ctypes.string_at(ctypes.addressof(state), 1024), look) if look else None

    def looked(self, place: str, value: int) -> None:
        """Note that the test reads a field of the step just recorded."""
        if not self._hidden and isinstance(self.last, (Run, Take, Call)):
            self.seen.append(Seen(self.last.owed, place, value))

    def watched_records(
        self, step: Take, records: Sequence[Any], exits: Sequence[int] = ()
    ) -> list[Any]:
        """Note what the guest took. Return the records, which tell what the test reads of them."""
        step.vectors = [record.vector for record in records]
        if step.exits is not None:
            step.exits = list(exits)
        if self._hidden > 1:
            return list(records)
        looks = (self._record_looker(step, number) for number in range(len(records)))
        return [WatchedRecord(record, look) for record, look in zip(records, looks, strict=True)]

    def _record_looker(self, step: Take, number: int) -> Callable[[str, int], None]:
        look = self._looker(step.owed)
        return lambda place, value: look(f"{number}.{place}", value)

    def _looker(self, owed: list[Owed]) -> Callable[[str, int], None]:
        def look(place: str, value: int) -> None:
            if not self._hidden:
                self.seen.append(Seen(owed, place, value))

        return look

    def exit_expected(self, ports: Sequence[int]) -> None:
        """Note the ports of which one should have ended the last KVM_RUN."""
        self._ports = ports

    def finish(self) -> None:
        """Complete the tape of a test that has ended well."""
        if not self.judged:
            self.leave_out("nothing was compared")
        with self.hidden(), contextlib.suppress(KvmError):
            self.tape.reusable = bool(self._resets) and all(reset() for reset in self._resets)

    def capabilities_asked(self) -> set[int]:
        """Return the capabilities that the test asked for and did not compare."""
        return {
            int(step.argument)
            for step in self.tape.steps
            if isinstance(step, Call)
            and step.request == abi.KVM_CHECK_EXTENSION
            and step.outcome == "accepted"
            and isinstance(step.argument, int)
        }

    def ended_by_error(self) -> None:
        """Note that the outcome of the last step ends the test, by KvmError or GuestError."""
        step = self.last
        if isinstance(step, Call) and step.outcome == "refused":
            step.outcome, step.subject = "accepted", step.request.name
        if isinstance(step, Run) and step.port not in self._ports:
            step.exit_reason, step.port = abi.KVM_EXIT_IO, self._ports[0]

    # --- the tape ---------------------------------------------------------------------------------

    def _append(self, step: Step) -> None:
        if self._hidden:
            return
        (self._sinks[-1] if self._sinks else self.tape.steps).append(step)
        self.last = step
        if not (isinstance(step, Call) and step.request.name.startswith("KVM_GET_")):
            self.seen.clear()  # fields that led to this step were not read to be compared
        if isinstance(step, (Run, Take)) or (isinstance(step, Call) and step.outcome == "refused"):
            self.judged = True

    def _target(self, fd: int, request: abi.Request | None = None) -> Target:
        target = self._fds.get(fd)
        if target is None:
            if request not in _OF_SYSTEM and not self._hidden:
                self.leave_out("a file descriptor of the test's own")
            return Target(SYSTEM)
        return target

    def _check_recordable(self, step: Call) -> None:
        if step.request == abi.KVM_IRQFD:
            self.leave_out("an eventfd")
        elif step.request == abi.KVM_SET_CPUID2:
            self.leave_out("a CPUID table of the test's own")
        elif vars(abi).get(step.request.name) != step.request:
            self.leave_out("an ioctl number of the test's own")
        elif step.request == abi.KVM_SIGNAL_MSI and isinstance(step.argument, int):
            self.leave_out("a message that is passed by address")

    def _ran(self, target: Target, fd: int, result: int, code: int) -> None:
        run = self._pages.get(fd)
        self._memory(target).keep()
        if self._hidden or run is None:
            return
        if run.immediate_exit:
            self._append(Run(target, immediate=True))
        elif code not in (errno.EINTR, errno.EAGAIN):
            port = int(run.u.io.port) if run.exit_reason == abi.KVM_EXIT_IO else -1
            window = bool(run.request_interrupt_window)
            self._append(Run(target, int(run.exit_reason), port, window=window))
            if result < 0:
                self.leave_out("KVM_RUN fails")

    def _memory(self, target: Target) -> GuestMemory:
        """Return the memory of a machine; none if the machine was made before the recorder."""
        return GuestMemory(SYSTEM) if target.machine == SYSTEM else self._machines[target.machine]

    def _write_memory(self, target: Target) -> None:
        """Record the changes that the host made to guest memory since the last KVM_RUN."""
        memory = self._memory(target)
        for change in list(memory.changes(self._machines)):
            self._append(change)
        memory.keep()
