# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel in Bochs: on an emulated Intel processor with VMX and APICv.

Bochs boots disks only. Here it loads the kernel into memory as a boot loader would, and an option
ROM starts the kernel. A kernel that panics reboots by a triple fault, which ends Bochs.
"""

from __future__ import annotations

import pty
import struct
import tty
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.guest.assemble import AssemblyError, built
from helpers.kernels.emulators import bochs_build
from helpers.kernels.emulators.interface import MemoryFiles
from helpers.kernels.locate import BootFiles
from helpers.kernels.packages import KernelError
from helpers.spec.architectures import X86_64, Architecture

MODEL = "corei7_skylake_x"
"""A processor with posted interrupts."""
INSTRUCTIONS = 100_000_000
"""Instructions in a second of the guest's clock, about as many as Bochs executes in one of ours."""
MEMORY = 1024  # MiB

REAL_MODE = 0x90000
STACK = 0xE000
"""The end of the stack, and the command line after it, as offsets from REAL_MODE."""
PROTECTED_MODE = 0x100000
_ROM = 0xD0000
_ROM_SOURCE = Path(__file__).with_name("option_rom.S")
_BLOCK = 512


@dataclass(frozen=True)
class Bochs:
    """Bochs as bochs_build.py makes it. See Emulator for the attributes.

    Bochs with two processors takes more than twice the time, so few tests run on it.
    """

    cpu: str = "intel"
    name: str = f"Bochs {bochs_build.VERSION} ({MODEL})"
    architecture: Architecture = X86_64
    vendor: str = "kvm_intel"
    kvm: Sequence[str] = ("kvm", "kvm_intel")
    console: str = "ttyS0"
    modules: Sequence[str] = ()
    parallel: bool = False
    memory: int = MEMORY
    patience: float = 3
    judged: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"enable_apicv": ("1", "0")}
    )
    command_line: Sequence[str] = (
        "reboot=t",  # a kernel that panics ends Bochs
        "tsc=reliable",
        f"tsc_early_khz={INSTRUCTIONS // 1000}",
        "hpet=disable",
        "cryptomgr.notests",  # they take most of a boot
        "nokaslr",
        "mitigations=off",
    )

    def require(self) -> None:
        bochs_build.build()
        try:
            option_rom()
        except AssemblyError as reason:
            raise KernelError(str(reason)) from None

    def channel(self) -> tuple[int, int]:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        return ours, theirs

    def command(
        self, kernel: BootFiles, command_line: str, image: bytes, console: str, files: MemoryFiles
    ) -> list[str]:
        real_mode, protected_mode, place = loaded(
            kernel.vmlinuz.read_bytes(), command_line, len(image)
        )
        made = bochs_build.build()
        configuration = f"""
            cpu: model={MODEL}, count={1 + self.parallel}, ips={INSTRUCTIONS}, ignore_bad_msrs=1
            cpu: reset_on_triple_fault=0
            memory: guest={MEMORY}, host={MEMORY}
            romimage: file={made / "BIOS-bochs-latest"}, options=fastboot
            vgaromimage: file={made / "vgabios.bin"}
            optromimage1: file={files.add(option_rom())}, address={_ROM:#x}
            optramimage1: file={files.add(real_mode)}, address={REAL_MODE:#x}
            optramimage2: file={files.add(protected_mode)}, address={PROTECTED_MODE:#x}
            optramimage3: file={files.add(image)}, address={place:#x}
            pci: enabled=1, chipset=i440fx
            boot: disk
            clock: sync=none, time0=utc
            display_library: nogui
            log: -
            info: action=ignore
            error: action=ignore
            debug: action=ignore
            panic: action=fatal
            com1: enabled=1, mode=file, dev={console}
            com2: enabled=1, mode=term, dev=/dev/stdin
        """
        return [str(made / "bochs"), "-q", "-f", files.add(configuration.encode())]


def loaded(vmlinuz: bytes, command_line: str, initramfs: int) -> tuple[bytes, bytes, int]:
    """Return what a boot loader puts at REAL_MODE and PROTECTED_MODE, and the initramfs's address.

    ``initramfs`` is the size of the initramfs, which ends 2 MiB below the end of the memory.

    Source: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    """
    place = (((MEMORY - 2) << 20) - initramfs) & -4096
    sectors = (vmlinuz[0x1F1] or 4) + 1
    real_mode = bytearray(vmlinuz[: sectors * _BLOCK])
    real_mode[0x210] = 0xFF  # type_of_loader: undefined
    real_mode[0x211] |= 0x80  # loadflags: CAN_USE_HEAP
    struct.pack_into("<II", real_mode, 0x218, place, initramfs)  # ramdisk_image, ramdisk_size
    struct.pack_into("<H", real_mode, 0x224, STACK - _BLOCK)  # heap_end_ptr
    struct.pack_into("<I", real_mode, 0x228, REAL_MODE + STACK)  # cmd_line_ptr
    line = command_line.encode() + b"\0"
    return bytes(real_mode).ljust(STACK, b"\0") + line, vmlinuz[sectors * _BLOCK :], place


def option_rom() -> bytes:
    """Return the option ROM, whose bytes sum up to 0. Raises AssemblyError."""
    link = "--oformat=binary,-Ttext=0,-e,_start,--build-id=none,-m,elf_i386"
    options = ["-m32", "-nostdlib", "-static", f"-Wl,{link}"]
    options += [f"-DREAL_MODE={REAL_MODE:#x}", f"-DSTACK={STACK:#x}"]
    code = built(_ROM_SOURCE, options, "bin").read_bytes().ljust(_BLOCK - 1, b"\0")
    return code + bytes([-sum(code) & 0xFF])
