# SPDX-License-Identifier: GPL-2.0-only
"""The capabilities that KVM_CHECK_EXTENSION advertises: where, when, and that they are true.

Clauses: kvm.api-version, msi.capability, msi.devid-capability, x2apic-api.eoi-broadcast.

User space decides by the capability whether to use the ioctl, and may ask before or after it makes
the VM, the irqchip and the vCPUs. The answer must be the same each time.
"""

import pytest

from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites.common import to


@pytest.fixture(params=["system", "vm", "vm-full", "vm-split", "vm-with-vcpus"])
def advertiser(request, system, machines):
    """Each object that takes KVM_CHECK_EXTENSION: /dev/kvm, and a VM in each of its states."""
    if request.param == "system":
        return system
    irqchip = {"vm": "none", "vm-split": "split"}.get(request.param, "full")
    vcpu_ids = range(2) if request.param == "vm-with-vcpus" else ()
    return machines(irqchip=irqchip, vcpu_ids=vcpu_ids).vm


@clause("kvm.api-version")
def test_api_version_is_12(system):
    expect("KVM_GET_API_VERSION", system.api_version(), 12)


@clause("msi.capability")
def test_signal_msi_is_advertised(advertiser):
    expect("KVM_CAP_SIGNAL_MSI", advertiser.check_extension(abi.KVM_CAP_SIGNAL_MSI), 1)


@clause("msi.capability")
def test_capability_appears_with_creating_the_irqchip_and_stays(machines):
    vm = machines(irqchip="none", vcpu_ids=()).vm
    before = vm.check_extension(abi.KVM_CAP_SIGNAL_MSI)
    vm.create_irqchip()
    expect("KVM_CAP_SIGNAL_MSI after", vm.check_extension(abi.KVM_CAP_SIGNAL_MSI), before)


@clause("msi.capability")
def test_advertised_ioctl_delivers(machine):
    machine.signal(to(0)).returns(machine.vm.check_extension(abi.KVM_CAP_SIGNAL_MSI))


@clause("msi.devid-capability")
def test_x86_needs_no_device_id(advertiser):
    expect("KVM_CAP_MSI_DEVID", advertiser.check_extension(abi.KVM_CAP_MSI_DEVID), 0)


@clause("msi.devid-capability")
def test_message_without_device_id_is_delivered(machine):
    machine.signal(to(0)).delivered()


@clause("msi.capability")
@pytest.mark.parametrize(
    "capability", ["KVM_CAP_IRQCHIP", "KVM_CAP_SPLIT_IRQCHIP", "KVM_CAP_X2APIC_API"]
)
def test_capabilities_the_clauses_build_on_are_advertised(system, capability):
    if system.check_extension(getattr(abi, capability)) <= 0:
        expect(capability, "not advertised", "advertised")


@clause("x2apic-api.eoi-broadcast")
@deviation("no-eoi-broadcast-features")
@pytest.mark.parametrize(
    "asked, features",
    [("system", 0b1111), ("full", 0b1011), ("split", 0b1111)],
    ids=["system", "full", "split"],
)
def test_eoi_broadcast_features_are_advertised(system, machines, asked, features):
    source = system if asked == "system" else machines(irqchip=asked, vcpu_ids=()).vm
    expect("KVM_CAP_X2APIC_API", source.check_extension(abi.KVM_CAP_X2APIC_API), features)
