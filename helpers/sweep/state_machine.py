# SPDX-License-Identifier: GPL-2.0-only
"""The state machine of generated sequences, with the steps of the guest.

Hypothesis chooses the steps. Each message is held to the model, and so is the state of every vCPU
after each other step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from helpers.apic import ApicMode, LapicPage, Register
from helpers.apic.host import after_register, deliverable
from helpers.apic.ioapic import Entry
from helpers.apic.lapic import (
    APIC_BASE_ENABLE,
    APIC_BASE_X2APIC,
    DFR_CLUSTER,
    LVT_MASKED,
    SVR_SUPPRESS_EOI,
    VERSION_SUPPRESSES_EOI,
)
from helpers.apic.topology import MpState, Topology, VcpuState
from helpers.guest import Cpu, Snapshot, expect
from helpers.guest.ledger import IA32_APIC_BASE
from helpers.sweep.draws import NTH, REGISTER_WRITE
from helpers.sweep.irqchip_steps import IrqchipSteps
from helpers.sweep.sequence import step

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

NMI_VECTOR = 2

Write = Callable[[VcpuState], VcpuState]
"""Prepare a write of the guest; return the state of the vCPU after the write."""

# The APIC modes that a guest may switch to (Intel SDM vol. 3, "x2APIC State Transitions").
_SWITCHES = {
    ApicMode.DISABLED: (ApicMode.XAPIC,),
    ApicMode.XAPIC: (ApicMode.X2APIC, ApicMode.DISABLED),
    ApicMode.X2APIC: (ApicMode.DISABLED,),
}

_LVT = (
    *(Register.LVT_TIMER, Register.LVT_THERMAL, Register.LVT_PERFORMANCE),
    *(Register.LVT_LINT0, Register.LVT_LINT1, Register.LVT_ERROR),
)


class AnySequence(IrqchipSteps):
    """One sequence: a machine, and the steps taken on it."""

    def _with_registers(self) -> list[Cpu]:
        return [cpu for cpu in self.in_probe() if cpu.apic_mode is not ApicMode.DISABLED]

    @precondition(lambda self: self.in_probe())
    @step(nth=NTH)
    def enter(self, nth: int) -> None:
        """Enter the guest, which takes all pending events."""
        self._take(self.nth(nth, self.in_probe()))

    def run_guest(self, cpu: Cpu) -> None:
        self._take(cpu)

    def _take(self, cpu: Cpu, write: Write | None = None, what: str = "running") -> None:
        """Do as :meth:`run_guest`. ``write``: what the guest first writes."""
        self.lower_lines()
        before = self.look()
        vcpu = self.topology(before).vcpus[cpu.index]
        self._wake(cpu, vcpu)
        if write:
            vcpu = write(vcpu)
        smis = self.machine.smis_handled
        records, exits = cpu.take_with_exits()
        if not records and (vcpu.shadow or write):
            # kvm_pvm looks for interrupts when the vCPU is entered, and not while it runs.
            records, exits = cpu.take_with_exits()
        self._note_map_builds()
        topology = self.topology(before).with_vcpu(cpu.index, vcpu)
        entry = self._entry(cpu, topology, taken=bool(records))
        handled = 0 if vcpu.smm else vcpu.smi
        expect("SMIs handled", self.machine.smis_handled - smis, handled)
        taken = [record.vector for record in records]
        self._expect_nmis(vcpu, taken)
        interrupts = [vector for vector in taken if vector != NMI_VECTOR]
        expect("vectors taken", interrupts, entry.vectors, _hex)
        expect("vectors of KVM_EXIT_IOAPIC_EOI", exits, entry.exits, _hex)
        held = vcpu.nmi_masked and not taken
        new = replace(
            entry.vcpu,
            nmi=vcpu.nmi if held else 0,
            nmi_masked=held,
            smi=vcpu.smi - handled,
            shadow=False,
            mp_state=MpState.RUNNABLE,
        )
        changes = dict(enumerate(entry.topology.vcpus))
        self.learn_sent()
        self.expect_changes(what, before, changes | {cpu.index: new})
        self.expect_ioapic(what)

    def _entry(self, cpu: Cpu, topology: Topology, taken: bool) -> Entry:
        """Return the entry of a vCPU that has taken vectors, or has not.

        A processor with APICv looks at a LAPIC that is enabled again at once, KVM after an event.
        """
        overlooked = self.hidden.overlooked
        if taken:
            overlooked.discard(cpu.index)
        eois, routes = self.hidden.eois[cpu.index], self.level_routes()
        is_overlooked = cpu.index in overlooked
        return Entry(topology, cpu.index, eois, routes, self.ioapic, self.switches, is_overlooked)

    def _wake(self, cpu: Cpu, vcpu: VcpuState) -> None:
        """Make a vCPU runnable that KVM_RUN would put to sleep."""
        nmi = vcpu.nmi and not vcpu.nmi_masked
        wakes = bool(deliverable(vcpu) or nmi or (vcpu.smi and not vcpu.smm)) and not vcpu.shadow
        runs = vcpu.mp_state is MpState.RUNNABLE or (vcpu.mp_state is MpState.HALTED and wakes)
        if not runs or cpu.index in self.hidden.overlooked:
            cpu.mp_state = MpState.RUNNABLE
        self.hidden.overlooked.discard(cpu.index)

    def _expect_nmis(self, vcpu: VcpuState, taken: list[int]) -> None:
        """Raise Mismatch unless pending NMIs were taken first, or after the IRET that unmasks."""
        nmis, first = vcpu.nmi, 0
        if vcpu.nmi_masked:
            nmis, first = (nmis, 1) if taken else (0, 0)
        elif not self.switches.nmis_are_counted and taken[:2] == [NMI_VECTOR] * 2 and nmis:
            nmis = 2  # KVM_GET_VCPU_EVENTS shows one.
        expect("NMIs taken", taken.count(NMI_VECTOR), nmis)
        expect("the NMI taken first", NMI_VECTOR in taken[first : first + 1], bool(nmis))

    def _note_map_builds(self) -> None:
        """Note the scans that KVM requests when KVM builds its map of LAPICs."""
        if self.hidden.map_builds != self.machine.map_builds:
            self.hidden.map_builds = self.machine.map_builds
            self.scan_is_due()

    def _expect_operation(
        self, what: str, cpu: Cpu, before: list[Snapshot], new: VcpuState, page: LapicPage
    ) -> None:
        """Hold the machine to the model after the guest's write of a register."""
        self.expect_changes(what, before, {cpu.index: new}, {cpu.index: page})
        self._note_map_builds()
        # KVM scans the routes in the same KVM_RUN if the guest has rebuilt the map.
        self._entry(cpu, self.topology(self.look()), taken=False)

    @precondition(lambda self: self.in_probe())
    @step(nth=NTH, which=st.integers(0, 1))
    def guest_switches_mode(self, nth: int, which: int) -> None:
        """Switch the APIC mode by WRMSR of IA32_APIC_BASE."""
        cpu = self.nth(nth, self.in_probe())
        self._take(cpu)

        def write(old: VcpuState) -> VcpuState:
            mode = _SWITCHES[old.apic_mode][which % len(_SWITCHES[old.apic_mode])]
            base = cpu.apic_base & ~(APIC_BASE_ENABLE | APIC_BASE_X2APIC)
            cpu.prepare_wrmsr(IA32_APIC_BASE, base | mode.value)
            return self.switched(cpu, old, mode)

        self._take(cpu, write, "WRMSR")

    @precondition(lambda self: self._with_registers())
    @step(nth=NTH, write=REGISTER_WRITE)
    def guest_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """Write a register by MMIO, or by WRMSR in x2APIC mode."""
        cpu = self.nth(nth, self._with_registers())
        register, value = write
        if cpu.apic_mode is ApicMode.X2APIC and register not in (Register.SVR, Register.TPR):
            return  # An x2APIC's ID and LDR cannot be written, and there is no DFR.
        self._take(cpu)
        if register is Register.TPR:

            def write_tpr(old: VcpuState) -> VcpuState:
                cpu.prepare_write(Register.TPR, value)
                return replace(old, tpr=value)

            self._take(cpu, write_tpr)
            return
        before = self.look()
        page = before[cpu.index].lapic
        svr = value & ~(0 if page[Register.VERSION] & VERSION_SUPPRESSES_EOI else SVR_SUPPRESS_EOI)
        kept = {Register.DFR: value | DFR_CLUSTER, Register.SVR: svr}
        written = kept.get(register, value & 0xFF000000)  # ID and LDR have bits 31:24 only.
        cpu.write(register, value)
        new = after_register(self.vcpu(cpu.index, before[cpu.index]), register, written)
        page = page.copy()
        if register is Register.SVR and not new.software_enabled:
            for lvt in _LVT:
                page[lvt] |= LVT_MASKED
        self._expect_operation(f"the guest's write of {register.name}", cpu, before, new, page)
        if register is Register.SVR:
            expect("SVR after the guest's write", cpu.lapic[register], written, hex)


def _hex(vectors: Sequence[int]) -> str:
    return " ".join(f"{vector:#04x}" for vector in vectors) or "none"
