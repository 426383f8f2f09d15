# SPDX-License-Identifier: GPL-2.0-only
"""System calls on KVM file descriptors: ioctl(2) with named requests, named errors and a trace.

``ioctl()`` and ``attempt()`` record each call in ``trace``. ``raw_ioctl()``, ``compat_ioctl()``
(helpers/kvm/compat.py) and the C files of helpers/ do not.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from helpers.kvm import recording
from helpers.kvm.abi import Bytes, Request, kvm_enable_cap, kvm_msi

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.ioctl.restype = ctypes.c_int

Argument = int | ctypes.Structure | Bytes


class KvmError(OSError):
    """An ioctl that returned -1; ``str()`` names the ioctl and the errno."""

    def __init__(self, request: Request, code: int) -> None:
        super().__init__(code, os.strerror(code))
        self.request = request

    @property
    def name(self) -> str:
        """The name of the errno, such as ``EINVAL``."""
        return errno_name(self.errno)

    def __str__(self) -> str:
        return f"{self.request.name}: {self.name} ({self.strerror})"


class MissingPart(Exception):
    """The kernel lacks a part of KVM that the caller needs. The message names the part.

    A test that needs the part is skipped.
    """


def errno_name(code: int | None) -> str:
    """Return the name of an errno, ``EINVAL`` for 22; the number if the errno has no name."""
    return errno.errorcode.get(code or 0, str(code))


def show_result(result: int, code: int) -> str:
    """Return the outcome of a system call in strace's notation: ``1``, or ``-1 EINVAL``."""
    return str(result) if result >= 0 else f"-1 {errno_name(code)}"


class Call(NamedTuple):
    """One traced ioctl.

    ``argument`` is a number, a copy of a structure in ``_COPIED``, or the type of any other
    structure. ``errno`` is 0 unless ``result`` is -1.
    """

    fd: int
    request: Request
    argument: int | ctypes.Structure | type
    result: int
    errno: int

    def __str__(self) -> str:
        result = show_result(self.result, self.errno)
        return f"{self.request.name}(fd {self.fd}{_describe(self.argument)}) = {result}"


_call = tuple.__new__  # Call() without the Python frame of NamedTuple.__new__

trace: deque[Call] = deque(maxlen=400)
"""The latest calls of this process, oldest first. The report shows the calls of one test."""

observers: dict[int, Callable[[int, int, Any, int], None]] = {}
"""By file descriptor: called after each ioctl, with fd, number, argument and return value."""


def raw_ioctl(fd: int, number: int, argument: int) -> tuple[int, int]:
    """Call ioctl(2) with a number or an address; return (return value, errno or 0)."""
    result = _libc.ioctl(fd, number, argument)
    return result, ctypes.get_errno() if result == -1 else 0


def ioctl(fd: int, request: Request, argument: Argument = 0) -> int:
    """Call ``request`` on ``fd`` and return the return value. Raises KvmError.

    A structure is passed by address, an int by value. EINTR is retried, after the Python handler of
    the signal has run; an exception of the handler propagates. KVM_RUN, which must not be retried,
    goes through :meth:`helpers.kvm.vcpu.Vcpu.run`.
    """
    while True:
        result, code = attempt(fd, request, argument)
        if result != -1:
            return result
        if code != errno.EINTR:
            raise KvmError(request, code)


def attempt(fd: int, request: Request, argument: Argument = 0) -> tuple[int, int]:
    """Call ``request`` once; return (return value, errno or 0), whatever the errno."""
    shown: int | ctypes.Structure | type
    if isinstance(argument, int):
        address = shown = argument
    else:
        address = ctypes.addressof(argument)
        shown = type(argument)
        if shown in _COPIED:
            shown = shown.from_buffer_copy(argument)
    recorder = recording.active
    sent = recorder.before(fd, request, argument) if recorder else 0
    result, code = raw_ioctl(fd, request.number, address)
    if recorder:
        recorder.called(fd, request, argument, sent, result, code)
    trace.append(_call(Call, (fd, request, shown, result, code)))
    if fd in observers:
        observers[fd](fd, request.number, argument, result)
    return result, code


# The trace shows the content of these arguments. The caller may reuse the structure: keep a copy.
_COPIED = {kvm_msi, kvm_enable_cap}


def _describe(argument: int | ctypes.Structure | type) -> str:
    if isinstance(argument, int):
        return f", {argument:#x}" if argument else ""
    if isinstance(argument, kvm_msi):
        shown = (
            f", address_lo={argument.address_lo:#010x}, address_hi={argument.address_hi:#x}, "
            f"data={argument.data:#06x}, flags={argument.flags:#x}, devid={argument.devid:#x}"
        )
        pad = bytes(argument.pad)
        return shown + (f", pad={pad.hex()}" if any(pad) else "")
    if isinstance(argument, kvm_enable_cap):
        return f", cap={argument.cap}, args[0]={argument.args[0]:#x}"
    assert isinstance(argument, type)
    return f", {argument.__name__}"
