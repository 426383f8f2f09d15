# SPDX-License-Identifier: GPL-2.0-only
"""The part of the KVM uapi that the suite uses: structures, constants, ioctl numbers.

Names and layouts are those of ``include/uapi/linux/kvm.h`` and
``arch/x86/include/uapi/asm/kvm.h``. ``tests/test_abi.py`` compiles the installed header and
compares every size, offset and number.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

C = TypeVar("C")
Bytes = ctypes.Array[c_uint8]

KVM_API_VERSION = 12
KVMIO = 0xAE


# --- structures ----------------------------------------------------------------------------------


def fields(type_: type[C], *names: str) -> list[tuple[str, type[C]]]:
    """Return the part of ``_fields_`` in which ``names`` have the same type."""
    return [(name, type_) for name in names]


class kvm_msi(ctypes.Structure):
    _fields_ = [
        *fields(c_uint32, "address_lo", "address_hi", "data", "flags", "devid"),
        ("pad", c_uint8 * 12),
    ]


class kvm_enable_cap(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "cap", "flags"), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


class kvm_userspace_memory_region(ctypes.Structure):
    _fields_ = [
        *fields(c_uint32, "slot", "flags"),
        *fields(c_uint64, "guest_phys_addr", "memory_size", "userspace_addr"),
    ]


class kvm_regs(ctypes.Structure):
    _fields_ = [
        *fields(c_uint64, "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
        *fields(c_uint64, "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
        *fields(c_uint64, "rip", "rflags"),
    ]


class kvm_segment(ctypes.Structure):
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *fields(c_uint8, "type", "present", "dpl", "db", "s", "l", "g", "avl"),
        *fields(c_uint8, "unusable", "padding"),
    ]


class kvm_dtable(ctypes.Structure):
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class kvm_sregs(ctypes.Structure):
    _fields_ = [
        *fields(kvm_segment, "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"),
        *fields(kvm_dtable, "gdt", "idt"),
        *fields(c_uint64, "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class kvm_sregs2(ctypes.Structure):
    _fields_ = [
        *fields(kvm_segment, "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"),
        *fields(kvm_dtable, "gdt", "idt"),
        *fields(c_uint64, "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "flags"),
        ("pdptrs", c_uint64 * 4),
    ]


class kvm_lapic_state(ctypes.Structure):
    _fields_ = [("regs", c_uint8 * 1024)]


class kvm_mp_state(ctypes.Structure):
    _fields_ = [("mp_state", c_uint32)]


class _exception(ctypes.Structure):
    _fields_ = [
        *fields(c_uint8, "injected", "nr", "has_error_code", "pending"),
        ("error_code", c_uint32),
    ]


class _interrupt(ctypes.Structure):
    _fields_ = fields(c_uint8, "injected", "nr", "soft", "shadow")


class _nmi(ctypes.Structure):
    _fields_ = fields(c_uint8, "injected", "pending", "masked", "pad")


class _smi(ctypes.Structure):
    _fields_ = fields(c_uint8, "smm", "pending", "smm_inside_nmi", "latched_init")


class kvm_vcpu_events(ctypes.Structure):
    _fields_ = [
        ("exception", _exception),
        ("interrupt", _interrupt),
        ("nmi", _nmi),
        *fields(c_uint32, "sipi_vector", "flags"),
        ("smi", _smi),
        ("triple_fault", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


class kvm_irq_level(ctypes.Structure):
    """``irq`` and ``status`` are a union: KVM_IRQ_LINE_STATUS reads ``irq``, writes ``status``."""

    _fields_ = [("irq", c_uint32), ("level", c_uint32)]

    @property
    def status(self) -> int:
        return c_int32(self.irq).value


class kvm_interrupt(ctypes.Structure):
    _fields_ = [("irq", c_uint32)]


class kvm_guest_debug_arch(ctypes.Structure):
    _fields_ = [("debugreg", c_uint64 * 8)]


class kvm_guest_debug(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "control", "pad"), ("arch", kvm_guest_debug_arch)]


class kvm_msrs(ctypes.Structure):
    """The header of ``nmsrs`` entries of type kvm_msr_entry."""

    _fields_ = fields(c_uint32, "nmsrs", "pad")


class kvm_msr_entry(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "index", "reserved"), ("data", c_uint64)]


class kvm_irqfd(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "fd", "gsi", "flags", "resamplefd"), ("pad", c_uint8 * 16)]


class kvm_ioapic_state(ctypes.Structure):
    """``redirtbl`` is a bit-field in C: Intel 82093AA, "I/O Redirection Table Registers"."""

    _fields_ = [
        ("base_address", c_uint64),
        *fields(c_uint32, "ioregsel", "id", "irr", "pad"),
        ("redirtbl", c_uint64 * 24),
    ]


class _chip(ctypes.Union):
    _fields_ = [("dummy", c_uint8 * 512), ("ioapic", kvm_ioapic_state)]


class kvm_irqchip(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "chip_id", "pad"), ("chip", _chip)]


class kvm_irq_routing_msi(ctypes.Structure):
    _fields_ = fields(c_uint32, "address_lo", "address_hi", "data", "devid")


class kvm_irq_routing_irqchip(ctypes.Structure):
    _fields_ = fields(c_uint32, "irqchip", "pin")


class kvm_irq_routing_hv_sint(ctypes.Structure):
    _fields_ = fields(c_uint32, "vcpu", "sint")


class _route(ctypes.Union):
    _fields_ = [
        ("irqchip", kvm_irq_routing_irqchip),
        ("msi", kvm_irq_routing_msi),
        ("hv_sint", kvm_irq_routing_hv_sint),
        ("pad", c_uint32 * 8),
    ]


class kvm_irq_routing_entry(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "gsi", "type", "flags", "pad"), ("u", _route)]


class kvm_irq_routing(ctypes.Structure):
    """The header of ``nr`` entries of type kvm_irq_routing_entry."""

    _fields_ = fields(c_uint32, "nr", "flags")


class kvm_cpuid2(ctypes.Structure):
    """The header of ``nent`` entries of type kvm_cpuid_entry2."""

    _fields_ = fields(c_uint32, "nent", "padding")


class kvm_cpuid_entry2(ctypes.Structure):
    _fields_ = [
        *fields(c_uint32, "function", "index", "flags", "eax", "ebx", "ecx", "edx"),
        ("padding", c_uint32 * 3),
    ]


class kvm_create_device(ctypes.Structure):
    _fields_ = fields(c_uint32, "type", "fd", "flags")


class kvm_device_attr(ctypes.Structure):
    _fields_ = [*fields(c_uint32, "flags", "group"), *fields(c_uint64, "attr", "addr")]


class kvm_one_reg(ctypes.Structure):
    _fields_ = fields(c_uint64, "id", "addr")


class _exit_io(ctypes.Structure):
    _fields_ = [
        *fields(c_uint8, "direction", "size"),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class _exit_mmio(ctypes.Structure):
    _fields_ = [
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    ]


class _exit_internal(ctypes.Structure):
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class _exit_eoi(ctypes.Structure):
    _fields_ = [("vector", c_uint8)]


class _exit_msr(ctypes.Structure):
    _fields_ = [
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        *fields(c_uint32, "reason", "index"),
        ("data", c_uint64),
    ]


class _exit(ctypes.Union):
    _fields_ = [
        ("io", _exit_io),
        ("mmio", _exit_mmio),
        ("internal", _exit_internal),
        ("eoi", _exit_eoi),
        ("msr", _exit_msr),
        ("hardware_entry_failure_reason", c_uint64),
        ("padding", c_uint8 * 256),
    ]


class kvm_run(ctypes.Structure):
    """The shared page up to and including the exit union; the suite uses no later field."""

    _fields_ = [
        *fields(c_uint8, "request_interrupt_window", "immediate_exit"),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        *fields(c_uint8, "ready_for_interrupt_injection", "if_flag"),
        ("flags", c_uint16),
        *fields(c_uint64, "cr8", "apic_base"),
        ("u", _exit),
    ]


# --- constants -----------------------------------------------------------------------------------

KVM_MSI_VALID_DEVID = 1 << 0

KVM_CAP_IRQCHIP = 0
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_PIT2 = 33
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_X86_SMM = 117
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_HYPERV_SYNIC = 123
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_X2APIC_API = 129
KVM_CAP_MSI_DEVID = 131
KVM_CAP_X86_DISABLE_EXITS = 143
KVM_CAP_HYPERV_SYNIC2 = 148
KVM_CAP_EXCEPTION_PAYLOAD = 164
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_SET_GUEST_DEBUG2 = 195
KVM_CAP_SREGS2 = 200
KVM_CAP_X86_TRIPLE_FAULT_EVENT = 218

KVM_X2APIC_API_USE_32BIT_IDS = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST = 1 << 2
KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 3

KVM_X86_DISABLE_EXITS_HLT = 1 << 1

KVM_MSR_EXIT_REASON_INVAL = 1 << 0

KVM_GUESTDBG_ENABLE = 1 << 0
KVM_GUESTDBG_BLOCKIRQ = 1 << 20

KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQ_ROUTING_HV_SINT = 4
KVM_IRQCHIP_IOAPIC = 2

KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_X86_WRMSR = 30

EXIT_NAMES = {value: name for name, value in globals().items() if name.startswith("KVM_EXIT_")}

KVM_VCPUEVENT_VALID_NMI_PENDING = 1 << 0
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 1 << 1
KVM_VCPUEVENT_VALID_SHADOW = 1 << 2
KVM_VCPUEVENT_VALID_SMM = 1 << 3
KVM_VCPUEVENT_VALID_PAYLOAD = 1 << 4
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 1 << 5

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
KVM_MP_STATE_STOPPED = 5
KVM_MP_STATE_AP_RESET_HOLD = 9


KVM_DEV_TYPE_ARM_VGIC_V2 = 5
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_TYPE_ARM_VGIC_ITS = 8


# --- ioctl numbers -------------------------------------------------------------------------------

_IOC_NONE, _IOC_WRITE, _IOC_READ = 0, 1, 2


def ioc(direction: int, nr: int, size: int) -> int:
    """Return an ioctl number of KVM, as ``_IOC()`` of asm-generic/ioctl.h does."""
    return direction << 30 | size << 16 | KVMIO << 8 | nr


@dataclass(frozen=True, slots=True)
class Request:
    """The uapi name and the number of an ioctl."""

    name: str
    number: int


def _request(
    direction: int, name: str, nr: int, struct: type[ctypes.Structure] | None = None
) -> Request:
    return Request(name, ioc(direction, nr, ctypes.sizeof(struct) if struct else 0))


_io, _ior = partial(_request, _IOC_NONE), partial(_request, _IOC_READ)
_iow, _iowr = partial(_request, _IOC_WRITE), partial(_request, _IOC_READ | _IOC_WRITE)

KVM_GET_API_VERSION = _io("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM = _io("KVM_CREATE_VM", 0x01)
KVM_CHECK_EXTENSION = _io("KVM_CHECK_EXTENSION", 0x03)
KVM_GET_VCPU_MMAP_SIZE = _io("KVM_GET_VCPU_MMAP_SIZE", 0x04)
KVM_GET_SUPPORTED_CPUID = _iowr("KVM_GET_SUPPORTED_CPUID", 0x05, kvm_cpuid2)
KVM_CREATE_VCPU = _io("KVM_CREATE_VCPU", 0x41)
KVM_SET_USER_MEMORY_REGION = _iow("KVM_SET_USER_MEMORY_REGION", 0x46, kvm_userspace_memory_region)
KVM_CREATE_IRQCHIP = _io("KVM_CREATE_IRQCHIP", 0x60)
KVM_GET_IRQCHIP = _iowr("KVM_GET_IRQCHIP", 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = _ior("KVM_SET_IRQCHIP", 0x63, kvm_irqchip)
KVM_IRQ_LINE_STATUS = _iowr("KVM_IRQ_LINE_STATUS", 0x67, kvm_irq_level)
KVM_SET_GSI_ROUTING = _iow("KVM_SET_GSI_ROUTING", 0x6A, kvm_irq_routing)
KVM_IRQFD = _iow("KVM_IRQFD", 0x76, kvm_irqfd)
KVM_SET_BOOT_CPU_ID = _io("KVM_SET_BOOT_CPU_ID", 0x78)
KVM_ENABLE_CAP = _iow("KVM_ENABLE_CAP", 0xA3, kvm_enable_cap)
KVM_SIGNAL_MSI = _iow("KVM_SIGNAL_MSI", 0xA5, kvm_msi)
KVM_RUN = _io("KVM_RUN", 0x80)
KVM_GET_REGS = _ior("KVM_GET_REGS", 0x81, kvm_regs)
KVM_SET_REGS = _iow("KVM_SET_REGS", 0x82, kvm_regs)
KVM_GET_SREGS = _ior("KVM_GET_SREGS", 0x83, kvm_sregs)
KVM_SET_SREGS = _iow("KVM_SET_SREGS", 0x84, kvm_sregs)
KVM_INTERRUPT = _iow("KVM_INTERRUPT", 0x86, kvm_interrupt)
KVM_SET_MSRS = _iow("KVM_SET_MSRS", 0x89, kvm_msrs)
KVM_GET_LAPIC = _ior("KVM_GET_LAPIC", 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = _iow("KVM_SET_LAPIC", 0x8F, kvm_lapic_state)
KVM_SET_CPUID2 = _iow("KVM_SET_CPUID2", 0x90, kvm_cpuid2)
KVM_GET_MP_STATE = _ior("KVM_GET_MP_STATE", 0x98, kvm_mp_state)
KVM_SET_MP_STATE = _iow("KVM_SET_MP_STATE", 0x99, kvm_mp_state)
KVM_SET_GUEST_DEBUG = _iow("KVM_SET_GUEST_DEBUG", 0x9B, kvm_guest_debug)
KVM_GET_VCPU_EVENTS = _ior("KVM_GET_VCPU_EVENTS", 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = _iow("KVM_SET_VCPU_EVENTS", 0xA0, kvm_vcpu_events)
KVM_GET_SREGS2 = _ior("KVM_GET_SREGS2", 0xCC, kvm_sregs2)
KVM_SET_SREGS2 = _iow("KVM_SET_SREGS2", 0xCD, kvm_sregs2)
KVM_GET_ONE_REG = _iow("KVM_GET_ONE_REG", 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = _iow("KVM_SET_ONE_REG", 0xAC, kvm_one_reg)
KVM_CREATE_DEVICE = _iowr("KVM_CREATE_DEVICE", 0xE0, kvm_create_device)
KVM_SET_DEVICE_ATTR = _iow("KVM_SET_DEVICE_ATTR", 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = _iow("KVM_GET_DEVICE_ATTR", 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = _iow("KVM_HAS_DEVICE_ATTR", 0xE3, kvm_device_attr)
