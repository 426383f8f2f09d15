# SPDX-License-Identifier: GPL-2.0-only
"""VMs without an irqchip, without an ITS, and with an ITS that is not ready; bad callers.

Clauses: arm.no-irqchip, arm.no-its, arm.uninitialized, arm.bad-pointer, arm.vm-ioctl.
"""

from dataclasses import replace
from errno import EBUSY, EFAULT, EINVAL, ENODEV

import pytest

from helpers.arm64 import ItsDevice
from helpers.guest import expect
from helpers.its import Message
from helpers.kvm import KvmError, MissingPart, abi, attempt, show_result
from helpers.kvm.device import Device
from helpers.kvm.ioctl import raw_ioctl
from helpers.verdicts import clause
from suites import each
from suites.arm64.common import FIRST, expect_delivery, map_events

VALID = abi.KVM_MSI_VALID_DEVID
FLAGS = pytest.mark.parametrize("flags", [0, VALID], ids=["no-devid", "devid"])
MESSAGE = Message(1, 0)


def outcome(fd, message=MESSAGE):
    """Return the outcome of a message in strace's notation."""
    return show_result(*attempt(fd, abi.KVM_SIGNAL_MSI, message.msi))


# --- arm.no-irqchip and arm.no-its ----------------------------------------------------------------


@clause("arm.no-irqchip")
@FLAGS
def test_vm_without_irqchip_refuses(system, flags):
    with system.create_vm() as vm:
        expect("return value", outcome(vm.fd, replace(MESSAGE, flags=flags)), "-1 EINVAL")


@clause("arm.no-irqchip")
@FLAGS
def test_vm_with_an_its_alone_refuses(system, flags):
    with system.create_vm() as vm, ItsDevice(vm.fd, None, 0):
        expect("return value", outcome(vm.fd, replace(MESSAGE, flags=flags)), "-1 EINVAL")


@clause("arm.no-its")
@FLAGS
@pytest.mark.parametrize("ready", [False, True], ids=["created", "initialized"])
def test_vgic_v3_without_its_refuses(machines, flags, ready):
    machine = machines(itss=0, ready=ready)
    machine.signal(replace(MESSAGE, flags=flags)).fails(ENODEV).reached_nobody()


@clause("arm.no-its")
def test_undefined_flag_is_refused_without_its(machines):
    machines(itss=0).signal(replace(MESSAGE, flags=2)).fails(EINVAL).reached_nobody()


@clause("arm.no-its")
@FLAGS
def test_vgic_v2_refuses(system, flags):
    with system.create_vm() as vm:
        try:
            vgic = Device(vm.fd, abi.KVM_DEV_TYPE_ARM_VGIC_V2)
        except KvmError:
            raise MissingPart("the host's GIC has no VGICv2") from None
        with vgic:
            expect("return value", outcome(vm.fd, replace(MESSAGE, flags=flags)), "-1 ENODEV")


# --- arm.uninitialized ----------------------------------------------------------------------------


@clause("arm.uninitialized")
@FLAGS
def test_its_without_address_refuses(machines, flags):
    machine = machines(ready=False)
    machine.signal(replace(MESSAGE, flags=flags)).fails(EINVAL)


@clause("arm.uninitialized")
@FLAGS
def test_its_that_is_not_initialized_refuses(machines, flags):
    machine = machines(ready=False)
    machine.place()
    machine.signal(replace(MESSAGE, flags=flags)).fails(EBUSY if flags else EINVAL)


@clause("arm.uninitialized")
@FLAGS
def test_its_without_tables_refuses(machines, flags):
    machine = machines(ready=False)
    machine.place()
    machine.initialize()
    machine.signal(replace(MESSAGE, flags=flags)).fails(EBUSY if flags else EINVAL)


@clause("arm.uninitialized")
def test_early_message_is_not_delivered_later(machines):
    machine = machines(ready=False)
    machine.signal(MESSAGE).refused()
    machine.place()
    machine.signal(MESSAGE).refused()
    machine.initialize()
    machine.set_up()
    map_events(machine)
    expect_delivery(machine, MESSAGE, *FIRST.pending)


# --- arm.bad-pointer and arm.vm-ioctl -------------------------------------------------------------

ADDRESSES = [0, 1, 0x1000, 1 << 48, (1 << 64) - 32, (1 << 64) - 1]


@clause("arm.bad-pointer")
@each.value("address", ADDRESSES)
def test_unreadable_structure_faults(shared, address):
    result = raw_ioctl(shared.vm.fd, abi.KVM_SIGNAL_MSI.number, address)
    expect("return value", result, (-1, EFAULT))
    expect("pending", shared.pending(), frozenset())


@clause("arm.bad-pointer")
@each.value("address", [0, (1 << 64) - 32])
def test_unreadable_structure_faults_without_irqchip(system, address):
    with system.create_vm() as vm:
        result = raw_ioctl(vm.fd, abi.KVM_SIGNAL_MSI.number, address)
        expect("return value", result, (-1, EFAULT))


@clause("arm.vm-ioctl")
@pytest.mark.parametrize("kind", ["system", "vcpu", "vgic", "its"])
def test_other_file_descriptor_refuses(shared, system, kind):
    fds = {"system": system, "vcpu": shared[0].vcpu, "vgic": shared.vgic, "its": shared.its}
    expect("return value", outcome(fds[kind].fd, FIRST.message).split()[0], "-1")
    expect("pending", shared.pending(), frozenset())
