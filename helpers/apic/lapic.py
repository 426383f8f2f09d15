# SPDX-License-Identifier: GPL-2.0-only
"""The registers of the local APIC, in the layout of KVM_GET_LAPIC and KVM_SET_LAPIC.

Registers have 32 bits and are 16-byte aligned (Intel SDM vol. 3, "Local APIC Register Address
Map"). The ID register has the xAPIC format, an 8-bit ID in bits 31:24; with
KVM_X2APIC_API_USE_32BIT_IDS the ID register of an x2APIC is the 32-bit ID (api.rst,
KVM_GET_LAPIC).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator

PAGE_SIZE = 1024
_EIGHT_WORDS = struct.Struct("<" + "I12x" * 8)

# Bits of IA32_APIC_BASE: Intel SDM vol. 3, "Local APIC Status and Location", "Detecting and
# Enabling x2APIC Mode".
APIC_BASE_BSP = 1 << 8
APIC_BASE_X2APIC = 1 << 10
APIC_BASE_ENABLE = 1 << 11

SVR_ENABLE = 1 << 8
SVR_SUPPRESS_EOI = 1 << 12
SVR_RESET = 0xFF
LVT_MASKED = 1 << 16
VERSION_SUPPRESSES_EOI = 1 << 24
DFR_FLAT = 0xFFFFFFFF
DFR_CLUSTER = 0x0FFFFFFF


class ApicMode(enum.Enum):
    """The mode of a LAPIC. The value is bits 11 and 10 of IA32_APIC_BASE, in place."""

    DISABLED = 0
    XAPIC = APIC_BASE_ENABLE
    X2APIC = APIC_BASE_ENABLE | APIC_BASE_X2APIC


class Register(enum.IntEnum):
    """Offsets into the register page. The MSR of an x2APIC is 0x800 + bits 11:4 of the offset."""

    ID = 0x020
    VERSION = 0x030
    TPR = 0x080
    APR = 0x090
    PPR = 0x0A0
    EOI = 0x0B0
    LDR = 0x0D0
    DFR = 0x0E0
    SVR = 0x0F0
    ISR = 0x100
    TMR = 0x180
    IRR = 0x200
    ESR = 0x280
    ICR = 0x300
    ICR2 = 0x310
    LVT_TIMER = 0x320
    LVT_THERMAL = 0x330
    LVT_PERFORMANCE = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360
    LVT_ERROR = 0x370
    TIMER_INITIAL = 0x380
    TIMER_CURRENT = 0x390
    TIMER_DIVIDE = 0x3E0


VectorSet = frozenset[int]


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the set bits, lowest first."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def vectors_of(words: Iterable[int]) -> VectorSet:
    """Return the set bits of eight 32-bit words, the word of vectors 0 to 31 first."""
    return frozenset(32 * i + bit for i, word in enumerate(words) if word for bit in bits(word))


def show_vectors(vectors: Iterable[int]) -> str:
    """Return sorted vectors in the form ``{0x41 0x52}``."""
    return "{" + " ".join(f"{vector:#04x}" for vector in sorted(vectors)) + "}"


def x2apic_ldr(x2apic_id: int) -> int:
    """Return the read-only LDR of an x2APIC: the cluster in bits 31:16, one bit of 15:0.

    Source: Intel SDM vol. 3, "Deriving Logical x2APIC ID from the Local x2APIC ID".
    """
    return (x2apic_id >> 4 & 0xFFFF) << 16 | 1 << (x2apic_id & 0xF)


class LapicPage:
    """A mutable copy of the 1,024-byte register page, compared by content."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes | bytearray = bytes(PAGE_SIZE)) -> None:
        if len(raw) != PAGE_SIZE:
            raise ValueError(f"a register page has {PAGE_SIZE} bytes, not {len(raw)}")
        self.raw = bytearray(raw)

    def __getitem__(self, register: int) -> int:
        return int.from_bytes(self.raw[register : register + 4], "little")

    def __setitem__(self, register: int, value: int) -> None:
        self.raw[register : register + 4] = value.to_bytes(4, "little")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LapicPage) and self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> LapicPage:
        return LapicPage(self.raw)

    def vectors(self, register: Register) -> VectorSet:
        """Return the vectors whose bit is set in ISR, TMR or IRR."""
        chunk = self.raw[register : register + 0x80]
        return vectors_of(_EIGHT_WORDS.unpack(chunk)) if any(chunk) else frozenset()

    def set_vectors(self, register: Register, vectors: Iterable[int]) -> None:
        """Set the bits of ``vectors`` in ISR, TMR or IRR, and clear all others."""
        words = [0] * 8
        for vector in vectors:
            words[vector // 32] |= 1 << vector % 32
        for i, word in enumerate(words):
            self[register + 16 * i] = word

    @property
    def isr(self) -> VectorSet:
        return self.vectors(Register.ISR)

    @property
    def tmr(self) -> VectorSet:
        return self.vectors(Register.TMR)

    @property
    def irr(self) -> VectorSet:
        return self.vectors(Register.IRR)

    @property
    def xapic_id(self) -> int:
        """The 8-bit ID: bits 31:24 of the ID register."""
        return self[Register.ID] >> 24

    @property
    def software_enabled(self) -> bool:
        return bool(self[Register.SVR] & SVR_ENABLE)

    def __repr__(self) -> str:
        enabled = "enabled" if self.software_enabled else "software-disabled"
        names = {DFR_FLAT: "flat", DFR_CLUSTER: "cluster"}
        dfr = names.get(self[Register.DFR], f"{self[Register.DFR]:#x}")
        return (
            f"<LAPIC ID={self[Register.ID]:#010x} SVR={self[Register.SVR]:#x} ({enabled}) "
            f"LDR={self[Register.LDR]:#010x} DFR={dfr} TPR={self[Register.TPR]:#04x} "
            f"PPR={self[Register.PPR]:#04x} ISR={show_vectors(self.isr)} "
            f"IRR={show_vectors(self.irr)} TMR={show_vectors(self.tmr)}>"
        )
