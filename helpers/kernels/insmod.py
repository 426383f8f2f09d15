# SPDX-License-Identifier: GPL-2.0-only
"""Load and unload modules in the guest, which has no modprobe."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

# The numbers of init_module(2) and delete_module(2).
_INIT_MODULE, _DELETE_MODULE = (105, 106) if platform.machine() == "aarch64" else (175, 176)
_libc = ctypes.CDLL(None, use_errno=True)


def load(module: bytes, parameters: str = "") -> None:
    """Load a module; ``parameters`` as modprobe takes them. Raises OSError."""
    size = ctypes.c_ulong(len(module))
    if _libc.syscall(_INIT_MODULE, module, size, parameters.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unload(name: str) -> None:
    """Unload a module. Raises OSError: EWOULDBLOCK if it is in use."""
    if _libc.syscall(_DELETE_MODULE, name.encode(), os.O_NONBLOCK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def is_loaded_from(name: str, module: bytes) -> bool:
    """Return whether the loaded module has the build ID of ``module``; True if it has none."""
    try:
        note = Path("/sys/module", name, "notes/.note.gnu.build-id").read_bytes()
    except OSError:
        return True
    return note in module
