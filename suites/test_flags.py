# SPDX-License-Identifier: GPL-2.0-only
"""The flags field, and the devid that KVM_MSI_VALID_DEVID announces.

Clauses: msi.flags, msi.devid-flag, abi.ignored.

A kernel that ignores an undefined flag can never give it a meaning: existing callers may set the
flag by accident. KVM_MSI_VALID_DEVID is defined, but x86 does not advertise KVM_CAP_MSI_DEVID: a
message with the flag may fail or be delivered, and its devid identifies no device.
"""

from errno import EINVAL

from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import expect_taken, to

UNDEFINED_BITS = each.bit(range(1, 32))
"""All but bit 0, KVM_MSI_VALID_DEVID."""

DEVIDS = each.value("devid", [0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF], "devid{:#x}")

TO_ALL = to(0xFF)

# --- msi.flags ------------------------------------------------------------------------------------


@clause("msi.flags")
@UNDEFINED_BITS
def test_undefined_flag_is_rejected(machine, bit):
    machine.signal(TO_ALL, flags=1 << bit).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@UNDEFINED_BITS
def test_undefined_flag_beside_valid_devid_is_rejected(machine, bit):
    flags = 1 << bit | abi.KVM_MSI_VALID_DEVID
    machine.signal(TO_ALL, flags=flags, devid=1).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@each.value("flags", [0xFFFFFFFF, 0xFFFFFFFE])
def test_all_flags_are_rejected(machine, flags):
    machine.signal(TO_ALL, flags=flags).fails(EINVAL).reached_nobody()


@clause("msi.flags")
@each.delivery_mode()
def test_undefined_flag_is_rejected_in_every_delivery_mode(machine, delivery_mode):
    message = to(0xFF, delivery_mode=delivery_mode)
    machine.signal(message, flags=1 << 1).fails(EINVAL).reached_nobody()


@clause("msi.flags")
def test_rejected_message_is_not_delivered_later(machine):
    machine.signal(TO_ALL, flags=1 << 31).fails(EINVAL)
    for cpu in machine.cpus:
        expect_taken(cpu)


# --- msi.devid-flag and abi.ignored ---------------------------------------------------------------


@clause("msi.devid-flag")
@DEVIDS
def test_valid_devid_either_fails_or_delivers(machine, devid, record_property):
    injection = machine.signal(to(1), flags=abi.KVM_MSI_VALID_DEVID, devid=devid)
    record_property("outcome", injection.returned)
    if injection.result < 0:
        injection.fails(EINVAL).reached_nobody()
    else:
        injection.returns(1).accepted_by(1)


@clause("abi.ignored")
@DEVIDS
def test_valid_devid_is_accepted_and_ignored(machine, devid):
    injection = machine.signal(to(1), flags=abi.KVM_MSI_VALID_DEVID, devid=devid)
    injection.returns(1).accepted_by(1)
