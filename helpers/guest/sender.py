"""Many messages that differ in one word, sent by sender.c: for what is too much for Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from typing import Literal

from helpers.apic import Message
from helpers.apic.lapic import bits
from helpers.guest.assemble import sender
from helpers.guest.injection import Injection, msi_of
from helpers.guest.machine import Machine
from helpers.kvm import abi

Word = Literal["address_lo", "address_hi", "data"]
Values = ctypes.Array[ctypes.c_uint32]
Results = ctypes.Array[ctypes.c_int16]
Sent = tuple[int, int]
"""How many were as expected, and what the last one returned."""

WINDOW = 14
"""Of so many bits all combinations are sent."""


def combinations(mask: int) -> list[int]:
    """All values of the bits of ``mask``."""
    values = [0]
    for bit in bits(mask):
        values += [value | 1 << bit for value in values]
    return values


def windows(mask: int) -> list[int]:
    """``mask`` in overlapping parts of WINDOW bits: the lowest, and the highest."""
    places = list(bits(mask))
    return [sum(1 << bit for bit in part) for part in (places[:WINDOW], places[-WINDOW:])]


def send_values(fd: int, msi: abi.kvm_msi, word: Word, values: Values, expected: Results) -> Sent:
    """KVM_SIGNAL_MSI with each of ``values`` or-ed into ``word`` of ``msi``.

    Until a return value, or -errno, is not the expected one.
    """
    got = ctypes.c_int()
    sent = _sender().send_values(
        fd,
        abi.KVM_SIGNAL_MSI.number,
        ctypes.byref(msi),
        ctypes.byref(msi, getattr(abi.kvm_msi, word).offset),
        values,
        len(values),
        expected,
        ctypes.byref(got),
    )
    return int(sent), got.value


@cache
def _sender() -> ctypes.CDLL:
    library = ctypes.CDLL(str(sender()))
    pointer = ctypes.c_void_p
    library.send_values.argtypes = (
        *(ctypes.c_int, ctypes.c_ulong, pointer, pointer),
        *(pointer, ctypes.c_int, pointer, pointer),
    )
    return library


def signal_each(
    machine: Machine, message: Message, word: Word, values: Iterable[int], returns: int
) -> Injection:
    """``message`` with each of ``values`` or-ed into a word: what all of them did together.

    Each must return ``returns``, a negative errno for -1; Mismatch names the first that does not.
    """
    listed = list(values)
    array = (ctypes.c_uint32 * len(listed))(*listed)
    expected = (ctypes.c_int16 * len(listed))(*[returns] * len(listed))
    msi = msi_of(message)

    def inject() -> tuple[int, int]:
        sent, got = send_values(machine.fd, msi, word, array, expected)
        if sent < len(listed):
            setattr(msi, word, getattr(msi, word) | listed[sent])
        return (got, 0) if got >= 0 else (-1, -got)

    shot = machine.observe(msi, inject)
    return shot.returns(returns) if returns >= 0 else shot.fails(-returns)
