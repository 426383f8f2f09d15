# SPDX-License-Identifier: GPL-2.0-only
"""The capabilities: KVM_CAP_SIGNAL_MSI, and KVM_CAP_MSI_DEVID once a VM has an ITS.

Clauses: arm.cap-signal-msi, arm.cap-msi-devid, arm.cap-msi-devid-system.
"""

import pytest

from helpers.arm64 import ItsDevice
from helpers.guest import expect
from helpers.kvm import KvmError, abi
from helpers.kvm.device import Device
from helpers.verdicts import clause, deviation

STATES = ["bare", "its-alone", "vgic", "its", "ready"]


@pytest.fixture
def vm(request, system, machines):
    """A VM in each of its states."""
    if request.param in ("bare", "its-alone"):
        with system.create_vm() as bare:
            if request.param == "its-alone":
                with ItsDevice(bare.fd, None, 0):
                    yield bare
            else:
                yield bare
        return
    options = {"vgic": {"itss": 0}, "its": {"ready": False}, "ready": {}}[request.param]
    yield machines(**options).vm


@clause("arm.cap-signal-msi")
def test_signal_msi_is_advertised_by_the_system(system):
    expect("KVM_CAP_SIGNAL_MSI", system.check_extension(abi.KVM_CAP_SIGNAL_MSI), 1)


@clause("arm.cap-signal-msi")
@pytest.mark.parametrize("vm", STATES, indirect=True)
def test_signal_msi_is_advertised_by_the_vm(vm):
    expect("KVM_CAP_SIGNAL_MSI", vm.check_extension(abi.KVM_CAP_SIGNAL_MSI), 1)


@clause("arm.cap-msi-devid")
@pytest.mark.parametrize("vm", ["bare", "vgic"], indirect=True)
def test_vm_without_its_needs_no_device_id(vm):
    expect("KVM_CAP_MSI_DEVID", vm.check_extension(abi.KVM_CAP_MSI_DEVID), 0)


@clause("arm.cap-msi-devid")
@pytest.mark.parametrize("vm", ["its-alone", "its", "ready"], indirect=True)
def test_vm_with_its_needs_a_device_id(vm):
    expect("KVM_CAP_MSI_DEVID > 0", vm.check_extension(abi.KVM_CAP_MSI_DEVID) > 0, True)


@clause("arm.cap-msi-devid")
def test_device_id_is_needed_from_the_creation_of_an_its_on(machines):
    machine = machines(itss=0, ready=False)
    expect("before", machine.vm.check_extension(abi.KVM_CAP_MSI_DEVID), 0)
    with Device(machine.vm.fd, abi.KVM_DEV_TYPE_ARM_VGIC_ITS):
        expect("after", machine.vm.check_extension(abi.KVM_CAP_MSI_DEVID), 1)


@clause("arm.cap-msi-devid-system")
@deviation("arm-devid-capability-of-system")
def test_system_answers_whether_a_device_id_is_needed(system):
    try:
        answer = str(system.check_extension(abi.KVM_CAP_MSI_DEVID))
    except KvmError as error:
        answer = f"-1 {error.name}"
    expect("KVM_CAP_MSI_DEVID of /dev/kvm is an error", answer.startswith("-1"), False)
