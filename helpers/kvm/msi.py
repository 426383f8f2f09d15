# SPDX-License-Identifier: GPL-2.0-only
"""A message in the structures of KVM's ABI: kvm_msi and kvm_irq_routing_entry."""

from __future__ import annotations

from typing import Protocol

from helpers.kvm import abi


class Words(Protocol):
    """A message, as the words that a device writes."""

    @property
    def address_lo(self) -> int: ...
    @property
    def address_hi(self) -> int: ...
    @property
    def data(self) -> int: ...


def msi_of(message: Words, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)) -> abi.kvm_msi:
    """Return the argument of KVM_SIGNAL_MSI."""
    words = (message.address_lo, message.address_hi, message.data)
    msi = abi.kvm_msi(*words, flags, devid)
    msi.pad[:] = pad
    return msi


def msi_route(
    gsi: int, message: Words, flags: int = 0, devid: int = 0
) -> abi.kvm_irq_routing_entry:
    """Return a routing entry from ``gsi`` to ``message`` (api.rst, KVM_SET_GSI_ROUTING)."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_MSI, flags=flags)
    msi = entry.u.msi
    msi.address_lo, msi.address_hi, msi.data = message.address_lo, message.address_hi, message.data
    msi.devid = devid
    return entry
