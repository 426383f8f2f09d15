# SPDX-License-Identifier: GPL-2.0-only
"""A prediction as plain text: the message, the topology, the rules that applied, the outcome.

``python -m helpers.apic explain`` prints the whole text, the report of a failure the rules and the
outcome. Lines have at most 100 columns.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields

from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, ApicMode, show_vectors
from helpers.apic.message import LAYOUT, WORDS, Message
from helpers.apic.model import REFERENCE, Model, Outcome, Rule, Switches
from helpers.apic.topology import MpState, Topology, VcpuState

WIDTH = 100


def explain(model: Model, message: Message, *, flags: int, devid: int, pad: bytes) -> str:
    """Return the whole text for one message, and for the topology and switches of ``model``."""
    outcome = model.predict(message, flags=flags, devid=devid, pad=pad)
    lines = [*_message(message, flags, devid, pad), "", *_topology(model.topology), ""]
    return "\n".join([*lines, explain_outcome(outcome, model.switches)])


def explain_outcome(outcome: Outcome, switches: Switches = REFERENCE) -> str:
    """Return the rules and the outcome of a prediction that was made with ``switches``."""
    return "\n".join([*_rules(outcome.applied), "", *_effects(outcome, switches)])


def command(topology: Topology, message: Message, flags: int, devid: int, pad: bytes) -> str:
    """Return the shell command that prints :func:`explain` for the reference kernel."""
    words = ["python", "-m", "helpers.apic", "explain", message.text, str(topology)]
    words += ["--flags", f"{flags:#x}"] if flags else []
    words += ["--devid", f"{devid:#x}"] if devid else []
    words += ["--pad", pad.hex()] if any(pad) else []
    return shlex.join(words)


def _message(message: Message, flags: int, devid: int, pad: bytes) -> Iterator[str]:
    yield from wrapped("message: ", message.text)
    rows = list(zip(LAYOUT, message.decoded(), strict=True))
    for name in WORDS:
        yield f"  {name} {getattr(message, name):#010x}"
        for field, (word, bits, _, value) in rows:
            if word == name:
                yield f"    {bits:>5}  {field.name:22} {value:19} {field.meaning}"
    yield f"  flags {flags:#x}, devid {devid:#x}, pad {pad.hex() if any(pad) else '0'}"


def _topology(topology: Topology) -> Iterator[str]:
    yield from wrapped("topology: ", str(topology) or "no vCPU")
    if topology.irqchip == "none":
        yield "  no in-kernel irqchip"
        return
    quirk = "a" if topology.has_broadcast_quirk else "no"
    yield (
        f"  {topology.irqchip} irqchip, {32 if topology.has_32bit_ids else 8}-bit destination IDs,"
        f" 0xff is {quirk} broadcast to x2APICs"
    )
    choice = "vector hashing" if topology.vector_hashing else "round robin"
    yield f"  lowest priority by {choice}, {'SMM' if topology.smm else 'no SMM'}"
    for index, vcpu in enumerate(topology.vcpus):
        yield from wrapped(f"  vCPU {index}: ", ", ".join(_vcpu(vcpu)))


def _vcpu(vcpu: VcpuState) -> Iterator[str]:
    yield f"vCPU ID {vcpu.vcpu_id}"
    match vcpu.apic_mode:
        case ApicMode.DISABLED:
            yield "LAPIC disabled in IA32_APIC_BASE"
        case ApicMode.XAPIC:
            yield f"xAPIC with ID {vcpu.id:#x}"
            yield f"logical ID {vcpu.ldr >> 24:#04x}" if vcpu.ldr else "no logical ID"
            dfr = {DFR_FLAT: "flat", DFR_CLUSTER: "cluster"}.get(vcpu.dfr, f"{vcpu.dfr:#x}")
            yield f"DFR {dfr}"
        case ApicMode.X2APIC:
            yield f"x2APIC, logical ID {vcpu.ldr:#010x}"
    if vcpu.hardware_enabled:
        yield "enabled" if vcpu.software_enabled else "software-disabled"
    yield from _events(vcpu)
    if vcpu.mp_state is not MpState.RUNNABLE:
        yield vcpu.mp_state.name
    if not vcpu.mapped:
        yield "not in KVM's map of LAPICs yet"
    for name, count in (("NMI", vcpu.nmi), ("SMI", vcpu.smi), ("INIT", vcpu.init)):
        if count:
            yield f"{name} pending" if count == 1 else f"{count} {name}s pending"
    for name, vectors in (("IRR", vcpu.irr), ("ISR", vcpu.isr), ("TMR", vcpu.tmr)):
        if vectors:
            yield f"{name} {show_vectors(vectors)}"
    if vcpu.arb_prio:
        yield f"lowest-priority messages received: {vcpu.arb_prio}"


def _events(vcpu: VcpuState) -> Iterator[str]:
    """Yield the states that hold interrupts back, and a BSP flag that differs from the default."""
    if vcpu.bsp != (vcpu.vcpu_id == 0):
        yield "the BSP" if vcpu.bsp else "not the BSP"
    for is_so, words in (
        (vcpu.eoi_suppressed, "EOI broadcasts suppressed"),
        (vcpu.tpr, f"TPR {vcpu.tpr:#04x}"),
        (vcpu.nmi_masked, "NMIs masked"),
        (vcpu.shadow, "in an interrupt shadow"),
        (vcpu.smm, "in SMM"),
    ):
        if is_so:
            yield words


def _rules(applied: Iterable[tuple[Rule, str]]) -> Iterator[str]:
    yield "rules that applied:"
    details_of: dict[Rule, list[str]] = {}
    for rule, detail in applied:
        details_of.setdefault(rule, []).append(detail)
    for number, (rule, details) in enumerate(details_of.items(), 1):
        yield from wrapped(f"  {number}. ", rule.text)
        yield from wrapped("     here: ", "; ".join(details))
        yield from wrapped("     ", f"[{' '.join(rule.clauses)}] {rule.source}")


def _effects(outcome: Outcome, switches: Switches) -> Iterator[str]:
    off = ", ".join(each.name for each in fields(switches) if not getattr(switches, each.name))
    kernel = f"the reference kernel{' without ' if off else ''}{off}"
    yield f"outcome on {kernel}: returns {outcome.returned}"
    for index in outcome.accepted:
        effect = outcome.effects[index]
        yield f"  vCPU {index} accepts the message: {effect or 'no change'}"
    others = [str(i) for i in range(len(outcome.effects)) if i not in outcome.accepted]
    if others:
        yield from wrapped("  no change on vCPU ", ", ".join(others))


def wrapped(start: str, text: str) -> list[str]:
    """Return ``start`` and ``text`` in lines; the second line and the next are indented."""
    wrapper = textwrap.TextWrapper(WIDTH, start, " " * min(len(start), 8))
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.wrap(text)
