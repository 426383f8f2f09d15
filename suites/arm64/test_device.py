# SPDX-License-Identifier: GPL-2.0-only
"""The attributes of the ITS device, and the errors that arm-vgic-its.rst has for them.

Clauses: arm.its-attributes, arm.no-physical-its.
"""

from pathlib import Path

import pytest

from helpers.arm64.running import running
from helpers.guest import expect
from helpers.its import registers
from helpers.kvm import KvmError, MissingPart
from helpers.kvm import abi_arm64 as arm
from helpers.verdicts import clause, parallel
from suites import each
from suites.arm64.common import EACH_EVENT, ON_1, expect_delivery


def outcome(call, *arguments):
    """Return "0", or the name of the errno with which a call of an ioctl fails."""
    try:
        call(*arguments)
    except KvmError as error:
        return error.name
    return "0"


@clause("arm.its-attributes")
@each.value("address", [0x1, 0x8, 0x800, 0x08081000, 0x08088000, 0x0808FFFF])
def test_address_that_is_not_aligned_is_refused(machines, address):
    expect("address", outcome(machines(ready=False).its.place, address), "EINVAL")


@clause("arm.its-attributes")
@each.value("address", [1 << 52, 1 << 56, 1 << 63])
def test_address_beyond_the_guest_is_refused(machines, address):
    expect("address", outcome(machines(ready=False).its.place, address), "E2BIG")


@clause("arm.its-attributes")
def test_second_address_is_refused(machine):
    expect("address", outcome(machine.its.place, 0x08200000), "EEXIST")


ATTRIBUTES = {
    "address": (arm.KVM_DEV_ARM_VGIC_GRP_ADDR, arm.KVM_VGIC_ITS_ADDR_TYPE),
    "init": (arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_VGIC_CTRL_INIT),
    "reset": (arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_ITS_CTRL_RESET),
    "save": (arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_ITS_SAVE_TABLES),
    "restore": (arm.KVM_DEV_ARM_VGIC_GRP_CTRL, arm.KVM_DEV_ARM_ITS_RESTORE_TABLES),
    "registers": (arm.KVM_DEV_ARM_VGIC_GRP_ITS_REGS, registers.GITS_CTLR),
}


@clause("arm.its-attributes")
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_is_there(machine, name):
    expect(name, machine.its.has(*ATTRIBUTES[name]), True)


@clause("arm.its-attributes")
@each.value("offset", [0x10, 0x18, 0x148, 0x10000, 0x20000, 0xFFFFFFF8])
def test_register_that_is_not_there_is_refused(machine, offset):
    expect("register", outcome(machine.its.__getitem__, offset), "ENXIO")


@clause("arm.its-attributes")
@each.value("offset", [0x84, 0x8C, 0x104, 0x81])
def test_register_that_is_not_aligned_is_refused(machine, offset):
    expect("register", outcome(machine.its.__getitem__, offset), "EINVAL")


@clause("arm.its-attributes")
@parallel
@pytest.mark.parametrize("what", ["read", "write", "save", "restore", "reset", "save-pending"])
def test_attribute_is_busy_while_a_vcpu_runs(machine, what):
    its, vgic, control = machine.its, machine.vgic, arm.KVM_DEV_ARM_VGIC_GRP_CTRL
    calls = {
        "read": (its.__getitem__, registers.GITS_CTLR),
        "write": (its.__setitem__, registers.GITS_CTLR, 0),
        "save": (its.control, arm.KVM_DEV_ARM_ITS_SAVE_TABLES),
        "restore": (its.control, arm.KVM_DEV_ARM_ITS_RESTORE_TABLES),
        "reset": (its.control, arm.KVM_DEV_ARM_ITS_CTRL_RESET),
        "save-pending": (vgic.set, control, arm.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES),
    }
    with running(machine[ON_1.vcpu], "WFI") as thread:
        thread.wait_until_asleep()
        expect(what, outcome(*calls[what]), "EBUSY")
        machine.send(ON_1.message)
        thread.takes(ON_1.lpi)


@clause("arm.its-attributes")
@each.value("group", [1, 9, 0xFFFFFFFF])
def test_group_that_is_not_there_is_refused(machine, group):
    expect("group", outcome(machine.its.set, group, 0, 0), "ENXIO")
    expect("group is there", machine.its.has(group, 0), False)


@clause("arm.no-physical-its")
@EACH_EVENT
def test_virtual_its_needs_no_physical_its(machine, event):
    if any(Path("/proc/device-tree").glob("**/its@*")):
        raise MissingPart("this machine has a physical ITS")
    expect_delivery(machine, event.message, *event.pending)
