"""The flags field and devid: KVM_MSI_VALID_DEVID, and nothing else."""

from errno import EINVAL

import pytest

from helpers.apic import DeliveryMode, Message
from helpers.kvm import abi
from helpers.verdicts import clause

UNDEFINED = range(1, 32)
"""Bit 0 is KVM_MSI_VALID_DEVID."""

TO_ALL = Message(destination=0xFF)


@clause("msi.flags")
@pytest.mark.parametrize("bit", UNDEFINED, ids="bit{}".format)
def test_undefined_flag_is_rejected(machine, bit):
    machine.signal(TO_ALL, flags=1 << bit).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@pytest.mark.parametrize("bit", UNDEFINED, ids="bit{}".format)
def test_undefined_flag_beside_valid_devid_is_rejected(machine, bit):
    flags = 1 << bit | abi.KVM_MSI_VALID_DEVID
    machine.signal(TO_ALL, flags=flags, devid=1).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@pytest.mark.parametrize("flags", [0xFFFFFFFF, 0xFFFFFFFE], ids="{:#x}".format)
def test_all_flags_are_rejected(machine, flags):
    machine.signal(TO_ALL, flags=flags).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
def test_undefined_flag_is_rejected_in_every_delivery_mode(machine, mode):
    message = Message(destination=0xFF, delivery_mode=mode)
    machine.signal(message, flags=1 << 1).fails(EINVAL).reached_nobody()


@clause("msi.flags")
def test_rejected_message_is_not_delivered_later(machine):
    machine.signal(TO_ALL, flags=1 << 31).fails(EINVAL)
    assert [cpu.take() for cpu in machine.cpus] == [[]] * 4


@clause("msi.devid-flag")
@pytest.mark.parametrize("devid", [0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF], ids="devid{:#x}".format)
def test_valid_devid_either_fails_or_delivers(machine, devid, record_property):
    shot = machine.signal(Message(destination=1), flags=abi.KVM_MSI_VALID_DEVID, devid=devid)
    record_property("outcome", shot.returned)
    if shot.result < 0:
        shot.fails(EINVAL).reached_nobody()
    else:
        shot.returns(1).accepted_by(1)


@clause("abi.ignored")
@pytest.mark.parametrize("devid", [0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF], ids="devid{:#x}".format)
def test_valid_devid_is_accepted_and_ignored(machine, devid):
    shot = machine.signal(Message(destination=1), flags=abi.KVM_MSI_VALID_DEVID, devid=devid)
    shot.returns(1).accepted_by(1)
