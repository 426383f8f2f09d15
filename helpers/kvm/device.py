# SPDX-License-Identifier: GPL-2.0-only
"""A device that KVM_CREATE_DEVICE makes in a VM, and its attributes."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_uint32, c_uint64

from helpers.kvm import abi
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import attempt, ioctl


class Device(Closing):
    """A device in the kernel. Raises KvmError if the kernel makes no device of ``kind``."""

    def __init__(self, vm_fd: int, kind: int) -> None:
        request = abi.kvm_create_device(type=kind)
        ioctl(vm_fd, abi.KVM_CREATE_DEVICE, request)
        self.fd = int(request.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set(self, group: int, attribute: int, value: int | None = None, bits: int = 64) -> None:
        """Set an attribute to ``value``, a number of ``bits`` bits; None passes no value."""
        number = (c_uint32 if bits == 32 else c_uint64)(value or 0)
        address = 0 if value is None else ctypes.addressof(number)
        ioctl(self.fd, abi.KVM_SET_DEVICE_ATTR, _attribute(group, attribute, address))

    def get(self, group: int, attribute: int, bits: int = 64) -> int:
        """Return the value of an attribute, a number of ``bits`` bits."""
        number = (c_uint32 if bits == 32 else c_uint64)()
        address = ctypes.addressof(number)
        ioctl(self.fd, abi.KVM_GET_DEVICE_ATTR, _attribute(group, attribute, address))
        return int(number.value)

    def has(self, group: int, attribute: int) -> bool:
        """Return whether the device has an attribute (KVM_HAS_DEVICE_ATTR)."""
        result, _ = attempt(self.fd, abi.KVM_HAS_DEVICE_ATTR, _attribute(group, attribute, 0))
        return result == 0


def _attribute(group: int, attribute: int, address: int) -> abi.kvm_device_attr:
    return abi.kvm_device_attr(group=group, attr=attribute, addr=address)
