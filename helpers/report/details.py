# SPDX-License-Identifier: GPL-2.0-only
"""The details of one test as plain data: messages, vCPU states, ioctl trace.

Details are collected in the process that ran the test and shown by the process that writes the
report. Only dicts, lists, strings and ints survive the way between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TypedDict

import pytest

from helpers.apic import Register
from helpers.apic.effect import Effect
from helpers.apic.explain import explain_outcome
from helpers.apic.model import Model
from helpers.apic.topology import show_mp_state
from helpers.guest import Injection, Machine, Mismatch, Snapshot, journal
from helpers.kvm import abi
from helpers.kvm.ioctl import Call, trace
from helpers.verdicts.kernel import topology_before
from helpers.verdicts.reports import Carried

MAX_MESSAGES = 12
MAX_VCPUS = 8
MAX_TRACE_LINES = 80
MAX_ERROR = 2000  # characters


class Vectors(TypedDict):
    """The sorted vectors in the registers of 256 bits."""

    IRR: list[int]
    ISR: list[int]
    TMR: list[int]


class Registers(TypedDict):
    """The registers that the report shows."""

    ID: int
    SVR: int
    LDR: int
    DFR: int
    TPR: int
    PPR: int


class VcpuState(TypedDict):
    """A vCPU between two messages."""

    registers: Registers
    vectors: Vectors
    pending: list[str]
    mp_state: str


class VcpuChange(TypedDict):
    """A vCPU before and after a message. Without an effect ``after`` is None."""

    index: int
    effect: str
    before: VcpuState
    after: VcpuState | None


class SentMessage(TypedDict):
    """A message with its effects.

    ``words`` are address_lo, address_hi and data. ``pad`` is in hex, and empty if all zero.
    ``vcpus_left_out`` counts the vCPUs that are not in ``vcpus``, ``changed_left_out`` the changed
    vCPUs among those left out.
    """

    words: tuple[int, int, int]
    flags: int
    devid: int
    pad: str
    returned: str
    vcpus: list[VcpuChange]
    vcpus_left_out: int
    changed_left_out: int


class Compared(TypedDict):
    """The comparison of a :class:`Mismatch`."""

    subject: str
    expected: str
    actual: str


class Details(TypedDict):
    """The details of one test.

    ``mismatch`` is the comparison that failed the test, ``error`` describes any other exception.
    ``sent`` has the last messages of the test; ``sent_in_all`` is the number of messages, empty if
    ``sent`` has them all. ``prediction`` is the model's for the last message, where the test ended
    in a mismatch and the vCPUs have LAPICs in the kernel.
    """

    mismatch: Compared | None
    error: str
    sent: list[SentMessage]
    sent_in_all: str
    prediction: str
    trace: list[str]
    irqchips: list[str]


DETAILS = Carried[Details]("details")
"""The details that travel on a test report."""


def collect(item: pytest.Item, error: BaseException | None) -> Details:
    """Return the details of the test that just ran in this process and ended with ``error``."""
    last = list(journal)[-MAX_MESSAGES:]
    or_more = " or more" if len(journal) == journal.maxlen else ""
    mismatch = None
    if isinstance(error, Mismatch):
        mismatch = Compared(subject=error.subject, expected=error.expected, actual=error.actual)
    subject = mismatch["subject"] if mismatch else ""
    return Details(
        mismatch=mismatch,
        error=f"{type(error).__name__}: {error}"[:MAX_ERROR] if error and not mismatch else "",
        sent=[_sent(injection, subject) for injection in last],
        sent_in_all=f"{len(journal)}{or_more}" if len(last) < len(journal) else "",
        prediction=_prediction(last[-1]) if last and mismatch else "",
        trace=_shortened_trace(),
        irqchips=_irqchips(item),
    )


def _prediction(injection: Injection) -> str:
    topology = topology_before(injection)
    if topology is None:
        return ""
    message, msi = injection.message, injection.msi
    return explain_outcome(
        Model(topology).predict(message, flags=msi.flags, devid=msi.devid, pad=bytes(msi.pad))
    )


def _irqchips(item: pytest.Item) -> list[str]:
    """Return the irqchip modes of the machines that the test's fixtures and messages reveal."""
    fixtures = item.funcargs.values() if isinstance(item, pytest.Function) else ()
    modes = {value.irqchip for value in fixtures if isinstance(value, Machine)}
    has_vcpus = any(call.request is abi.KVM_CREATE_VCPU for call in trace)
    settings = (injection.setting for injection in journal if not injection.before)
    if has_vcpus and any(setting.irqchip == "none" for setting in settings):
        modes.add("none")
    return sorted(modes)


# --- messages and vCPUs ---------------------------------------------------------------------------


def _sent(injection: Injection, subject: str) -> SentMessage:
    """Return a message with the vCPU of a mismatch's ``subject`` first, then changed vCPUs."""
    msi = injection.msi
    pad = bytes(msi.pad)
    effects = sorted(
        enumerate(injection.effects()),
        key=lambda numbered: (not subject.endswith(f"vCPU {numbered[0]}"), not numbered[1]),
    )
    return SentMessage(
        words=(msi.address_lo, msi.address_hi, msi.data),
        flags=msi.flags,
        devid=msi.devid,
        pad=pad.hex() if any(pad) else "",
        returned=injection.returned,
        vcpus=[_change(injection, index, effect) for index, effect in effects[:MAX_VCPUS]],
        vcpus_left_out=len(effects[MAX_VCPUS:]),
        changed_left_out=sum(bool(effect) for _, effect in effects[MAX_VCPUS:]),
    )


def _change(injection: Injection, index: int, effect: Effect) -> VcpuChange:
    return VcpuChange(
        index=index,
        effect=str(effect) if effect else "",
        before=_state(injection.before[index]),
        after=_state(injection.after[index]) if effect else None,
    )


def _state(snapshot: Snapshot) -> VcpuState:
    lapic = snapshot.lapic
    pending = {
        "NMI": snapshot.nmi_pending,
        "SMI": snapshot.smi_pending,
        "INIT": snapshot.latched_init,
    }
    return VcpuState(
        registers=Registers(
            ID=lapic[Register.ID],
            SVR=lapic[Register.SVR],
            LDR=lapic[Register.LDR],
            DFR=lapic[Register.DFR],
            TPR=lapic[Register.TPR],
            PPR=lapic[Register.PPR],
        ),
        vectors=Vectors(IRR=sorted(lapic.irr), ISR=sorted(lapic.isr), TMR=sorted(lapic.tmr)),
        pending=[name for name, is_pending in pending.items() if is_pending],
        mp_state=show_mp_state(snapshot.mp_state),
    )


# --- the ioctl trace ------------------------------------------------------------------------------


def collapse(calls: Iterable[Call]) -> list[str]:
    """Return the calls, one a line. Repeated calls, and equal calls on several fds, stand once."""
    bursts: list[tuple[list[int], list[str]]] = []
    for fd, run in groupby(calls, key=lambda call: call.fd):
        texts = [str(call).replace(f"(fd {fd}", "(fd", 1) for call in run]
        if bursts and bursts[-1][1] == texts and fd not in bursts[-1][0]:
            bursts[-1][0].append(fd)
        else:
            bursts.append(([fd], texts))
    lines: list[str] = []
    for (fds, texts), same in groupby(bursts):
        lines += _burst(fds, texts, times=len(list(same)))
    return lines


def _burst(fds: list[int], texts: list[str], times: int) -> list[str]:
    once = [text + _times(len(list(same))) for text, same in groupby(texts)]
    if len(fds) == 1 and (times == 1 or len(once) == 1):
        return [text.replace("(fd", f"(fd {fds[0]}", 1) + _times(times) for text in once]
    names = ", ".join(map(str, fds))
    return [f"with fd {names}{_times(times)}:", *(f"    {text}" for text in once)]


def _times(count: int) -> str:
    return f"  (x {count})" if count > 1 else ""


def _shortened_trace() -> list[str]:
    """Return the beginning and the end of the trace, with a line for the calls left out."""
    lines = collapse(trace)
    if len(lines) > MAX_TRACE_LINES:
        first = MAX_TRACE_LINES // 4
        last = MAX_TRACE_LINES - first
        left_out = len(lines) - MAX_TRACE_LINES
        lines = [*lines[:first], f"... {left_out} lines left out ...", *lines[-last:]]
    if len(trace) == trace.maxlen:
        lines.insert(0, f"... calls before the last {trace.maxlen} left out ...")
    return lines
