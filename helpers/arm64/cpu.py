# SPDX-License-Identifier: GPL-2.0-only
"""One vCPU of an arm64 machine: stepping, operations of the guest, registers of its GICR."""

from __future__ import annotations

import ctypes

from helpers.arm64 import layout
from helpers.guest.running import GuestError
from helpers.its import registers
from helpers.kvm import Vcpu, abi
from helpers.kvm import abi_arm64 as arm
from helpers.kvm.device import Device
from helpers.kvm.ioctl import ioctl


class Cpu:
    """One vCPU. ``taken`` has the INTIDs that the guest has read from ICC_IAR1_EL1, in order."""

    def __init__(self, index: int, vcpu: Vcpu, vgic: Device | None) -> None:
        self.index = index
        self.vcpu = vcpu
        self.taken: list[int] = []
        self._vgic = vgic

    def start(self, vm_fd: int) -> None:
        """Make the vCPU runnable, at the start of the stub."""
        target = arm.kvm_vcpu_init()
        ioctl(vm_fd, arm.KVM_ARM_PREFERRED_TARGET, target)
        target.features[0] |= 1 << arm.KVM_ARM_VCPU_PSCI_0_2
        ioctl(self.vcpu.fd, arm.KVM_ARM_VCPU_INIT, target)
        pc = ctypes.c_uint64(layout.CODE)
        register = abi.kvm_one_reg(arm.CORE_PC, ctypes.addressof(pc))
        ioctl(self.vcpu.fd, abi.KVM_SET_ONE_REG, register)

    # --- running ----------------------------------------------------------------------------------

    def exit(self) -> int:
        """Enter the guest until the next exit. Return the offset of the exit in EXITS.

        The answer to a load is the operation NONE, unless :meth:`answer` is called before the next
        entry. Raises GuestError for an exit that is not the stub's, and for an exception.
        """
        if (reason := self.vcpu.run()) == abi.KVM_EXIT_INTR:
            reason = self.vcpu.run()
        mmio = self.vcpu.kvm_run.u.mmio
        offset = int(mmio.phys_addr) - layout.EXITS
        if reason != abi.KVM_EXIT_MMIO or not 0 <= offset < 0x1000:
            raise GuestError(f"vCPU {self.index}: unexpected {self.vcpu.describe_exit()}")
        if offset == layout.EXIT_FAULT:
            raise GuestError(f"vCPU {self.index}: exception, ESR_EL1 {self.data:#x}")
        if offset == layout.EXIT_TAKEN:
            self.taken.append(self.data)
        if not mmio.is_write:
            self.answer(0)
        return offset

    @property
    def data(self) -> int:
        """The data of the last exit."""
        return int.from_bytes(bytes(self.vcpu.kvm_run.u.mmio.data), "little")

    def answer(self, value: int) -> None:
        """Answer the load of the last exit."""
        self.vcpu.kvm_run.u.mmio.data[:] = value.to_bytes(8, "little")

    def run_to(self, *offsets: int) -> int:
        """Enter the guest until an exit at one of ``offsets``; return the offset."""
        while (offset := self.exit()) not in offsets:
            pass
        return offset

    def step(self) -> list[int]:
        """Run the guest until an entry takes nothing; return the INTIDs taken."""
        first = len(self.taken)
        self.run_to(layout.EXIT_IDLE)
        while True:
            before = len(self.taken)
            self.run_to(layout.EXIT_IDLE)
            if len(self.taken) == before:
                return self.taken[first:]

    def run_to_handler(self) -> int:
        """Run the guest until the IRQ handler has read ICC_IAR1_EL1; return the INTID."""
        self.run_to(layout.EXIT_TAKEN)
        return self.taken[-1]

    def begin(self, name: str, argument: int = 0, value: int = 0) -> None:
        """Give the guest, at its next idle exit, an operation. Return before its execution."""
        self.run_to(layout.EXIT_IDLE)
        self.answer(layout.OPERATIONS.index(name))
        self.run_to(layout.EXIT_ARGUMENT)
        self.answer(argument)
        self.run_to(layout.EXIT_VALUE)
        self.answer(value)

    def operate(self, name: str, argument: int = 0, value: int = 0) -> int:
        """Have the guest execute an operation; return the result."""
        self.begin(name, argument, value)
        self.run_to(layout.EXIT_DONE)
        return self.data

    # --- the redistributor ------------------------------------------------------------------------

    @property
    def redistributor(self) -> int:
        """The guest-physical address of the redistributor."""
        return layout.GICR + self.index * layout.GICR_SIZE

    @property
    def pending_table(self) -> int:
        """The guest-physical address of the LPI pending table."""
        return layout.PENDING + self.index * layout.PENDING_SIZE

    def set_gicr(self, offset: int, value: int, bits: int = 32) -> None:
        """Write a register of the redistributor by KVM_SET_DEVICE_ATTR, 32 bits at a time."""
        assert self._vgic
        for word in range(bits // 32):
            attribute = self.vcpu.vcpu_id << 32 | offset + 4 * word
            half = value >> 32 * word & 0xFFFFFFFF
            self._vgic.set(arm.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attribute, half, 32)

    def get_gicr(self, offset: int) -> int:
        assert self._vgic
        attribute = self.vcpu.vcpu_id << 32 | offset
        return self._vgic.get(arm.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attribute, 32)

    @property
    def lpis_enabled(self) -> bool:
        """GICR_CTLR.EnableLPIs."""
        return bool(self.get_gicr(registers.GICR_CTLR) & registers.GICR_CTLR_ENABLE_LPIS)

    @lpis_enabled.setter
    def lpis_enabled(self, enabled: bool) -> None:
        self.set_gicr(registers.GICR_CTLR, registers.GICR_CTLR_ENABLE_LPIS if enabled else 0)
