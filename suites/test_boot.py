"""Application processors booted by messages: INIT and SIPI, as firmware sends them."""

import pytest

from helpers.apic import ApicMode, DeliveryMode, Message, Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import show_mp_state
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause

FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode


def init(destination=1):
    return Message(destination=destination, delivery_mode=INIT)


def sipi(vector, destination=1):
    return Message(vector=vector, destination=destination, delivery_mode=SIPI)


def expect_state(cpu, name):
    expect("mp_state", show_mp_state(cpu.mp_state), name)


@pytest.fixture
def waiting(machines):
    """Four vCPUs: 0 runs, 1 to 3 as KVM_CREATE_VCPU leaves an AP, waiting for INIT."""
    machine = machines(vcpu_ids=range(4))
    for cpu in machine.cpus[1:]:
        cpu.mp_state = abi.KVM_MP_STATE_UNINITIALIZED
    return machine


@clause("guest.init-sipi")
@pytest.mark.parametrize("index", [1, 2, 3], ids="vcpu{}".format)
def test_init_and_sipi_boot_an_ap(waiting, index):
    waiting.signal(init(index)).returns(1).accepted_by(index)
    waiting.signal(sipi(waiting.start_page, index)).returns(1).accepted_by(index)
    waiting[index].step()
    expect("SVR", waiting[index].read(Register.SVR), SVR_RESET)


@clause("guest.init-sipi")
def test_booted_ap_takes_messages(waiting):
    waiting.boot(1)
    waiting[1].write(Register.SVR, 0x1FF)
    waiting.signal(Message(vector=0x41, destination=1)).returns(1).accepted_by(1)
    expect("vectors taken", [record.vector for record in waiting[1].take()], [0x41])


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
    waiting[1].write(Register.SVR, 0x1FF)
    waiting.signal(sipi(0x41)).returns(1)
    expect("SVR after the second SIPI", waiting[1].read(Register.SVR), 0x1FF)


@clause("guest.init-sipi")
@pytest.mark.parametrize("page", [0x00, 0x01, 0x0A, 0x80, 0x9F, 0xFF], ids="{:#04x}".format)
def test_vector_is_the_start_page(waiting, page):
    waiting.signal(init())
    waiting.signal(sipi(page)).returns(1).accepted_by(1)
    code = waiting[1].vcpu.get_sregs().cs
    expect("CS selector, base", (code.selector, code.base), (page << 8, page << 12))
    expect("RIP", waiting[1].vcpu.get_regs().rip, 0)


@clause("guest.init-sipi")
def test_init_resets_the_lapic(waiting):
    waiting[1].configure(tpr=0x50, ldr=0x40)
    waiting.signal(Message(vector=0x31, destination=1))
    waiting.signal(init()).returns(1)
    expect_state(waiting[1], "INIT_RECEIVED")
    page = waiting[1].lapic
    expect("IRR", page.irr, set())
    expect("SVR, TPR", (page[Register.SVR], page[Register.TPR]), (SVR_RESET, 0))
    expect("APIC ID", page.xapic_id, 1)


@clause("guest.init-sipi")
def test_init_does_not_stop_the_bsp_waiting_for_sipi(machine):
    machine.signal(init(0)).returns(1)
    expect_state(machine[0], "RUNNABLE")
    expect("SVR", machine[0].lapic[Register.SVR], SVR_RESET)


@clause("guest.init-sipi")
def test_init_takes_back_a_sipi_that_was_not_processed(waiting):
    waiting[1].mp_state = abi.KVM_MP_STATE_INIT_RECEIVED
    for message in (sipi(0x41), init()):
        waiting.send(message)
    expect_state(waiting[1], "INIT_RECEIVED")


@clause("guest.init-sipi")
def test_init_then_sipi_before_the_ap_runs_starts_it(waiting):
    for message in (init(), sipi(waiting.start_page)):
        expect("return value", waiting.send(message), 1)
    waiting[1].step()
    expect_state(waiting[1], "RUNNABLE")


@clause("guest.init-sipi")
def test_sipi_without_init_is_dropped(waiting):
    waiting.signal(sipi(waiting.start_page)).returns(1).reached_nobody()
    expect_state(waiting[1], "UNINITIALIZED")


@clause("guest.init-sipi")
def test_sipi_does_not_disturb_a_running_processor(machine):
    machine.signal(sipi(machine.start_page)).returns(1).reached_nobody()
    expect("SVR", machine[1].read(Register.SVR), 0x1FF)


@clause("guest.init-sipi")
def test_init_keeps_x2apic_mode_and_id(machines):
    machine = machines(vcpu_ids=(0, 0x11), apic_mode=ApicMode.X2APIC, x2apic_api=1)
    machine.signal(init(0x11)).returns(1)
    expect_state(machine[1], "INIT_RECEIVED")
    expect("mode", machine[1].apic_mode, ApicMode.X2APIC)
    page = machine[1].lapic
    expect("ID, LDR", (page[Register.ID], page[Register.LDR]), (0x11, 0x10002))


@clause("return.mp-state")
@pytest.mark.parametrize("mode", [FIXED, NMI, REMRD, SIPI], ids=lambda mode: mode.name)
def test_uninitialized_ap_returns_1_and_stays(waiting, mode):
    waiting.signal(Message(destination=1, delivery_mode=mode)).returns(1)
    expect_state(waiting[1], "UNINITIALIZED")
