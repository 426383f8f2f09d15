# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel in QEMU: on this machine's KVM where it nests, else on an emulated AMD."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.kernels.emulators.interface import MemoryFiles
from helpers.kernels.locate import BootFiles
from helpers.kernels.packages import KernelError
from helpers.spec.architectures import ARM64, X86_64, Architecture

QEMU = "qemu-system-x86_64"
QEMU_ARM64 = "qemu-system-aarch64"
_PACKAGES = {QEMU: "qemu-system-x86", QEMU_ARM64: "qemu-system-arm"}


@dataclass(frozen=True)
class Qemu:
    """QEMU, of the name ``program``, with ``options`` for the guest's processors.

    See Emulator for the other attributes.
    """

    cpu: str
    name: str
    options: Sequence[str]
    vendor: str
    architecture: Architecture = X86_64
    program: str = QEMU
    console: str = "ttyS0"
    modules: Sequence[str] = ("virtio_pci", "virtio_console")
    parallel: None = None
    memory: int = 1536
    patience: float = 1
    judged: Mapping[str, Sequence[str]] = field(default_factory=dict)
    command_line: Sequence[str] = ()

    @classmethod
    def nested(cls) -> Qemu | None:
        """Return QEMU on this machine's KVM; None where KVM does not nest."""
        for vendor in ("kvm_intel", "kvm_amd"):
            switch = Path("/sys/module", vendor, "parameters/nested")
            with contextlib.suppress(OSError):
                if switch.read_text().strip() in ("Y", "1") and os.access("/dev/kvm", os.W_OK):
                    name = f"QEMU (nested virtualization, {vendor})"
                    return cls("host", name, ("-accel", "kvm", "-cpu", "host", "-smp", "2"), vendor)
        return None

    @classmethod
    def software(cls) -> Qemu:
        """Return QEMU's emulation of an AMD processor, which every machine can run."""
        # One vCPU. With two in a thread each, QEMU 7.2 may go on executing an instruction that the
        # other vCPU has patched, and the guest dies of its static keys (int3). With two in one
        # thread, it delivers a nested guest's interrupt twice, or stalls it, once in 1000 tests.
        # No cx16: QEMU 7.2 corrupts flags after cmpxchg16b.
        options = ("-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1")
        return cls("amd", "QEMU (software emulation)", options, "kvm_amd")

    @classmethod
    def arm64(cls) -> Qemu:
        """Return QEMU's emulation of an Arm processor with EL2, where KVM runs."""
        # A processor without pointer authentication, which QEMU computes for each call.
        # A virtual ITS needs no physical one: clause arm.no-physical-its.
        machine = ("-M", "virt,virtualization=on,gic-version=3,its=off")
        options = (*machine, "-accel", "tcg", "-cpu", "neoverse-n1", "-smp", "1")
        return cls(
            *("neoverse-n1", "QEMU (software emulation of arm64)", options, "kvm_arm"),
            architecture=ARM64,
            program=QEMU_ARM64,
            console="ttyAMA0",
            memory=1024,
            patience=2,
        )

    @property
    def kvm(self) -> Sequence[str]:
        # arm64's KVM is never a module.
        return () if self.architecture is ARM64 else ("kvm", self.vendor)

    def require(self) -> None:
        if not shutil.which(self.program):
            package = _PACKAGES[self.program]
            raise KernelError(
                f"{self.program} not found: it boots the kernel (apt-get install {package})"
            )

    def channel(self) -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()

    def command(
        self, kernel: BootFiles, command_line: str, image: bytes, console: str, files: MemoryFiles
    ) -> list[str]:
        # fmt: off
        return [
            self.program,
            "-nodefaults", "-no-user-config",             # the same machine everywhere
            "-display", "none",
            "-no-reboot",                                 # a dead kernel is a dead QEMU
            *self.options,
            "-m", str(self.memory),
            "-kernel", str(kernel.vmlinuz),
            "-initrd", files.add(image),
            "-append", command_line,
            "-serial", f"file:{console}",                 # a file keeps what a dead kernel said
            "-device", "virtio-serial-pci",               # far faster than a serial line
            "-chardev", "socket,id=worker,fd=0",          # the channel is standard input
            "-device", "virtserialport,chardev=worker,name=worker",
        ]
        # fmt: on
