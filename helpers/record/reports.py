# SPDX-License-Identifier: GPL-2.0-only
"""Carry a tape in the report of its test, from the process that recorded the test.

A kernel under test may corrupt what its guest sends: zlib's checksum shows that, and a pickle makes
nothing but a tape.
"""

from __future__ import annotations

import enum
import io
import pickle
import re
import zlib
from collections.abc import Callable

import pytest

from helpers.record.tape import Tape
from helpers.verdicts.reports import Carried

_TAPE = Carried[bytes]("tape")
_MAX_BYTES = 64 << 20
"""The size of a pickled tape; most are below 100 KB."""

_MODULES = re.compile(r"helpers\.(record\.tape|kvm\.abi|apic\.[a-z]+)")
"""Where the classes of a tape are. They hold values, and do nothing when they are made."""


def attach(report: pytest.TestReport, tape: Tape) -> None:
    """Put a tape into a report, in a form that pytest can send."""
    _TAPE.put(report, packed(tape))


def tape_of(report: pytest.TestReport) -> Tape | None:
    """Return the tape of a test; None for the report of another phase, or without --record."""
    carried = _TAPE.get(report)
    return None if carried is None else unpacked(carried)


def packed(tape: Tape) -> bytes:
    """Return a tape as bytes."""
    return zlib.compress(pickle.dumps(tape), level=1)


def unpacked(content: bytes) -> Tape:
    """Return the tape in ``content``; for bytes that hold none, a tape that says so."""
    try:
        unpacker = zlib.decompressobj()
        pickled = unpacker.decompress(content, _MAX_BYTES)
        if not unpacker.eof:
            raise ValueError("too large, or cut off")
        tape = _Unpickler(io.BytesIO(pickled)).load()
        if not isinstance(tape, Tape):
            raise TypeError("another object")
    except Exception as error:  # pickle lists what it raises as "and more"
        return Tape(left_out=f"the tape was damaged on its way: {error}")
    return tape


class _Unpickler(pickle.Unpickler):
    """Makes the classes that a tape consists of, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) == ("builtins", "getattr"):
            return _member
        found = super().find_class(module, name) if _MODULES.fullmatch(module) else None
        if isinstance(found, type) and found.__module__ == module:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tape")


def _member(enumeration: enum.EnumType, name: str) -> object:
    """Return a member of an enumeration, which Python 3.11.2 pickles as a call of getattr()."""
    if not isinstance(enumeration, enum.EnumType):
        raise pickle.UnpicklingError("getattr is no part of a tape")
    return enumeration[name]
