# SPDX-License-Identifier: GPL-2.0-only
"""Registers of the distributor, the redistributors and an ITS: offsets, fields, table entries.

Source: Arm GIC Architecture Specification, GICv3 (IHI 0069), by the names of the registers.
"""

from __future__ import annotations

# Offsets into the distributor, a redistributor and an ITS.
GICD_CTLR = 0x0
GICR_CTLR = 0x0
GICR_PROPBASER = 0x70
GICR_PENDBASER = 0x78
GITS_CTLR = 0x0
GITS_TYPER = 0x8
GITS_CBASER = 0x80
GITS_CWRITER = 0x88
GITS_CREADR = 0x90
GITS_BASER = 0x100
"""GITS_BASER0, the device table; 8 bytes on GITS_BASER1, the collection table."""
GITS_TRANSLATER = 0x1_0040
ITS_SIZE = 0x2_0000

GICD_CTLR_ENABLE_GRP1 = 1 << 1
GICD_CTLR_ARE_DS = 1 << 4 | 1 << 6
GICR_CTLR_ENABLE_LPIS = 1 << 0
GITS_CTLR_ENABLED = 1 << 0

VALID = 1 << 63
BASER_INDIRECT = 1 << 62
BASER_64K = 2 << 8

FIRST_LPI = 8192
ID_BITS = 16
"""Bits of an INTID and of a device ID, as KVM's ITS has them."""

LPI_ENABLED = 1 << 0
PRIORITY = 0xA0
"""The priority of an LPI unless a test chooses another."""

DEVICE_ENTRY = 8
"""Bytes of an entry of a device, collection or translation table."""


def base_register(address: int, pages: int, indirect: bool = False) -> int:
    """Return the value of a GITS_BASER for ``pages`` of 64 KiB at ``address``."""
    return VALID | (BASER_INDIRECT if indirect else 0) | address | BASER_64K | (pages - 1)
