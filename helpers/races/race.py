# SPDX-License-Identifier: GPL-2.0-only
"""Threads that call KVM at the same time, made by race.c, so that Python's lock is not in the way.

A race has rounds. In a round each thread makes its calls; then all threads rest, and the checker
makes the calls that have a certain result. Each round runs one phase of the threads' programs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_uint32, c_uint64
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from helpers.guest import GuestError, layout
from helpers.guest.assemble import library
from helpers.kvm import abi, errno_name, recording
from helpers.kvm.abi import fields

SECONDS = 20
"""Until a race is given up. The seconds are a multiple of what an emulator takes."""

IOCTL, SIGNAL_EVENT, RAISE_LINE, POST = range(4)
_MAX_THREADS = 8
CREATED = -1
"""As file descriptor: the vCPU that the thread created last."""


@dataclass(frozen=True, slots=True)
class Call:
    """One step of a thread.

    ``what``: an ioctl, a write to an eventfd, KVM_IRQ_LINE_STATUS (the result is the status), or a
    store of 16 bytes at address ``request``. ``argument``: a number, or a structure passed by
    address. ``name``: the call in words, for the schedule. ``pause``: iterations of the longest
    pause before the call. ``creates``: the result is the file descriptor of a vCPU. ``expected``:
    the result of a checker's call. ``tolerated``: an errno that is no failure.
    """

    name: str
    fd: int
    request: int
    argument: Any = 0
    what: int = IOCTL
    pause: int = 200
    creates: bool = False
    expected: int = 0
    tolerated: int = 0


def ioctl_call(name: str, fd: int, request: abi.Request, argument: Any = 0) -> Call:
    """Return the call of an ioctl."""
    return Call(name, fd, request.number, argument)


def message_call(name: str, fd: int, msi: abi.kvm_msi, tolerated: int = 0) -> Call:
    """Return the call of KVM_SIGNAL_MSI."""
    return replace(ioctl_call(name, fd, abi.KVM_SIGNAL_MSI, msi), tolerated=tolerated)


def line_call(name: str, fd: int, gsi: int) -> Call:
    """Return the call of KVM_IRQ_LINE_STATUS that raises a line."""
    line = abi.kvm_irq_level(irq=gsi, level=1)
    return replace(ioctl_call(name, fd, abi.KVM_IRQ_LINE_STATUS, line), what=RAISE_LINE)


def post_call(name: str, control: layout.Control, operation: str, *values: int) -> Call:
    """Return the store that has the guest execute an operation at the next entry."""
    posted = (ctypes.c_uint32 * 4)(layout.OPERATIONS.index(operation), *values)
    address = ctypes.addressof(control) + layout.Control.operation.offset
    return Call(name, -1, address, posted, what=POST)


class _Call(ctypes.Structure):
    _fields_ = [
        *fields(c_int32, "what", "fd"),
        *fields(c_uint64, "request", "argument"),
        *fields(c_int32, "spins", "creates", "expected", "tolerated", "got", "unused"),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("calls", ctypes.POINTER(_Call)), ("bounds", ctypes.POINTER(c_int32))]


class _Race(ctypes.Structure):
    _fields_ = [
        ("programs", ctypes.POINTER(_Program)),
        *fields(c_int32, "threads", "phases", "rounds"),
        ("milliseconds", c_uint32),
        *fields(c_int32, "failed_thread", "failed_call", "done", "late", "overlapped"),
        *fields(c_int32, "round", "ready", "go", "arrived", "stop", "unused"),
        ("seed", c_uint32),
        ("deadline", c_int64),
        ("spans", c_int64 * 2 * _MAX_THREADS),
    ]


Phases = Sequence[Sequence[Call]]
"""The calls of one thread in each phase."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A call with a wrong result: the program (the last one is the checker's), the round."""

    program: int
    round: int
    call: Call
    got: str


class Race:
    """The programs of the threads and of the checker, ready to run.

    A race that is given up leaves a thread behind, which uses the programs: ``_abandoned`` keeps
    them.
    """

    _abandoned: ClassVar[list[Race]] = []

    def __init__(
        self, threads: Sequence[Phases], checks: Phases, *, rounds: int, seed: int
    ) -> None:
        self.programs = [*threads, checks]
        self._flat = [[call for phase in phases for call in phase] for phases in self.programs]
        self._arrays = [(_Call * len(calls))(*map(_made, calls)) for calls in self._flat]
        self._bounds = [_bounds(phases) for phases in self.programs]
        programs = [_Program(*each) for each in zip(self._arrays, self._bounds, strict=True)]
        self._race = _Race(
            (_Program * len(programs))(*programs),
            *(len(threads), len(checks), rounds, SECONDS * 1000),
            seed=seed,
        )

    @property
    def rounds(self) -> int:
        """The number of rounds that ended."""
        return int(self._race.done)

    @property
    def overlapped(self) -> int:
        """The number of rounds in which all threads were calling KVM at some time."""
        return int(self._race.overlapped)

    def results(self, program: int) -> list[tuple[Call, int]]:
        """Return each call of a program with its last result."""
        array = self._arrays[program]
        return [(call, array[i].got) for i, call in enumerate(self._flat[program])]

    def run(self) -> Wrong | None:
        """Run all rounds. Return the first call with a wrong result, or None.

        Raises GuestError if a thread does not end.
        """
        recording.leave_out("threads that race")
        if code := _library().race_run(ctypes.byref(self._race)):
            raise OSError(code, os.strerror(code))
        race = self._race
        if race.late >= 0:
            self._abandoned.append(self)
            raise GuestError(f"thread {race.late} of the race did not end in {SECONDS} s")
        if race.failed_thread < 0:
            if race.done < race.rounds:
                raise GuestError(f"{race.done} of {race.rounds} rounds ended in {SECONDS} s")
            return None
        call = self._flat[race.failed_thread][race.failed_call]
        got = self._arrays[race.failed_thread][race.failed_call].got
        return Wrong(race.failed_thread, race.done, call, show(got))

    def schedule(self) -> list[str]:
        """Return the program of each thread, a line for each phase."""
        return [
            f"thread {number}, phase {phase}: " + ", ".join(call.name for call in calls)
            for number, phases in enumerate(self.programs[:-1])
            for phase, calls in enumerate(phases)
        ]


def show(result: int) -> str:
    """Return a result in strace's notation: ``1``, or ``-1 EINVAL``."""
    return str(result) if result >= 0 else f"-1 {errno_name(-result)}"


def _made(call: Call) -> _Call:
    argument = call.argument
    address = argument if isinstance(argument, int) else ctypes.addressof(argument)
    return _Call(
        *(call.what, call.fd, call.request, address),
        *(call.pause, call.creates, call.expected, call.tolerated),
    )


def _bounds(phases: Phases) -> ctypes.Array[c_int32]:
    bounds = [0]
    for phase in phases:
        bounds.append(bounds[-1] + len(phase))
    return (c_int32 * len(bounds))(*bounds)


@cache
def _library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library(Path(__file__).with_suffix(".c"))))
    loaded.race_run.argtypes = (ctypes.c_void_p,)
    return loaded
