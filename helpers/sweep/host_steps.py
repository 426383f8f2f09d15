# SPDX-License-Identifier: GPL-2.0-only
"""Steps of generated sequences: what the host does to the VM and to a vCPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EINVAL
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition

from helpers.apic import ApicMode, DestinationMode, Register
from helpers.apic.host import (
    EVENT_FIELDS,
    EventChanges,
    after_apic_mode,
    after_events,
    after_mp_state,
    after_register,
    deliverable,
)
from helpers.apic.ioapic import EoiFilter, Ioapic
from helpers.apic.lapic import APIC_BASE_BSP, SVR_ENABLE, SVR_RESET
from helpers.apic.topology import Irqchip, MpState, VcpuState
from helpers.guest import Cpu, Machine, Snapshot, expect
from helpers.kvm import KvmError, abi, errno_name
from helpers.sweep import draws
from helpers.sweep.draws import CONTENT, NTH, REGISTER_WRITE, Contents
from helpers.sweep.message_steps import MessageSteps
from helpers.sweep.sequence import WITH_VCPUS, recorded, step

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

_NO_EVENTS = dict.fromkeys(EVENT_FIELDS, 0)


class HostSteps(MessageSteps):
    """Create vCPUs, enable features, write the state of a vCPU."""

    # --- the VM -----------------------------------------------------------------------------------

    @initialize(
        irqchip=draws.IRQCHIP,
        x2apic_api=draws.FIRST_X2APIC_API,
        ids=draws.FIRST_VCPU_IDS,
        boot=draws.BOOT,
        apic_mode=draws.ENABLED_MODE,
    )
    @recorded
    def start(
        self,
        irqchip: Irqchip,
        x2apic_api: int,
        ids: list[int],
        boot: int | None,
        apic_mode: ApicMode,
    ) -> None:
        boot_id = None if boot is None or not ids else ids[boot % len(ids)]
        chosen = irqchip if irqchip == "split" else None
        self.machine = Machine(
            self.campaign.system,
            irqchip=chosen,
            vcpu_ids=(),
            x2apic_api=x2apic_api,
            boot_id=boot_id,
        )
        if self.machine.irqchip == "full":
            self.ioapic = Ioapic(self.switches)
            self.routes = dict.fromkeys(range(24))
        for vcpu_id in ids:
            self._add(vcpu_id)
            self._power_on(self.machine.cpus[-1], apic_mode)

    def _add(self, vcpu_id: int) -> None:
        cpu = self.machine.add_cpu(vcpu_id)
        # The CPUID of a fresh vCPU has no x2APIC: a switch to x2APIC mode would fail.
        cpu.set_cpuid()
        self.reset_pages.append(cpu.lapic)
        self.hidden.eois.append(EoiFilter())
        self.hidden.at_reset.add(cpu.index)

    def _power_on(self, cpu: Cpu, apic_mode: ApicMode) -> None:
        cpu.vcpu.finish_exit()
        cpu.set_events(_NO_EVENTS)
        cpu.power_on(apic_mode)
        self.hidden.in_probe.add(cpu.index)
        self.hidden.at_reset.discard(cpu.index)
        self.hidden.chosen[cpu.index] = 0

    @precondition(lambda self: len(self.machine.cpus) < draws.MOST_VCPUS)
    @step(vcpu_id=draws.VCPU_ID)
    def hotplug(self, vcpu_id: int) -> None:
        """Create a vCPU, and leave the vCPU as KVM_CREATE_VCPU makes it."""
        if any(cpu.vcpu.vcpu_id == vcpu_id for cpu in self.machine.cpus):
            return
        before = self.look()
        self._add(vcpu_id)
        is_bsp = vcpu_id == self.machine.setting().boot_id
        state = MpState.RUNNABLE if is_bsp else MpState.UNINITIALIZED
        made = VcpuState(vcpu_id, software_enabled=False, mp_state=state, bsp=int(is_bsp))
        new = self.look()[-1]
        self.expect_changes("KVM_CREATE_VCPU", [*before, new], {len(before): made})

    @WITH_VCPUS
    @step(x2apic_api=draws.X2APIC_API, nth=NTH, contents=CONTENT)
    def turn_on_features(self, x2apic_api: int, nth: int, contents: Contents) -> None:
        """Enable KVM_CAP_X2APIC_API late, and send messages before KVM rebuilds its LAPIC map."""
        if not self.switches.x2apics_keep_their_ids:
            # Such a kernel, with 32-bit IDs, fails to read an x2APIC whose ID is not the vCPU ID.
            # The switch to x2APIC mode restores the ID.
            for cpu in self.machine.cpus:
                if cpu.apic_mode is ApicMode.X2APIC:
                    cpu.apic_mode = ApicMode.DISABLED
                    cpu.apic_mode = ApicMode.X2APIC
        before = self.look()
        states = dict(enumerate(self.topology(before).vcpus))
        self.machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
        self.expect_changes("KVM_CAP_X2APIC_API", before, states)
        self.send_all(contents, DestinationMode.PHYSICAL, self.nth(nth).vcpu.vcpu_id)

    # --- events -----------------------------------------------------------------------------------

    @WITH_VCPUS
    @step(nth=NTH, changes=draws.EVENTS, contents=CONTENT)
    def host_sets_events(self, nth: int, changes: EventChanges, contents: Contents) -> None:
        """Write some events by KVM_SET_VCPU_EVENTS, and send messages."""
        cpu = self.nth(nth)
        if not self.machine.has_smm:
            changes = {name: value for name, value in changes.items() if name not in ("smm", "smi")}
        before = self.look()
        new = after_events(self.vcpu(cpu.index, before[cpu.index]), changes, self.switches)
        if new is None or not self._warns(new):
            self._expect_outcome(
                "KVM_SET_VCPU_EVENTS", cpu, before, new, lambda: cpu.set_events(changes)
            )
        self.send_to(cpu, contents)

    def _warns(self, vcpu: VcpuState) -> bool:
        """Whether the kernel would log a WARNING at an INIT or SIPI to a vCPU in this state."""
        waits = vcpu.mp_state is MpState.INIT_RECEIVED
        return vcpu.smm and waits and not self.switches.init_in_smm_is_quiet

    def _expect_outcome(
        self,
        what: str,
        cpu: Cpu,
        before: list[Snapshot],
        new: VcpuState | None,
        write: Callable[[], None],
    ) -> None:
        """Call an ioctl; raise Mismatch unless ``new`` is the state, or the ioctl fails if None."""
        try:
            write()
            outcome = "accepted"
        except KvmError as error:
            outcome = error.name
        expect(what, outcome, errno_name(EINVAL) if new is None else "accepted")
        self.expect_changes(what, before, {cpu.index: new} if new else {})

    @WITH_VCPUS
    @step(nth=NTH, state=draws.MP_STATE)
    def host_sets_mp_state(self, nth: int, state: MpState) -> None:
        """Write the mp_state by KVM_SET_MP_STATE."""
        cpu, before = self.nth(nth), self.look()
        new = after_mp_state(self.vcpu(cpu.index, before[cpu.index]), state, self.switches)
        if new is None or not self._warns(new):
            self._expect_outcome(
                "KVM_SET_MP_STATE", cpu, before, new, lambda: cpu.vcpu.set_mp_state(state)
            )

    # --- registers --------------------------------------------------------------------------------

    @WITH_VCPUS
    @step(nth=NTH, apic_mode=draws.ENABLED_MODE)
    def reset_vcpu(self, nth: int, apic_mode: ApicMode) -> None:
        """Write the whole state of a vCPU, as a host does to reset the vCPU."""
        cpu, before = self.nth(nth), self.look()
        old = self.vcpu(cpu.index, before[cpu.index])
        self._power_on(cpu, apic_mode)
        events: dict[str, Any] = {**_NO_EVENTS, "mp_state": MpState.RUNNABLE}
        new = replace(after_apic_mode(old, apic_mode), **events)
        new = after_register(new, Register.SVR, SVR_ENABLE | SVR_RESET)
        new = after_register(new, Register.LDR, 1 << cpu.index + 24)
        self.expect_changes("reset", before, {cpu.index: self._with_id(cpu, new)})

    def _with_id(self, cpu: Cpu, vcpu: VcpuState) -> VcpuState:
        """Return ``vcpu`` with the ID of a kernel whose LAPICs may have lost theirs."""
        if self.switches.x2apics_keep_their_ids:
            return vcpu
        actual = self.vcpu(cpu.index, self.look()[cpu.index])
        return replace(vcpu, id=actual.id, ldr=actual.ldr if vcpu.is_x2apic else vcpu.ldr)

    @WITH_VCPUS
    @step(nth=NTH, apic_mode=st.sampled_from(ApicMode))
    def host_switches_mode(self, nth: int, apic_mode: ApicMode) -> None:
        """Switch between any two APIC modes by KVM_SET_SREGS. A guest may not make every switch."""
        cpu, before = self.nth(nth), self.look()
        is_forced = cpu.apic_mode is ApicMode.X2APIC and apic_mode is ApicMode.XAPIC
        old = self.vcpu(cpu.index, before[cpu.index])
        if self._would_take(replace(old, apic_mode=apic_mode)):
            return
        cpu.apic_mode = apic_mode
        if is_forced and not self.switches.x2apics_keep_their_ids:
            # Such a kernel leaves the xAPIC ID and the LAPIC map as they were (052c3b99cbc8).
            cpu.configure(id=cpu.vcpu.vcpu_id & 0xFF)
            self.hidden.chosen[cpu.index] = 0
        self._expect_sregs(cpu, before, self.switched(cpu, old, apic_mode))

    def switched(self, cpu: Cpu, old: VcpuState, apic_mode: ApicMode) -> VcpuState:
        """Return the state after a switch of the APIC mode."""
        if old.apic_mode is ApicMode.DISABLED is not apic_mode:
            self.hidden.overlooked.add(cpu.index)
        return after_apic_mode(old, apic_mode)

    @WITH_VCPUS
    @step(nth=NTH, is_bsp=st.booleans())
    def host_sets_bsp(self, nth: int, is_bsp: bool) -> None:
        """Write the BSP flag of IA32_APIC_BASE by KVM_SET_SREGS."""
        cpu, before = self.nth(nth), self.look()
        old = self.vcpu(cpu.index, before[cpu.index])
        sregs = cpu.vcpu.get_sregs()
        sregs.apic_base = sregs.apic_base & ~APIC_BASE_BSP | is_bsp * APIC_BASE_BSP
        cpu.vcpu.set_sregs(sregs)
        self._expect_sregs(cpu, before, replace(old, bsp=int(is_bsp)))

    def _expect_sregs(self, cpu: Cpu, before: list[Snapshot], new: VcpuState) -> None:
        """Raise Mismatch unless the vCPU is as KVM_SET_SREGS leaves it.

        KVM_SET_SREGS makes a BSP at the reset vector runnable.
        """
        if new.bsp and cpu.index in self.hidden.at_reset:
            new = replace(new, mp_state=MpState.RUNNABLE)
        self.expect_changes("KVM_SET_SREGS", before, {cpu.index: new})

    def _goes_wrong(self, vcpu: VcpuState, tpr: int) -> bool:
        """Return whether the vCPU of some kernels runs wrongly, or not at all, with the new TPR."""
        is_lowered = vcpu.apic_mode is ApicMode.DISABLED and tpr < vcpu.tpr
        stops = is_lowered and not self.switches.disabled_lapics_run
        return stops or self._would_take(replace(vcpu, tpr=tpr))

    def _would_take(self, vcpu: VcpuState) -> bool:
        """Return whether the vCPU of some kernels takes vectors although the LAPIC is disabled."""
        holds = vcpu.hardware_enabled or self.switches.disabled_lapics_hold
        return not holds and bool(deliverable(replace(vcpu, apic_mode=ApicMode.XAPIC)))

    @WITH_VCPUS
    @step(nth=NTH, cr8=draws.CR8, contents=CONTENT)
    def host_sets_cr8(self, nth: int, cr8: int, contents: Contents) -> None:
        """Write CR8 by KVM_SET_SREGS, and send messages."""
        cpu, before = self.nth(nth), self.look()
        old = self.vcpu(cpu.index, before[cpu.index])
        sregs = cpu.vcpu.get_sregs()
        expect("CR8", sregs.cr8, old.tpr >> 4)
        if self._goes_wrong(old, cr8 << 4):
            return
        sregs.cr8 = cr8
        cpu.vcpu.set_sregs(sregs)
        self._expect_sregs(cpu, before, replace(old, tpr=cr8 << 4))
        self.send_to(cpu, contents)

    @WITH_VCPUS
    @step(nth=NTH, write=REGISTER_WRITE)
    def host_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """Write a register by KVM_SET_LAPIC."""
        cpu, before = self.nth(nth), self.look()
        old = self.vcpu(cpu.index, before[cpu.index])
        register, value = write
        if register is Register.TPR and self._goes_wrong(old, value):
            return
        page = before[cpu.index].lapic.copy()
        page[register] = value
        try:
            cpu.lapic = page
        except KvmError as error:
            # Undocumented: with 32-bit IDs, KVM refuses an x2APIC ID that is not the vCPU ID.
            has_32bit_ids = self.machine.setting().topology(()).has_32bit_ids
            refused = old.is_x2apic and has_32bit_ids and page[Register.ID] != cpu.vcpu.vcpu_id
            expect("KVM_SET_LAPIC", error.name, errno_name(EINVAL) if refused else "accepted")
            return
        self.hidden.chosen[cpu.index] = 0
        new = self._with_id(cpu, after_register(old, register, value))
        self.expect_changes(f"KVM_SET_LAPIC of {register.name}", before, {cpu.index: new})
        if register is Register.SVR:
            expect("SVR after KVM_SET_LAPIC", cpu.lapic[register], value, hex)
