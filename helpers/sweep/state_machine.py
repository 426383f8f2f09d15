# SPDX-License-Identifier: GPL-2.0-only
"""The state machine of made-up sequences: a machine, and every step that can be taken on it.

Hypothesis chooses the steps. Each message is held to the model, and each other step to the manuals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from errno import EINVAL
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register
from helpers.apic.effect import Effect
from helpers.apic.lapic import APIC_BASE_ENABLE, APIC_BASE_X2APIC, DFR_CLUSTER, x2apic_ldr
from helpers.apic.model import Model, Switches
from helpers.apic.topology import Irqchip, MpState, Topology
from helpers.guest import Cpu, Injection, Machine, Mismatch, expect, journal, msi_route
from helpers.guest.ledger import IA32_APIC_BASE
from helpers.kvm import KvmError, System, abi, errno_name
from helpers.sweep import draws
from helpers.sweep.draws import CONTENTS, NTH, REGISTER_WRITE, Contents

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

NMI_VECTOR = 2

# The APIC modes that a guest may switch to (Intel SDM vol. 3, "x2APIC State Transitions").
_SWITCHES = {
    ApicMode.DISABLED: (ApicMode.XAPIC,),
    ApicMode.XAPIC: (ApicMode.X2APIC, ApicMode.DISABLED),
    ApicMode.X2APIC: (ApicMode.DISABLED,),
}


@dataclass(slots=True)
class Campaign:
    """All sequences of one test: the kernel under test, and the work so far."""

    system: System
    switches: Switches
    vector_hashing: bool  # the parameter of kvm.ko
    steps: int = 0  # number of steps taken
    messages: int = 0  # number of messages sent


@dataclass(slots=True)
class HiddenState:
    """State of the vCPUs that no ioctl shows, by index.

    ``in_probe``: vCPUs at the probe's idle loop. ``unhalted``: vCPUs that delivery mode 3 has
    un-halted; when KVM forgets the un-halt depends on the kernel. ``overlooked``: vCPUs whose LAPIC
    was enabled again, and that got no event since that makes KVM look for pending interrupts.
    ``chosen``: VcpuState.arb_prio.
    """

    in_probe: set[int] = field(default_factory=set)
    unhalted: set[int] = field(default_factory=set)
    overlooked: set[int] = field(default_factory=set)
    chosen: Counter[int] = field(default_factory=Counter)


_WITH_VCPUS = precondition(lambda sequence: sequence.machine.cpus)


class AnySequence(RuleBasedStateMachine):
    """One sequence: a machine, and the steps taken on it.

    The names of the rules matter: Hypothesis sorts the rules by number of arguments and name, and
    shrinks a failing sequence toward the first. A seed draws the same steps only while the rules
    and their arguments keep their names.
    """

    machine: Machine

    def __init__(self, campaign: Campaign) -> None:
        super().__init__()
        # The report shows the messages of the last sequence, which is the smallest.
        journal.clear()
        self.campaign = campaign
        campaign.steps -= 1  # check_invariants() runs once before the first step.
        self.hidden = HiddenState()

    def teardown(self) -> None:
        if hasattr(self, "machine"):  # False if the sequence ended before start().
            self.machine.close()

    def _nth(self, nth: int, of: Sequence[Cpu] = ()) -> Cpu:
        cpus = of or self.machine.cpus
        return cpus[nth % len(cpus)]

    def _in_probe(self) -> list[Cpu]:
        return [cpu for cpu in self.machine.cpus if cpu.index in self.hidden.in_probe]

    def _with_registers(self) -> list[Cpu]:
        return [cpu for cpu in self._in_probe() if cpu.apic_mode is not ApicMode.DISABLED]

    def check_invariants(self, *arguments: Any) -> None:
        """Count a step. Hypothesis calls this method before the first and after every step."""
        self.campaign.steps += 1
        super().check_invariants(*arguments)

    # --- the VM -----------------------------------------------------------------------------------

    @initialize(
        irqchip=draws.IRQCHIP,
        x2apic_api=draws.FIRST_X2APIC_API,
        ids=draws.FIRST_VCPU_IDS,
        apic_mode=draws.ENABLED_MODE,
    )
    def start(self, irqchip: Irqchip, x2apic_api: int, ids: list[int], apic_mode: ApicMode) -> None:
        system = self.campaign.system
        chosen = irqchip if irqchip == "split" else None
        self.machine = Machine(system, irqchip=chosen, vcpu_ids=(), x2apic_api=x2apic_api)
        for vcpu_id in ids:
            self._add(vcpu_id)
            self._power_on(self.machine.cpus[-1], apic_mode)

    def _add(self, vcpu_id: int) -> None:
        # The CPUID of a fresh vCPU has no x2APIC: a switch to x2APIC mode would fail.
        self.machine.add_cpu(vcpu_id).set_cpuid()

    def _power_on(self, cpu: Cpu, apic_mode: ApicMode) -> None:
        cpu.vcpu.finish_exit()
        cpu.power_on(apic_mode)
        self.hidden.in_probe.add(cpu.index)
        self.hidden.chosen[cpu.index] = 0

    @precondition(lambda self: len(self.machine.cpus) < draws.MOST_VCPUS)
    @rule(vcpu_id=draws.VCPU_ID)
    def hotplug(self, vcpu_id: int) -> None:
        """Create a vCPU, and leave the vCPU as KVM_CREATE_VCPU makes it."""
        if all(cpu.vcpu.vcpu_id != vcpu_id for cpu in self.machine.cpus):
            self._add(vcpu_id)

    @_WITH_VCPUS
    @rule(x2apic_api=draws.X2APIC_API, nth=NTH, contents=CONTENTS)
    def turn_on_features(self, x2apic_api: int, nth: int, contents: Contents) -> None:
        """Enable KVM_CAP_X2APIC_API late, and send messages before KVM rebuilds its LAPIC map."""
        if not self.campaign.switches.x2apics_keep_their_ids:
            # Such a kernel, with 32-bit IDs, fails to read an x2APIC whose ID is not the vCPU ID.
            # The switch to x2APIC mode restores the ID.
            for cpu in self.machine.cpus:
                if cpu.apic_mode is ApicMode.X2APIC:
                    cpu.apic_mode = ApicMode.DISABLED
                    cpu.apic_mode = ApicMode.X2APIC
        self.machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
        self._send(contents, DestinationMode.PHYSICAL, self._nth(nth).vcpu.vcpu_id)

    @rule(vectors=st.lists(st.integers(16, 255), max_size=2))
    def reroute(self, vectors: list[int]) -> None:
        """Replace the GSI routes. No message depends on them (api.rst, KVM_SIGNAL_MSI)."""
        before = self.machine.snapshots()
        messages = [Message(vector=vector) for vector in vectors]
        routes = [msi_route(gsi, message) for gsi, message in enumerate(messages, start=24)]
        self.machine.vm.set_gsi_routing(routes)
        expect("vCPUs changed", self.machine.snapshots() == before, True)

    # --- what the host does to a vCPU -------------------------------------------------------------

    @_WITH_VCPUS
    @rule(nth=NTH, apic_mode=draws.ENABLED_MODE)
    def reset_vcpu(self, nth: int, apic_mode: ApicMode) -> None:
        """Write the whole state of a vCPU, as a host does to reset the vCPU."""
        self._power_on(self._nth(nth), apic_mode)

    @_WITH_VCPUS
    @rule(nth=NTH, apic_mode=st.sampled_from(ApicMode))
    def host_switches_mode(self, nth: int, apic_mode: ApicMode) -> None:
        """Switch the APIC mode by KVM_SET_SREGS, also as no guest may."""
        cpu = self._nth(nth)
        is_forced = cpu.apic_mode is ApicMode.X2APIC and apic_mode is ApicMode.XAPIC
        old = cpu.apic_mode
        cpu.apic_mode = apic_mode
        if is_forced and not self.campaign.switches.x2apics_keep_their_ids:
            # Such a kernel leaves the xAPIC ID and the LAPIC map as they were (052c3b99cbc8).
            cpu.configure(id=cpu.vcpu.vcpu_id & 0xFF)
            self.hidden.chosen[cpu.index] = 0
        self._expect_switch(cpu, old, apic_mode)

    def _expect_switch(self, cpu: Cpu, old: ApicMode, new: ApicMode) -> None:
        expect("APIC mode", cpu.apic_mode.name, new.name)
        if new is old:
            return
        page = cpu.lapic
        if new is ApicMode.XAPIC:
            expect("xAPIC ID", page.xapic_id, cpu.vcpu.vcpu_id & 0xFF)
        if new is ApicMode.X2APIC:
            expect("x2APIC LDR", page[Register.LDR], x2apic_ldr(cpu.vcpu.vcpu_id))
        if old is ApicMode.DISABLED:
            self.hidden.overlooked.add(cpu.index)

    @_WITH_VCPUS
    @rule(nth=NTH, write=REGISTER_WRITE)
    def host_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """Write a register by KVM_SET_LAPIC."""
        cpu = self._nth(nth)
        register, value = write
        is_x2apic = cpu.apic_mode is ApicMode.X2APIC
        page = cpu.lapic
        page[register] = value
        try:
            cpu.lapic = page
        except KvmError as error:
            # Undocumented: with 32-bit IDs, KVM refuses an x2APIC ID that is not the vCPU ID.
            has_32bit_ids = self.machine.setting().topology(()).has_32bit_ids
            refused = is_x2apic and has_32bit_ids and page[Register.ID] != cpu.vcpu.vcpu_id
            expect("KVM_SET_LAPIC", error.name, errno_name(EINVAL) if refused else "accepted")
            return
        self.hidden.chosen[cpu.index] = 0
        if is_x2apic and register in (Register.ID, Register.LDR):
            if not self.campaign.switches.x2apics_keep_their_ids:
                return
            register, value = Register.LDR, x2apic_ldr(cpu.vcpu.vcpu_id)
        expect(f"{register.name} after KVM_SET_LAPIC", cpu.lapic[register], value, hex)

    @_WITH_VCPUS
    @rule(nth=NTH, state=draws.MP_STATE)
    def host_sets_mp_state(self, nth: int, state: MpState) -> None:
        """Write the mp_state by KVM_SET_MP_STATE."""
        cpu = self._nth(nth)
        if state is MpState.INIT_RECEIVED and cpu.snapshot().smi_pending:
            return  # Some kernels refuse INIT_RECEIVED while an SMI is pending.
        cpu.mp_state = state
        if cpu.index not in self.hidden.unhalted:
            expect("mp_state", MpState(cpu.mp_state).name, state.name)

    # --- what the guest does ----------------------------------------------------------------------

    @precondition(lambda self: self._in_probe())
    @rule(nth=NTH)
    def enter(self, nth: int) -> None:
        """Enter the guest, which takes all pending events."""
        self._take(self._nth(nth, self._in_probe()))

    def _take(self, cpu: Cpu) -> None:
        """Run a vCPU until no event is pending, and compare the events with those before."""
        before = cpu.snapshot()
        lapic = before.lapic
        pending = set() if cpu.apic_mode is ApicMode.DISABLED else {v for v in lapic.irr if v >= 16}
        wakes = bool(pending or before.nmi_pending or before.smi_pending)
        runs = before.mp_state == MpState.RUNNABLE or (before.mp_state == MpState.HALTED and wakes)
        if not runs or cpu.index in self.hidden.overlooked:
            cpu.mp_state = MpState.RUNNABLE
        self.hidden.overlooked.discard(cpu.index)
        smis = self.machine.smis_handled
        vectors = [taken.vector for taken in cpu.take()]
        nmis = before.nmi_pending
        if not self.campaign.switches.nmis_are_counted and vectors[:2] == [NMI_VECTOR] * 2 and nmis:
            nmis = 2  # KVM_GET_VCPU_EVENTS shows one.
        expect("SMIs handled", self.machine.smis_handled - smis, before.smi_pending)
        expect("NMIs taken", vectors.count(NMI_VECTOR), nmis)
        expect("the NMI taken first", NMI_VECTOR in vectors[:1], bool(nmis))
        interrupts = [vector for vector in vectors if vector != NMI_VECTOR]
        expect("vectors taken", _hex(interrupts), _hex(sorted(pending, reverse=True)))
        after = cpu.snapshot()
        expect("IRR after running", after.lapic.irr, lapic.irr - pending)
        expect("ISR after running", after.lapic.isr, frozenset())
        expect("NMI and SMI pending", (after.nmi_pending, after.smi_pending), (0, 0))
        expect("mp_state", MpState(after.mp_state).name, MpState.RUNNABLE.name)

    @precondition(lambda self: self._in_probe())
    @rule(nth=NTH, which=st.integers(0, 1))
    def guest_switches_mode(self, nth: int, which: int) -> None:
        """Switch the APIC mode by WRMSR of IA32_APIC_BASE."""
        cpu = self._nth(nth, self._in_probe())
        self._take(cpu)
        old = cpu.apic_mode
        new = _SWITCHES[old][which % len(_SWITCHES[old])]
        base = cpu.vcpu.get_sregs().apic_base & ~(APIC_BASE_ENABLE | APIC_BASE_X2APIC)
        cpu.wrmsr(IA32_APIC_BASE, base | new.value)
        self._expect_switch(cpu, old, new)

    @precondition(lambda self: self._with_registers())
    @rule(nth=NTH, write=REGISTER_WRITE)
    def guest_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """Write a register by MMIO, or by WRMSR in x2APIC mode, where only the SVR is writable."""
        cpu = self._nth(nth, self._with_registers())
        register, value = write
        if cpu.apic_mode is ApicMode.X2APIC and register is not Register.SVR:
            return
        self._take(cpu)
        cpu.write(register, value)
        kept = {Register.DFR: value | DFR_CLUSTER, Register.SVR: value}
        written = kept.get(register, value & 0xFF000000)  # ID and LDR have bits 31:24 only.
        expect(f"{register.name} after the guest's write", cpu.lapic[register], written, hex)

    # --- messages ---------------------------------------------------------------------------------

    @_WITH_VCPUS
    @rule(nth=NTH, contents=CONTENTS)
    def send_to_one(self, nth: int, contents: Contents) -> None:
        """Send to the physical ID of a vCPU."""
        cpu = self._nth(nth)
        own = cpu.vcpu.vcpu_id if cpu.apic_mode is ApicMode.X2APIC else cpu.lapic.xapic_id
        self._send(contents, DestinationMode.PHYSICAL, own)

    @_WITH_VCPUS
    @rule(nths=st.lists(NTH, min_size=1, max_size=3), contents=CONTENTS)
    def send_to_some(self, nths: list[int], contents: Contents) -> None:
        """Send to the logical IDs of some vCPUs, or-ed together, whatever their clusters."""
        destination = 0
        for cpu in map(self._nth, nths):
            ldr = cpu.lapic[Register.LDR]
            destination |= ldr if cpu.apic_mode is ApicMode.X2APIC else ldr >> 24
        self._send(contents, DestinationMode.LOGICAL, destination)

    @rule(
        destination_mode=st.sampled_from(DestinationMode),
        destination=draws.DESTINATION,
        contents=CONTENTS,
    )
    def send(self, destination_mode: DestinationMode, destination: int, contents: Contents) -> None:
        """Send to any number."""
        self._send(contents, destination_mode, destination)

    def _send(
        self, contents: Contents, destination_mode: DestinationMode, destination: int
    ) -> None:
        """Send each of the drawn contents, and compare with the model."""
        for content in contents:
            message, entry = draws.message_of(content, destination, destination_mode)
            injection = self.machine.signal(message, **entry)
            self.campaign.messages += 1
            model = Model(self._topology(injection), self.campaign.switches)
            outcome = model.predict(message, **entry)
            try:
                injection.answers(outcome)
            except Mismatch as found:
                fields = [f"{name}={value!r}" for name, value in entry.items()]
                sent = " ".join([str(message), *fields, f"to {model.topology}"])
                raise Mismatch(found.subject, found.expected, found.actual, sent) from None
            if outcome.result >= 0:
                self._learn(model, message, injection.effects())

    def _topology(self, injection: Injection) -> Topology:
        """Return the topology before a message."""
        hashing, chosen = self.campaign.vector_hashing, self.hidden.chosen
        topology = injection.setting.topology(injection.before, hashing, self.machine.has_smm)
        if hashing:
            return topology
        vcpus = (replace(vcpu, arb_prio=chosen[i]) for i, vcpu in enumerate(topology.vcpus))
        return replace(topology, vcpus=tuple(vcpus))

    def _learn(self, model: Model, message: Message, effects: Sequence[Effect]) -> None:
        """Update the hidden state after a message that was no error."""
        route = model.route(message)
        if route.delivery_mode is DeliveryMode.LOWEST_PRIORITY:
            self.hidden.chosen.update(model.choose(route, message.vector))
        for index, effect in enumerate(effects):
            if effect.init:
                self.hidden.chosen[index] = 0
            if effect.init or (effect and message.delivery_mode is DeliveryMode.SIPI):
                self.hidden.in_probe.discard(index)
        if message.delivery_mode is DeliveryMode.REMRD:
            self.hidden.unhalted |= set(model.choose(route, message.vector))


def _hex(vectors: Sequence[int]) -> str:
    return " ".join(f"{vector:#04x}" for vector in vectors) or "none"
