# SPDX-License-Identifier: GPL-2.0-only
"""A message of a device: the event that the device writes to a doorbell."""

from __future__ import annotations

from dataclasses import dataclass

from helpers.its.registers import GITS_TRANSLATER
from helpers.kvm import abi
from helpers.kvm.msi import msi_of, msi_route

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
    def address_lo(self) -> int:
        return self.address & 0xFFFFFFFF

    @property
    def address_hi(self) -> int:
        return self.address >> 32

    @property
    def data(self) -> int:
        return self.event

    @property
    def msi(self) -> abi.kvm_msi:
        """The structure in memory."""
        return msi_of(self, self.flags, self.devid, self.pad)

    def route(self, gsi: int) -> abi.kvm_irq_routing_entry:
        """Return the routing entry from ``gsi`` to this message."""
        return msi_route(gsi, self, self.flags, self.devid)
