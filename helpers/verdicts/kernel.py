"""The kernel under test: what is known of it before any test, and whether it can be tested."""

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
from helpers.guest.assemble import AssemblyError, build_all
from helpers.kvm import System, abi

VENDOR_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")

CAPABILITIES = {
    name: getattr(abi, name)
    for name in (
        "KVM_CAP_IRQCHIP",
        "KVM_CAP_SIGNAL_MSI",
        "KVM_CAP_MSI_DEVID",
        "KVM_CAP_SPLIT_IRQCHIP",
        "KVM_CAP_X2APIC_API",
        "KVM_CAP_IRQ_ROUTING",
        "KVM_CAP_X86_SMM",
        "KVM_CAP_MAX_VCPUS",
        "KVM_CAP_MAX_VCPU_ID",
    )
}


class Untestable(Exception):
    """Nothing here can be judged; the message is one line and says how to mend it."""


@dataclass(frozen=True)
class Kernel:
    """The running kernel. ``version`` is (major, minor); ``parameters`` has "module.name" keys."""

    release: str
    version: tuple[int, int]
    vendor: str
    cpu: str
    capabilities: dict[str, int]
    parameters: dict[str, str]

    def __str__(self) -> str:
        return f"Linux {self.release}, {self.vendor}, {self.cpu}"

    @property
    def is_pvm(self) -> bool:
        return self.vendor == "kvm_pvm"

    @property
    def has_smm(self) -> bool:
        """Whether a vCPU can take an SMI."""
        return self.capabilities["KVM_CAP_X86_SMM"] > 0

    @property
    def vector_hashing(self) -> bool:
        """kvm.vector_hashing, on by default (52004014f7c6, Linux 4.5)."""
        return self.parameters.get("kvm.vector_hashing", "Y") != "N"


@cache
def running_kernel() -> Kernel:
    """Read off this machine; call :func:`require_testable` first."""
    with System() as system:
        capabilities = {name: system.check_extension(cap) for name, cap in CAPABILITIES.items()}
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    return Kernel(
        release=release,
        version=(int(found[1]), int(found[2])) if found else (0, 0),
        vendor=vendor_of(
            {name for name in VENDOR_MODULES if Path("/sys/module", name).exists()},
            set(_cpuinfo("flags").split()),
        ),
        cpu=_cpuinfo("model name") or "unknown",
        capabilities=capabilities,
        parameters=_module_parameters(),
    )


def vendor_of(modules: Set[str], flags: Set[str]) -> str:
    """Which of the vendor modules there are drives /dev/kvm.

    A kernel may have both kvm_intel and kvm_amd built in; the processor can use one of them.
    """
    usable = {"kvm_intel": "vmx" in flags, "kvm_amd": "svm" in flags}
    ranked = sorted(modules, key=lambda name: (name != "kvm_pvm", not usable.get(name), name))
    return ranked[0] if ranked else "unknown"


def _cpuinfo(field: str) -> str:
    found = re.search(rf"^{field}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _module_parameters() -> dict[str, str]:
    parameters = {}
    for module in ("kvm", *VENDOR_MODULES):
        for file in sorted(Path("/sys/module", module, "parameters").glob("*")):
            try:
                parameters[f"{module}.{file.name}"] = file.read_text().strip()
            except OSError:
                continue  # write-only parameters exist
    return parameters


def topology_before(injection: Injection) -> Topology | None:
    """The machine a message was sent to, as the model sees it.

    None where no vCPU has a LAPIC in the kernel, or one is in a state that no vCPU of x86 can have.
    """
    if not injection.before:
        return None
    kernel = running_kernel()
    try:
        return injection.setting.topology(injection.before, kernel.vector_hashing, kernel.has_smm)
    except ValueError:
        return None


def is_x86_64() -> bool:
    """Whether this machine's KVM is the one that the suite knows."""
    return platform.machine() in ("x86_64", "AMD64")


def require_testable(path: str = "/dev/kvm") -> None:
    """Raise :class:`Untestable` unless this machine has a KVM the suite can judge."""
    if not is_x86_64():
        machine = platform.machine()
        raise Untestable(f"this suite judges KVM on x86-64, and this machine is {machine}")
    try:
        system = System(path)
    except FileNotFoundError:
        raise Untestable(
            f"no {path}: nothing to test. Load KVM (modprobe kvm_intel or kvm_amd) and check that "
            "virtualization is enabled in the firmware, or in the hypervisor of this machine"
        ) from None
    except PermissionError:
        raise Untestable(
            f"{path} cannot be opened by user {os.getuid()}: run as root, or join its group "
            "(sudo usermod -aG kvm $USER, then log in again)"
        ) from None
    except OSError as error:
        raise Untestable(f"{path} cannot be opened: {error.strerror}") from None
    with system:
        try:
            version = system.api_version()
            irqchip = system.check_extension(abi.KVM_CAP_IRQCHIP)
        except OSError as error:
            raise Untestable(f"{path} is not a KVM device: {error}") from None
    if version != abi.KVM_API_VERSION:
        raise Untestable(f"KVM_GET_API_VERSION is {version}; this suite is written for 12")
    if irqchip <= 0:
        raise Untestable(
            "KVM_CAP_IRQCHIP is 0: this KVM has no in-kernel irqchip to inject MSIs into"
        )
    try:
        build_all()
    except AssemblyError as error:
        raise Untestable(str(error)) from None
