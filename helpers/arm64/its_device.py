# SPDX-License-Identifier: GPL-2.0-only
"""An ITS in the kernel, driven by the host: registers by KVM_SET_DEVICE_ATTR, tables in memory."""

from __future__ import annotations

import mmap

from helpers.arm64 import layout
from helpers.its import commands, registers
from helpers.kvm import abi
from helpers.kvm import abi_arm64 as arm
from helpers.kvm.device import Device


class ItsDevice(Device):
    """An ITS. ``address`` is where the guest sees its registers, once ``place()`` was called.

    ``tables`` is the address of the memory that this ITS alone uses, up to ``end_of_tables``.
    """

    def __init__(self, vm_fd: int, memory: mmap.mmap, number: int) -> None:
        super().__init__(vm_fd, abi.KVM_DEV_TYPE_ARM_VGIC_ITS)
        self.address = layout.ITS[number]
        self.tables = layout.TABLES + number * layout.TABLES_SIZE
        self._memory = memory
        self.end_of_tables = self.tables + layout.ITTS

    @property
    def doorbell(self) -> int:
        """The address of GITS_TRANSLATER."""
        return self.address + registers.GITS_TRANSLATER

    def place(self, address: int | None = None) -> None:
        """Give the ITS its address."""
        self.address = self.address if address is None else address
        self.set(arm.KVM_DEV_ARM_VGIC_GRP_ADDR, arm.KVM_VGIC_ITS_ADDR_TYPE, self.address)

    def initialize(self) -> None:
        self.control(arm.KVM_DEV_ARM_VGIC_CTRL_INIT)

    def control(self, command: int) -> None:
        """Set an attribute of KVM_DEV_ARM_VGIC_GRP_CTRL, which is a command to the device."""
        self.set(arm.KVM_DEV_ARM_VGIC_GRP_CTRL, command)

    # --- registers --------------------------------------------------------------------------------

    def __getitem__(self, offset: int) -> int:
        return self.get(arm.KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset)

    def __setitem__(self, offset: int, value: int) -> None:
        self.set(arm.KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset, value)

    def bases(self, indirect: bool = False) -> dict[int, int]:
        """Return {offset: value} of the registers that name the tables and the command queue."""
        devices = registers.base_register(self.tables + layout.DEVICES, 1, indirect)
        collections = registers.base_register(self.tables + layout.COLLECTIONS, 1)
        pages = layout.QUEUE_SIZE // 0x1000
        return {
            registers.GITS_BASER: devices,
            registers.GITS_BASER + 8: collections,
            registers.GITS_CBASER: registers.VALID | self.tables + layout.QUEUE | pages - 1,
        }

    def set_up(self, indirect: bool = False) -> None:
        """Give the ITS its tables and its command queue, and enable the ITS."""
        for offset, value in self.bases(indirect).items():
            self[offset] = value
        self.enabled = True

    @property
    def enabled(self) -> bool:
        """GITS_CTLR.Enabled."""
        return bool(self[registers.GITS_CTLR] & registers.GITS_CTLR_ENABLED)

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self[registers.GITS_CTLR] = registers.GITS_CTLR_ENABLED if enabled else 0

    # --- commands ---------------------------------------------------------------------------------

    def queue(self, *given: bytes) -> int:
        """Put commands behind those in the queue; return the value of GITS_CWRITER."""
        writer = self[registers.GITS_CWRITER]
        for command in given:
            place = self.tables + layout.QUEUE + writer - layout.RAM
            self._memory[place : place + commands.SIZE] = command
            writer = (writer + commands.SIZE) % layout.QUEUE_SIZE
        return writer

    def command(self, *given: bytes) -> None:
        """Execute commands. An ITS reports no error of a command."""
        self[registers.GITS_CWRITER] = self.queue(*given)

    def new_itt(self, bits: int) -> int:
        """Return the address of memory for a translation table of 2**``bits`` events."""
        itt = self.end_of_tables
        self.end_of_tables += max(256, registers.DEVICE_ENTRY << bits)
        return itt

    def map_device(self, devid: int, bits: int = 5) -> int:
        """Map a device to a new translation table; return the table's address."""
        itt = self.new_itt(bits)
        self.command(commands.mapd(devid, itt, bits))
        return itt
