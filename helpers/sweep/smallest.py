# SPDX-License-Identifier: GPL-2.0-only
"""The smallest case: what is left of a topology and a message when nothing more can go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from helpers.apic import Message
from helpers.apic.lapic import bits
from helpers.apic.model import Switches
from helpers.apic.topology import Topology
from helpers.guest import Mismatch, disagreement, start_over
from helpers.kvm import System

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.


class SmallestCase(Mismatch):
    """A mismatch that ends when any part of its case, ``topology`` and ``message``, is left out."""

    def __init__(self, found: Mismatch, topology: Topology, message: Message) -> None:
        super().__init__(found.subject, found.expected, found.actual, f"{message} to {topology}")
        self.topology, self.message = topology, message


def smallest(
    system: System, topology: Topology, message: Message, switches: Switches
) -> SmallestCase | None:
    """Reduce a case while kernel and model disagree. Return None if they agree on the whole case.

    On return, the journal and the recorder have the smallest case alone.
    """
    case = None
    candidates = iter([(topology, message)])
    while candidate := next(candidates, None):
        try:
            mismatch = disagreement(system, *candidate, switches)
        except ValueError:  # KVM cannot make the topology.
            continue
        if mismatch:
            case = SmallestCase(mismatch, *candidate)
            candidates = _simpler(*candidate)
    if case:
        start_over()
        disagreement(system, case.topology, case.message, switches)
    return case


def _simpler(topology: Topology, message: Message) -> Iterator[tuple[Topology, Message]]:
    """Yield cases with one part less: a vCPU, a property of one, a field, a destination bit."""
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
