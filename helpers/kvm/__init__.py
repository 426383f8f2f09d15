"""The KVM ABI: one object per kind of file descriptor. Knows nothing of APICs."""

from helpers.kvm.ioctl import KvmError, compat_ioctl, errno_name, has_compat_entry, ioctl, raw_ioctl
from helpers.kvm.system import System
from helpers.kvm.vcpu import Vcpu
from helpers.kvm.vm import Vm

__all__ = [
    "KvmError",
    "System",
    "Vcpu",
    "Vm",
    "compat_ioctl",
    "errno_name",
    "has_compat_entry",
    "ioctl",
    "raw_ioctl",
]
