"""A vCPU asleep in HLT, inside KVM_RUN and outside: what wakes it, and what must not."""

import pytest

from helpers.apic import ApicMode, DeliveryMode, Message, Register
from helpers.apic.topology import show_mp_state
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation

FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode
HEX = "{:#04x}".format
MODES = pytest.mark.parametrize(
    "apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name
)


def to_one(mode=FIXED, vector=0x41):
    return Message(vector=vector, destination=1, delivery_mode=mode)


def expect_log(cpu, *vectors):
    expect("vectors taken", [record.vector for record in cpu.log()], list(vectors))


def expect_state(cpu, name):
    expect("mp_state", show_mp_state(cpu.mp_state), name)


def expect_asleep(cpu, running):
    """Not woken: it does not leave KVM_RUN by itself, and is halted still when it is made to."""
    woken = running.kick() or cpu.mp_state != abi.KVM_MP_STATE_HALTED
    expect("woken", woken, False)


@clause("guest.hlt")
@MODES
@pytest.mark.parametrize("delivery", [FIXED, LOWEST], ids=lambda mode: mode.name)
@pytest.mark.parametrize("vector", [0x10, 0x41, 0xFF], ids=HEX)
def test_interrupt_wakes(shared_machine, apic_mode, delivery, vector):
    cpu = (machine := shared_machine(vcpu_ids=range(4), apic_mode=apic_mode))[1]
    with cpu.halted() as running:
        expect("return value", machine.send(to_one(delivery, vector)), 1)
        running.finish()
    expect_log(cpu, vector)


@clause("guest.hlt")
@pytest.mark.parametrize("interruptible", [True, False], ids=["if-set", "if-cleared"])
def test_nmi_wakes(machine, interruptible):
    if not interruptible:
        machine[1].cli()
    for _ in range(3):  # KVM kicks the vCPUs of a new VM once, for their clocks
        with machine[1].halted() as running:
            expect("return value", machine.send(to_one(NMI)), 1)
            running.finish()
        expect_log(machine[1], 2)


@clause("guest.hlt")
def test_smi_wakes(machine, kernel):
    if not kernel.has_smm:
        pytest.skip("the kernel has no SMM (KVM_CAP_X86_SMM is 0)")
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(SMI)), 1)
        running.wait_for(lambda: machine.smis_handled == 1, "the SMI handler")
        running.kick()


@clause("return.remrd")
def test_reserved_mode_wakes_without_an_interrupt(machine):
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(REMRD)), 1)
        running.finish()
    expect_log(machine[1])


@clause("guest.hlt")
def test_init_resets_a_halted_processor(machine):
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(INIT)), 1)
        running.kick()
    expect_state(machine[1], "INIT_RECEIVED")
    expect("SVR", machine[1].lapic[Register.SVR], 0xFF)


@clause("guest.hlt")
@deviation("sipi-wakes")
def test_sipi_does_not_wake(machine):
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(SIPI)), 1)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_extint_does_not_wake(machine):
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(EXTINT)), 0)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
@pytest.mark.parametrize("vector", range(16), ids=HEX)
def test_illegal_vector_does_not_wake(machine, vector):
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one(FIXED, vector)), 1)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_interrupt_does_not_wake_while_if_is_cleared(machine):
    machine[1].cli()
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one()), 1)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_interrupt_held_by_tpr_does_not_wake(machine):
    machine[1].write(Register.TPR, 0x40)
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one()), 1)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_message_to_another_does_not_wake(machine):
    with machine[1].halted() as running:
        machine.send(Message(vector=0x41, destination=2))
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_blocked_message_does_not_wake(machine):
    machine[1].write(Register.SVR, 0xFF)
    with machine[1].halted() as running:
        expect("return value", machine.send(to_one()), 0)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_broadcast_wakes_all(machine):
    with machine[1].halted() as one, machine[2].halted() as two:
        expect("return value", machine.send(Message(vector=0x41, destination=0xFF)), 4)
        one.finish()
        two.finish()
    expect_log(machine[1], 0x41)
    expect_log(machine[2], 0x41)


@clause("guest.init-sipi")
def test_init_and_sipi_start_a_vcpu_that_waits_in_kvm_run(machines):
    machine = machines(vcpu_ids=range(2))
    machine[1].mp_state = abi.KVM_MP_STATE_UNINITIALIZED
    with machine[1].waiting() as running:
        expect("return value", machine.send(to_one(INIT)), 1)
        running.wait_until_asleep()
        expect("return value", machine.send(to_one(SIPI, machine.start_page)), 1)
        running.finish()
    expect("SVR", machine[1].read(Register.SVR), 0xFF)


# --- outside KVM_RUN ------------------------------------------------------------------------------


@clause("guest.hlt")
@pytest.mark.parametrize("mode", [FIXED, LOWEST, NMI], ids=lambda mode: mode.name)
def test_halted_vcpu_outside_kvm_run_wakes_on_entry(machine, mode):
    machine[1].mp_state = abi.KVM_MP_STATE_HALTED
    machine.signal(to_one(mode)).returns(1).accepted_by(1)
    machine[1].step()
    expect_log(machine[1], 2 if mode is NMI else 0x41)


@clause("return.remrd-reset-hold")
@deviation("reset-hold-stays")
def test_reserved_mode_ends_a_reset_hold(machine):
    machine[1].mp_state = abi.KVM_MP_STATE_AP_RESET_HOLD
    machine.signal(to_one(REMRD)).returns(1)
    expect_state(machine[1], "RUNNABLE")


@clause("return.remrd-latched")
def test_reserved_mode_to_a_runnable_vcpu_unhalts_it_later(machine):
    machine.signal(to_one(REMRD)).returns(1).reached_nobody()
    machine[1].mp_state = abi.KVM_MP_STATE_HALTED
    expect_state(machine[1], "RUNNABLE")


@clause("return.remrd-forgotten")
@deviation("unhalt-not-forgotten")
def test_reserved_mode_unhalts_once(machine):
    machine[1].mp_state = abi.KVM_MP_STATE_HALTED
    machine.signal(to_one(REMRD)).returns(1).accepted_by(1)
    for state in (abi.KVM_MP_STATE_RUNNABLE, abi.KVM_MP_STATE_HALTED):
        machine[1].mp_state = state
    expect_state(machine[1], "HALTED")
