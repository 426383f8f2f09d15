# SPDX-License-Identifier: GPL-2.0-only
"""The system file descriptor: /dev/kvm."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cached_property

from helpers.kvm import abi
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import MissingPart, ioctl
from helpers.kvm.vm import Vm

CPUID_X2APIC = 1 << 21
"""The x2APIC in ECX of CPUID leaf 1 (Intel SDM vol. 2, "CPUID")."""


def cpuid_entries(table: abi.Bytes) -> Iterator[abi.kvm_cpuid_entry2]:
    """Yield the entries of a kvm_cpuid2. A write to an entry changes the table."""
    start, size = ctypes.sizeof(abi.kvm_cpuid2), ctypes.sizeof(abi.kvm_cpuid_entry2)
    for number in range(abi.kvm_cpuid2.from_buffer(table).nent):
        yield abi.kvm_cpuid_entry2.from_buffer(table, start + number * size)


class System(Closing):
    """An open /dev/kvm. Raises OSError if /dev/kvm cannot be opened."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def api_version(self) -> int:
        return ioctl(self.fd, abi.KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        return ioctl(self.fd, abi.KVM_CHECK_EXTENSION, capability)

    @cached_property
    def supported_cpuid(self) -> abi.Bytes:
        """A kvm_cpuid2 with its entries, as KVM_SET_CPUID2 takes them."""
        entries = 256
        size = ctypes.sizeof(abi.kvm_cpuid2) + entries * ctypes.sizeof(abi.kvm_cpuid_entry2)
        table = (ctypes.c_uint8 * size)()
        abi.kvm_cpuid2.from_buffer(table).nent = entries
        ioctl(self.fd, abi.KVM_GET_SUPPORTED_CPUID, table)
        return table

    def cpuid_leaf(self, function: int) -> abi.kvm_cpuid_entry2:
        """Return the supported CPUID leaf ``function``; an entry of zeroes if there is none."""
        entries = cpuid_entries(self.supported_cpuid)
        found = (entry for entry in entries if entry.function == function)
        return next(found, abi.kvm_cpuid_entry2())

    @cached_property
    def has_ioapic(self) -> bool:
        """Whether KVM has an IOAPIC, and so a full irqchip.

        CONFIG_KVM_IOAPIC (Linux 6.17) decides on IOAPIC, PIC and PIT. KVM_CAP_IRQCHIP is 1 in any
        case, since the LAPICs remain.
        """
        return self.check_extension(abi.KVM_CAP_PIT2) > 0

    @cached_property
    def has_x2apic(self) -> bool:
        """Whether CPUID offers the x2APIC."""
        return bool(self.cpuid_leaf(1).ecx & CPUID_X2APIC)

    def require_x2apic(self) -> None:
        """Raise MissingPart if CPUID offers no x2APIC."""
        if not self.has_x2apic:
            raise MissingPart("the kernel offers no x2APIC (KVM_GET_SUPPORTED_CPUID)")

    def create_vm(self) -> Vm:
        """Create a VM without irqchip, memory and vCPUs."""
        vcpu_mmap_size = ioctl(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)
        return Vm(ioctl(self.fd, abi.KVM_CREATE_VM), vcpu_mmap_size)
