# SPDX-License-Identifier: GPL-2.0-only
"""IA32_APIC_BASE, written by KVM_SET_SREGS: APIC mode, BSP flag and address of a LAPIC.

Clauses: lapic.base, lapic.base-id, lapic.base-refused.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_X2APIC
from helpers.guest import expect
from helpers.kvm.system import CPUID_X2APIC, cpuid_entries
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import fixed, outcome_of

# Switches to and from x2APIC mode need the x2APIC in CPUID.
pytestmark = pytest.mark.usefixtures("x2apic_offered")

ADDRESS = 0xFEE00000
ENABLED = ADDRESS | APIC_BASE_ENABLE
MODES = [ADDRESS | mode.value for mode in ApicMode]


def set_base(cpu, base):
    """Write IA32_APIC_BASE by KVM_SET_SREGS, and return the outcome."""
    sregs = cpu.vcpu.get_sregs()
    sregs.apic_base = base
    return outcome_of(cpu.vcpu.set_sregs, sregs)


def expect_base(cpu, base):
    expect("IA32_APIC_BASE", cpu.vcpu.get_sregs().apic_base, base, show=hex)


def without_x2apic(table):
    """Return a copy of a CPUID table without the x2APIC feature."""
    copy = type(table).from_buffer_copy(table)
    for entry in cpuid_entries(copy):
        if entry.function == 1:
            entry.ecx &= ~CPUID_X2APIC
    return copy


@pytest.fixture
def pair(machines):
    """Two vCPUs that the test alone uses."""
    return machines(vcpu_ids=range(2))


# --- lapic.base -----------------------------------------------------------------------------------


@clause("lapic.base")
@each.value("before", MODES, "{:#x}")
@each.value("after", MODES, "{:#x}")
def test_host_switches_between_any_two_modes(pair, before, after):
    for base in (before, after):
        expect("outcome", set_base(pair[1], base), "accepted")
        expect_base(pair[1], base)


@clause("lapic.base")
@each.value("base", [ENABLED | APIC_BASE_BSP, 0x80000000 | APIC_BASE_ENABLE, 0x1000], "{:#x}")
def test_base_is_restored(pair, base):
    expect("outcome", set_base(pair[1], base), "accepted")
    expect_base(pair[1], base)
    expect_base(pair[0], ENABLED | APIC_BASE_BSP)


@clause("lapic.base")
@each.value("vcpu_id", [1, 17, 255], "id{}")
def test_mode_decides_the_ids(machines, vcpu_id):
    cpu = machines(vcpu_ids=[0, vcpu_id])[1]
    cpu.configure(id=9, ldr=0x40)
    set_base(cpu, ENABLED | APIC_BASE_X2APIC)
    expect("x2APIC ID", cpu.read(Register.ID), vcpu_id)
    expect("x2APIC LDR", cpu.read(Register.LDR), vcpu_id >> 4 << 16 | 1 << vcpu_id % 16)
    set_base(cpu, ADDRESS)
    set_base(cpu, ENABLED)
    expect("xAPIC ID", cpu.read(Register.ID), vcpu_id << 24)


@clause("lapic.base-id")
@deviation("forced-xapic-id-zero")
@each.value("vcpu_id", [1, 17, 255], "id{}")
def test_host_switches_an_x2apic_to_an_xapic_with_its_first_id(machines, vcpu_id):
    machine = machines(vcpu_ids=[0, vcpu_id])
    machine[1].configure(id=9)
    for base in (ENABLED | APIC_BASE_X2APIC, ENABLED):
        set_base(machine[1], base)
    expect("xAPIC ID", machine[1].lapic.xapic_id, vcpu_id)


@clause("lapic.base")
def test_disabled_lapic_gets_no_message_until_it_is_enabled(pair):
    for base, count in ((ADDRESS, 0), (ENABLED, 1), (ADDRESS, 0), (ENABLED | APIC_BASE_X2APIC, 1)):
        set_base(pair[1], base)
        injection = pair.signal(fixed(0x41))
        injection.returns(1) if count else injection.reached_nobody()


# --- lapic.base-refused ---------------------------------------------------------------------------

RESERVED = [*range(8), 9, 52, 57, 63]


@clause("lapic.base-refused")
@each.bit(RESERVED)
def test_reserved_bit_is_refused(pair, bit):
    expect("outcome", set_base(pair[1], ENABLED | 1 << bit), "EINVAL")
    expect_base(pair[1], ENABLED)


@clause("lapic.base-refused")
def test_x2apic_of_a_disabled_lapic_is_refused(pair):
    expect("outcome", set_base(pair[1], ADDRESS | APIC_BASE_X2APIC), "EINVAL")
    expect_base(pair[1], ENABLED)


@clause("lapic.base-refused")
def test_x2apic_without_cpuid_is_refused(machines):
    cpu = machines(vcpu_ids=range(2), power_on=False)[1]
    expect("outcome", set_base(cpu, ENABLED | APIC_BASE_X2APIC), "EINVAL")
    cpu.set_cpuid()
    expect("outcome", set_base(cpu, ENABLED | APIC_BASE_X2APIC), "accepted")


@clause("lapic.base-refused")
def test_x2apic_without_the_cpuid_feature_is_refused(system, machines):
    cpu = machines(vcpu_ids=range(2), power_on=False)[1]
    cpu.vcpu.set_cpuid(without_x2apic(system.supported_cpuid))
    expect("outcome", set_base(cpu, ENABLED | APIC_BASE_X2APIC), "EINVAL")
    expect("outcome", set_base(cpu, ENABLED), "accepted")
