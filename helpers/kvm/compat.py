# SPDX-License-Identifier: GPL-2.0-only
"""The 32-bit system call entry (``int 0x80``), called from this 64-bit process.

The entry takes KVM_SIGNAL_MSI to ``kvm_vm_compat_ioctl()``. Calls are not traced.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

from helpers.kvm import recording

# push rbx; mov ebx, edi; mov ecx, esi; mov eax, 54 (ioctl of i386); int 0x80; pop rbx; ret.
# The third argument of a C function is in edx already.
_INT80_IOCTL = bytes.fromhex("53 89fb 89f1 b836000000 cd80 5b c3")
# push rbx; mov eax, 20 (getpid of i386); int 0x80; pop rbx; ret
_INT80_GETPID = bytes.fromhex("53 b814000000 cd80 5b c3")


def _machine_code(code: bytes, *arguments: Any) -> Callable[..., int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    view = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(ctypes.addressof(view))
    function.view = view  # type: ignore[attr-defined]  # the view keeps the page mapped
    return function


def has_compat_entry() -> bool:
    """Return whether the kernel has the entry (CONFIG_IA32_EMULATION, not disabled at boot).

    A forked child tries: a kernel without the entry kills the caller with SIGSEGV.
    """
    getpid = _machine_code(_INT80_GETPID)
    child = os.fork()
    if child == 0:
        os._exit(0 if getpid() == os.getpid() else 1)
    return os.waitpid(child, 0)[1] == 0


def compat_ioctl(fd: int, number: int, argument: int) -> tuple[int, int]:
    """Call ioctl(2) through the entry; return (return value, errno or 0).

    Raises ValueError for an ``argument`` of more than 32 bits.
    """
    recording.leave_out("the 32-bit system call entry")
    if argument >> 32:
        raise ValueError(f"address {argument:#x} does not fit a 32-bit system call")
    function = _machine_code(_INT80_IOCTL, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)
    result = function(fd, number, argument)
    return (-1, -result) if -4096 < result < 0 else (result, 0)
