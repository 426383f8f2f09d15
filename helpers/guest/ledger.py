# SPDX-License-Identifier: GPL-2.0-only
"""The ledger of a machine: facts that KVM does not report, derived from the calls made so far.

helpers/kvm reports each ioctl on the file descriptors of a machine to ``Ledger.called()``. No ioctl
shows the writes of guest code and the processing of an INIT: Cpu and Machine report these events.
"""

from __future__ import annotations

from typing import Any

from helpers.apic import ApicMode, DeliveryMode, Register
from helpers.apic.lapic import SVR_ENABLE
from helpers.guest.injection import Snapshot
from helpers.kvm import abi
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import observers

IA32_APIC_BASE = 0x1B

# Requests that only make snapshots stale: reads, and writes that Machine.reset() undoes.
_PLAIN = {
    *(abi.KVM_CHECK_EXTENSION.number, abi.KVM_GET_LAPIC.number, abi.KVM_GET_MP_STATE.number),
    *(abi.KVM_GET_REGS.number, abi.KVM_GET_VCPU_EVENTS.number, abi.KVM_RUN.number),
    *(abi.KVM_SET_REGS.number, abi.KVM_SET_VCPU_EVENTS.number),
}

# Delivery modes that set latches, which no ioctl clears. Machine.reset() undoes all others.
_LATCHING_MODES = {DeliveryMode.SMI, DeliveryMode.REMRD, DeliveryMode.INIT, DeliveryMode.SIPI}

# Registers that determine the destinations of a LAPIC: each write makes KVM rebuild its map.
_MAPPED = {Register.ID, Register.LDR, Register.DFR}


def apic_mode_in(apic_base: int) -> ApicMode:
    """Return the APIC mode in a value of IA32_APIC_BASE."""
    return ApicMode(apic_base & ApicMode.X2APIC.value)


class Ledger(Closing):
    """What the calls on the file descriptors of one machine imply.

    ``shareable``: whether Machine.reset() can undo all calls since the machine set the flag.
    ``x2apic_api``: the features of KVM_CAP_X2APIC_API enabled so far.
    ``unmapped``: index of the newest vCPU while the kernel's map of LAPICs lacks the vCPU.
    KVM_CREATE_VCPU rebuilds the map before the new vCPU is part of the VM.
    ``apic_bases``: by vCPU file descriptor, the values of IA32_APIC_BASE that KVM has reported and
    that no call has changed since.
    ``boot_id``: the argument of KVM_SET_BOOT_CPU_ID.
    ``map_builds``: number of times that KVM has built the map of LAPICs.
    ``snapshots``: the latest state of all vCPUs; None if an ioctl may have changed a vCPU since.
    """

    def __init__(self) -> None:
        self.shareable = False
        self.x2apic_api = 0
        self.unmapped: int | None = None
        self.apic_bases: dict[int, int] = {}
        self.boot_id = 0
        self.map_builds = 0
        self.snapshots: list[Snapshot] | None = None
        self._mapped_api = 0
        self._vcpus = 0
        self._fds: list[int] = []

    def watch(self, fd: int) -> None:
        """Note each ioctl on ``fd`` from now on, and on the vCPUs created by ``fd``."""
        observers[fd] = self.called
        self._fds.append(fd)

    def close(self) -> None:
        """Stop watching. Call before the file descriptors are closed: their numbers are reused."""
        for fd in self._fds:
            observers.pop(fd, None)
        self._fds.clear()

    @property
    def mapped_api(self) -> int | None:
        """Features of KVM_CAP_X2APIC_API when the map was built; None if still the same."""
        is_current = not self._vcpus or self._mapped_api == self.x2apic_api
        return None if is_current else self._mapped_api

    def snapshots_read(self, snapshots: list[Snapshot]) -> None:
        """Note the state of all vCPUs, just read."""
        # The read of the mp_state processes a latched INIT, which changes the LAPIC read before.
        is_settled = not any(snapshot.latched_init for snapshot in snapshots)
        self.snapshots = snapshots if is_settled else None

    def called(self, fd: int, number: int, argument: Any, result: int) -> None:
        """Note an ioctl with its return value."""
        self.snapshots = None
        if number in _PLAIN:
            return
        self.shareable &= _is_undone(number, argument)
        if result < 0:
            return
        match number:
            case abi.KVM_SET_LAPIC.number:
                self.map_rebuilt()
            case abi.KVM_GET_SREGS.number:
                self.apic_bases[fd] = argument.apic_base
            case abi.KVM_SET_SREGS.number:
                known = self.apic_bases.get(fd)
                old = None if known is None else apic_mode_in(known)
                self._set_apic_base(fd, argument.apic_base, old)
            case abi.KVM_SET_BOOT_CPU_ID.number:
                self.boot_id = argument
            case abi.KVM_CREATE_VCPU.number:
                self.map_rebuilt()
                self.unmapped = self._vcpus
                self._vcpus += 1
                self.watch(result)
            case abi.KVM_ENABLE_CAP.number if argument.cap == abi.KVM_CAP_X2APIC_API:
                self.x2apic_api |= argument.args[0]

    def guest_writes_register(self, register: Register, value: int, was_enabled: bool) -> None:
        """Note that a guest is about to write a LAPIC register.

        ``was_enabled``: the software-enable bit before a write of SVR.
        """
        is_toggle = register is Register.SVR and was_enabled != bool(value & SVR_ENABLE)
        if register in _MAPPED or is_toggle:
            self.map_rebuilt()

    def guest_writes_msr(self, fd: int, msr: int, value: int, apic_mode: ApicMode) -> None:
        """Note that the guest on vCPU ``fd``, now in ``apic_mode``, is about to write an MSR."""
        self.shareable = False
        if msr == IA32_APIC_BASE:
            self._set_apic_base(fd, value, apic_mode)

    def _set_apic_base(self, fd: int, apic_base: int, old: ApicMode | None) -> None:
        self.apic_bases.pop(fd, None)
        if old is None or old.value != apic_base & ApicMode.X2APIC.value:
            self.map_rebuilt()

    def map_rebuilt(self) -> None:
        """Note that KVM has rebuilt its map of LAPICs."""
        self.unmapped = None
        self.map_builds += 1
        self._mapped_api = self.x2apic_api


def _is_undone(number: int, argument: Any) -> bool:
    """Whether Machine.reset() undoes an ioctl. A message passed by its address counts as undone."""
    match number:
        case abi.KVM_SET_LAPIC.number | abi.KVM_GET_SREGS.number:
            return True
        case abi.KVM_SIGNAL_MSI.number:
            return isinstance(argument, int) or argument.data >> 8 & 7 not in _LATCHING_MODES
        case abi.KVM_SET_MP_STATE.number:
            return bool(argument.mp_state != abi.KVM_MP_STATE_SIPI_RECEIVED)
    return False
