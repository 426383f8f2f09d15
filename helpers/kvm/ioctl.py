"""One door to the kernel: every ioctl of the suite goes through :func:`ioctl`."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from helpers.kvm.abi import Request, kvm_enable_cap, kvm_msi

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.ioctl.restype = ctypes.c_int

Argument = int | ctypes.Structure | ctypes.Array[ctypes.c_uint8]


class KvmError(OSError):
    """An ioctl that returned -1; ``str()`` names the ioctl and the errno."""

    def __init__(self, request: Request, code: int) -> None:
        super().__init__(code, os.strerror(code))
        self.request = request

    @property
    def name(self) -> str:
        """The errno's name, such as ``EINVAL``."""
        return errno_name(self.errno)

    def __str__(self) -> str:
        return f"{self.request.name}: {self.name} ({self.strerror})"


def errno_name(code: int | None) -> str:
    """``EINVAL`` for 22; the bare number where it has no name."""
    return errno.errorcode.get(code or 0, str(code))


def show_result(result: int, code: int) -> str:
    """``1``, or ``-1 EINVAL``: what a call came to, as everybody writes it."""
    return str(result) if result >= 0 else f"-1 {errno_name(code)}"


class Call(NamedTuple):
    """One traced ioctl. ``argument``: a number, a copy of a structure, or a structure's type."""

    fd: int
    request: Request
    argument: int | ctypes.Structure | type
    result: int
    errno: int

    def __str__(self) -> str:
        result = show_result(self.result, self.errno)
        return f"{self.request.name}(fd {self.fd}{_describe(self.argument)}) = {result}"


_call = tuple.__new__  # what Call() comes to, by way of a Python function that takes longer

trace: deque[Call] = deque(maxlen=400)
"""The latest calls, oldest first; the report shows those of one test."""

observers: dict[int, Callable[[int, int, Any, int], None]] = {}
"""By file descriptor: called after each ioctl, with fd, number, argument and return value."""


def raw_ioctl(fd: int, number: int, argument: int) -> tuple[int, int]:
    """The system call: (return value, errno or 0). ``argument`` is a number or an address."""
    result = _libc.ioctl(fd, number, argument)
    return result, ctypes.get_errno() if result == -1 else 0


def ioctl(fd: int, request: Request, argument: Argument = 0) -> int:
    """Call ``request`` on ``fd``; the return value, or :class:`KvmError`.

    A structure is passed by its address, an int as it is. EINTR is retried: the signal's Python
    handler has run by then, and what it raises leaves from here. KVM_RUN, for which EINTR is an
    answer, is :meth:`helpers.kvm.vcpu.Vcpu.run`.
    """
    while True:
        result, code = attempt(fd, request, argument)
        if result != -1:
            return result
        if code != errno.EINTR:
            raise KvmError(request, code)


def ioctl_once(fd: int, request: Request, argument: Argument = 0) -> int:
    """As :func:`ioctl`, with EINTR raised like every other error."""
    result, code = attempt(fd, request, argument)
    if result == -1:
        raise KvmError(request, code)
    return result


def attempt(fd: int, request: Request, argument: Argument = 0) -> tuple[int, int]:
    """As :func:`ioctl`, with errors, EINTR too, returned: (return value, errno or 0)."""
    shown: int | ctypes.Structure | type
    if isinstance(argument, int):
        address = shown = argument
    else:
        address = ctypes.addressof(argument)
        shown = type(argument)
        if shown in _SHOWN:
            shown = shown.from_buffer_copy(argument)  # the caller may change it afterwards
    result, code = raw_ioctl(fd, request.number, address)
    trace.append(_call(Call, (fd, request, shown, result, code)))
    if fd in observers:
        observers[fd](fd, request.number, argument, result)
    return result, code


_SHOWN = {kvm_msi, kvm_enable_cap}


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


# int 0x80 with ebx, ecx, edx = the three arguments of i386's ioctl (54), from 64-bit code.
_INT80_IOCTL = bytes.fromhex("53 89fb 89f1 b836000000 cd80 5b c3")
# int 0x80 with i386's getpid (20).
_INT80_GETPID = bytes.fromhex("53 b814000000 cd80 5b c3")


def _machine_code(code: bytes, *arguments: Any) -> Callable[..., int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    view = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(ctypes.addressof(view))
    function.view = view  # type: ignore[attr-defined]  # keeps the page mapped
    return function


def has_compat_entry() -> bool:
    """Whether the kernel has the 32-bit system call entry (CONFIG_IA32_EMULATION, not disabled).

    Tried in a child, which a kernel without it kills with SIGSEGV.
    """
    getpid = _machine_code(_INT80_GETPID)
    child = os.fork()
    if child == 0:
        os._exit(0 if getpid() == os.getpid() else 1)
    return os.waitpid(child, 0)[1] == 0


def compat_ioctl(fd: int, number: int, argument: int) -> tuple[int, int]:
    """:func:`raw_ioctl` through the 32-bit entry; ValueError for an address above 4 GiB."""
    if argument >> 32:
        raise ValueError(f"address {argument:#x} does not fit a 32-bit system call")
    function = _machine_code(_INT80_IOCTL, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
    result = function(fd, number, argument)
    return (-1, -result) if -4095 <= result < 0 else (result, 0)
