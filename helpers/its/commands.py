# SPDX-License-Identifier: GPL-2.0-only
"""The commands of an ITS: 32 bytes each.

Source: Arm GIC Architecture Specification, "ITS commands".

A redistributor is named by its processor number, since KVM's GITS_TYPER.PTA is 0.
"""

from __future__ import annotations

import struct

from helpers.its.registers import VALID

SIZE = 32


def _command(number: int, devid: int = 0, word1: int = 0, word2: int = 0, word3: int = 0) -> bytes:
    return struct.pack("<4Q", number | devid << 32, word1, word2, word3)


def mapd(devid: int, itt: int, bits: int, valid: bool = True) -> bytes:
    """Map a device to the translation table at ``itt``, which has 2**``bits`` events."""
    return _command(0x08, devid, bits - 1, itt | (VALID if valid else 0))


def mapc(collection: int, vcpu: int, valid: bool = True) -> bytes:
    """Map a collection to a vCPU."""
    return _command(0x09, word2=collection | vcpu << 16 | (VALID if valid else 0))


def mapti(devid: int, event: int, lpi: int, collection: int) -> bytes:
    """Map an event of a device to an LPI in a collection."""
    return _command(0x0A, devid, event | lpi << 32, collection)


def mapi(devid: int, event: int, collection: int) -> bytes:
    """Map an event of a device to the LPI of the same number."""
    return _command(0x0B, devid, event, collection)


def movi(devid: int, event: int, collection: int) -> bytes:
    """Move an event, and its LPI if pending, to another collection."""
    return _command(0x01, devid, event, collection)


def movall(source: int, target: int) -> bytes:
    """Move all pending LPIs of vCPU ``source`` to vCPU ``target``."""
    return _command(0x0E, word2=source << 16, word3=target << 16)


def discard(devid: int, event: int) -> bytes:
    """Unmap an event, and clear the pending state of its LPI."""
    return _command(0x0F, devid, event)


def inv(devid: int, event: int) -> bytes:
    """Have the configuration of an event's LPI read again."""
    return _command(0x0C, devid, event)


def invall(collection: int) -> bytes:
    """Have the configuration of all LPIs of a collection read again."""
    return _command(0x0D, word2=collection)


def int_(devid: int, event: int) -> bytes:
    """Make an event's LPI pending."""
    return _command(0x03, devid, event)


def clear(devid: int, event: int) -> bytes:
    """Clear the pending state of an event's LPI."""
    return _command(0x04, devid, event)


def sync(vcpu: int) -> bytes:
    """Wait for the commands that concern a vCPU."""
    return _command(0x05, word2=vcpu << 16)
