# SPDX-License-Identifier: GPL-2.0-only
"""Which messages are under way at the same time in a run of traffic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from helpers.apic import DestinationMode, Message, TriggerMode
from helpers.guest import Machine, msi_route
from helpers.races.traffic import Sender, Stream

VCPUS = 3
"""vCPUs of the machine, with the IDs 0, 1 and 2."""

OPERATIONS = ("SPIN", "HLT", "NONE")
"""What guests do between the messages: run on, sleep in HLT, exit to user space."""

_EVERYONE = range(VCPUS)
_PER_VCPU = 4  # Vectors of a sender for each vCPU.
_SENDERS = 5
_FIRST = 0x30  # Above the exceptions.
_TWO: dict[str, Any] = {"destination": 0b110, "destination_mode": DestinationMode.LOGICAL}


def edge_senders(machine: Machine) -> list[Sender]:
    """Return senders of edge-triggered messages: three threads and two processes.

    Another process than the one that made the VM may only write to eventfds: KVM refuses its ioctls
    (EIO).
    """
    each, some, merged, in_turn, at_once = (_of_sender(number) for number in range(_SENDERS))
    some = [
        replace(stream, message=replace(stream.message, **_TWO), targets=(1, 2)) for stream in some
    ]
    by_irqfd = _through_irqfds(machine, [*in_turn, *_overlapping(at_once)])
    return [
        Sender(each),
        Sender(some),
        Sender(_overlapping(merged)),
        Sender(by_irqfd[: len(in_turn)], is_process=True),
        Sender(by_irqfd[len(in_turn) :], is_process=True),
    ]


def level_senders(machine: Machine) -> list[Sender]:
    """Return a sender of level-triggered messages for each vCPU, with routes of IOAPIC pins.

    The irqchip is split, so that the EOI of such a message exits to user space.
    """
    streams = [
        replace(
            stream,
            exits=True,
            message=replace(stream.message, trigger_mode=TriggerMode.LEVEL, level=1),
        )
        for stream in _of_sender(0)[:-1]
    ]
    machine.vm.set_gsi_routing([msi_route(pin, each.message) for pin, each in enumerate(streams)])
    return [Sender([each for each in streams if each.targets == (cpu,)]) for cpu in _EVERYONE]


def _of_sender(sender: int) -> list[Stream]:
    """Return streams to one vCPU, _PER_VCPU for each, and a broadcast.

    The vectors of the senders alternate, so that all senders write to the same words of IRR.
    """
    count = VCPUS * _PER_VCPU + 1
    first = _FIRST + sender
    *single, last = range(first, first + count * _SENDERS, _SENDERS)
    streams = [Stream(Message(v, n % VCPUS), (n % VCPUS,)) for n, v in enumerate(single)]
    return [*streams, Stream(Message(last, 0xFF), _EVERYONE)]


def _overlapping(streams: Iterable[Stream]) -> list[Stream]:
    return [replace(stream, overlaps=True) for stream in streams]


def _through_irqfds(machine: Machine, streams: Sequence[Stream]) -> list[Stream]:
    """Return the streams, each with an irqfd and a route of its own."""
    gsis = range(24, 24 + len(streams))
    routes = [msi_route(gsi, each.message) for gsi, each in zip(gsis, streams, strict=True)]
    machine.vm.set_gsi_routing(routes)
    return [replace(s, irqfd=machine.vm.irqfd(g)) for g, s in zip(gsis, streams, strict=True)]
