# SPDX-License-Identifier: GPL-2.0-only
"""A test guest: a VM with an irqchip, vCPUs with LAPICs, and the probe in guest memory.

The host steps the guest: inject, enter, read the log. Neither side sleeps. Each run of a vCPU ends
at a port that the probe writes to; the timeout of the test interrupts a vCPU that never exits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from helpers.apic import ApicMode, DeliveryMode, Message
from helpers.apic.effect import Effect
from helpers.apic.lapic import APIC_BASE_BSP
from helpers.apic.topology import Irqchip, Topology
from helpers.guest import layout
from helpers.guest.cpu import Cpu
from helpers.guest.injection import Injection, Setting, Snapshot, effect_between, journal
from helpers.guest.ledger import Ledger, apic_mode_in
from helpers.guest.memory import add_memory
from helpers.kvm import System, Vcpu, abi, recording
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import attempt, ioctl
from helpers.kvm.msi import msi_of

UnseenCall = tuple[int, int, Any, int]
"""An ioctl as the ledger takes it: file descriptor, number, argument, return value."""


def default_irqchip(system: System) -> Irqchip:
    """Return the irqchip of a machine whose test chooses none."""
    return "full" if system.has_ioapic else "split"


class Machine(Closing):
    """A VM with ``irqchip`` and a vCPU per entry of ``vcpu_ids``, each in its power-on state.

    ``irqchip``: by default full, on a kernel without IOAPIC split.
    ``x2apic_api``: args[0] of KVM_CAP_X2APIC_API, enabled before the vCPUs are created; 0 does not
    enable the capability. ``boot_id``: the argument of KVM_SET_BOOT_CPU_ID; None does not call the
    ioctl. ``apic_mode``: the APIC mode of all LAPICs. ``power_on=False`` leaves the
    vCPUs as KVM_CREATE_VCPU makes them.
    """

    def __init__(
        self,
        system: System,
        *,
        irqchip: Irqchip | None = None,
        vcpu_ids: Sequence[int] = (0,),
        x2apic_api: int = 0,
        boot_id: int | None = None,
        apic_mode: ApicMode = ApicMode.XAPIC,
        power_on: bool = True,
    ) -> None:
        self.irqchip: Irqchip = irqchip or default_irqchip(system)
        self.cpus: list[Cpu] = []
        self._system = system
        with recording.hidden():
            self.has_smm = system.check_extension(abi.KVM_CAP_X86_SMM) > 0
        with recording.making_machine(self.reset), contextlib.ExitStack() as undo:
            self.vm = undo.enter_context(system.create_vm())
            self._ledger = undo.enter_context(Ledger())
            self._ledger.watch(self.vm.fd)
            if self.irqchip == "full":
                self.vm.create_irqchip()
            elif self.irqchip == "split":
                self.vm.split_irqchip()
            if x2apic_api:
                self.vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
            if boot_id is not None:
                self.vm.set_boot_cpu_id(boot_id)
            self.memory = add_memory(self.vm, len(vcpu_ids))
            for vcpu_id in vcpu_ids:
                self.add_cpu(vcpu_id)
            if power_on:
                for cpu in self.cpus:
                    cpu.power_on(apic_mode)
                self._pristine = self.snapshots()
                self._ledger.shareable = True
            undo.pop_all()

    def close(self) -> None:
        self._ledger.close()
        self.vm.close()

    @property
    def fd(self) -> int:
        """The file descriptor of the VM."""
        return self.vm.fd

    def __getitem__(self, index: int) -> Cpu:
        return self.cpus[index]

    def add_cpu(self, vcpu_id: int) -> Cpu:
        """Create a vCPU and leave it as KVM_CREATE_VCPU makes it."""
        return self._add(self.vm.create_vcpu(vcpu_id))

    def adopt_cpu(self, vcpu_id: int, fd: int) -> Cpu:
        """Add a vCPU that other code has created."""
        return self._add(self.vm.adopt(fd, vcpu_id))

    def _add(self, vcpu: Vcpu) -> Cpu:
        cpu = Cpu(len(self.cpus), vcpu, self.memory, self._system, self._ledger)
        self.cpus.append(cpu)
        return cpu

    def called_elsewhere(self, calls: Iterable[UnseenCall]) -> None:
        """Note ioctls that other code has made."""
        for call in calls:
            self._ledger.called(*call)

    def require_x2apic(self) -> None:
        """Raise MissingPart if CPUID offers no x2APIC."""
        self._system.require_x2apic()

    def reset(self) -> bool:
        """Return all vCPUs to the power-on state. Return False if a call cannot be undone."""
        if not self._ledger.shareable:
            return False
        for cpu, pristine in zip(self.cpus, self._pristine, strict=True):
            cpu.vcpu.finish_exit()
            cpu.reset()
            cpu.lapic = pristine.lapic
        return self.snapshots() == self._pristine

    @property
    def smis_handled(self) -> int:
        """Number of SMIs handled, over all vCPUs."""
        counter = self.memory[layout.SMI_COUNTER : layout.SMI_COUNTER + 4]
        count = int.from_bytes(counter, "little")
        if recording.active:
            recording.active.looked("smis_handled", count)
        return count

    def pause_smis(self, pause: bool = True) -> None:
        """Set whether the SMI handler stops before RSM."""
        self.memory[layout.SMI_PAUSE : layout.SMI_PAUSE + 4] = pause.to_bytes(4, "little")

    # --- the state of the vCPUs -------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Read the state of all vCPUs. Return an empty list without LAPICs in the kernel."""
        with recording.hidden():
            found = [] if self.irqchip == "none" else [cpu.snapshot() for cpu in self.cpus]
        self._ledger.snapshots_read(found)
        if recording.active:
            recording.active.snapshots_read(self.fd, len(found))
        return found

    def latest_snapshots(self) -> list[Snapshot]:
        """Return the state of all vCPUs, read only if an ioctl may have changed a vCPU."""
        known = self._ledger.snapshots
        return self.snapshots() if known is None else known

    @property
    def map_builds(self) -> int:
        """Number of times that KVM has built its map of LAPICs."""
        return self._ledger.map_builds

    def setting(self) -> Setting:
        """Return the state of the machine that the snapshots do not show."""
        bases = [] if self.irqchip == "none" else [cpu.apic_base for cpu in self.cpus]
        return Setting(
            irqchip=self.irqchip,
            x2apic_api=self._ledger.x2apic_api,
            vcpu_ids=tuple(cpu.vcpu.vcpu_id for cpu in self.cpus),
            apic_modes=tuple(map(apic_mode_in, bases)),
            unmapped=self._ledger.unmapped,
            mapped_api=self._ledger.mapped_api,
            bsps=tuple(int(bool(base & APIC_BASE_BSP)) for base in bases),
            boot_id=self._ledger.boot_id,
        )

    def topology(self, vector_hashing: bool = True) -> Topology:
        """Return the present state of the machine in the terms of the model."""
        # First: the snapshots make KVM process a pending INIT, which changes the setting.
        snapshots = self.snapshots()
        return self.setting().topology(snapshots, vector_hashing, self.has_smm)

    # --- injecting --------------------------------------------------------------------------------

    def signal(
        self, message: Message, *, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)
    ) -> Injection:
        """Call KVM_SIGNAL_MSI and observe all vCPUs. An error is part of the result, not raised."""
        msi = msi_of(message, flags, devid, pad)
        return self.observe(msi, lambda: attempt(self.fd, abi.KVM_SIGNAL_MSI, msi))

    def send(self, message: Message) -> int:
        """Call KVM_SIGNAL_MSI without reading the vCPUs, which may be running. Raises KvmError."""
        return ioctl(self.fd, abi.KVM_SIGNAL_MSI, msi_of(message))

    def observe(self, msi: abi.kvm_msi, inject: Callable[[], tuple[int, int]]) -> Injection:
        """Call ``inject()``, which sends ``msi`` and returns (result, errno), between snapshots."""
        before = self.latest_snapshots()
        with recording.hidden():
            setting = self.setting()
        with recording.observing(self.fd) as step:
            result, code = inject()
        with recording.hidden():
            after = self.snapshots()
        injection = Injection(msi, result, code, before, after, setting)
        if recording.active and step:
            recording.active.injected(injection, step)
        journal.append(injection)
        return injection

    def raise_line(self, gsi: int, message: Message) -> Injection:
        """Call KVM_IRQ_LINE_STATUS for ``gsi``, routed to ``message``. The result is the status."""
        return self.observe(msi_of(message), lambda: (self.vm.irq_line_status(gsi, 1), 0))

    def raise_irqfd(self, gsi: int) -> list[Effect]:
        """Signal an irqfd of ``gsi``. Return the effect on each vCPU: an irqfd has no status."""
        before = self.latest_snapshots()
        with recording.observing(self.fd) as step, recording.hidden():
            self.vm.signal_irqfd(gsi)
            after = self.snapshots()
        effects = [effect_between(b, a) for b, a in zip(before, after, strict=True)]
        if recording.active and step:
            recording.active.irqfd_raised(step, gsi, effects)
        return effects

    # --- starting an AP ---------------------------------------------------------------------------

    @property
    def start_page(self) -> int:
        """The vector of a SIPI that starts an AP in the probe."""
        return layout.PROBE >> 12

    def boot(self, index: int) -> None:
        """Start an AP by INIT and SIPI. Run the AP up to its idle loop."""
        for delivery_mode, vector in ((DeliveryMode.INIT, 0), (DeliveryMode.SIPI, self.start_page)):
            self.send(Message(vector=vector, destination=index, delivery_mode=delivery_mode))
        self[index].step()
        self._ledger.map_rebuilt()  # the INIT has reset the LAPIC
