# SPDX-License-Identifier: GPL-2.0-only
"""A message of a device: the event that the device writes to a doorbell."""

from __future__ import annotations

from dataclasses import dataclass

from helpers.its.registers import GITS_TRANSLATER
from helpers.kvm import abi

FIRST_ITS = 0x0808_0000
"""The address of the first ITS of a machine."""


@dataclass(frozen=True, slots=True)
class Message:
    """The argument of KVM_SIGNAL_MSI. ``event`` is the data of the write: the EventID."""

    devid: int = 1
    event: int = 0
    address: int = FIRST_ITS + GITS_TRANSLATER
    flags: int = abi.KVM_MSI_VALID_DEVID
    pad: bytes = bytes(12)

    def __str__(self) -> str:
        words = [f"event {self.event:#x} of device {self.devid:#x} to {self.address:#x}"]
        if self.flags != abi.KVM_MSI_VALID_DEVID:
            words.append(f"flags {self.flags:#x}")
        if any(self.pad):
            words.append(f"pad {self.pad.hex()}")
        return ", ".join(words)

    @property
    def msi(self) -> abi.kvm_msi:
        """The structure in memory."""
        low, high = self.address & 0xFFFFFFFF, self.address >> 32
        msi = abi.kvm_msi(low, high, self.event, self.flags, self.devid)
        msi.pad[:] = self.pad
        return msi

    def route(self, gsi: int) -> abi.kvm_irq_routing_entry:
        """Return the routing entry from ``gsi`` to this message."""
        flags, kind = self.flags, abi.KVM_IRQ_ROUTING_MSI
        entry = abi.kvm_irq_routing_entry(gsi=gsi, type=kind, flags=flags)
        entry.u.msi.address_lo = self.address & 0xFFFFFFFF
        entry.u.msi.address_hi = self.address >> 32
        entry.u.msi.data, entry.u.msi.devid = self.event, self.devid
        return entry
