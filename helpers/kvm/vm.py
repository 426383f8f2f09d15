# SPDX-License-Identifier: GPL-2.0-only
"""The VM file descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable

from helpers.kvm import abi, recording
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import Argument, KvmError, MissingPart, ioctl
from helpers.kvm.vcpu import Vcpu


def routing_table(routes: Iterable[abi.kvm_irq_routing_entry], flags: int = 0) -> abi.Bytes:
    """Return the argument of KVM_SET_GSI_ROUTING."""
    entries = list(routes)
    header = abi.kvm_irq_routing(nr=len(entries), flags=flags)
    table = bytes(header) + b"".join(map(bytes, entries))
    return (ctypes.c_uint8 * len(table)).from_buffer_copy(table)


class Vm(Closing):
    """One VM with its vCPUs, memory and irqfds; ``close()`` releases them all."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        self.fd = fd
        self.vcpus: list[Vcpu] = []
        self._vcpu_mmap_size = vcpu_mmap_size
        self._memory: list[mmap.mmap] = []
        self.eventfds: list[int] = []

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        for fd in self.eventfds:
            os.close(fd)
        self.eventfds.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        # The kernel refers to the memory no longer. A remaining view keeps its mapping.
        self._memory.clear()

    def check_extension(self, capability: int) -> int:
        return ioctl(self.fd, abi.KVM_CHECK_EXTENSION, capability)

    def enable_cap(self, capability: int, *args: int, flags: int = 0) -> None:
        ioctl(self.fd, abi.KVM_ENABLE_CAP, abi.kvm_enable_cap(capability, flags, args))

    def create_irqchip(self) -> None:
        """Create PIC, IOAPIC and LAPICs in the kernel (api.rst, KVM_CREATE_IRQCHIP)."""
        self._call_ioapic(abi.KVM_CREATE_IRQCHIP)

    def _call_ioapic(self, request: abi.Request, argument: Argument = 0) -> None:
        """Call ``request``. Raise MissingPart if it fails and the kernel has no IOAPIC."""
        try:
            ioctl(self.fd, request, argument)
        except KvmError:
            if not self.check_extension(abi.KVM_CAP_PIT2):
                raise MissingPart("the kernel has no IOAPIC (KVM_CAP_PIT2 is 0)") from None
            raise

    def get_ioapic(self) -> abi.kvm_irqchip:
        irqchip = recording.watched(abi.kvm_irqchip)(chip_id=abi.KVM_IRQCHIP_IOAPIC)
        self._call_ioapic(abi.KVM_GET_IRQCHIP, irqchip)
        return irqchip

    def set_ioapic(self, irqchip: abi.kvm_irqchip) -> None:
        self._call_ioapic(abi.KVM_SET_IRQCHIP, irqchip)

    def split_irqchip(self, ioapic_pins: int = 24) -> None:
        """Create the LAPICs in the kernel only (api.rst, KVM_CAP_SPLIT_IRQCHIP)."""
        self.enable_cap(abi.KVM_CAP_SPLIT_IRQCHIP, ioapic_pins)

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Choose the BSP, before any vCPU exists (api.rst, KVM_SET_BOOT_CPU_ID)."""
        ioctl(self.fd, abi.KVM_SET_BOOT_CPU_ID, vcpu_id)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        return self.adopt(ioctl(self.fd, abi.KVM_CREATE_VCPU, vcpu_id), vcpu_id)

    def adopt(self, fd: int, vcpu_id: int) -> Vcpu:
        """Return the vCPU with this file descriptor, which is closed with the VM."""
        self.vcpus.append(Vcpu(fd, vcpu_id, self._vcpu_mmap_size))
        return self.vcpus[-1]

    def add_memory(self, guest_address: int, size: int) -> mmap.mmap:
        """Add ``size`` bytes of zeroed guest memory at ``guest_address``, both page-aligned."""
        memory = mmap.mmap(-1, size)
        with recording.hidden():
            self._map(memory, guest_address)
        self._memory.append(memory)
        if recording.active:
            recording.active.memory_added(self.fd, memory, guest_address)
        return memory

    def _map(self, memory: mmap.mmap, guest_address: int) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        # A vCPU in SMM uses another address space: map the same memory there.
        # Source: api.rst, KVM_SET_USER_MEMORY_REGION.
        for space in range(max(1, self.check_extension(abi.KVM_CAP_MULTI_ADDRESS_SPACE))):
            slot = space << 16 | len(self._memory)
            region = abi.kvm_userspace_memory_region(slot, 0, guest_address, len(memory), address)
            ioctl(self.fd, abi.KVM_SET_USER_MEMORY_REGION, region)

    def set_gsi_routing(self, routes: Iterable[abi.kvm_irq_routing_entry], flags: int = 0) -> None:
        """Replace the whole routing table (api.rst, KVM_SET_GSI_ROUTING)."""
        ioctl(self.fd, abi.KVM_SET_GSI_ROUTING, routing_table(routes, flags))

    def eventfd(self) -> int:
        """Return a new eventfd, which is closed with the VM."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.eventfds.append(fd)
        return fd

    def irqfd(self, gsi: int, resamplefd: int | None = None) -> int:
        """Assign a new eventfd to ``gsi`` and return it (api.rst, KVM_IRQFD).

        KVM signals ``resamplefd`` after each EOI of the GSI's vector.
        """
        irqfd = abi.kvm_irqfd(fd=self.eventfd(), gsi=gsi)
        if resamplefd is not None:
            irqfd.flags, irqfd.resamplefd = abi.KVM_IRQFD_FLAG_RESAMPLE, resamplefd
        ioctl(self.fd, abi.KVM_IRQFD, irqfd)
        return int(irqfd.fd)

    def deassign_irqfd(self, fd: int, gsi: int) -> None:
        """Deassign ``fd`` from ``gsi``; return when no injection by ``fd`` is under way."""
        ioctl(self.fd, abi.KVM_IRQFD, abi.kvm_irqfd(fd, gsi, abi.KVM_IRQFD_FLAG_DEASSIGN))

    def signal_irqfd(self, gsi: int) -> None:
        """Signal a new irqfd of ``gsi``, and wait for the injection."""
        fd = self.irqfd(gsi)
        os.eventfd_write(fd, 1)
        self.deassign_irqfd(fd, gsi)

    def irq_line_status(self, gsi: int, level: int) -> int:
        """Set the line of ``gsi`` to ``level`` and return the status of KVM_IRQ_LINE_STATUS."""
        line = abi.kvm_irq_level(irq=gsi, level=level)
        ioctl(self.fd, abi.KVM_IRQ_LINE_STATUS, line)
        return line.status
