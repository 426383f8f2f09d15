# SPDX-License-Identifier: GPL-2.0-only
"""Many messages that differ in one word, sent by sender.c.

Python would spend four times as long between the system calls as the kernel spends in them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from helpers.apic import Message
from helpers.apic.lapic import bits
from helpers.guest.assemble import library
from helpers.guest.injection import Injection
from helpers.guest.machine import Machine
from helpers.kvm import abi, recording
from helpers.kvm.msi import msi_of

Word = Literal["address_lo", "address_hi", "data"]
Values = ctypes.Array[ctypes.c_uint32]
Results = ctypes.Array[ctypes.c_int16]
Sent = tuple[int, int]
"""Number of messages with the expected result, and the result of the last message."""

WINDOW = 14
"""Number of bits of which all combinations are sent: 16,384 messages."""


def combinations(mask: int) -> list[int]:
    """Return all values that the bits of ``mask`` can have."""
    values = [0]
    for bit in bits(mask):
        values += [value | 1 << bit for value in values]
    return values


def windows(mask: int) -> list[int]:
    """Return the lowest WINDOW bits and the highest WINDOW bits of ``mask``, as two masks."""
    places = list(bits(mask))
    return [sum(1 << bit for bit in part) for part in (places[:WINDOW], places[-WINDOW:])]


def send_values(fd: int, msi: abi.kvm_msi, word: Word, values: Values, expected: Results) -> Sent:
    """Call KVM_SIGNAL_MSI with each of ``values`` or-ed into ``word`` of ``msi``.

    ``expected`` has a result for each value: the return value, or the negative errno. Stop after
    the first other result.
    """
    if recording.active:
        recording.active.sent_each(fd, bytes(msi), word, list(values), set(expected))
    got = ctypes.c_int()
    place = ctypes.byref(msi, getattr(abi.kvm_msi, word).offset)
    call = (fd, abi.KVM_SIGNAL_MSI.number, ctypes.byref(msi), place)
    sent = _library().send_values(*call, values, len(values), expected, ctypes.byref(got))
    return int(sent), got.value


@cache
def _library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library(Path(__file__).with_suffix(".c"))))
    number, pointer = ctypes.c_int, ctypes.c_void_p
    call = (number, ctypes.c_ulong, pointer, pointer)
    loaded.send_values.argtypes = (*call, pointer, number, pointer, pointer)
    return loaded


def signal_each(
    machine: Machine, message: Message, word: Word, values: Iterable[int], returns: int
) -> Injection:
    """Send ``message`` with each of ``values`` or-ed into ``word``.

    Return one injection that has the effects of all messages. Each message must have the result
    ``returns``, a return value or a negative errno; Mismatch names the first other result.
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

    injection = machine.observe(msi, inject)
    return injection.returns(returns) if returns >= 0 else injection.fails(-returns)
