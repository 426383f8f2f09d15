# SPDX-License-Identifier: GPL-2.0-only
"""The model of the IOAPIC in the kernel, and of the EOIs that reach an IOAPIC.

A pin sends the message of its redirection entry (Intel 82093AA, "I/O Redirection Table Registers").
The functions follow arch/x86/kvm/ioapic.c; helpers/apic/model.py predicts each message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from helpers.apic.host import deliverable
from helpers.apic.lapic import bits
from helpers.apic.message import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.model import REFERENCE, Model, Outcome, Switches
from helpers.apic.topology import Topology, VcpuState

PINS = 24
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
MASKED = 1 << 16
NO_MESSAGE = -1


def message_of(entry: int) -> Message:
    """Return the message that a pin with this redirection entry sends."""
    return Message(
        vector=entry & 0xFF,
        delivery_mode=DeliveryMode(entry >> 8 & 7),
        destination=entry >> 56,
        destination_mode=DestinationMode(entry >> 11 & 1),
        trigger_mode=TriggerMode(entry >> 15 & 1),
    )


def entry_of(message: Message) -> int:
    """Return the redirection entry of a pin that sends this message, unmasked."""
    entry = message.vector | message.delivery_mode << 8 | message.destination_mode << 11
    return entry | message.trigger_mode << 15 | (message.destination & 0xFF) << 56


class Ioapic:
    """The redirection entries and lines of one IOAPIC, and the vCPUs that the pins send to.

    ``entries`` are the redirection entries, ``irr`` the pins whose line is high, both by pin.
    ``sent`` has each message sent so far, with the model before it and the outcome.
    """

    def __init__(self, switches: Switches = REFERENCE) -> None:
        self.entries = [MASKED] * PINS
        self.irr = 0
        self.topology = Topology()
        self.sent: list[tuple[Model, Message, Outcome]] = []
        self._switches = switches
        self._delivered = 0  # edge-triggered pins of ``irr`` whose message is sent

    @property
    def shown_irr(self) -> int:
        """The IRR that KVM_GET_IRQCHIP returns."""
        return self.irr & ~self._delivered

    def load(self, entries: Iterable[int], irr: int) -> None:
        """Do as KVM_SET_IRQCHIP: load the entries, and raise the lines in ``irr``."""
        self.entries = list(entries)
        self.irr = self._delivered = 0
        for pin in bits(irr):
            self.set_line(pin, 1)

    def set_line(self, pin: int, level: int) -> int:
        """Do as ``ioapic_set_irq()``; return the status of KVM_IRQ_LINE_STATUS."""
        bit, old = 1 << pin, self.irr
        if not level:
            self.irr &= ~bit
            return 1
        self.irr |= bit
        if not self.entries[pin] & LEVEL:
            self._delivered &= ~bit
            if self.irr == old:
                return 0
        return self._service(pin)

    def _service(self, pin: int) -> int:
        """Do as ``ioapic_service()``: send the message of a pin, unless masked or not yet EOIed."""
        entry = self.entries[pin]
        is_level = bool(entry & LEVEL)
        if entry & MASKED or (is_level and entry & REMOTE_IRR):
            return NO_MESSAGE
        if not is_level:
            self._delivered |= 1 << pin
        message = message_of(entry)
        model = Model(self.topology, self._switches)
        outcome = model.predict(message)
        self.sent.append((model, message, outcome))
        self.topology = outcome.on(self.topology)
        if outcome.result and is_level:
            self.entries[pin] |= REMOTE_IRR
        return outcome.result

    def end_of_interrupt(self, vector: int, index: int) -> None:
        """Do as ``kvm_ioapic_update_eoi()`` after an EOI of ``vector`` by vCPU ``index``."""
        vcpu = self.topology.vcpus[index]
        if vector not in vcpu.tmr or vcpu.eoi_suppressed:
            return
        for pin, entry in enumerate(self.entries):
            if entry & 0xFF == vector:
                self.entries[pin] &= ~REMOTE_IRR
                if not entry & MASKED and self.irr >> pin & 1:
                    self._service(pin)

    def level_routes(self) -> list[Message]:
        """Return the messages of the level-triggered pins."""
        return [message_of(entry) for entry in self.entries if entry & LEVEL]


@dataclass(slots=True)
class EoiFilter:
    """The vectors whose EOI on one vCPU reaches an IOAPIC: ``ioapic_handled_vectors``.

    KVM scans the level-triggered pins or routes when the vCPU is entered, if they or the map of
    LAPICs have changed (``is_due``). ``stale`` is the highest vector whose route has moved away
    while the vector was pending; -1 for none.
    """

    vectors: frozenset[int] = frozenset()
    stale: int = -1
    is_due: bool = False

    def scan(self, vcpu: VcpuState, routes: Iterable[Message], model: Model, moved: bool) -> None:
        """Do as ``vcpu_scan_ioapic()``. ``moved``: pending vectors of moved routes count."""
        self.is_due = False
        if not vcpu.hardware_enabled:
            return
        self.stale = -1
        found = set()
        for route in routes:
            if model.is_addressed(vcpu, route):
                found.add(route.vector)
            elif moved and route.vector in vcpu.irr | vcpu.isr:
                found.add(route.vector)
                self.stale = max(self.stale, route.vector)
        self.vectors = frozenset(found)


class Entry:
    """An entry of a vCPU: what the vCPU takes, until no vector is deliverable.

    ``vectors`` in the order of taking, ``exits`` the vectors of KVM_EXIT_IOAPIC_EOI, ``topology``
    the state afterwards. ``routes`` are the level-triggered routes to pins. ``ioapic`` is None in a
    split irqchip. Lines of level-triggered pins must be low: a high line would send for ever. With
    ``is_overlooked`` the vCPU takes nothing: KVM does not look for pending vectors.
    """

    def __init__(
        self,
        topology: Topology,
        index: int,
        eois: EoiFilter,
        routes: Iterable[Message],
        ioapic: Ioapic | None,
        switches: Switches = REFERENCE,
        is_overlooked: bool = False,
    ) -> None:
        self.topology, self._index, self._ioapic = topology, index, ioapic
        self.vectors: list[int] = []
        self.exits: list[int] = []
        model = Model(topology, switches)
        moved = ioapic is not None or switches.moved_routes_exit
        while True:
            if eois.is_due:
                eois.scan(self.vcpu, routes, model, moved)
            if is_overlooked or not (vectors := deliverable(self.vcpu)):
                return
            vector = vectors[0]
            self.vectors.append(vector)
            taking = replace(self.vcpu, irr=self.vcpu.irr - {vector})
            self.topology = self.topology.with_vcpu(index, taking)
            if vector in eois.vectors:
                if vector == eois.stale and switches.stale_eois_exit_once:
                    eois.is_due = True
                self._end_of_interrupt(vector)

    @property
    def vcpu(self) -> VcpuState:
        return self.topology.vcpus[self._index]

    def _end_of_interrupt(self, vector: int) -> None:
        if self._ioapic is None:
            self.exits.append(vector)
            return
        self._ioapic.topology = self.topology
        self._ioapic.end_of_interrupt(vector, self._index)
        self.topology = self._ioapic.topology
