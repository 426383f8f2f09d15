# SPDX-License-Identifier: GPL-2.0-only
"""The kernel under test: the facts known before any test, and whether KVM can be tested."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from helpers.apic.topology import Topology
from helpers.guest import Injection
from helpers.guest.assemble import AssemblyError
from helpers.guests import build_guest
from helpers.kvm import KvmError, System, abi
from helpers.spec.architectures import ARM64, X86_64, running

VENDOR_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")

VENDORS = {ARM64: "kvm_arm"}
"""The vendor of an architecture whose KVM has no vendor modules."""

CAPABILITIES = {name: value for name, value in vars(abi).items() if name.startswith("KVM_CAP_")}


# arm64's KVM answers on the system's file descriptor with EINVAL.
_OF_A_VM = {"KVM_CAP_MSI_DEVID"}


class Untestable(Exception):
    """This machine's KVM cannot be tested. The message is one line: the cause and the remedy."""


@dataclass(frozen=True)
class Kernel:
    """A kernel under test.

    ``version`` is (major, minor), ``vendor`` the module that drives /dev/kvm. ``capabilities`` is
    {name: KVM_CHECK_EXTENSION}, ``parameters`` {"module.name": value}. ``architecture`` is a value
    of --arch.
    """

    release: str
    version: tuple[int, int]
    vendor: str
    cpu: str
    capabilities: dict[str, int]
    parameters: dict[str, str]
    architecture: str = X86_64.name

    def __str__(self) -> str:
        return f"Linux {self.release}, {self.vendor}, {self.cpu}"

    @property
    def known(self) -> dict[str, int]:
        """The capabilities that tell something: most are x86's, and 0 on arm64."""
        is_x86 = self.architecture == X86_64.name
        return {name: value for name, value in self.capabilities.items() if value or is_x86}

    @property
    def has_smm(self) -> bool:
        """Whether a vCPU can take an SMI."""
        return self.capabilities["KVM_CAP_X86_SMM"] > 0

    @property
    def has_ioapic(self) -> bool:
        """Whether a VM can have a full irqchip (CONFIG_KVM_IOAPIC, Linux 6.17)."""
        return self.capabilities["KVM_CAP_PIT2"] > 0

    @property
    def vector_hashing(self) -> bool:
        """Whether kvm.vector_hashing is on, as by default (52004014f7c6, Linux 4.5)."""
        return self.parameters.get("kvm.vector_hashing", "Y") != "N"


@cache
def running_kernel() -> Kernel:
    """Return the facts of the running kernel. Call :func:`require_testable` first."""
    architecture = running() or X86_64
    with System() as system:
        capabilities = {
            name: system.check_extension(cap)
            for name, cap in CAPABILITIES.items()
            if not (architecture is ARM64 and name in _OF_A_VM)
        }
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    modules = {name for name in VENDOR_MODULES if Path("/sys/module", name).exists()}
    return Kernel(
        release=release,
        version=(int(found[1]), int(found[2])) if found else (0, 0),
        vendor=VENDORS.get(architecture) or vendor_of(modules, set(_cpuinfo("flags").split())),
        cpu=_cpuinfo("model name") or _arm_cpu() or "unknown",
        capabilities=capabilities,
        parameters=_module_parameters(),
        architecture=architecture.name,
    )


def vendor_of(modules: Set[str], flags: Set[str]) -> str:
    """Return the name of the vendor module that drives /dev/kvm, or "unknown".

    ``modules`` are the vendor modules in the kernel, ``flags`` the flags of /proc/cpuinfo. A kernel
    may have both kvm_intel and kvm_amd built in, and the processor supports one of the two.
    """
    usable = {"kvm_intel": "vmx" in flags, "kvm_amd": "svm" in flags}
    ranked = sorted(modules, key=lambda name: (name != "kvm_pvm", not usable.get(name), name))
    return ranked[0] if ranked else "unknown"


def _cpuinfo(field: str) -> str:
    found = re.search(rf"^{field}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _arm_cpu() -> str:
    """Return the processor by its numbers in MIDR_EL1; arm64's /proc/cpuinfo has no name."""
    implementer, part = _cpuinfo("CPU implementer"), _cpuinfo("CPU part")
    return f"CPU implementer {implementer}, part {part}" if part else ""


def _module_parameters() -> dict[str, str]:
    parameters = {}
    for module in ("kvm", *VENDOR_MODULES):
        for file in sorted(Path("/sys/module", module, "parameters").glob("*")):
            try:
                parameters[f"{module}.{file.name}"] = file.read_text().strip()
            except OSError:
                continue  # Some parameters are write-only.
    return parameters


def topology_before(injection: Injection) -> Topology | None:
    """Return the state of the machine before the message, as the model describes machines.

    Return None where no vCPU has an in-kernel LAPIC, or where a vCPU is in a state that the model
    does not know.
    """
    if not injection.before:
        return None
    kernel = running_kernel()
    try:
        return injection.setting.topology(injection.before, kernel.vector_hashing, kernel.has_smm)
    except ValueError:
        return None


def require_testable(path: str = "/dev/kvm") -> None:
    """Raise :class:`Untestable` unless this machine has a KVM the suite can judge."""
    architecture = running()
    if architecture is None:
        raise Untestable(
            f"this suite tests KVM on x86-64 and arm64, and this machine is {platform.machine()}: "
            "run the suite on one of those"
        )
    try:
        with System(path) as system:
            version = system.api_version()
            irqchip = system.check_extension(abi.KVM_CAP_IRQCHIP)
    except OSError as error:
        raise Untestable(_untestable(path, error)) from None
    if version != abi.KVM_API_VERSION:
        raise Untestable(
            f"KVM_GET_API_VERSION is {version}, and this suite is written for "
            f"{abi.KVM_API_VERSION}: run Linux 2.6.22 or later"
        )
    if irqchip <= 0:
        raise Untestable(
            "KVM_CAP_IRQCHIP is 0, and KVM_SIGNAL_MSI needs an in-kernel irqchip: use a KVM module "
            "that has one"
        )
    try:
        build_guest(architecture)
    except AssemblyError as error:
        raise Untestable(str(error)) from None


def _untestable(path: str, error: OSError) -> str:
    """Return the cause and the remedy of an error of the KVM device ``path``."""
    match error:
        case FileNotFoundError():
            return (
                f"no {path}: load KVM (modprobe kvm_intel or kvm_amd), and enable virtualization "
                "in the firmware or the hypervisor of this machine"
            )
        case PermissionError():
            return (
                f"{path} cannot be opened by user {os.getuid()}: run as root, or join the group "
                "kvm (sudo usermod -aG kvm $USER, then log in again)"
            )
        case KvmError():
            cause = f"is not a KVM device: {error}; check"
        case _:
            cause = f"cannot be opened: {error.strerror}; load KVM, and check"
    return f"{path} {cause} that {path} is the character device 10:232"
