# SPDX-License-Identifier: GPL-2.0-only
"""Files with as much of a kernel's image and modules as the suite reads."""

from __future__ import annotations

import struct
from pathlib import Path

from helpers.kernels.emulators.qemu import Qemu

RELEASE = "6.99.0-test"

MAKE_OPTIONS = """\
for argument; do
    case $argument in
        O=*) built=${argument#O=} ;;
        KCONFIG_ALLCONFIG=*) fragment=${argument#KCONFIG_ALLCONFIG=} ;;
    esac
done
"""
"""How a script in place of make begins: $built is its output, $fragment the configuration."""


def bzimage(path: Path, release: str = RELEASE) -> Path:
    """Write the header of a bzImage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    path.write_bytes(head[:0x300] + release.encode() + b" (somebody) #1\0")
    return path


def builtin_modules(path: Path, *names: str) -> None:
    """Write the list of the modules that are built into a kernel: these, and virtio's."""
    listed = "".join(f"kernel/{name}.ko\n" for name in (*Qemu.software().modules, *names))
    (path / "modules.builtin").write_text(listed)


def module(*modinfo: str) -> bytes:
    """Return a module with these lines, KEY=VALUE, in its .modinfo section."""
    return b"\x7fELF\0" + b"".join(line.encode() + b"\0" for line in modinfo)


def kvm_modules(path: Path, release: str = RELEASE, names: str = "kvm kvm-amd") -> str:
    """Write KVM's modules for a kernel to a directory; return its path."""
    path.mkdir(parents=True, exist_ok=True)
    own = {
        "kvm": ("parmtype=vector_hashing:bool",),
        "kvm-amd": ("parmtype=npt:bool", "depends=kvm,ccp"),
        "kvm-intel": ("parmtype=enable_apicv:bool", "depends=kvm"),
    }
    for name in names.split():
        magic = f"vermagic={release} SMP mod_unload "
        (path / f"{name}.ko").write_bytes(module(*own[name], magic))
    return str(path)


def modular_kernel(path: Path) -> str:
    """Write a kernel whose KVM is modules to a directory; return the value of --kernel."""
    modules = path / "lib/modules" / RELEASE
    kvm_modules(modules / "kernel/arch/x86/kvm")
    (modules / "ccp.ko").write_bytes(module())
    builtin_modules(modules)
    return str(bzimage(path / "bzImage"))
