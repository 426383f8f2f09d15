"""What host and guest say to each other: tuples of plain data, each behind its length.

Both ends are the same Python, so marshal fits: it is the cheapest thing to decode in an emulator.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("<I")


def pack(*message: Any) -> bytes:
    """A message, ready to be written."""
    content = marshal.dumps(message)
    return _LENGTH.pack(len(content)) + content


class Unpacker:
    """Finds the messages in a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[tuple[Any, ...]]:
        """The messages that ``received`` completes."""
        self._buffer += received
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield marshal.loads(content)
