"""What one test did, as plain data: collected where the test ran, shown by helpers/report/html.py.

The plugin of helpers/verdicts empties the journal and the trace before each test. Everything here
is made of dicts, lists, strings and ints, so that xdist can carry it over.
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

REGISTERS = (Register.ID, Register.SVR, Register.LDR, Register.DFR, Register.TPR, Register.PPR)

MAX_INJECTIONS = 12
MAX_VCPUS = 8
MAX_TRACE_LINES = 80
MAX_ERROR = 2000


class State(TypedDict):
    """A vCPU in one moment; vector sets are sorted lists."""

    registers: dict[str, int]
    irr: list[int]
    isr: list[int]
    tmr: list[int]
    pending: list[str]
    mp_state: str


class VcpuChange(TypedDict):
    """A vCPU before and after a message; ``after`` is None and ``effect`` empty if unchanged."""

    index: int
    effect: str
    before: State
    after: State | None


class Sent(TypedDict):
    """A message that was sent; ``words`` are address_lo, address_hi and data, ``pad`` is in hex."""

    words: list[int]
    flags: int
    devid: int
    pad: str
    returned: str
    vcpus: list[VcpuChange]
    vcpus_left_out: int
    changed_left_out: int


class Failed(TypedDict):
    """A :class:`Mismatch`: what was compared, expected and seen."""

    subject: str
    expected: str
    actual: str


class Details(TypedDict):
    """One test.

    ``error`` is the exception of a test that ended by anything but a mismatch; ``sent_of`` says how
    many messages it sent, where ``sent`` has only the last of them. ``predicted`` is what the model
    says of the last one, of a test that ended by a mismatch and sent it to LAPICs in the kernel.
    """

    mismatch: Failed | None
    error: str
    sent: list[Sent]
    sent_of: str
    predicted: str
    trace: list[str]
    irqchips: list[str]


DETAILS = Carried[Details]("details")
"""Of a report: what its test did."""


def collect(item: pytest.Item, error: BaseException | None) -> Details:
    """What the test that just ran in this process did, and the exception it ended by."""
    shown = list(journal)[-MAX_INJECTIONS:]
    or_more = " or more" if len(journal) == journal.maxlen else ""
    return Details(
        mismatch=_failed(error),
        error="" if error is None or isinstance(error, Mismatch) else _describe(error),
        sent=[_sent(injection, error) for injection in shown],
        sent_of=f"{len(journal)}{or_more}" if len(shown) < len(journal) else "",
        predicted=_predicted(error),
        trace=_cut(collapse(trace), older=len(trace) == trace.maxlen),
        irqchips=_irqchips(item),
    )


def _failed(error: BaseException | None) -> Failed | None:
    if not isinstance(error, Mismatch):
        return None
    return Failed(subject=error.subject, expected=error.expected, actual=error.actual)


def _predicted(error: BaseException | None) -> str:
    topology = topology_before(journal[-1]) if journal and isinstance(error, Mismatch) else None
    if topology is None:
        return ""
    message, msi = journal[-1].message, journal[-1].msi
    return explain_outcome(
        Model(topology).predict(message, flags=msi.flags, devid=msi.devid, pad=bytes(msi.pad))
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR]


def _irqchips(item: pytest.Item) -> list[str]:
    """The irqchip modes the test met, as far as its fixtures and messages tell."""
    fixtures = getattr(item, "funcargs", {}).values()
    kinds = {value.irqchip for value in fixtures if isinstance(value, Machine)}
    has_vcpus = any(call.request is abi.KVM_CREATE_VCPU for call in trace)
    if has_vcpus and any(not injection.before for injection in journal):
        kinds.add("none")
    return sorted(kinds)


# --- messages and vCPUs ---------------------------------------------------------------------------


def _sent(injection: Injection, error: BaseException | None) -> Sent:
    msi = injection.msi
    pad = bytes(msi.pad)
    subject = error.subject if isinstance(error, Mismatch) else ""

    def rank(numbered: tuple[int, Effect]) -> tuple[bool, bool, int]:
        """First what the mismatch is about, then what changed."""
        index, effect = numbered
        return not subject.endswith(f"vCPU {index}"), not effect, index

    effects = sorted(enumerate(injection.effects()), key=rank)
    return Sent(
        words=[msi.address_lo, msi.address_hi, msi.data],
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


def _state(snapshot: Snapshot) -> State:
    lapic = snapshot.lapic
    pending = {
        "NMI": snapshot.nmi_pending,
        "SMI": snapshot.smi_pending,
        "INIT": snapshot.latched_init,
    }
    return State(
        registers={register.name: lapic[register] for register in REGISTERS},
        irr=sorted(lapic.irr),
        isr=sorted(lapic.isr),
        tmr=sorted(lapic.tmr),
        pending=[name for name, is_pending in pending.items() if is_pending],
        mp_state=show_mp_state(snapshot.mp_state),
    )


# --- the ioctl trace ------------------------------------------------------------------------------


def collapse(calls: Iterable[Call]) -> list[str]:
    """The calls, one a line; what is done to one fd after the other, or repeated, stands once."""
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


def _cut(lines: list[str], older: bool) -> list[str]:
    """The beginning and the end of a trace that is too long; ``older``: calls are missing."""
    if len(lines) > MAX_TRACE_LINES:
        first = MAX_TRACE_LINES // 4
        last = MAX_TRACE_LINES - first
        left_out = len(lines) - first - last
        lines = [*lines[:first], f"... {left_out} lines left out ...", *lines[-last:]]
    return [f"... calls before the last {trace.maxlen} left out ...", *lines] if older else lines
