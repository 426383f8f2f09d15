# SPDX-License-Identifier: GPL-2.0-only
"""Steps of generated sequences: GSI routes, and the pins of the IOAPIC in the kernel."""

from __future__ import annotations

from dataclasses import replace

from hypothesis.stateful import precondition

from helpers.apic import Message, TriggerMode
from helpers.apic.host import deliverable
from helpers.apic.ioapic import MASKED, NO_MESSAGE, PINS, entry_of
from helpers.apic.lapic import bits
from helpers.apic.model import Model
from helpers.apic.topology import Topology
from helpers.guest import Snapshot, expect, irqchip_route, msi_route
from helpers.kvm import abi
from helpers.sweep import draws
from helpers.sweep.draws import CONTENT, NTH, Contents, Routed
from helpers.sweep.host_steps import HostSteps
from helpers.sweep.sequence import WITH_VCPUS, step

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

_UNROUTED = 30  # a GSI that no step routes


class IrqchipSteps(HostSteps):
    """Change routes and pins, and raise and lower lines, beside messages."""

    @WITH_VCPUS
    @step(routes=draws.ROUTES, nth=NTH, contents=CONTENT)
    def reroute(self, routes: list[tuple[int, int, Routed]], nth: int, contents: Contents) -> None:
        """Replace the GSI routes, which no message depends on (api.rst, KVM_SIGNAL_MSI).

        A drawn route of a pin of the IOAPIC in the kernel leaves the pin without a route.
        """
        before = self.look()
        drawn = {gsi: self._message(number, routed) for gsi, number, routed in routes}
        pins = range(PINS) if self.ioapic else ()
        self.routes = {gsi: None for gsi in pins if gsi not in drawn}
        self.routes |= {gsi: message for gsi, message in drawn.items() if gsi not in pins}
        entries = [
            msi_route(gsi, message) if message else irqchip_route(gsi, abi.KVM_IRQCHIP_IOAPIC, gsi)
            for gsi, message in self.routes.items()
        ]
        self.machine.vm.set_gsi_routing(entries)
        if self.ioapic is None:
            self.scan_is_due()
        self.expect_changes("KVM_SET_GSI_ROUTING", before, {})
        self.send_to(self.nth(nth), contents)

    def _message(self, nth: int, routed: Routed) -> Message:
        """Return a message to a vCPU that exists now."""
        message = Message(vector=routed[0], **routed[1])
        destination = self.id_of(self.nth(nth), message.destination_mode)
        return replace(message, destination=destination)

    def scan_is_due(self) -> None:
        """Note that KVM has requested a scan of routes and pins for all vCPUs."""
        for eois in self.hidden.eois:
            eois.is_due = True

    def level_routes(self) -> list[Message]:
        """Return the level-triggered messages of the pins, in the kernel or in user space."""
        if self.ioapic:
            return self.ioapic.level_routes()
        pins = [self.routes[gsi] for gsi in sorted(self.routes) if gsi < PINS]
        return [pin for pin in pins if pin and pin.trigger_mode is TriggerMode.LEVEL]

    @WITH_VCPUS
    @step(nth=NTH, level=draws.LEVEL, by_irqfd=draws.BY_IRQFD, enters=draws.ENTERS)
    def set_line(self, nth: int, level: int, by_irqfd: bool, enters: bool) -> None:
        """Raise or lower the line of a GSI by KVM_IRQ_LINE_STATUS, or raise it by an irqfd.

        Then enter a vCPU that takes a vector.
        """
        gsis = self._sending()
        self._move_line(gsis[nth % len(gsis)], level, by_irqfd)
        if enters:
            self._enter()

    def _sending(self) -> list[int]:
        """Return the GSIs that send a message, and one without a route."""
        entries = self.ioapic.entries if self.ioapic else []
        pins = [pin for pin, entry in enumerate(entries) if entry != MASKED]
        return [*pins, *(gsi for gsi, message in self.routes.items() if message), _UNROUTED]

    def _enter(self) -> None:
        """Enter the first vCPU that takes a vector."""
        states = self.topology(self.look()).vcpus
        for cpu in self.in_probe():
            if deliverable(states[cpu.index]):
                self.run_guest(cpu)
                return

    def _move_line(self, gsi: int, level: int, by_irqfd: bool) -> None:
        before = self.look()
        topology = self.topology(before)
        if by_irqfd:
            self.machine.raise_irqfd(gsi)
            for each in (1, 0):
                _, topology = self._predict_line(topology, gsi, each)
        else:
            status = self.machine.vm.irq_line_status(gsi, level)
            predicted, topology = self._predict_line(topology, gsi, level)
            expect(f"status of GSI {gsi}", status, predicted)
        self._expect_sent(f"line {level} of GSI {gsi}", before, topology)

    def _predict_line(self, topology: Topology, gsi: int, level: int) -> tuple[int, Topology]:
        """Return the status of KVM_IRQ_LINE_STATUS, and the machine afterwards."""
        if gsi not in self.routes:
            return NO_MESSAGE, topology
        if (message := self.routes[gsi]) is None:
            assert self.ioapic
            self.ioapic.topology = topology
            status = self.ioapic.set_line(gsi, level)
            return max(status, NO_MESSAGE), self.ioapic.topology
        if not level:
            return NO_MESSAGE, topology
        model = Model(topology, self.switches)
        outcome = model.predict(message)
        if outcome.result >= 0:
            self.learn(model, message, outcome.effects)
        self.campaign.messages += 1
        return outcome.result, outcome.on(topology)

    def _expect_sent(self, what: str, before: list[Snapshot], topology: Topology) -> None:
        """Raise Mismatch unless vCPUs and IOAPIC are as the model says."""
        self.learn_sent()
        changes = dict(enumerate(topology.vcpus))
        self.expect_changes(what, before, changes)
        self.expect_ioapic(what)

    def learn_sent(self) -> None:
        """Update the hidden state after the messages of the pins."""
        if self.ioapic:
            for model, message, outcome in self.ioapic.sent:
                self.campaign.messages += 1
                if outcome.result >= 0:
                    self.learn(model, message, outcome.effects)
            self.ioapic.sent.clear()

    def expect_ioapic(self, what: str) -> None:
        """Raise Mismatch unless KVM_GET_IRQCHIP returns what the model says."""
        if self.ioapic is None:
            return
        state = self.machine.vm.get_ioapic().chip.ioapic
        expect(f"IRR of the IOAPIC after {what}", state.irr, self.ioapic.shown_irr, hex)
        for pin, (entry, wanted) in enumerate(
            zip(state.redirtbl, self.ioapic.entries, strict=True)
        ):
            expect(f"redirection entry {pin} after {what}", entry, wanted, hex)

    @precondition(lambda self: self.ioapic and self.machine.cpus)
    @step(
        pin=draws.PIN,
        nth=NTH,
        routed=draws.ROUTED,
        flags=draws.ENTRY_FLAGS,
        level=draws.LEVEL,
        contents=CONTENT,
    )
    def program_pin(
        self, pin: int, nth: int, routed: Routed, flags: int, level: int, contents: Contents
    ) -> None:
        """Write a redirection entry by KVM_SET_IRQCHIP, set the pin's line, and send a message."""
        assert self.ioapic
        before = self.look()
        irqchip = self.machine.vm.get_ioapic()
        state = irqchip.chip.ioapic
        state.redirtbl[pin] = flags | entry_of(self._message(nth, routed))
        self.machine.vm.set_ioapic(irqchip)
        self.ioapic.topology = self.topology(before)
        self.ioapic.load(state.redirtbl, state.irr)
        self.scan_is_due()
        self._expect_sent("KVM_SET_IRQCHIP", before, self.ioapic.topology)
        self._move_line(pin, level, by_irqfd=False)
        self.send_to(self.nth(nth), contents)

    def lower_lines(self) -> None:
        """Lower all lines of level-triggered pins, so that a guest takes each interrupt once."""
        if self.ioapic is None or not self.ioapic.irr:
            return
        for pin in bits(self.ioapic.irr):
            if self.routes.get(pin, NO_MESSAGE) is None:
                self.machine.vm.irq_line_status(pin, 0)
                self.ioapic.set_line(pin, 0)
        if self.ioapic.shown_irr:
            irqchip = self.machine.vm.get_ioapic()
            irqchip.chip.ioapic.irr = 0
            self.machine.vm.set_ioapic(irqchip)
            self.ioapic.load(irqchip.chip.ioapic.redirtbl, 0)
            self.scan_is_due()
        self.expect_ioapic("lowering the lines")
