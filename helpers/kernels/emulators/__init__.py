# SPDX-License-Identifier: GPL-2.0-only
"""What boots kernels, by the value of --cpu."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.kernels.emulators.bochs import Bochs
from helpers.kernels.emulators.interface import Emulator
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.packages import KernelError
from helpers.spec.architectures import ARM64, X86_64, Architecture

CPUS = ("host", "amd", "intel")
"""The values of --cpu."""


def chosen(cpus: Sequence[str], architecture: Architecture = X86_64) -> list[Emulator]:
    """Return the emulators for the values of --cpu. Raises KernelError.

    arm64 has one. Without --cpu, other kernels boot on this machine's KVM where it nests, else on
    an emulated AMD.
    """
    if architecture is ARM64:
        return [Qemu.arm64()]
    nested = Qemu.nested()
    if not cpus:
        return [nested or Qemu.software()]
    if nested is None and "host" in cpus:
        raise KernelError(
            "--cpu=host needs a KVM that nests (kvm_intel.nested=1 or kvm_amd.nested=1), and a "
            "/dev/kvm that you can write to; amd and intel are emulated"
        )
    made: dict[str, list[Emulator]] = {
        "host": [nested] if nested else [],
        "amd": [Qemu.software()],
        "intel": [Bochs(), Bochs(parallel=True)],
    }
    return [emulator for cpu in dict.fromkeys(cpus) for emulator in made[cpu]]
