# SPDX-License-Identifier: GPL-2.0-only
"""The executable specification of an ITS: what a message does to a guest with these tables.

The rules, in the order in which a message meets them (clause ids in brackets):

    an undefined flag is set                         EINVAL  [arm.flags-undefined]
    the VM has no ITS                                ENODEV  [arm.no-its]
    KVM_MSI_VALID_DEVID is clear                     EINVAL  [arm.devid-required]
    the address belongs to no ITS                    EINVAL  [arm.doorbell]
    the ITS is disabled                              EBUSY   [arm.its-disabled-blocked]
    device, event or collection is not mapped        0       [arm.unmapped-blocked]
    the LPIs of the collection's vCPU are disabled   EBUSY   [arm.lpis-disabled-blocked]
    else the LPI becomes pending on that vCPU        1       [arm.delivery]

The model predicts the reference kernel, known deviations included: each address of an ITS is a
doorbell, EBUSY stands where api.rst has 0, and DISCARD leaves the LPI pending. It knows no cache:
a message must not notice whether its event was delivered before.

A command that the architecture leaves UNPREDICTABLE is not for this model: two events of one LPI,
MAPD or MAPC over what has pending LPIs, and MOVI of a pending LPI to a vCPU with LPIs disabled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, ENODEV
from typing import NamedTuple

from helpers.its import Message
from helpers.its.registers import FIRST_LPI, ID_BITS, ITS_SIZE, PRIORITY
from helpers.kvm import abi, show_result

TABLE_ENTRIES = 8192
"""Devices and collections of a table of one page of 64 KiB."""


class Outcome(NamedTuple):
    """What a message does: the result of the ioctl, and the LPI that becomes pending."""

    result: int
    errno: int = 0
    lpi: tuple[int, int] | None = None
    """(vCPU, INTID)."""

    @property
    def returned(self) -> str:
        """The result in strace's notation: ``1``, or ``-1 EINVAL``."""
        return show_result(self.result, self.errno)


BLOCKED = Outcome(0)


class Translation(NamedTuple):
    """An entry of a translation table."""

    lpi: int
    collection: int


@dataclass
class Device:
    """A mapped device: 2**``bits`` events, of which ``events`` are mapped."""

    bits: int
    events: dict[int, Translation] = field(default_factory=dict)


@dataclass
class Its:
    """An ITS at ``address``. ``collections`` is {collection: vCPU}."""

    address: int
    enabled: bool = True
    devices: dict[int, Device] = field(default_factory=dict)
    collections: dict[int, int] = field(default_factory=dict)

    def translate(self, devid: int, event: int) -> Translation | None:
        """Return the translation of an event; None for an event that is not mapped."""
        device = self.devices.get(devid)
        return device.events.get(event) if device else None

    def target(self, devid: int, event: int) -> int | None:
        """Return the vCPU of an event; None without a translation or a mapped collection."""
        found = self.translate(devid, event)
        return self.collections.get(found.collection) if found else None


@dataclass
class Vcpu:
    """``lpis_enabled``: GICR_CTLR.EnableLPIs. ``masked``: the vCPU takes nothing."""

    lpis_enabled: bool = True
    masked: bool = False


class Setting(NamedTuple):
    """The configuration of an LPI."""

    enabled: bool = True
    priority: int = PRIORITY


@dataclass
class Model:
    """A VM. ``table`` is the configuration in memory, ``known`` what the redistributors know."""

    vcpus: list[Vcpu]
    itss: list[Its]
    table: dict[int, Setting] = field(default_factory=dict)
    known: dict[int, Setting] = field(default_factory=dict)
    pending: dict[int, int] = field(default_factory=dict)
    """{LPI: vCPU}."""

    @classmethod
    def of(cls, vcpus: int, addresses: Sequence[int]) -> Model:
        """Return a VM whose ITSs have empty tables, and collection N mapped to vCPU N."""
        itss = [Its(address, collections={i: i for i in range(vcpus)}) for address in addresses]
        return cls([Vcpu() for _ in range(vcpus)], itss)

    # --- messages ---------------------------------------------------------------------------------

    def predict(self, message: Message) -> Outcome:
        """Return what a message does. The rules are those of the module's docstring."""
        if message.flags & ~abi.KVM_MSI_VALID_DEVID:
            return Outcome(-1, EINVAL)
        if not self.itss:
            return Outcome(-1, ENODEV)
        if not message.flags:
            return Outcome(-1, EINVAL)
        its = self.its_at(message.address)
        if its is None:
            return Outcome(-1, EINVAL)
        if not its.enabled:
            return Outcome(-1, EBUSY)
        found = its.translate(message.devid, message.event)
        vcpu = its.target(message.devid, message.event)
        if found is None or vcpu is None:
            return BLOCKED
        if not self.vcpus[vcpu].lpis_enabled:
            return Outcome(-1, EBUSY)
        return Outcome(1, lpi=(vcpu, found.lpi))

    def its_at(self, address: int) -> Its | None:
        """Return the ITS that an address belongs to."""
        found = (its for its in self.itss if its.address <= address < its.address + ITS_SIZE)
        return next(found, None)

    def signal(self, message: Message) -> Outcome:
        """Send a message: predict, and make the LPI pending."""
        outcome = self.predict(message)
        if outcome.lpi:
            vcpu, lpi = outcome.lpi
            self.pending[lpi] = vcpu
        return outcome

    # --- the guest --------------------------------------------------------------------------------

    def pending_lpis(self) -> frozenset[tuple[int, int]]:
        """Return the pending LPIs: (vCPU, INTID)."""
        return frozenset((vcpu, lpi) for lpi, vcpu in self.pending.items())

    def setting(self, lpi: int) -> Setting:
        return self.known.get(lpi, Setting())

    def take(self) -> list[tuple[int, int]]:
        """Have all vCPUs take what they can; return (vCPU, INTID), sorted by vCPU and priority."""
        able = sorted(
            (vcpu, self.setting(lpi).priority, lpi)
            for lpi, vcpu in self.pending.items()
            if self._takes(vcpu, lpi)
        )
        for _, _, lpi in able:
            del self.pending[lpi]
        return [(vcpu, lpi) for vcpu, _, lpi in able]

    def take_on(self, vcpu: int) -> None:
        """Have one vCPU take what it can."""
        for lpi in [lpi for lpi, on in self.pending.items() if on == vcpu]:
            if self._takes(vcpu, lpi):
                del self.pending[lpi]

    def _takes(self, vcpu: int, lpi: int) -> bool:
        cpu = self.vcpus[vcpu]
        return cpu.lpis_enabled and not cpu.masked and self.setting(lpi).enabled

    # --- commands ---------------------------------------------------------------------------------

    def mapd(self, its: Its, devid: int, bits: int, valid: bool = True) -> None:
        """Map a device to an empty table, or unmap it; ignored if the table is out of range."""
        if devid >= TABLE_ENTRIES or (valid and bits > ID_BITS):
            return
        its.devices.pop(devid, None)
        if valid:
            its.devices[devid] = Device(bits)

    def mapc(self, its: Its, collection: int, vcpu: int, valid: bool = True) -> None:
        """Map a collection, or unmap it and all its events."""
        if collection >= TABLE_ENTRIES or (valid and vcpu >= len(self.vcpus)):
            return
        if valid:
            its.collections[collection] = vcpu
        else:
            its.collections.pop(collection, None)

    def mapti(self, its: Its, devid: int, event: int, lpi: int, collection: int) -> None:
        """Map an event that is not mapped yet. The configuration of the LPI is read."""
        device = its.devices.get(devid)
        if device is None or event >> device.bits or event in device.events:
            return
        if not FIRST_LPI <= lpi < 1 << ID_BITS or collection >= TABLE_ENTRIES:
            return
        device.events[event] = Translation(lpi, collection)
        self._read(lpi)

    def movi(self, its: Its, devid: int, event: int, collection: int) -> None:
        """Move an event, and its pending LPI."""
        found = its.translate(devid, event)
        target = its.collections.get(collection)
        if found is None or its.target(devid, event) is None or target is None:
            return
        its.devices[devid].events[event] = found._replace(collection=collection)
        if found.lpi in self.pending:
            self.pending[found.lpi] = target

    def discard(self, its: Its, devid: int, event: int) -> None:
        """Unmap an event. KVM leaves its LPI pending: arm-discard-keeps-pending."""
        if its.target(devid, event) is not None:
            del its.devices[devid].events[event]

    def inv(self, its: Its, devid: int, event: int) -> None:
        """Read the configuration of an event's LPI."""
        if found := its.translate(devid, event):
            self._read(found.lpi)

    def invall(self, its: Its, collection: int) -> None:
        """Read the configuration of the LPIs of the vCPU of a collection."""
        vcpu = its.collections.get(collection)
        for each in self.itss:
            for found in translations(each):
                if each.collections.get(found.collection) == vcpu is not None:
                    self._read(found.lpi)

    def _read(self, lpi: int) -> None:
        self.known[lpi] = self.table.get(lpi, Setting())

    def int_(self, its: Its, devid: int, event: int) -> None:
        """Make an event's LPI pending, as a message does."""
        self.signal(Message(devid, event, its.address))

    def clear(self, its: Its, devid: int, event: int) -> None:
        """Make an event's LPI not pending."""
        if found := its.translate(devid, event):
            self.pending.pop(found.lpi, None)


def translations(its: Its) -> Iterator[Translation]:
    """Yield the translations of all devices."""
    for device in its.devices.values():
        yield from device.events.values()
