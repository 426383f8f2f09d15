# SPDX-License-Identifier: GPL-2.0-only
"""The vCPU file descriptor and its shared kvm_run page."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from typing import TypeVar

from helpers.kvm import abi, recording
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import KvmError, attempt, ioctl

T = TypeVar("T", bound=ctypes.Structure)


class Vcpu(Closing):
    """One vCPU. ``vcpu_id`` is the argument of KVM_CREATE_VCPU, and the initial APIC ID."""

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int) -> None:
        self.fd = fd
        self.vcpu_id = vcpu_id
        self._page = mmap.mmap(fd, mmap_size)
        self.kvm_run = abi.kvm_run.from_buffer(self._page)
        if recording.active:
            recording.active.vcpu_mapped(fd, self.kvm_run)

    def close(self) -> None:
        if self.fd >= 0:
            # A copy keeps the last exit readable. The mapping would keep the file of the fd open.
            self.kvm_run = abi.kvm_run.from_buffer_copy(self.kvm_run)
            with contextlib.suppress(BufferError):  # a remaining view keeps the page mapped
                self._page.close()
            os.close(self.fd)
            self.fd = -1

    def run(self) -> int:
        """Enter the guest once and return the exit reason. Raises KvmError.

        KVM_EXIT_INTR asks the caller to enter the guest again: a signal arrived (EINTR), or the
        vCPU waited for INIT or SIPI and received it (EAGAIN).
        """
        result, code = attempt(self.fd, abi.KVM_RUN)
        if code in (errno.EINTR, errno.EAGAIN):
            return abi.KVM_EXIT_INTR
        if result == -1:
            raise KvmError(abi.KVM_RUN, code)
        return int(self.kvm_run.exit_reason)

    def finish_exit(self) -> None:
        """Complete a pending I/O instruction, and run no other (api.rst, The kvm_run structure)."""
        if self.kvm_run.exit_reason not in (abi.KVM_EXIT_UNKNOWN, abi.KVM_EXIT_INTR):
            self.enter_at_once()

    def enter_at_once(self) -> None:
        """Call KVM_RUN, which returns before the guest executes an instruction."""
        self.kvm_run.immediate_exit = 1
        try:
            self.run()
        finally:
            self.kvm_run.immediate_exit = 0

    def describe_exit(self) -> str:
        """Return the last exit in words, for messages."""
        reason, exits = self.kvm_run.exit_reason, self.kvm_run.u
        details = {
            abi.KVM_EXIT_IO: f" port {exits.io.port:#x}",
            abi.KVM_EXIT_MMIO: f" address {exits.mmio.phys_addr:#x}",
            abi.KVM_EXIT_INTERNAL_ERROR: f" suberror {exits.internal.suberror}",
            abi.KVM_EXIT_FAIL_ENTRY: f" {exits.hardware_entry_failure_reason:#x}",
        }
        return abi.EXIT_NAMES.get(reason, f"exit reason {reason}") + details.get(reason, "")

    def _get(self, request: abi.Request, struct: type[T]) -> T:
        value = recording.watched(struct)()
        ioctl(self.fd, request, value)
        return value

    def get_regs(self) -> abi.kvm_regs:
        return self._get(abi.KVM_GET_REGS, abi.kvm_regs)

    def set_regs(self, regs: abi.kvm_regs) -> None:
        ioctl(self.fd, abi.KVM_SET_REGS, regs)

    def get_one_reg(self, id: int) -> int:
        """Return a register of 64 bits (api.rst, KVM_GET_ONE_REG)."""
        value = ctypes.c_uint64()
        ioctl(self.fd, abi.KVM_GET_ONE_REG, abi.kvm_one_reg(id, ctypes.addressof(value)))
        return value.value

    def get_sregs(self) -> abi.kvm_sregs:
        return self._get(abi.KVM_GET_SREGS, abi.kvm_sregs)

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        ioctl(self.fd, abi.KVM_SET_SREGS, sregs)

    def get_sregs2(self) -> abi.kvm_sregs2:
        return self._get(abi.KVM_GET_SREGS2, abi.kvm_sregs2)

    def set_sregs2(self, sregs: abi.kvm_sregs2) -> None:
        ioctl(self.fd, abi.KVM_SET_SREGS2, sregs)

    def get_lapic(self) -> abi.kvm_lapic_state:
        return self._get(abi.KVM_GET_LAPIC, abi.kvm_lapic_state)

    def set_lapic(self, state: abi.kvm_lapic_state) -> None:
        ioctl(self.fd, abi.KVM_SET_LAPIC, state)

    def get_mp_state(self) -> int:
        """Return a KVM_MP_STATE_*. KVM processes a pending INIT or SIPI before the read."""
        return int(self._get(abi.KVM_GET_MP_STATE, abi.kvm_mp_state).mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        ioctl(self.fd, abi.KVM_SET_MP_STATE, abi.kvm_mp_state(mp_state=mp_state))

    def get_events(self) -> abi.kvm_vcpu_events:
        return self._get(abi.KVM_GET_VCPU_EVENTS, abi.kvm_vcpu_events)

    def set_events(self, events: abi.kvm_vcpu_events) -> None:
        ioctl(self.fd, abi.KVM_SET_VCPU_EVENTS, events)

    def enable_cap(self, capability: int) -> None:
        ioctl(self.fd, abi.KVM_ENABLE_CAP, abi.kvm_enable_cap(capability))

    def interrupt(self, vector: int) -> None:
        """Queue ``vector``, beside a split irqchip as an ExtINT (api.rst, KVM_INTERRUPT)."""
        ioctl(self.fd, abi.KVM_INTERRUPT, abi.kvm_interrupt(vector))

    def set_guest_debug(self, control: int) -> None:
        ioctl(self.fd, abi.KVM_SET_GUEST_DEBUG, abi.kvm_guest_debug(control))

    def set_msr(self, index: int, value: int) -> None:
        entry = abi.kvm_msr_entry(index=index, data=value)
        table = bytes(abi.kvm_msrs(nmsrs=1)) + bytes(entry)
        array = (ctypes.c_uint8 * len(table)).from_buffer_copy(table)
        if ioctl(self.fd, abi.KVM_SET_MSRS, array) != 1:
            raise ValueError(f"KVM_SET_MSRS refuses {value:#x} for MSR {index:#x}")

    def set_cpuid(self, table: abi.Bytes) -> None:
        """Set the CPUID ``table`` of :meth:`helpers.kvm.System.supported_cpuid`."""
        ioctl(self.fd, abi.KVM_SET_CPUID2, table)
