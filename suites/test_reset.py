# SPDX-License-Identifier: GPL-2.0-only
"""INIT in detail: the registers that INIT resets, the processors that wait afterwards.

Clauses: lapic.init-reset, guest.init-sipi, vcpu.bsp.
"""

import pytest

from helpers.apic import Register
from helpers.apic.lapic import APIC_BASE_BSP, DFR_FLAT, LVT_MASKED, SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause
from suites import each
from suites.common import expect_mp_state, outcome_of, set_events, to
from suites.names import INIT, LEVEL, SIPI

# --- lapic.init-reset -----------------------------------------------------------------------------

WRITABLE = (
    *(Register.TPR, Register.LDR, Register.DFR, Register.SVR, Register.ESR),
    *(Register.ICR, Register.ICR2, Register.LVT_TIMER, Register.LVT_THERMAL),
    *(Register.LVT_PERFORMANCE, Register.LVT_LINT0, Register.LVT_LINT1, Register.LVT_ERROR),
    *(Register.TIMER_INITIAL, Register.TIMER_DIVIDE),
)
"""Registers that KVM_SET_LAPIC writes, besides the ID, ISR, TMR and IRR."""

RESET_VALUES = {Register.SVR: SVR_RESET, Register.DFR: DFR_FLAT} | {
    register: LVT_MASKED for register in WRITABLE if register.name.startswith("LVT_")
}
"""The registers that are not 0 after reset."""


@pytest.fixture
def reset_page(machines):
    """The register page of an AP that only KVM_SET_CPUID2, on which LVR depends, has changed."""
    ap = machines(vcpu_ids=range(2), power_on=False)[1]
    ap.set_cpuid()
    return ap.lapic


def expect_reset(machine, reset_page):
    """Send INIT to vCPU 1; raise Mismatch unless each register has its value after reset."""
    machine.send(to(1, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    page = machine[1].lapic
    for offset in range(0, 0x400, 0x10):
        expect(f"register {offset:#x}", hex(page[offset]), hex(reset_page[offset]))


@clause("lapic.init-reset")
def test_new_ap_has_the_reset_values(reset_page):
    for register in WRITABLE:
        expect(register.name, hex(reset_page[register]), hex(RESET_VALUES.get(register, 0)))


@clause("lapic.init-reset")
@each.member("register", [Register.ISR, Register.TMR, Register.IRR])
def test_init_clears_every_vector(machine, reset_page, register):
    machine[1].configure_vectors(register, range(256))
    expect_reset(machine, reset_page)


@clause("lapic.init-reset")
@each.vector([0x10, 0x1F, 0x20, 0x41, 0xFF])
def test_init_clears_a_level_message(machine, reset_page, vector):
    machine.signal(to(1, vector=vector, trigger_mode=LEVEL, level=1)).returns(1).accepted_by(1)
    expect_reset(machine, reset_page)


@clause("lapic.init-reset")
@each.member("register", WRITABLE)
def test_init_resets(machine, reset_page, register):
    page = machine[1].lapic
    page[register] ^= 0x0F0000FF
    machine[1].lapic = page
    assert machine[1].lapic[register] != reset_page[register]
    expect_reset(machine, reset_page)


@clause("lapic.init-reset")
def test_init_keeps_the_apic_id(machine):
    machine[1].configure(id=9)
    machine.send(to(9, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("APIC ID", machine[1].lapic.xapic_id, 9)


@clause("lapic.init-reset")
@each.apic_mode
def test_init_keeps_the_apic_mode(machine, apic_mode):
    machine.send(to(1, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("APIC mode", machine[1].apic_mode, apic_mode)


# --- guest.init-sipi: a SIPI to a processor that does not wait for SIPI ---------------------------


def expect_no_sipi_left(cpu):
    """Raise Mismatch if a SIPI is still pending: the SIPI would start the waiting vCPU."""
    cpu.mp_state = MpState.INIT_RECEIVED
    expect_mp_state(cpu, MpState.INIT_RECEIVED)


@clause("guest.init-sipi")
def test_entry_drops_a_sipi(machine):
    machine.send(to(1, delivery_mode=SIPI))
    machine[1].step()
    expect_no_sipi_left(machine[1])


@clause("guest.init-sipi")
def test_running_processor_drops_a_sipi(machine):
    with machine[1].spinning() as running:
        machine.send(to(1, delivery_mode=SIPI))
        machine.send(to(1))
        running.wait_until_taken(1)
    expect_no_sipi_left(machine[1])


@clause("guest.init-sipi")
def test_halted_processor_drops_a_sipi(machine):
    with machine[1].halted() as running:
        machine.send(to(1, delivery_mode=SIPI))
        machine.send(to(1))
        running.finish()
    expect_no_sipi_left(machine[1])


@clause("guest.init-sipi")
def test_uninitialized_processor_drops_a_sipi(machine):
    machine[1].mp_state = MpState.UNINITIALIZED
    with machine[1].waiting() as running:
        machine.send(to(1, delivery_mode=SIPI))
        running.wait_until_asleep()
        running.kick()
    expect_no_sipi_left(machine[1])


# --- guest.init-sipi: what INIT drops -------------------------------------------------------------


@clause("guest.init-sipi")
def test_init_drops_an_interrupt_on_its_way_into_the_handler(machine):
    set_events(machine[1], interrupt_injected=1, interrupt_nr=0x41)
    machine.send(to(1, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("interrupt on its way", machine[1].vcpu.get_events().interrupt.injected, 0)


# --- vcpu.bsp -------------------------------------------------------------------------------------

EACH_BSP = each.value("bsp", range(3), "vcpu{}")


@pytest.fixture
def chosen(machines, bsp):
    """Three vCPUs, of which KVM_SET_BOOT_CPU_ID makes ``bsp`` the BSP."""
    machine = machines(vcpu_ids=())
    machine.vm.set_boot_cpu_id(bsp)
    for vcpu_id in range(3):
        machine.add_cpu(vcpu_id).power_on()
    return machine


@clause("vcpu.bsp")
@EACH_BSP
def test_init_stops_all_but_the_bsp(chosen, bsp):
    expect("return value", chosen.send(to(0xFF, delivery_mode=INIT)), 3)
    for cpu in chosen.cpus:
        expect_mp_state(cpu, MpState.RUNNABLE if cpu.index == bsp else MpState.INIT_RECEIVED)


@clause("vcpu.bsp")
@EACH_BSP
def test_bsp_flag_is_set_in_the_bsp(chosen, bsp):
    bases = [cpu.vcpu.get_sregs().apic_base for cpu in chosen.cpus]
    expect("BSP flags", [i for i, base in enumerate(bases) if base & APIC_BASE_BSP], [bsp])


@clause("vcpu.bsp")
def test_bsp_is_chosen_before_vcpus_exist(machines):
    vm = machines(vcpu_ids=(0,)).vm
    expect("outcome", outcome_of(vm.set_boot_cpu_id, 0), "EBUSY")
