# SPDX-License-Identifier: GPL-2.0-only
"""A page of guest memory that the host supplies late, as a host does while a guest is migrated."""

from __future__ import annotations

import ctypes
import os
import select
from ctypes import c_uint64

from helpers.guest.running import DEADLINE, GuestError
from helpers.kvm import Vm
from helpers.kvm.abi import fields
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import MissingPart, errno_name, raw_ioctl

PAGE_SIZE = 0x1000
# Source: include/uapi/linux/userfaultfd.h and arch/x86/entry/syscalls/syscall_64.tbl.
_SYS_USERFAULTFD = 323
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_ZEROPAGE = 0xC020AA04
_UFFD_API = 0xAA
_MODE_MISSING = 1 << 0
_SIZE_OF_MESSAGE = 32

_libc = ctypes.CDLL(None, use_errno=True)


class _Api(ctypes.Structure):
    _fields_ = fields(c_uint64, "api", "features", "ioctls")


class _Range(ctypes.Structure):
    """struct uffdio_register and struct uffdio_zeropage, which have the same layout."""

    _fields_ = fields(c_uint64, "start", "len", "mode", "result")


class MissingPage(Closing):
    """A page at guest-physical ``address``; an access waits until supply() or close().

    Raises MissingPart for a user who may not handle page faults of the kernel.
    """

    def __init__(self, vm: Vm, address: int) -> None:
        self._fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise MissingPart(f"userfaultfd(2) fails: {errno_name(ctypes.get_errno())}")
        memory = vm.add_memory(address, PAGE_SIZE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._call(_UFFDIO_API, _Api(api=_UFFD_API))
        self._call(_UFFDIO_REGISTER, self._range(_MODE_MISSING))

    def close(self) -> None:
        """Let the kernel supply the page."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _range(self, mode: int = 0) -> _Range:
        return _Range(self._start, PAGE_SIZE, mode)

    def _call(self, number: int, argument: ctypes.Structure) -> None:
        result, code = raw_ioctl(self._fd, number, ctypes.addressof(argument))
        if result == -1:
            raise OSError(code, os.strerror(code))

    def wait_for_access(self) -> None:
        """Wait until something accesses the page. Raises GuestError after DEADLINE seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(DEADLINE * 1000):
            raise GuestError(f"waited {DEADLINE:.0f} s for an access to the missing page")
        os.read(self._fd, _SIZE_OF_MESSAGE)

    def supply(self) -> None:
        """Make the page one of zeros."""
        self._call(_UFFDIO_ZEROPAGE, self._range())
