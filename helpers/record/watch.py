# SPDX-License-Identifier: GPL-2.0-only
"""Values of the kernel that tell the recorder which of their fields a test reads.

The recorder takes a field that a test reads for a field that the test checks. What a test writes
itself does not count.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from helpers.apic import LapicPage, Register
from helpers.apic.lapic import VectorSet
from helpers.record.forms import mask_of

Look = Callable[[str, int], None]
"""Called with the place and the value of each field that a test reads."""

S = TypeVar("S", bound=ctypes.Structure)

_VECTORS = (Register.ISR, Register.TMR, Register.IRR)


class WatchedPage(LapicPage):
    """A register page. A place is ``0x80`` for a register, ``vectors 0x200`` for all of IRR.

    ``xapic_id`` is the byte of the ID register.
    """

    __slots__ = ("_look", "_written")

    def __init__(self, raw: bytes | bytearray, look: Look) -> None:
        super().__init__(raw)
        self._look = look
        self._written: set[int] = set()

    def __getitem__(self, register: int) -> int:
        value = super().__getitem__(register)
        if register not in self._written:
            self._look(f"{int(register):#x}", value)
        return value

    def __setitem__(self, register: int, value: int) -> None:
        self._written.add(int(register))
        super().__setitem__(register, value)

    @property
    def xapic_id(self) -> int:
        value = LapicPage(self.raw).xapic_id
        if Register.ID not in self._written:
            self._look("xapic_id", value)
        return value

    def vectors(self, register: Register) -> VectorSet:
        found = super().vectors(register)
        if register not in self._written:
            self._look(f"vectors {int(register):#x}", mask_of(found))
        return found

    def copy(self) -> WatchedPage:
        page = WatchedPage(self.raw, self._look)
        page._written = set(self._written)
        return page

    def __eq__(self, other: object) -> bool:
        for register in Register:
            if register not in (Register.VERSION, Register.TIMER_CURRENT):
                self.vectors(register) if register in _VECTORS else self[register]
        return super().__eq__(other)

    __hash__ = None


class Part:
    """A structure or an array inside a watched structure, at ``place``."""

    __slots__ = ("_look", "_place", "_value", "_written")

    def __init__(self, value: Any, place: str, look: Look, written: set[str]) -> None:
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_look", look)
        object.__setattr__(self, "_written", written)

    def __getattr__(self, name: str) -> Any:
        place = f"{self._place}.{name}"
        return _seen(getattr(self._value, name), place, self._look, self._written)

    def __setattr__(self, name: str, value: Any) -> None:
        self._written.add(f"{self._place}.{name}")
        setattr(self._value, name, value)

    def __getitem__(self, index: int) -> Any:
        place = f"{self._place}[{index}]"
        return _seen(self._value[index], place, self._look, self._written)

    def __setitem__(self, index: int, value: Any) -> None:
        self._written.add(f"{self._place}[{index}]")
        self._value[index] = value

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _seen(value: Any, place: str, look: Look, written: set[str]) -> Any:
    if isinstance(value, (ctypes.Structure, ctypes.Union, ctypes.Array)):
        return Part(value, place, look, written)
    if not any(place == each or place.startswith((f"{each}.", f"{each}[")) for each in written):
        look(place, value)
    return value


@cache
def watched(struct: type[S]) -> type[S]:
    """Return a subclass of ``struct`` whose instances call their attribute ``look``, once set."""
    names = {name for name, *_ in struct._fields_}

    class Watched(struct):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name not in names:
                return value
            own = super().__getattribute__("__dict__")
            look = own.get("look")
            return _seen(value, name, look, own.setdefault("written", set())) if look else value

        def __setattr__(self, name: str, value: Any) -> None:
            if name in names:
                self.__dict__.setdefault("written", set()).add(name)
            super().__setattr__(name, value)

    return Watched


def plain(argument: object) -> type[ctypes.Structure] | None:
    """Return the type of a structure, before :func:`watched`; None for any other argument."""
    kind = type(argument)
    if not issubclass(kind, ctypes.Structure):
        return None
    return kind if kind.__module__ != __name__ else kind.__mro__[1]


class WatchedRecord:
    """A record in the log of the guest, helpers.guest.Taken. ``vector`` is owed in any case."""

    def __init__(self, record: Any, look: Look) -> None:
        self._record = record
        self._look = look

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._record, name)
        if name != "vector":
            number = value if isinstance(value, int) else mask_of(value)
            self._look(name, number)
        return value

    def __eq__(self, other: object) -> bool:
        for name in type(self._record).__slots__:
            getattr(self, name)
        return bool(self._record == getattr(other, "_record", other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._record)
