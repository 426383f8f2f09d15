# SPDX-License-Identifier: GPL-2.0-only
"""Messages to a halted vCPU: which of them wake it, inside KVM_RUN and outside.

Clauses: guest.hlt, return.remrd, guest.init-sipi, guest.hlt-without-exit,
return.remrd-reset-hold, return.remrd-latched, return.remrd-forgotten.

A masked interrupt stays pending and must not end HLT: an operating system that halts with
RFLAGS.IF = 0 or a raised TPR relies on that. A vCPU inside KVM_RUN sleeps in a thread of its own. A
test that expects no wake-up kicks the thread, and finds the vCPU halted.
"""

import pytest

from helpers.apic import Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation, parallel
from suites import each
from suites.common import NEEDS_SMM, expect_asleep, expect_logged, expect_mp_state, to
from suites.names import EXTINT, FIXED, INIT, LOWEST, NMI, REMRD, SIPI, SMI

pytestmark = parallel

NEEDS_HLT_WITHOUT_EXIT = pytest.mark.skipif(
    f"not kernel.capabilities['KVM_CAP_X86_DISABLE_EXITS'] & {abi.KVM_X86_DISABLE_EXITS_HLT}",
    reason="HLT exits cannot be disabled (KVM_CAP_X86_DISABLE_EXITS)",
)


def send(machine, delivery_mode=FIXED, vector=0x41, returns=1):
    """Send a message to vCPU 1, which sleeps."""
    message = to(1, vector=vector, delivery_mode=delivery_mode)
    expect("return value", machine.send(message), returns)


@clause("guest.hlt")
@each.apic_mode
@each.delivery_mode(FIXED, LOWEST)
@each.vector([0x10, 0x41, 0xFF])
def test_interrupt_wakes(machine, delivery_mode, vector):
    with machine[1].halted() as running:
        send(machine, delivery_mode, vector)
        running.finish()
    expect_logged(machine[1], vector)


@clause("guest.hlt")
@pytest.mark.parametrize("interruptible", [True, False], ids=["if-set", "if-cleared"])
def test_nmi_wakes(machine, interruptible):
    if not interruptible:
        machine[1].cli()
    for _ in range(3):  # A new VM's vCPUs are kicked once, which updates their clocks.
        with machine[1].halted() as running:
            send(machine, NMI)
            running.finish()
        expect_logged(machine[1], 2)


@clause("guest.hlt")
@NEEDS_SMM
def test_smi_wakes(machine):
    with machine[1].halted() as running:
        send(machine, SMI)
        running.wait_for(lambda: machine.smis_handled == 1, "the SMI handler")
        running.kick()


@clause("return.remrd")
def test_reserved_mode_wakes_without_an_interrupt(machine):
    with machine[1].halted() as running:
        send(machine, REMRD)
        running.finish()
    expect_logged(machine[1])


@clause("guest.hlt")
def test_init_resets_a_halted_processor(machine):
    with machine[1].halted() as running:
        send(machine, INIT)
        running.kick()
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    expect("SVR", machine[1].lapic[Register.SVR], SVR_RESET)


@clause("guest.hlt")
@deviation("sipi-wakes")
def test_sipi_does_not_wake(machine):
    with machine[1].halted() as running:
        send(machine, SIPI)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_extint_does_not_wake(machine):
    with machine[1].halted() as running:
        send(machine, EXTINT, returns=0)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
@each.vector(range(16))
def test_illegal_vector_does_not_wake(machine, vector):
    with machine[1].halted() as running:
        send(machine, vector=vector)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_interrupt_does_not_wake_while_if_is_cleared(machine):
    machine[1].cli()
    with machine[1].halted() as running:
        send(machine)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_interrupt_held_by_tpr_does_not_wake(machine):
    machine[1].write(Register.TPR, 0x40)
    with machine[1].halted() as running:
        send(machine)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_message_to_another_does_not_wake(machine):
    with machine[1].halted() as running:
        machine.send(to(2))
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_blocked_message_does_not_wake(machine):
    machine[1].write(Register.SVR, SVR_RESET)
    with machine[1].halted() as running:
        send(machine, returns=0)
        expect_asleep(machine[1], running)


@clause("guest.hlt")
def test_broadcast_wakes_all(machine):
    with machine[1].halted() as one, machine[2].halted() as two:
        expect("return value", machine.send(to(0xFF)), 4)
        one.finish()
        two.finish()
    expect_logged(machine[1], 0x41)
    expect_logged(machine[2], 0x41)


@clause("guest.init-sipi")
def test_init_and_sipi_start_a_vcpu_that_waits_in_kvm_run(machines):
    machine = machines(vcpu_ids=range(2))
    machine[1].mp_state = MpState.UNINITIALIZED
    with machine[1].waiting() as running:
        send(machine, INIT)
        running.wait_until_asleep()
        send(machine, SIPI, machine.start_page)
        running.finish()
    expect("SVR", machine[1].read(Register.SVR), SVR_RESET)


# --- HLT does not exit ----------------------------------------------------------------------------


@pytest.fixture
def no_hlt_exits(machines):
    """Two vCPUs whose HLT does not exit to KVM."""
    machine = machines(vcpu_ids=())
    machine.vm.enable_cap(abi.KVM_CAP_X86_DISABLE_EXITS, abi.KVM_X86_DISABLE_EXITS_HLT)
    for index in range(2):
        machine.add_cpu(index).power_on()
    return machine


@clause("guest.hlt-without-exit")
@NEEDS_HLT_WITHOUT_EXIT
@each.delivery_mode(FIXED, LOWEST, NMI)
def test_message_ends_a_halt_without_exit(no_hlt_exits, delivery_mode):
    with no_hlt_exits[1].halted_without_exit() as running:
        send(no_hlt_exits, delivery_mode)
        running.finish()
    expect_logged(no_hlt_exits[1], 2 if delivery_mode is NMI else 0x41)


@clause("guest.hlt-without-exit")
@NEEDS_HLT_WITHOUT_EXIT
def test_broadcast_ends_a_halt_without_exit(no_hlt_exits):
    with no_hlt_exits[1].halted_without_exit() as running:
        expect("return value", no_hlt_exits.send(to(0xFF)), 2)
        running.finish()
    expect_logged(no_hlt_exits[1], 0x41)
    no_hlt_exits[0].step()
    expect_logged(no_hlt_exits[0], 0x41)


# --- outside KVM_RUN ------------------------------------------------------------------------------


@clause("guest.hlt")
@each.delivery_mode(FIXED, LOWEST, NMI)
def test_halted_vcpu_outside_kvm_run_wakes_on_entry(machine, delivery_mode):
    machine[1].mp_state = MpState.HALTED
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1).accepted_by(1)
    machine[1].step()
    expect_logged(machine[1], 2 if delivery_mode is NMI else 0x41)


@clause("return.remrd-reset-hold")
@deviation("reset-hold-stays")
def test_reserved_mode_ends_a_reset_hold(machine):
    machine[1].mp_state = MpState.AP_RESET_HOLD
    machine.signal(to(1, delivery_mode=REMRD)).returns(1)
    expect_mp_state(machine[1], MpState.RUNNABLE)


@clause("return.remrd-latched")
def test_reserved_mode_to_a_runnable_vcpu_unhalts_it_later(machine):
    machine.signal(to(1, delivery_mode=REMRD)).returns(1).reached_nobody()
    machine[1].mp_state = MpState.HALTED
    expect_mp_state(machine[1], MpState.RUNNABLE)


@clause("return.remrd-forgotten")
@deviation("unhalt-not-forgotten")
def test_reserved_mode_unhalts_once(machine):
    machine[1].mp_state = MpState.HALTED
    machine.signal(to(1, delivery_mode=REMRD)).returns(1).accepted_by(1)
    for state in (MpState.RUNNABLE, MpState.HALTED):
        machine[1].mp_state = state
    expect_mp_state(machine[1], MpState.HALTED)
