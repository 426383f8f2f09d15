# SPDX-License-Identifier: GPL-2.0-only
"""Encode the messages between host and guest: tuples of plain data, each behind its length.

Both ends run the same Python, so marshal fits. No other format is as cheap in an emulator.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("<I")


def pack(*message: Any) -> bytes:
    """Return a message as bytes."""
    content = marshal.dumps(message)
    return _LENGTH.pack(len(content)) + content


class Unpacker:
    """Decodes a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[tuple[Any, ...]]:
        """Yield the messages that ``received`` completes."""
        self._buffer += received
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield marshal.loads(content)
