# SPDX-License-Identifier: GPL-2.0-only
"""What several files of suites/arm64/ share: events, set-ups, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from helpers.arm64 import ItsDevice, Machine
from helpers.arm64.sent import Sent
from helpers.guest import expect
from helpers.its import Message, commands
from helpers.its.registers import FIRST_LPI


@dataclass(frozen=True, slots=True)
class Event:
    """An event that is mapped, and what a message of it makes pending."""

    devid: int
    event: int
    vcpu: int
    lpi: int

    @property
    def message(self) -> Message:
        return Message(self.devid, self.event)

    @property
    def pending(self) -> tuple[int, int]:
        return self.vcpu, self.lpi


EVENTS = (
    Event(1, 0, 0, FIRST_LPI),
    Event(1, 1, 1, FIRST_LPI + 1),
    Event(1, 31, 0, 0xFFFF),
    Event(2, 0, 1, FIRST_LPI + 64),
    Event(2, 5, 0, FIRST_LPI + 100),
)
"""The events of ``machine``: two devices with 32 events each. Collection N is vCPU N."""

FIRST = EVENTS[0]
ON_1 = EVENTS[1]

EACH_EVENT = pytest.mark.parametrize(
    "event", EVENTS, ids=lambda event: f"{event.devid}-{event.event}"
)
HISTORY = pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
"""Whether a message of the event was delivered before: KVM then has its translation cached."""

VCPUS = [(count, index) for count in (1, 2, 8) for index in range(count)]
EACH_VCPU = pytest.mark.parametrize(
    "vcpus, index", VCPUS, ids=[f"{index}-of-{count}" for count, index in VCPUS]
)


def map_events(
    machine: Machine, its: ItsDevice | None = None, events: Sequence[Event] = EVENTS
) -> None:
    """Map the events of their devices, with 32 events for each device."""
    its = its or machine.its
    for devid in sorted({event.devid for event in events}):
        its.map_device(devid)
    for event in events:
        machine.map(event.devid, event.event, event.lpi, event.vcpu, its)


def deliver_before(machine: Machine, again: bool, *events: Event) -> None:
    """With ``again``, deliver a message of each event, and have the guest take it."""
    if again:
        for event in events or EVENTS:
            machine.send(event.message)
        machine.take()


def move(machine: Machine, how: str) -> None:
    """Move the LPI of FIRST from vCPU 0 to vCPU 1."""
    command = {
        "movi": commands.movi(FIRST.devid, FIRST.event, 1),
        "mapc": commands.mapc(FIRST.vcpu, 1),
        "movall": commands.movall(FIRST.vcpu, 1),
    }
    machine.its.command(command[how])


def show_taken(taken: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{intid} on vCPU {vcpu}" for vcpu, intid in taken) or "nothing"


def expect_taken(machine: Machine, *taken: tuple[int, int]) -> None:
    """Step all vCPUs. Raise Mismatch unless the vCPUs take ``taken``: (vCPU, INTID), in order."""
    expect("taken", machine.take(), list(taken), show=show_taken)


def expect_delivery(machine: Machine, message: Message, vcpu: int, lpi: int) -> None:
    """Send a message. Raise Mismatch unless ``vcpu`` takes ``lpi``, once and alone."""
    machine.signal(message).delivered().pends((vcpu, lpi))
    expect_taken(machine, (vcpu, lpi))


def expect_blocked(machine: Machine, message: Message) -> None:
    """Send a message. Raise Mismatch unless the ioctl returns 0, and no LPI changes."""
    machine.signal(message).blocked().reached_nobody()
    expect_taken(machine)


def expect_refused(machine: Machine, message: Message) -> Sent:
    """Send a message. Raise Mismatch unless the ioctl fails, and no LPI changes."""
    sent = machine.signal(message).refused().reached_nobody()
    expect_taken(machine)
    return sent
