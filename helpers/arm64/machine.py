# SPDX-License-Identifier: GPL-2.0-only
"""An arm64 test guest: a VM with VGICv3, ITSs, vCPUs, and the stub in guest memory.

The host steps the guest: signal, enter, read what the guest took. Neither side sleeps. The host
sees the pending LPIs by KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, which changes nothing in the VGIC.
"""

from __future__ import annotations

import contextlib

from helpers.apic.lapic import bits
from helpers.arm64 import layout
from helpers.arm64.assemble import stub
from helpers.arm64.cpu import Cpu
from helpers.arm64.its_device import ItsDevice
from helpers.arm64.sent import Pending, Sent
from helpers.guest.injection import journal
from helpers.its import Message, commands, registers
from helpers.kvm import KvmError, System, abi
from helpers.kvm import abi_arm64 as arm
from helpers.kvm.closing import Closing
from helpers.kvm.device import Device
from helpers.kvm.ioctl import attempt, ioctl

IRQS = 64
"""INTIDs below the LPIs."""

_NO_LPI = bytes((1 << registers.ID_BITS) // 8)
"""The pending table of a redistributor without pending LPIs."""

_ALL_ENABLED = bytes([registers.PRIORITY | registers.LPI_ENABLED]) * (
    (1 << registers.ID_BITS) - registers.FIRST_LPI
)
"""The configuration table of LPIs that are all enabled."""


class Machine(Closing):
    """A VM with ``vcpus`` vCPUs, a VGICv3, and ``itss`` ITSs whose tables are empty.

    ``bases``: the addresses of the ITSs. ``ready=False`` leaves out the initialization of VGIC and
    ITSs and all that follows. Collection N is mapped to vCPU N; each LPI is enabled.
    """

    def __init__(
        self,
        system: System,
        *,
        vcpus: int = 2,
        itss: int = 1,
        bases: tuple[int, ...] = layout.ITS,
        indirect: bool = False,
        ready: bool = True,
    ) -> None:
        with contextlib.ExitStack() as undo:
            self.vm = undo.enter_context(system.create_vm())
            self.memory = self.vm.add_memory(layout.RAM, layout.RAM_SIZE)
            self.write(layout.CODE, stub())
            self.vgic = undo.enter_context(Device(self.vm.fd, abi.KVM_DEV_TYPE_ARM_VGIC_V3))
            self.cpus = [Cpu(i, self.vm.create_vcpu(i), self.vgic) for i in range(vcpus)]
            for cpu in self.cpus:
                cpu.start(self.vm.fd)
            self.itss = [
                undo.enter_context(ItsDevice(self.vm.fd, self.memory, number))
                for number in range(itss)
            ]
            if ready:
                self.place(bases)
                self.initialize()
                self.set_up(indirect)
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def __getitem__(self, index: int) -> Cpu:
        return self.cpus[index]

    @property
    def its(self) -> ItsDevice:
        """The first ITS."""
        return self.itss[0]

    # --- making -----------------------------------------------------------------------------------

    def place(self, bases: tuple[int, ...] = layout.ITS) -> None:
        """Give distributor, redistributors and ITSs their addresses."""
        group = arm.KVM_DEV_ARM_VGIC_GRP_ADDR
        self.vgic.set(arm.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, IRQS, 32)
        self.vgic.set(group, arm.KVM_VGIC_V3_ADDR_TYPE_DIST, layout.GICD)
        self.vgic.set(group, arm.KVM_VGIC_V3_ADDR_TYPE_REDIST, layout.GICR)
        for its, address in zip(self.itss, bases, strict=False):
            its.place(address)

    def initialize(self) -> None:
        """Initialize VGIC and ITSs."""
        self.vgic.set(arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_VGIC_CTRL_INIT)
        for its in self.itss:
            its.initialize()

    def set_up(self, indirect: bool = False) -> None:
        """Enable distributor, redistributors and ITSs, and map a collection to each vCPU."""
        self.set_gicd(registers.GICD_CTLR_ARE_DS | registers.GICD_CTLR_ENABLE_GRP1)
        self.set_up_redistributors()
        for its in self.itss:
            its.set_up(indirect)
            its.command(*(commands.mapc(cpu.index, cpu.index) for cpu in self.cpus))

    def set_gicd(self, control: int) -> None:
        """Write GICD_CTLR."""
        group = arm.KVM_DEV_ARM_VGIC_GRP_DIST_REGS
        self.vgic.set(group, registers.GICD_CTLR, control, 32)

    def set_up_redistributors(self) -> None:
        """Give the redistributors their tables, enable each LPI, and LPIs altogether."""
        self.write_configuration()
        for cpu in self.cpus:
            for offset, value in self.lpi_tables(cpu).items():
                cpu.set_gicr(offset, value, 64)
            cpu.lpis_enabled = True

    def write_configuration(self) -> None:
        """Enable each LPI in the configuration table."""
        self.write(layout.CONFIG, _ALL_ENABLED)

    def lpi_tables(self, cpu: Cpu) -> dict[int, int]:
        """Return {offset: value} of the registers that name the tables of a redistributor."""
        return {
            registers.GICR_PROPBASER: layout.CONFIG | registers.ID_BITS - 1,
            registers.GICR_PENDBASER: cpu.pending_table,
        }

    # --- guest memory -----------------------------------------------------------------------------

    def write(self, address: int, content: bytes) -> None:
        """Write guest memory."""
        self.memory[address - layout.RAM : address - layout.RAM + len(content)] = content

    def read(self, address: int, size: int) -> bytes:
        """Read guest memory."""
        return self.memory[address - layout.RAM : address - layout.RAM + size]

    def configure_lpi(
        self, lpi: int, enabled: bool = True, priority: int = registers.PRIORITY
    ) -> None:
        """Write the configuration table. The ITS reads the entry at the next INV or INVALL."""
        value = priority | (registers.LPI_ENABLED if enabled else 0)
        self.write(layout.CONFIG + lpi - registers.FIRST_LPI, bytes([value]))

    # --- events -----------------------------------------------------------------------------------

    def map(
        self, devid: int, event: int, lpi: int, collection: int, its: ItsDevice | None = None
    ) -> Message:
        """Map an event of a device that has a translation table; return its message."""
        its = its or self.its
        its.command(commands.mapti(devid, event, lpi, collection))
        return Message(devid, event, its.doorbell)

    def signal(self, message: Message) -> Sent:
        """Call KVM_SIGNAL_MSI, and read the pending LPIs before and after."""
        before = self.pending()
        msi = message.msi
        result, code = attempt(self.vm.fd, abi.KVM_SIGNAL_MSI, msi)
        after = self.pending()
        sent = Sent(
            msi, result, code, (), (), wrote=message, pending_before=before, pending_after=after
        )
        journal.append(sent)
        return sent

    def send(self, message: Message) -> int:
        """Call KVM_SIGNAL_MSI without another call. Raises KvmError."""
        return ioctl(self.vm.fd, abi.KVM_SIGNAL_MSI, message.msi)

    def pending(self) -> Pending | None:
        """Return the pending LPIs; None where KVM cannot save the pending tables."""
        try:
            self.save_pending_tables()
        except KvmError:
            return None
        found = set()
        for cpu in self.cpus:
            table = self.read(cpu.pending_table, len(_NO_LPI))
            found |= {(cpu.index, lpi) for lpi in bits(int.from_bytes(table, "little"))}
        return frozenset(found)

    def save_pending_tables(self) -> None:
        """Have KVM write the pending tables to guest memory. Raises KvmError.

        KVM writes the bit of an LPI to the table of the LPI's vCPU only: zero all tables first.
        """
        for cpu in self.cpus:
            self.write(cpu.pending_table, _NO_LPI)
        self.vgic.set(arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES)

    def take(self) -> list[tuple[int, int]]:
        """Step all vCPUs until no entry takes anything; return (vCPU, INTID) in order.

        Twice: a vCPU prunes its list of pending interrupts when entered, and so hands over an LPI
        that was moved to another vCPU.
        """
        taken = self.step_all()
        return taken + self.step_all() if self.pending() else taken

    def step_all(self) -> list[tuple[int, int]]:
        """Step each vCPU until an entry takes nothing; return (vCPU, INTID) in order."""
        return [(cpu.index, intid) for cpu in self.cpus for intid in cpu.step()]
