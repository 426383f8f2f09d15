# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that lacks parts of KVM: a plugin between suite and kernel.

    pytest suites -p tests.lacking --lacking=ioapic --lacking=x2apic

Each ioctl that needs a missing part fails as the kernel without the part fails; capabilities and
CPUID do not offer the part. Every other ioctl has the answer of the kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from errno import EINVAL, ENOTTY

import pytest

from helpers.kvm import abi, ioctl
from helpers.kvm.system import CPUID_X2APIC, cpuid_entries

Outcome = tuple[int, int]
"""Return value, and errno or 0."""

Part = Callable[[int, int, int], Outcome | None]
"""A missing part: the outcome of an ioctl (fd, number, argument), None for the kernel's."""

kernel = ioctl.raw_ioctl


def no_capability(number: int, argument: int, *capabilities: int) -> Outcome | None:
    """Return 0 for KVM_CHECK_EXTENSION of ``capabilities``."""
    return (0, 0) if number == abi.KVM_CHECK_EXTENSION.number and argument in capabilities else None


def ioapic(fd: int, number: int, argument: int) -> Outcome | None:
    """CONFIG_KVM_IOAPIC=n."""
    del fd
    match number:
        case abi.KVM_CREATE_IRQCHIP.number:
            return -1, ENOTTY
        case abi.KVM_GET_IRQCHIP.number | abi.KVM_SET_IRQCHIP.number:
            return -1, ENOTTY
    return no_capability(number, argument, abi.KVM_CAP_PIT2)


def smm(fd: int, number: int, argument: int) -> Outcome | None:
    """CONFIG_KVM_SMM=n."""
    del fd
    return no_capability(number, argument, abi.KVM_CAP_X86_SMM)


def synic(fd: int, number: int, argument: int) -> Outcome | None:
    """CONFIG_KVM_HYPERV=n."""
    del fd
    return no_capability(number, argument, abi.KVM_CAP_HYPERV_SYNIC)


def x2apic(fd: int, number: int, argument: int) -> Outcome | None:
    """No x2APIC in CPUID: x2APIC mode cannot be set."""
    match number:
        case abi.KVM_GET_SUPPORTED_CPUID.number:
            outcome = kernel(fd, number, argument)
            hide_x2apic(argument)
            return outcome
        case abi.KVM_SET_SREGS.number:
            sregs = abi.kvm_sregs.from_address(argument)
            return (-1, EINVAL) if sregs.apic_base & 1 << 10 else None
    return None


def hide_x2apic(address: int) -> None:
    """Clear the x2APIC in the CPUID table at this address."""
    entries = abi.kvm_cpuid2.from_address(address).nent
    size = ctypes.sizeof(abi.kvm_cpuid2) + entries * ctypes.sizeof(abi.kvm_cpuid_entry2)
    for entry in cpuid_entries((ctypes.c_uint8 * size).from_address(address)):
        if entry.function == 1:
            entry.ecx &= ~CPUID_X2APIC


PARTS: dict[str, Part] = {part.__name__: part for part in (ioapic, smm, synic, x2apic)}


class Lacking:
    """Replaces ``helpers.kvm.ioctl.raw_ioctl``."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __call__(self, fd: int, number: int, argument: int) -> Outcome:
        for part in self.parts:
            if outcome := part(fd, number, argument):
                return outcome
        return kernel(fd, number, argument)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lacking")
    group.addoption(
        "--lacking", action="append", choices=PARTS, default=[], help="a part that KVM lacks"
    )


def pytest_configure(config: pytest.Config) -> None:
    ioctl.raw_ioctl = Lacking([PARTS[name] for name in config.option.lacking])
