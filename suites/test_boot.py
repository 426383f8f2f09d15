# SPDX-License-Identifier: GPL-2.0-only
"""INIT and SIPI, sent as messages the way firmware sends them as IPIs to boot the APs.

Clauses: guest.init-sipi, return.mp-state.

INIT resets a processor. An AP then waits for SIPI, the BSP starts at once. SIPI starts a processor
that waits for it, and only such a processor. Both take effect when the vCPU is entered, or its
mp_state is read; a later INIT takes back a SIPI that has not taken effect.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause
from suites import each
from suites.common import NEEDS_IN_SERVICE, expect_mp_state, expect_taken, fixed, to
from suites.names import FIXED, INIT, NMI, REMRD, SIPI, SVR_ENABLED, USE_32BIT_IDS


def init(destination=1):
    return to(destination, delivery_mode=INIT)


def sipi(vector, destination=1):
    return to(destination, vector=vector, delivery_mode=SIPI)


@pytest.fixture
def waiting(machines):
    """Four vCPUs: vCPU 0 runs, the others wait for INIT, as KVM_CREATE_VCPU leaves an AP."""
    machine = machines(vcpu_ids=range(4))
    for cpu in machine.cpus[1:]:
        cpu.mp_state = MpState.UNINITIALIZED
    return machine


@clause("guest.init-sipi")
@each.value("index", [1, 2, 3], "vcpu{}")
def test_init_and_sipi_boot_an_ap(waiting, index):
    waiting.signal(init(index)).returns(1).accepted_by(index)
    waiting.signal(sipi(waiting.start_page, index)).returns(1).accepted_by(index)
    waiting[index].step()
    expect("SVR", waiting[index].read(Register.SVR), SVR_RESET)


@clause("guest.init-sipi")
def test_booted_ap_takes_messages(waiting):
    waiting.boot(1)
    waiting[1].write(Register.SVR, SVR_ENABLED)
    waiting.signal(fixed(0x41)).returns(1).accepted_by(1)
    expect_taken(waiting[1], 0x41)


@clause("guest.init-sipi")
@NEEDS_IN_SERVICE
def test_booted_ap_takes_a_vector_below_the_one_in_service_before(waiting):
    waiting.boot(1)
    waiting[1].write(Register.SVR, SVR_ENABLED)
    waiting[1].handler(eoi=False)
    waiting.send(fixed(0x61))
    expect_taken(waiting[1], 0x61)
    waiting.boot(1)
    waiting[1].write(Register.SVR, SVR_ENABLED)
    waiting.send(fixed(0x41))
    expect_taken(waiting[1], 0x41)
    expect("ISR", waiting[1].lapic.isr, {0x41})


@clause("guest.init-sipi")
def test_broadcast_boots_all_aps(waiting):
    for message in (init(0xFF), sipi(waiting.start_page, 0xFF)):
        waiting.signal(message).returns(4)
    for cpu in waiting.cpus[1:]:
        cpu.step()
        expect("APIC ID", cpu.read(Register.ID) >> 24, cpu.index)


@clause("guest.init-sipi")
def test_second_sipi_is_ignored(waiting):
    waiting.boot(1)
    waiting[1].write(Register.SVR, SVR_ENABLED)
    waiting.signal(sipi(0x41)).returns(1)
    expect("SVR after the second SIPI", waiting[1].read(Register.SVR), SVR_ENABLED)


@clause("guest.init-sipi")
@each.value("page", [0x00, 0x01, 0x0A, 0x80, 0x9F, 0xFF], "{:#04x}")
def test_vector_is_the_start_page(waiting, page):
    waiting.signal(init())
    waiting.signal(sipi(page)).returns(1).accepted_by(1)
    code = waiting[1].vcpu.get_sregs().cs
    expect("CS selector, base", (code.selector, code.base), (page << 8, page << 12))
    expect("RIP", waiting[1].vcpu.get_regs().rip, 0)


@clause("guest.init-sipi")
def test_init_resets_the_lapic(waiting):
    waiting[1].configure(tpr=0x50, ldr=0x40)
    waiting.signal(to(1, vector=0x31))
    waiting.signal(init()).returns(1)
    expect_mp_state(waiting[1], MpState.INIT_RECEIVED)
    page = waiting[1].lapic
    expect("IRR", page.irr, set())
    expect("SVR, TPR", (page[Register.SVR], page[Register.TPR]), (SVR_RESET, 0))
    expect("APIC ID", page.xapic_id, 1)


@clause("guest.init-sipi")
def test_init_does_not_stop_the_bsp_waiting_for_sipi(machine):
    machine.signal(init(0)).returns(1)
    expect_mp_state(machine[0], MpState.RUNNABLE)
    expect("SVR", machine[0].lapic[Register.SVR], SVR_RESET)


@clause("guest.init-sipi")
def test_init_takes_back_a_sipi_that_was_not_processed(waiting):
    waiting[1].mp_state = MpState.INIT_RECEIVED
    for message in (sipi(0x41), init()):
        waiting.send(message)
    expect_mp_state(waiting[1], MpState.INIT_RECEIVED)


@clause("guest.init-sipi")
def test_init_then_sipi_before_the_ap_runs_starts_it(waiting):
    for message in (init(), sipi(waiting.start_page)):
        expect("return value", waiting.send(message), 1)
    waiting[1].step()
    expect_mp_state(waiting[1], MpState.RUNNABLE)


@clause("guest.init-sipi")
def test_sipi_without_init_is_dropped(waiting):
    waiting.signal(sipi(waiting.start_page)).returns(1).reached_nobody()
    expect_mp_state(waiting[1], MpState.UNINITIALIZED)


@clause("guest.init-sipi")
def test_sipi_does_not_disturb_a_running_processor(machine):
    machine.signal(sipi(machine.start_page)).returns(1).reached_nobody()
    expect("SVR", machine[1].read(Register.SVR), SVR_ENABLED)


@clause("guest.init-sipi")
def test_init_keeps_x2apic_mode_and_id(machines):
    machine = machines(vcpu_ids=(0, 0x11), apic_mode=ApicMode.X2APIC, x2apic_api=USE_32BIT_IDS)
    machine.signal(init(0x11)).returns(1)
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("APIC mode", machine[1].apic_mode, ApicMode.X2APIC)
    page = machine[1].lapic
    expect("ID, LDR", (page[Register.ID], page[Register.LDR]), (0x11, 0x10002))


@clause("return.mp-state")
@each.delivery_mode(FIXED, NMI, REMRD, SIPI)
def test_uninitialized_ap_returns_1_and_stays(waiting, delivery_mode):
    waiting.signal(to(1, delivery_mode=delivery_mode)).returns(1)
    expect_mp_state(waiting[1], MpState.UNINITIALIZED)
