# SPDX-License-Identifier: GPL-2.0-only
"""Steps of generated sequences: messages, each compared with the model."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register
from helpers.apic.effect import Effect
from helpers.apic.model import Model
from helpers.guest import Cpu, Mismatch
from helpers.sweep import draws
from helpers.sweep.draws import CONTENTS, NTH, Contents
from helpers.sweep.sequence import WITH_VCPUS, AnyMachine, step

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.


class MessageSteps(AnyMachine):
    """Messages to one vCPU, to several vCPUs, and to arbitrary destinations."""

    @WITH_VCPUS
    @step(nth=NTH, contents=CONTENTS)
    def send_to_one(self, nth: int, contents: Contents) -> None:
        """Send to the physical ID of a vCPU."""
        self.send_to(self.nth(nth), contents)

    @WITH_VCPUS
    @step(nths=st.lists(NTH, min_size=1, max_size=3), contents=CONTENTS)
    def send_to_some(self, nths: list[int], contents: Contents) -> None:
        """Send to the logical IDs of some vCPUs, or-ed together, whatever their clusters."""
        destination = 0
        for cpu in map(self.nth, nths):
            destination |= self.id_of(cpu, DestinationMode.LOGICAL)
        self.send_all(contents, DestinationMode.LOGICAL, destination)

    @step(
        destination_mode=st.sampled_from(DestinationMode),
        destination=draws.DESTINATION,
        contents=CONTENTS,
    )
    def send(self, destination_mode: DestinationMode, destination: int, contents: Contents) -> None:
        """Send to an arbitrary destination."""
        self.send_all(contents, destination_mode, destination)

    def id_of(self, cpu: Cpu, destination_mode: DestinationMode) -> int:
        """Return the physical or logical ID of a vCPU."""
        is_x2apic, page = cpu.apic_mode is ApicMode.X2APIC, self.look()[cpu.index].lapic
        if destination_mode is DestinationMode.LOGICAL:
            return page[Register.LDR] if is_x2apic else page[Register.LDR] >> 24
        return cpu.vcpu.vcpu_id if is_x2apic else page.xapic_id

    def send_to(self, cpu: Cpu, contents: Contents) -> None:
        """Send each of the drawn contents to the physical ID of a vCPU."""
        own = self.id_of(cpu, DestinationMode.PHYSICAL)
        self.send_all(contents, DestinationMode.PHYSICAL, own)

    def send_all(
        self, contents: Contents, destination_mode: DestinationMode, destination: int
    ) -> None:
        """Send each of the drawn contents, and compare with the model."""
        for content in contents:
            message, entry = draws.message_of(content, destination, destination_mode)
            injection = self.machine.signal(message, **entry)
            self.campaign.messages += 1
            model = Model(self.topology(injection.before, injection.setting), self.switches)
            outcome = model.predict(message, **entry)
            try:
                injection.answers(outcome)
            except Mismatch as found:
                fields = [f"{name}={value!r}" for name, value in entry.items()]
                sent = " ".join([str(message), *fields, f"to {model.topology}"])
                raise Mismatch(found.subject, found.expected, found.actual, sent) from None
            if outcome.result >= 0:
                self.learn(model, message, outcome.effects)
            self.settle(injection.after)

    def learn(self, model: Model, message: Message, effects: Sequence[Effect]) -> None:
        """Update the hidden state after a message that was no error."""
        route = model.route(message)
        if route.delivery_mode is DeliveryMode.LOWEST_PRIORITY:
            self.hidden.chosen.update(model.choose(route, message.vector))
        for index, effect in enumerate(effects):
            if effect and message.delivery_mode is DeliveryMode.SIPI:
                self.hidden.in_probe.discard(index)
                self.hidden.at_reset.discard(index)
        if message.delivery_mode is DeliveryMode.REMRD:
            self.hidden.unhalted |= set(model.choose(route, message.vector))
