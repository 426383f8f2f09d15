"""The KVM ABI: one object per kind of file descriptor. Knows nothing of APICs."""

from helpers.kvm.ioctl import (
    KvmError,
    attempt,
    compat_ioctl,
    errno_name,
    has_compat_entry,
    show_result,
)
from helpers.kvm.process import UserPages, in_forked_child
from helpers.kvm.system import System
from helpers.kvm.vcpu import Vcpu
from helpers.kvm.vm import Vm

__all__ = [
    "KvmError",
    "System",
    "UserPages",
    "Vcpu",
    "Vm",
    "attempt",
    "compat_ioctl",
    "errno_name",
    "has_compat_entry",
    "in_forked_child",
    "show_result",
]
