# SPDX-License-Identifier: GPL-2.0-only
"""Guest-physical addresses of an arm64 machine. stub.S gets its numbers by .set."""

from __future__ import annotations

from helpers.its.message import FIRST_ITS
from helpers.its.registers import ITS_SIZE

GICD = 0x0800_0000
ITS = (FIRST_ITS, FIRST_ITS + ITS_SIZE)
"""Addresses of the first and the second ITS."""
GICR = 0x0810_0000
GICR_SIZE = 0x2_0000

EXITS = 0x0900_0000
"""A page without memory and without a device: an access exits to the host."""

RAM = 0x4000_0000
RAM_SIZE = 0xC0_0000
CODE = RAM
CONFIG = RAM + 0x1_0000
CONFIG_END = CONFIG + 0xE000
"""The LPI configuration table: a byte for each LPI."""
PENDING = RAM + 0x10_0000
PENDING_SIZE = 0x1_0000
"""The LPI pending tables: one for each vCPU, a bit for each INTID."""
TABLES = RAM + 0x40_0000
TABLES_SIZE = 0x40_0000
"""The tables of an ITS: devices, collections, command queue, translations."""
DEVICES, COLLECTIONS, QUEUE, LEVEL2, ITTS = 0, 0x1_0000, 0x2_0000, 0x4_0000, 0x10_0000
QUEUE_SIZE = 0x1_0000

# Offsets into EXITS.
EXIT_IDLE = 0x08
EXIT_TAKEN = 0x10
EXIT_ARGUMENT = 0x20
EXIT_VALUE = 0x28
EXIT_DONE = 0x30
EXIT_FAULT = 0x38

OPERATIONS = (
    *("NONE", "WFI", "SPIN", "MASK", "UNMASK", "READ32", "WRITE32", "READ64", "WRITE64"),
    *("PMR", "IGRPEN1", "HPPIR1"),
)


def defines() -> dict[str, int]:
    """Return every constant of stub.S, by name."""
    exits = {name: value for name, value in globals().items() if name.startswith("EXIT")}
    return exits | {f"OP_{name}": number for number, name in enumerate(OPERATIONS)}
