# SPDX-License-Identifier: GPL-2.0-only
"""Generated sequences of commands, messages, register writes and entries, held to the model.

A seed makes the same sequence on every kernel. Steps that the architecture leaves UNPREDICTABLE are
not made: see helpers/its/model.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from helpers.arm64 import layout
from helpers.arm64.machine import Machine
from helpers.arm64.pair import Pair
from helpers.arm64.saved import restore, save
from helpers.guest.expect import Mismatch
from helpers.its import Message
from helpers.its.model import Setting, translations
from helpers.its.registers import FIRST_LPI, GITS_TRANSLATER, ID_BITS, ITS_SIZE

DEVICES = {0: 5, 1: 1, 7: 8, 255: 5, 8191: 2}
"""{device ID: bits of its events} of each ITS."""

LPIS = range(FIRST_LPI, 1 << ID_BITS)

Event = tuple[int, int, int]
"""Number of the ITS, device ID, EventID."""


class Sequence:
    """A sequence. ``make(vcpus, itss, ready)`` returns a new machine; ``run()`` makes steps."""

    def __init__(self, seed: int, make: Callable[..., Machine], vcpus: int, itss: int) -> None:
        self.random = random.Random(seed)
        self.make = make
        self.sizes = {"vcpus": vcpus, "itss": itss}
        self.pair = Pair(make(**self.sizes))
        self.used: set[int] = set()
        for number in range(itss):
            for devid, bits in DEVICES.items():
                self.pair.mapd(number, devid, bits)

    def run(self, steps: int) -> None:
        """Make ``steps`` steps. Raises Mismatch."""
        weights = list(STEPS.values())
        for _ in range(steps):
            [step] = self.random.choices(list(STEPS), weights)
            try:
                step(self)
            except AssertionError as error:
                if not isinstance(error, Mismatch):
                    error.add_note(str(self.pair))
                raise
        self.pair.take()

    # --- drawing ----------------------------------------------------------------------------------

    def number(self) -> int:
        return self.random.randrange(self.sizes["itss"])

    def vcpu(self) -> int:
        return self.random.randrange(self.sizes["vcpus"])

    def mapped(self) -> Event | None:
        """Draw an event that is mapped."""
        events = [
            (number, devid, event)
            for number, its in enumerate(self.pair.model.itss)
            for devid, device in its.devices.items()
            for event in device.events
        ]
        return self.random.choice(events) if events else None

    def any_event(self) -> Event:
        """Draw an event, mapped or not, at the boundaries more often."""
        devid = self.random.choice([*DEVICES, 2, 8192, 0xFFFF, 0x10001, 0xFFFFFFFF])
        last = 1 << DEVICES.get(devid, 5)
        events = [0, 1, last - 1, last, self.random.randrange(last), 0x10000, 0xFFFFFFFF]
        return self.number(), devid, self.random.choice(events)

    def lpi_of(self, event: Event) -> int:
        number, devid, eventid = event
        found = self.pair.its(number).translate(devid, eventid)
        assert found
        return found.lpi

    # --- steps ------------------------------------------------------------------------------------

    def send_mapped(self) -> None:
        if event := self.mapped():
            self.send(event, self.pair.its(event[0]).address + GITS_TRANSLATER)

    def send_any(self) -> None:
        event = self.any_event()
        base = self.pair.its(event[0]).address
        offsets = [GITS_TRANSLATER, 0, GITS_TRANSLATER + 4, ITS_SIZE - 1, ITS_SIZE, -1, 1 << 32]
        self.send(event, base + self.random.choice(offsets))

    def send(self, event: Event, address: int) -> None:
        flags = self.random.choice([1] * 15 + [2, 3, 1 << 31])
        self.pair.signal(Message(event[1], event[2], address, flags))

    def map(self) -> None:
        number, devid, event = self.any_event()
        its = self.pair.its(number)
        if its.translate(devid, event) or not its.enabled:
            return
        lpi = self.random.choice([LPIS[0], LPIS[-1], *self.random.choices(LPIS, k=3)])
        if lpi not in self.used:
            self.used.add(lpi)
            self.pair.command("mapti", number, devid, event, lpi, self.random.randrange(10))

    def discard(self) -> None:
        event = self.mapped()
        if event and self.pair.its(event[0]).enabled:
            lpi = self.lpi_of(event)
            if lpi in self.pair.model.pending or self.pair.its(event[0]).target(*event[1:]) is None:
                return
            self.pair.command("discard", *event)
            self.used.discard(lpi)

    def move(self) -> None:
        event, collection = self.mapped(), self.random.randrange(10)
        if event and self.pair.its(event[0]).enabled:
            target = self.pair.its(event[0]).collections.get(collection)
            is_able = target is None or self.pair.model.vcpus[target].lpis_enabled
            if is_able or self.lpi_of(event) not in self.pair.model.pending:
                self.pair.command("movi", *event, collection)
                self.pair.compare()

    def retarget(self) -> None:
        """Map a collection without pending LPIs to another vCPU, whose LPIs are enabled.

        A message of a cached translation would reach the others: arm-mapc-to-lpis-disabled.
        """
        number, collection = self.number(), self.random.randrange(10)
        its = self.pair.its(number)
        members = [each.lpi for each in translations(its) if each.collection == collection]
        vcpu = self.vcpu()
        is_able = self.pair.model.vcpus[vcpu].lpis_enabled
        if its.enabled and is_able and not set(members) & self.pair.model.pending.keys():
            self.pair.command("mapc", number, collection, vcpu)

    def command(self) -> None:
        name = self.random.choice(["inv", "int_", "clear"])
        event = self.mapped() or self.any_event()
        if self.random.random() < 0.1:
            event = self.any_event()
        if self.pair.its(event[0]).enabled:
            self.pair.command(name, *event)
            self.pair.compare()

    def invalidate_all(self) -> None:
        number = self.number()
        if self.pair.its(number).enabled:
            self.pair.command("invall", number, self.random.randrange(10))

    def configure(self) -> None:
        if event := self.mapped():
            setting = Setting(self.random.random() < 0.7, self.random.choice([0x20, 0xA0, 0xF0]))
            self.pair.configure(self.lpi_of(event), setting)

    def toggle_its(self) -> None:
        number = self.number()
        self.pair.enable_its(number, not self.pair.its(number).enabled)

    def toggle_lpis(self) -> None:
        """Disable the LPIs of a vCPU that has none pending, or enable them.

        Take first: the vCPU would drop what was moved away (arm-lpis-disabled-drops-moved).
        """
        self.pair.take()
        vcpu = self.vcpu()
        enabled = self.pair.model.vcpus[vcpu].lpis_enabled
        if not enabled or vcpu not in self.pair.model.pending.values():
            self.pair.enable_lpis(vcpu, not enabled)

    def toggle_mask(self) -> None:
        vcpu = self.vcpu()
        masked = self.pair.model.vcpus[vcpu].masked
        if masked:
            self.pair.mask(vcpu, False)
            # The vCPU has taken what it could before the operation ended.
            self.pair.model.take_on(vcpu)
            self.pair.compare()
        else:
            self.pair.take()
            self.pair.mask(vcpu, True)

    def take(self) -> None:
        self.pair.take()

    def migrate(self) -> None:
        """Save the machine, and go on with a new one."""
        if not all(vcpu.lpis_enabled for vcpu in self.pair.model.vcpus):
            return
        # Old kernels leave entries of discarded events (arm-discard-leaves-entry).
        for its in self.pair.machine.itss:
            start, size = its.tables + layout.ITTS, its.end_of_tables - its.tables - layout.ITTS
            self.pair.machine.write(start, bytes(size))
        state = save(self.pair.machine)
        self.pair.machine.close()
        machine = self.make(**self.sizes, ready=False)
        restore(machine, state)
        self.pair.replace_machine(machine)
        self.pair.compare()


STEPS: dict[Callable[[Sequence], None], int] = {
    Sequence.send_mapped: 30,
    Sequence.send_any: 8,
    Sequence.map: 12,
    Sequence.discard: 3,
    Sequence.move: 6,
    Sequence.retarget: 3,
    Sequence.command: 10,
    Sequence.invalidate_all: 2,
    Sequence.configure: 5,
    Sequence.toggle_its: 2,
    Sequence.toggle_lpis: 3,
    Sequence.toggle_mask: 3,
    Sequence.take: 8,
    Sequence.migrate: 1,
}
"""Each step, and how often it is drawn."""
