# SPDX-License-Identifier: GPL-2.0-only
"""Suppression of EOI broadcasts: who may offer it to the guest, and what an EOI then does.

Clauses: x2apic-api.eoi-flags, eoi-broadcast.advertised, eoi-broadcast.default, eoi-broadcast.svr,
eoi-broadcast.suppressed, eoi-broadcast.saved, eoi-broadcast.full-restored, eoi-broadcast.late.

A guest that sets SVR bit 12 sends the EOI of a level-triggered interrupt to the IOAPIC itself. An
EOI that reaches the IOAPIC of user space too acknowledges an interrupt that the guest still serves.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import (
    NEEDS_IN_SERVICE,
    PIN,
    expect_eoi_exit,
    expect_remote_irr,
    level_entry,
    outcome_of,
    program_pin,
    raise_pin,
    route_pin_to,
    to,
)
from suites.names import BOTH, LEVEL, SVR_ENABLED

# KVM sets LVR bit 24 only for a vCPU that has the x2APIC in CPUID.
pytestmark = pytest.mark.usefixtures("x2apic_offered")

ENABLE = abi.KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
DISABLE = abi.KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST

ADVERTISED = 1 << 24
"""LVR: the guest may suppress EOI broadcasts."""

SUPPRESS = 1 << 12
"""SVR: the LAPIC broadcasts no EOI."""

NEEDS_FEATURES = pytest.mark.skipif(
    f"kernel.capabilities['KVM_CAP_X2APIC_API'] & {ENABLE | DISABLE} == 0",
    reason="the kernel has no features for EOI broadcasts (KVM_CAP_X2APIC_API, Linux 7.0)",
)

# The irqchip, and the feature that concerns EOI broadcasts.
FULL, FULL_DISABLE = ("full", 0), ("full", DISABLE)
SPLIT, SPLIT_ENABLE, SPLIT_DISABLE = ("split", 0), ("split", ENABLE), ("split", DISABLE)
NAMES = {0: "", ENABLE: "-enable", DISABLE: "-disable"}

each_others = each.value("others", [0, BOTH], "others{}")
each_configuration = pytest.mark.parametrize(
    "apic_mode, others",
    [(ApicMode.XAPIC, 0), (ApicMode.X2APIC, BOTH)],
    ids=["XAPIC", "X2APIC-others"],
)
each_svr = pytest.mark.parametrize(
    "svr", [SVR_ENABLED, SVR_ENABLED | SUPPRESS], ids=["broadcast", "suppress"]
)


def each_vm(*vms):
    ids = [irqchip + NAMES[feature] for irqchip, feature in vms]
    return pytest.mark.parametrize("irqchip, feature", vms, ids=ids)


@pytest.fixture
def feature():
    """The feature of KVM_CAP_X2APIC_API that concerns EOI broadcasts."""
    return 0


@pytest.fixture
def others():
    """The features of KVM_CAP_X2APIC_API that concern destinations."""
    return 0


@pytest.fixture
def lone(shared_machine, irqchip, feature, others, apic_mode):
    """One vCPU."""
    return shared_machine(irqchip=irqchip, apic_mode=apic_mode, x2apic_api=feature | others)


@pytest.fixture
def wired(machines, irqchip, feature, apic_mode):
    """One vCPU, to which a level-triggered pin of the IOAPIC sends vector 0x61."""
    machine = machines(irqchip=irqchip, apic_mode=apic_mode, x2apic_api=feature)
    if irqchip == "split":
        route_pin_to(machine, 0)
        machine[0].step()  # KVM scans the routes when a vCPU is entered.
    else:
        program_pin(machine, level_entry(0))
    return machine


def expect_advertised(cpu, advertised):
    expect("LVR bit 24 at the host", cpu.lapic[Register.VERSION] & ADVERTISED, advertised)
    expect("LVR bit 24 at the guest", cpu.read(Register.VERSION) & ADVERTISED, advertised)


def expect_exit(machine, vector):
    """Send vector 0x61; raise Mismatch unless the EOI of its handler exits with ``vector``."""
    machine.signal(to(0, vector=0x61, trigger_mode=LEVEL)).returns(1).accepted_by(0)
    expect_eoi_exit(machine[0], vector)


def expect_pin(machine, remote_irr):
    """Raise the pin, lower the pin, write EOI, and check Remote IRR."""
    machine[0].handler(eoi=False)
    raise_pin(machine)
    machine.vm.irq_line_status(PIN, 0)
    machine[0].eoi()
    expect_remote_irr(machine, remote_irr)


# --- the features ---------------------------------------------------------------------------------


@clause("x2apic-api.eoi-flags")
@NEEDS_FEATURES
@pytest.mark.parametrize("irqchip", ["none", "full", "split"])
@pytest.mark.parametrize(
    "feature", [ENABLE, DISABLE, ENABLE | DISABLE], ids=["enable", "disable", "both"]
)
@each_others
def test_suppression_needs_a_split_irqchip_and_no_contradiction(machines, irqchip, feature, others):
    vm = machines(irqchip=irqchip, vcpu_ids=()).vm
    accepted = feature == DISABLE or (feature == ENABLE and irqchip == "split")
    outcome = outcome_of(vm.enable_cap, abi.KVM_CAP_X2APIC_API, feature | others)
    expect("outcome", outcome, "accepted" if accepted else "EINVAL")


@clause("x2apic-api.eoi-flags")
@NEEDS_FEATURES
def test_contradiction_changes_nothing(machines):
    machine = machines(irqchip="split")
    outcome_of(machine.vm.enable_cap, abi.KVM_CAP_X2APIC_API, ENABLE | DISABLE | BOTH)
    machine[0].configure(svr=SVR_ENABLED)
    expect_advertised(machine[0], ADVERTISED)
    machine.signal(to(0, address_hi_reserved=1)).returns(1).accepted_by(0)


# --- what the guest reads -------------------------------------------------------------------------


@clause("eoi-broadcast.advertised")
@NEEDS_FEATURES
@each_vm(FULL_DISABLE, SPLIT_ENABLE, SPLIT_DISABLE)
@each_configuration
def test_feature_decides_what_is_advertised(lone, feature):
    expect_advertised(lone[0], ADVERTISED if feature == ENABLE else 0)


@clause("eoi-broadcast.default")
@each_vm(FULL, SPLIT)
@each_configuration
def test_without_a_feature_a_split_irqchip_advertises(lone, irqchip):
    expect_advertised(lone[0], ADVERTISED if irqchip == "split" else 0)


def expect_svr_of_guest(cpu):
    """Have the guest set and clear SVR bit 12; the bit reads 0 unless LVR bit 24 is set."""
    held = SUPPRESS if cpu.lapic[Register.VERSION] & ADVERTISED else 0
    for bit in (SUPPRESS, 0):
        cpu.write(Register.SVR, SVR_ENABLED | bit)
        expect("SVR at the guest", cpu.read(Register.SVR), SVR_ENABLED | held & bit)
        expect("SVR at the host", cpu.lapic[Register.SVR], SVR_ENABLED | held & bit)


@clause("eoi-broadcast.svr")
@each_vm(FULL, SPLIT)
@each.apic_mode
def test_guest_sets_the_bit_where_advertised(lone):
    expect_svr_of_guest(lone[0])


@clause("eoi-broadcast.svr")
@NEEDS_FEATURES
@each_vm(FULL_DISABLE, SPLIT_ENABLE, SPLIT_DISABLE)
@each.apic_mode
def test_guest_sets_the_bit_where_a_feature_advertises(lone):
    expect_svr_of_guest(lone[0])


# --- EOI ------------------------------------------------------------------------------------------


@clause("eoi-broadcast.suppressed")
@NEEDS_FEATURES
@each_vm(SPLIT_ENABLE, SPLIT_DISABLE)
@each.apic_mode
@each_svr
def test_eoi_exits_unless_suppressed(wired, feature, svr):
    wired[0].write(Register.SVR, svr)
    suppressed = feature == ENABLE and svr & SUPPRESS
    expect_exit(wired, None if suppressed else 0x61)


@clause("eoi-broadcast.suppressed")
@NEEDS_FEATURES
@each_vm(SPLIT_ENABLE)
def test_eoi_exits_again_once_the_bit_is_cleared(wired):
    for svr, vector in ((SVR_ENABLED | SUPPRESS, None), (SVR_ENABLED, 0x61)):
        wired[0].write(Register.SVR, svr)
        expect_exit(wired, vector)


@clause("eoi-broadcast.suppressed")
@NEEDS_IN_SERVICE
@NEEDS_FEATURES
@each_vm(FULL_DISABLE)
@each_svr
def test_eoi_reaches_the_ioapic_where_the_guest_cannot_suppress(wired, svr):
    wired[0].write(Register.SVR, svr)
    expect_pin(wired, 0)


@clause("eoi-broadcast.default")
@each_vm(SPLIT)
@each.apic_mode
@each_svr
def test_without_a_feature_every_eoi_exits(wired, svr):
    wired[0].write(Register.SVR, svr)
    expect_exit(wired, 0x61)


@clause("eoi-broadcast.default")
@NEEDS_IN_SERVICE
@each_vm(FULL)
@each_svr
def test_without_a_feature_eoi_reaches_the_ioapic(wired, svr):
    wired[0].write(Register.SVR, svr)
    expect_pin(wired, 0)


# --- saved and restored ---------------------------------------------------------------------------


def restore_suppression(cpu):
    """Load the register page of a LAPIC that may suppress EOI broadcasts, and does."""
    cpu.configure(version=cpu.lapic[Register.VERSION] | ADVERTISED, svr=SVR_ENABLED | SUPPRESS)
    expect("SVR", cpu.lapic[Register.SVR], SVR_ENABLED | SUPPRESS)


@clause("eoi-broadcast.saved")
@each_vm(SPLIT)
def test_restored_bit_keeps_its_value_without_a_feature(wired):
    restore_suppression(wired[0])
    expect_advertised(wired[0], ADVERTISED)
    expect_exit(wired, 0x61)


@clause("eoi-broadcast.saved")
@NEEDS_FEATURES
@each_vm(SPLIT_ENABLE, SPLIT_DISABLE)
def test_restored_bit_has_the_effect_of_the_feature(wired, feature):
    restore_suppression(wired[0])
    expect_advertised(wired[0], ADVERTISED if feature == ENABLE else 0)
    expect_exit(wired, None if feature == ENABLE else 0x61)


@clause("eoi-broadcast.full-restored")
@NEEDS_IN_SERVICE
@each_vm(FULL)
def test_restored_bit_suppresses_in_a_full_irqchip(wired):
    restore_suppression(wired[0])
    expect_advertised(wired[0], 0)
    expect_pin(wired, 1)


@clause("eoi-broadcast.saved")
@NEEDS_IN_SERVICE
@NEEDS_FEATURES
@each_vm(FULL_DISABLE)
def test_restored_bit_has_no_effect_in_a_full_irqchip_with_the_feature(wired):
    restore_suppression(wired[0])
    expect_advertised(wired[0], 0)
    expect_pin(wired, 0)


# --- enabled after the vCPU exists ----------------------------------------------------------------


@clause("eoi-broadcast.late")
@NEEDS_FEATURES
@each_vm(SPLIT)
def test_feature_enabled_late_suppresses_at_once(wired):
    wired[0].write(Register.SVR, SVR_ENABLED | SUPPRESS)
    for feature, vector in ((ENABLE, None), (DISABLE, 0x61), (ENABLE, None), (BOTH, None)):
        wired.vm.enable_cap(abi.KVM_CAP_X2APIC_API, feature)
        expect_exit(wired, vector)


@clause("eoi-broadcast.late")
@NEEDS_FEATURES
def test_feature_enabled_late_is_advertised_from_the_next_set_lapic_on(machines):
    machine = machines(irqchip="split")
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, DISABLE)
    expect_advertised(machine[0], ADVERTISED)
    machine[0].configure(svr=SVR_ENABLED)
    expect_advertised(machine[0], 0)
