# SPDX-License-Identifier: GPL-2.0-only
"""Recognize a test that its time limit ended, and describe its vCPUs at that time."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

import pytest

from helpers.apic.topology import show_mp_state
from helpers.arm64.cpu import Cpu as Arm64Cpu
from helpers.arm64.machine import Machine as Arm64Machine
from helpers.guest import Cpu, GuestError, Machine
from helpers.kvm import Vcpu
from helpers.kvm.abi_arm64 import CORE
from helpers.kvm.ioctl import KvmError
from helpers.spec.architectures import ARM64, running

_MESSAGE = re.compile(r"Timeout \(>(\d+(?:\.\d+)?)s\) from pytest-timeout\.")
_MOST_VCPUS = 8
_ANSWER_SECONDS = 2.0
_X86_REGISTERS = ["rip", "rflags", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi"]
_ARM64_REGISTERS = ["pc", "pstate", "x0", "x1", "x2", "x3"]


def seconds_of(error: BaseException | None) -> float:
    """Return the limit of pytest-timeout that ended a test with ``error``; 0 for another end.

    An exception raised while the test unwinds has the limit's exception as its context.
    """
    while error is not None:
        found = isinstance(error, pytest.fail.Exception) and _MESSAGE.fullmatch(str(error))
        if found:
            return float(found[1])
        error = error.__context__
    return 0.0


def text(seconds: float) -> str:
    """Return the outcome in words."""
    return f"timed out after {seconds:g} s"


def describe_vcpus(error: BaseException, fixtures: Iterable[object]) -> str:
    """Return the last exit and the registers of each vCPU that a test used, a paragraph each.

    The vCPUs are those of ``fixtures`` and of the frames that ``error`` left.
    """
    values = [*_locals(error), *fixtures]
    found = {vcpu.fd: vcpu for value in values for vcpu in _vcpus(value) if vcpu.fd >= 0}
    shown = list(found.values())[:_MOST_VCPUS]
    lines = [_describe(vcpu) for vcpu in sorted(shown, key=lambda vcpu: vcpu.vcpu_id)]
    if more := len(found) - len(shown):
        lines.append(f"and {more} more vCPUs")
    return "\n".join(lines)


def _locals(error: BaseException | None) -> Iterator[object]:
    while error is not None:
        trace: TracebackType | None = error.__traceback__
        frames = []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):  # the vCPU that ran is in the innermost frame
            yield from frame.f_locals.values()
        error = error.__context__


def _vcpus(value: object) -> list[Vcpu]:
    if isinstance(value, Vcpu):
        return [value]
    if isinstance(value, Cpu | Arm64Cpu):
        return [value.vcpu]
    return [cpu.vcpu for cpu in value.cpus] if isinstance(value, Machine | Arm64Machine) else []


def _describe(vcpu: Vcpu) -> str:
    """Describe a vCPU. An ioctl of a vCPU that a thread runs waits: do not wait for the ioctl."""
    said = ["does not answer: another thread is in KVM_RUN"]

    def ask() -> None:
        try:
            said[0] = _state(vcpu)
        except (KvmError, GuestError, ValueError) as reason:
            said[0] = str(reason)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return f"vCPU with ID {vcpu.vcpu_id}: last exit {vcpu.describe_exit()}\n  {said[0]}"


def _state(vcpu: Vcpu) -> str:
    if running() is ARM64:
        values = {name: vcpu.get_one_reg(CORE[name]) for name in _ARM64_REGISTERS}
    else:
        regs = vcpu.get_regs()
        values = {name: getattr(regs, name) for name in _X86_REGISTERS}
    registers = " ".join(f"{name}={value:#x}" for name, value in values.items())
    return f"{registers}\n  mp_state={show_mp_state(vcpu.get_mp_state())}"
