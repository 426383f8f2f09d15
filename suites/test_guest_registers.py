# SPDX-License-Identifier: GPL-2.0-only
"""A guest that reprograms its LAPIC, through MMIO or MSRs.

Clauses: lapic.follows-guest, lapic.base-refused, lapic.base-exit.

KVM finds a destination in a map of all LAPICs, and has to rebuild the map after each write that
changes an ID, a model, a mode or the enable bit of SVR. A message sent right after the write shows
a map that was not rebuilt.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import APIC_BASE_ENABLE, APIC_BASE_X2APIC, DFR_CLUSTER, DFR_FLAT, SVR_RESET
from helpers.guest import GuestError, expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import expect_taken, to
from suites.names import FIXED, LOGICAL, NMI, SVR_ENABLED

IA32_APIC_BASE = 0x1B


def guest_switches(cpu, *apic_modes):
    """Make the guest write IA32_APIC_BASE, once per APIC mode."""
    for apic_mode in apic_modes:
        base = cpu.rdmsr(IA32_APIC_BASE) & ~(APIC_BASE_ENABLE | APIC_BASE_X2APIC)
        cpu.wrmsr(IA32_APIC_BASE, base | apic_mode.value)


# --- SVR ------------------------------------------------------------------------------------------


@clause("lapic.follows-guest")
@each.apic_mode
def test_guest_disables_and_enables_by_svr(machine):
    machine[1].write(Register.SVR, SVR_RESET)
    machine.signal(to(1)).blocked().reached_nobody()
    machine[1].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(1)).returns(1).accepted_by(1)
    expect_taken(machine[1], 0x41)


@clause("lapic.follows-guest")
def test_guest_enables_the_only_lapic(machines):
    machine = machines(vcpu_ids=(0,))
    machine[0].write(Register.SVR, SVR_RESET)
    machine.signal(to(1, LOGICAL)).blocked_or_unmatched().reached_nobody()
    machine[0].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(1, LOGICAL)).returns(1).accepted_by(0)


@clause("lapic.follows-guest")
def test_logical_id_counts_again_when_the_guest_enables_its_lapic(machine):
    machine[1].write(Register.SVR, SVR_RESET)
    machine[2].write(Register.LDR, 0x40 << 24)  # The map is rebuilt without vCPU 1's logical ID.
    machine[1].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(1 << 1, LOGICAL)).returns(1).accepted_by(1)


@clause("lapic.follows-guest")
def test_spurious_vector_does_not_matter(machine):
    machine[1].write(Register.SVR, 0x141)
    machine.signal(to(1)).returns(1).accepted_by(1)
    expect_taken(machine[1], 0x41)


# --- LDR, DFR, ID ---------------------------------------------------------------------------------


@clause("lapic.follows-guest")
@each.value("ldr", [0x10, 0x80])
def test_guest_moves_its_logical_id(machine, ldr):
    machine[1].write(Register.LDR, ldr << 24)
    machine.signal(to(ldr, LOGICAL)).returns(1).accepted_by(1)
    machine.signal(to(0x02, LOGICAL)).blocked_or_unmatched().reached_nobody()


@clause("lapic.follows-guest")
def test_guest_clears_its_logical_id(machine):
    machine[1].write(Register.LDR, 0)
    machine.signal(to(0x0F, LOGICAL)).returns(3).accepted_by(0, 2, 3)


@clause("lapic.follows-guest")
def test_guests_go_from_flat_to_cluster_and_back(machine):
    for cpu in machine.cpus:
        cpu.write(Register.DFR, DFR_CLUSTER)
        cpu.write(Register.LDR, (0x10 | 1 << cpu.index) << 24)
    machine.signal(to(0x13, LOGICAL)).returns(2).accepted_by(0, 1)
    for cpu in machine.cpus:
        cpu.write(Register.DFR, DFR_FLAT)
        cpu.write(Register.LDR, 1 << 24 + cpu.index)
    machine.signal(to(0x0C, LOGICAL)).returns(2).accepted_by(2, 3)


@clause("lapic.follows-guest")
def test_dfr_counts_without_a_new_logical_id(machine):
    for cpu in machine.cpus:
        cpu.write(Register.DFR, DFR_CLUSTER)
    machine.signal(to(0x12, LOGICAL)).blocked_or_unmatched().reached_nobody()
    machine.signal(to(0x02, LOGICAL)).returns(1).accepted_by(1)


@clause("lapic.follows-guest")
def test_one_guest_goes_to_cluster(machine):
    machine[3].write(Register.DFR, DFR_CLUSTER)
    machine[3].write(Register.LDR, 0x24 << 24)
    machine.signal(to(0x24, LOGICAL)).delivered().accepted_by(2, 3)
    machine.signal(to(0x03, LOGICAL, vector=0x42)).returns(2).accepted_by(0, 1)


@clause("lapic.follows-guest")
@each.value("new", [5, 0x80, 0xFE])
def test_guest_rewrites_its_id(machine, new):
    machine[1].write(Register.ID, new << 24)
    machine.signal(to(new)).returns(1).accepted_by(1)
    machine.signal(to(1)).blocked_or_unmatched().reached_nobody()


@clause("lapic.follows-guest")
@deviation("alias-one-receives")
def test_guest_takes_anothers_id(machine):
    machine[1].write(Register.ID, 2 << 24)
    machine.signal(to(2)).returns(2).accepted_by(1, 2)


@clause("lapic.follows-guest")
@deviation("logical-alias-one-receives")
def test_guest_takes_anothers_logical_id(machine):
    machine[1].write(Register.LDR, 4 << 24)
    machine.signal(to(4, LOGICAL)).returns(2).accepted_by(1, 2)


# --- IA32_APIC_BASE -------------------------------------------------------------------------------


@clause("lapic.follows-guest")
@each.delivery_mode(FIXED, NMI)
def test_guest_turns_its_lapic_off(machine, delivery_mode):
    guest_switches(machine[1], ApicMode.DISABLED)
    injection = machine.signal(to(1, delivery_mode=delivery_mode))
    injection.blocked_or_unmatched().reached_nobody()


@clause("lapic.follows-guest")
def test_guest_turns_its_lapic_off_and_on(machine):
    guest_switches(machine[1], ApicMode.DISABLED, ApicMode.XAPIC)
    machine[1].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(1)).returns(1).accepted_by(1)
    expect_taken(machine[1], 0x41)


@clause("lapic.follows-guest")
def test_lapic_turned_off_and_on_has_its_first_id(machine):
    machine[1].write(Register.ID, 5 << 24)
    guest_switches(machine[1], ApicMode.DISABLED, ApicMode.XAPIC)
    machine[1].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(5)).blocked_or_unmatched().reached_nobody()
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("lapic.follows-guest")
def test_guest_goes_to_x2apic(machine):
    guest_switches(machine[1], ApicMode.X2APIC)
    machine.signal(to(1)).returns(1).accepted_by(1)
    expect_taken(machine[1], 0x41)
    expect("APIC mode", machine[1].apic_mode, ApicMode.X2APIC)


@clause("lapic.follows-guest")
def test_guest_goes_to_x2apic_and_back(machine):
    guest_switches(machine[1], ApicMode.X2APIC, ApicMode.DISABLED, ApicMode.XAPIC)
    machine[1].write(Register.SVR, SVR_ENABLED)
    machine.signal(to(1)).returns(1).accepted_by(1)
    expect_taken(machine[1], 0x41)


@clause("lapic.follows-guest")
def test_x2apic_logical_id_counts_at_once(machine):
    for cpu in machine.cpus:
        guest_switches(cpu, ApicMode.X2APIC)
    expect("LDR at the guest", hex(machine[3].read(Register.LDR)), "0x8")
    machine.signal(to(0x0C, LOGICAL)).returns(2).accepted_by(2, 3)


@clause("lapic.follows-guest")
def test_x2apic_has_not_the_id_that_the_guest_wrote(machine):
    machine[1].write(Register.ID, 5 << 24)
    guest_switches(machine[1], ApicMode.X2APIC)
    expect("ID at the guest", machine[1].read(Register.ID), 1)
    machine.signal(to(5)).blocked_or_unmatched().reached_nobody()
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("lapic.follows-guest")
def test_x2apic_has_not_the_logical_id_that_the_guest_wrote(machine):
    machine[1].write(Register.LDR, 0x40 << 24)
    guest_switches(machine[1], ApicMode.X2APIC)
    machine.signal(to(0x40, LOGICAL)).blocked_or_unmatched().reached_nobody()
    machine.signal(to(1 << 1, LOGICAL)).returns(1).accepted_by(1)


@clause("lapic.follows-guest")
def test_vector_pending_at_the_switch_to_x2apic_is_taken(machine):
    machine[1].cli()
    machine.signal(to(1)).returns(1)
    guest_switches(machine[1], ApicMode.X2APIC)
    machine[1].sti()
    expect_taken(machine[1], 0x41)


@clause("lapic.follows-guest")
def test_guest_and_host_agree_on_every_register(machine):
    machine[1].write(Register.TPR, 0x30)
    machine[1].write(Register.LDR, 0x40 << 24)
    page = machine[1].lapic
    for register in (Register.ID, Register.TPR, Register.LDR, Register.DFR, Register.SVR):
        expect(register.name, machine[1].read(register), page[register])


# --- IA32_APIC_BASE, refused ----------------------------------------------------------------------

ADDRESS = 0xFEE00000
ENABLED = ADDRESS | APIC_BASE_ENABLE
GENERAL_PROTECTION = "exception 13$"

NEEDS_MSR_EXITS = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_X86_USER_SPACE_MSR']",
    reason="the kernel has no KVM_CAP_X86_USER_SPACE_MSR",
)

EACH_REFUSED = pytest.mark.parametrize(
    "apic_mode, base",
    [
        pytest.param(ApicMode.X2APIC, ENABLED, id="x2apic-to-xapic"),
        pytest.param(ApicMode.DISABLED, ENABLED | APIC_BASE_X2APIC, id="disabled-to-x2apic"),
        pytest.param(ApicMode.XAPIC, ADDRESS | APIC_BASE_X2APIC, id="x2apic-disabled"),
        pytest.param(ApicMode.XAPIC, ENABLED | 1 << 9, id="reserved-bit"),
    ],
)
"""A mode of a LAPIC, and a value that the guest may not write then."""


def write_base(cpu, base, outcome):
    """Have the guest write IA32_APIC_BASE; raise an error unless KVM_RUN ends with ``outcome``."""
    before = cpu.apic_base
    with pytest.raises(GuestError, match=outcome):
        cpu.wrmsr(IA32_APIC_BASE, base)
    expect("IA32_APIC_BASE", cpu.vcpu.get_sregs().apic_base, before, show=hex)


@clause("lapic.base-refused")
@EACH_REFUSED
def test_guest_may_not_write(machine, base):
    write_base(machine[1], base, GENERAL_PROTECTION)


@clause("lapic.base-exit")
@NEEDS_MSR_EXITS
@EACH_REFUSED
def test_refused_base_is_an_invalid_msr(machines, apic_mode, base):
    machine = machines(vcpu_ids=range(2), apic_mode=apic_mode)
    machine.vm.enable_cap(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_INVAL)
    write_base(machine[1], base, "KVM_EXIT_X86_WRMSR$")
    told = machine[1].vcpu.kvm_run.u.msr
    expect("reason", told.reason, abi.KVM_MSR_EXIT_REASON_INVAL)
    expect("MSR, value", (told.index, told.data), (IA32_APIC_BASE, base))
    told.error = 1
    with pytest.raises(GuestError, match=GENERAL_PROTECTION):
        machine[1].step()
