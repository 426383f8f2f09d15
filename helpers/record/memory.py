# SPDX-License-Identifier: GPL-2.0-only
"""What the host writes to guest memory between two KVM_RUNs."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from helpers.guest import layout
from helpers.record.tape import Copy, Write

_PAGE = 0x1000
_LARGE = 64
"""Bytes from which on the same content in another machine is a copy."""


@dataclass(slots=True)
class GuestMemory:
    """The memory of machine ``number``, with a copy as of the last KVM_RUN."""

    number: int
    vcpus: int = 0
    memory: mmap.mmap | None = None
    copy: dict[int, bytes] = field(default_factory=dict)

    @property
    def written(self) -> list[tuple[int, int]]:
        """The parts (start, end) of guest memory that the host writes while a test runs."""
        if self.memory is None:
            return []
        areas = layout.AREAS, layout.AREAS + self.vcpus * layout.AREA_SIZE
        return [(layout.SMRAM.start, layout.SMRAM.stop), areas]

    def content(self, start: int, end: int) -> bytes:
        """Return guest memory from ``start`` to ``end``."""
        return b"" if self.memory is None else self.memory[start:end]

    def keep(self) -> None:
        """Note that the present content is known: the guest wrote it, or a step says so."""
        self.copy = {start: self.content(start, end) for start, end in self.written}

    def changes(self, machines: Sequence[GuestMemory]) -> Iterator[Write | Copy]:
        """Yield a step for each range that the host changed since the last :meth:`keep`.

        ``machines`` are all machines: content may be a copy of another's.
        """
        for base, limit in self.written:
            now = self.content(base, limit)
            old = self.copy.get(base, b"").ljust(limit - base, b"\0")
            for start, end in _differences(old, now, base) if now != old else ():
                yield self._change(start, end, now[start - base : end - base], machines)

    def _change(
        self, start: int, end: int, content: bytes, machines: Sequence[GuestMemory]
    ) -> Write | Copy:
        if end - start > _LARGE:
            for other in machines:
                if other is not self and other.content(start, end) == content:
                    return Copy(self.number, other.number, start, end - start)
        return Write(self.number, start, content)


def _differences(old: bytes, new: bytes, base: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts that differ: fields of layout.Control, and words.

    ``base`` is the guest-physical address of the first byte.
    """
    for page in range(0, len(new), _PAGE):
        was, now = old[page : page + _PAGE], new[page : page + _PAGE]
        if was == now:
            continue
        address = base + page
        is_control = base == layout.AREAS and page % layout.AREA_SIZE == 0
        parts = _fields_that_differ(was, now) if is_control else _words_that_differ(was, now)
        yield from ((address + start, address + end) for start, end in parts)


def _fields_that_differ(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    for name, *_ in layout.Control._fields_:
        place = getattr(layout.Control, name)
        start, end = place.offset, place.offset + place.size
        if old[start:end] != new[start:end]:
            yield start, end


def _words_that_differ(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    start = -1
    for word in range(0, len(new) + 4, 4):
        differs = old[word : word + 4] != new[word : word + 4]
        if differs and start < 0:
            start = word
        elif not differs and start >= 0:
            yield start, word
            start = -1
