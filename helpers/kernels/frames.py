# SPDX-License-Identifier: GPL-2.0-only
"""Encode the messages between host and guest: tuples of plain data, behind length and checksum.

Both ends run the same Python, so marshal fits. No other format is as cheap in an emulator. A kernel
under test may corrupt what the guest sends, and marshal trusts its input: wrong lengths allocate
gigabytes, and code objects crash. So a frame is checked before marshal decodes it.
"""

from __future__ import annotations

import marshal
import struct
import zlib
from collections.abc import Iterator
from typing import Any

_HEADER = struct.Struct("<II")  # length and CRC-32 of the content
_NUMBER = struct.Struct("<i")
LONGEST = 1 << 26
"""The most bytes of a frame's content. The longest frame of a run is a test's captured output."""
_DEEPEST = 100
"""The most containers inside of one another."""
_REFERABLE = 0x80
"""The flag of marshal's type byte: the value can be referred to later."""


class Garbage(Exception):
    """Raised for bytes that are no message. The message is a part of a sentence."""


def pack(*message: Any) -> bytes:
    """Return a message as bytes."""
    content = marshal.dumps(message)
    return _HEADER.pack(len(content), zlib.crc32(content)) + content


class Unpacker:
    """Decodes a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[tuple[Any, ...]]:
        """Yield the messages that ``received`` completes. Raises Garbage."""
        self._buffer += received
        while len(self._buffer) >= _HEADER.size:
            length, checksum = _HEADER.unpack_from(self._buffer)
            if length > LONGEST:
                raise Garbage(f"a frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if zlib.crc32(content) != checksum:
                raise Garbage("a frame with a wrong checksum")
            yield _decoded(content)


def _decoded(content: bytes) -> tuple[Any, ...]:
    """Return the message of a frame. Raises Garbage."""
    _Scan(content).require_plain()
    try:
        message = marshal.loads(content)
    except (ValueError, TypeError, EOFError) as error:
        raise Garbage(f"a frame that cannot be decoded: {error}") from None
    if not isinstance(message, tuple):
        raise Garbage("a frame without a message")
    return message


class _Scan:
    """A pass over marshal's encoding of one value, which creates no object of it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0
        # Whether each value that can be referred to is a scalar; None for an unfinished container.
        self._values: list[bool | None] = []

    def require_plain(self) -> None:
        """Raise Garbage unless the content is one value of plain data."""
        self._value(0)
        if self._place != len(self._content):
            raise Garbage("a frame with bytes after its message")

    def _take(self, size: int) -> int:
        """Skip ``size`` bytes. Return the place of the first."""
        place = self._place
        self._place += size
        if size < 0 or self._place > len(self._content):
            raise Garbage("a frame with a wrong length inside")
        return place

    def _byte(self) -> int:
        return self._content[self._take(1)]

    def _number(self) -> int:
        number: int = _NUMBER.unpack_from(self._content, self._take(_NUMBER.size))[0]
        return number

    def _value(self, depth: int) -> bool:
        """Skip a value. Return whether the value is a scalar."""
        byte = self._byte()
        kind = chr(byte & ~_REFERABLE)
        if kind == "r":
            return self._referred()
        number = len(self._values)
        if byte & _REFERABLE:
            if kind in "NTF":  # marshal gives these no number
                raise Garbage("a frame with a reference to a constant")
            self._values.append(None)
        is_scalar = kind not in "()[{"
        if is_scalar:
            self._scalar(kind)
        else:
            self._container(kind, depth + 1)
        if byte & _REFERABLE:
            self._values[number] = is_scalar
        return is_scalar

    def _referred(self) -> bool:
        number = self._number()
        is_scalar = self._values[number] if 0 <= number < len(self._values) else None
        if is_scalar is None:
            raise Garbage("a frame with a reference to nothing")
        return is_scalar

    def _scalar(self, kind: str) -> None:
        match kind:
            case "N" | "T" | "F":
                pass
            case "i" | "g":
                self._take(4 if kind == "i" else 8)
            case "l":
                self._take(2 * abs(self._number()))
            case "z" | "Z":
                self._take(self._byte())
            case "a" | "A" | "u" | "t" | "s":
                self._take(self._number())
            case _:
                raise Garbage("a frame with a value that is not plain data")

    def _container(self, kind: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise Garbage("a frame with too many containers inside of one another")
        if kind == "{":
            while self._content[self._place : self._place + 1] != b"0":
                if not self._value(depth):
                    raise Garbage("a frame with a dictionary whose key is a container")
                self._value(depth)
            self._take(1)
            return
        size = self._byte() if kind == ")" else self._number()
        if not 0 <= size <= len(self._content) - self._place:
            raise Garbage("a frame with a wrong length inside")
        for _ in range(size):
            self._value(depth)
