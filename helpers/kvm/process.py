# SPDX-License-Identifier: GPL-2.0-only
"""The calling process: memory of any protection, a forked child."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import warnings
from collections.abc import Callable

from helpers.kvm import recording
from helpers.kvm.closing import Closing

PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_MAP_32BIT = 0x40


class UserPages(Closing):
    """Two zeroed pages of this process at ``address``, below 4 GiB."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self._size = 2 * mmap.PAGESIZE
        self.address = _libc.mmap(None, self._size, protection, flags, -1, 0)
        if self.address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap below 4 GiB")

    def close(self) -> None:
        _libc.munmap(self.address, self._size)
        self._size = 0

    @property
    def boundary(self) -> int:
        """The address of the second page."""
        return int(self.address + mmap.PAGESIZE)

    @property
    def end(self) -> int:
        """The first address behind the two pages."""
        return self.boundary + mmap.PAGESIZE

    def write(self, content: bytes, address: int) -> None:
        ctypes.memmove(address, content, len(content))

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def protect_first(self, protection: int) -> None:
        self._protect(self.address, protection)

    def protect_second(self, protection: int) -> None:
        self._protect(self.boundary, protection)

    def _protect(self, address: int, protection: int) -> None:
        if _libc.mprotect(address, mmap.PAGESIZE, protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def unmap_second(self) -> None:
        if _libc.munmap(self.boundary, mmap.PAGESIZE):
            raise OSError(ctypes.get_errno(), "munmap")
        self._size = mmap.PAGESIZE


def fork() -> int:
    """Return the process ID of a forked child, and 0 in the child."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork among threads. The children take no lock of the parent.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_forked_child(function: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Call ``function`` in a forked child and return its (return value, errno or 0).

    The child shares the file descriptors, but not the address space. Raises ChildProcessError if
    the child dies before ``function`` returns.
    """
    recording.leave_out("a forked child")
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.write(writer, struct.pack("ii", *function()))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise ChildProcessError("the forked child died before the system call returned")
    result, code = struct.unpack("ii", answer)
    return result, code
