# SPDX-License-Identifier: GPL-2.0-only
"""The KVM ABI: one class per kind of file descriptor. Imports nothing of the other packages."""

from helpers.kvm.compat import compat_ioctl, has_compat_entry
from helpers.kvm.ioctl import KvmError, MissingPart, attempt, errno_name, show_result
from helpers.kvm.process import UserPages, in_forked_child
from helpers.kvm.system import System
from helpers.kvm.vcpu import Vcpu
from helpers.kvm.vm import Vm

__all__ = [
    "KvmError",
    "MissingPart",
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
