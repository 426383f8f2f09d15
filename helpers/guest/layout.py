# SPDX-License-Identifier: GPL-2.0-only
"""Addresses and structures of the guest. The assembler gets all numbers as -D options."""

from __future__ import annotations

import ctypes
from ctypes import c_uint32, c_uint64

from helpers.apic import Register, lapic
from helpers.kvm.abi import fields

# Guest-physical addresses. The page tables map the first 4 GiB to the same virtual addresses.
GDT = 0x1000
IDT = 0x2000
PML4 = 0x3000
PDPT = 0x4000
PAGE_DIRECTORIES = 0x5000  # four pages: 2 MiB pages for the first 4 GiB
PROBE = 0xA000  # starts in real mode: the SIPI vector is 0x0A
PROBE_LIMIT = 0xD000
# The default SMBASE. The SMI handler starts at SMBASE + 0x8000. Intel SDM vol. 3, "SMRAM".
SMBASE = 0x30000
SMI_COUNTER = SMBASE + 0x8100
SMI_PAUSE = SMBASE + 0x8104  # unless 0, the SMI handler exits to PORT_SMI before RSM
SMRAM = slice(SMBASE + 0x8000, SMBASE + 0x10000)
AREAS = 0x100000
AREA_SIZE = 0x8000

# Offsets into the probe.
NOPS = 0x1FE
ENTRY64 = 0x200
SMI_HANDLER = 0xF00
SMI_HANDLER_SIZE = 0x40
GATES = 0x1000
GATE_SIZE = 16

CODE64 = 0x08
DATA = 0x10

# Offsets into the area of a vCPU.
LOG = 0x1000
LOG_RECORDS = 128
COUNTS = 0x5000  # a Count for each vector
STACK_TOP = AREA_SIZE

# Ports of the exits to the host. No device in the kernel claims them.
PORT_IDLE = 0x1F0
PORT_HANDLER = 0x1F1
PORT_FAULT = 0x1F2
PORT_SMI = 0x1F3

OPERATIONS = (
    *("NONE", "LAPIC_READ", "LAPIC_WRITE", "RDMSR", "WRMSR", "CLI", "STI", "HLT"),
    *("HLT_UNTIL_TAKEN", "SPIN", "STORE", "READ_CR8", "WRITE_CR8"),
)

FLAG_EOI = 1 << 0  # the handler writes EOI
FLAG_PAUSE = 1 << 1  # the handler exits to PORT_HANDLER before the EOI
FLAG_NEST = 1 << 2  # the handler enables interrupts for the exit to PORT_HANDLER
FLAG_PV_EOI = 1 << 3  # the handler starts with an EOI, written if bit 0 of Control.pv_eoi is clear
FLAG_COUNT = 1 << 4  # the handler counts the vector in COUNTS, and writes no record


class Control(ctypes.Structure):
    """The head of the area of a vCPU: requests of the host and answers of the guest.

    The host sets ``operation`` and ``argument``, the guest clears ``operation`` and executes it.
    ``value`` is the operand or the result. ``taken``, ``spins`` and ``halts`` are counters of the
    guest. ``flags`` are FLAG_*. MSR_KVM_EOI_EN points to ``pv_eoi``; ``pv_eois`` counts the EOIs
    that cleared bit 0 of ``pv_eoi``.
    """

    _fields_ = [
        ("self_address", c_uint64),
        *fields(c_uint32, "operation", "argument"),
        ("value", c_uint64),
        *fields(c_uint32, "flags", "taken"),
        ("spins", c_uint64),
        *fields(c_uint32, "stop", "halts", "pv_eoi", "pv_eois"),
    ]


class Record(ctypes.Structure):
    """One record of the log: the vector, and the registers of the LAPIC in the handler."""

    _fields_ = [
        *fields(c_uint32, "vector", "apic_base", "id", "tpr", "ppr", "ldr", "svr", "rip"),
        *fields(c_uint32 * 8, "isr", "tmr", "irr"),
    ]


class Count(ctypes.Structure):
    """What FLAG_COUNT notes of a vector. A sender raises ``sent`` before each message.

    The handler copies ``sent`` to ``seen``: after the last interrupt, both are equal. ``taken``
    counts the interrupts.
    """

    _fields_ = fields(c_uint32, "sent", "seen", "taken", "unused")


def defines() -> dict[str, int]:
    """Return every constant of probe.S, by name."""
    named = vars(lapic) | globals()
    constants = {name: value for name, value in named.items() if isinstance(value, int)}
    for struct in (Control, Record, Count):
        for name, *_ in struct._fields_:
            constants[f"{struct.__name__}_{name}".upper()] = getattr(struct, name).offset
    constants |= {"RECORD_SIZE": ctypes.sizeof(Record), "COUNT_SIZE": ctypes.sizeof(Count)}
    constants |= {f"OP_{name}": number for number, name in enumerate(OPERATIONS)}
    return constants | {f"REG_{register.name}": register for register in Register}
