# SPDX-License-Identifier: GPL-2.0-only
"""ExtINT: KVM_INTERRUPT beside messages, where user space has the PIC.

Clauses: kvm-interrupt.errno, extint.taken, extint.lint0, extint.window.

A split irqchip leaves the PIC to user space, which waits for the interrupt window and passes the
vector of the PIC by KVM_INTERRUPT. The vector bypasses the LAPIC, and messages do not.
"""

import pytest

from helpers.guest import expect
from helpers.verdicts import clause
from suites import each
from suites.common import NEEDS_IN_SERVICE, NEEDS_IOAPIC, expect_taken, fixed, outcome_of

LINT0_EXTINT, LINT0_MASKED = 0x700, 0x10700


@pytest.fixture
def split(shared_machine):
    """Two vCPUs. LINT0 of vCPU 1 is programmed for a PIC."""
    machine = shared_machine(irqchip="split", vcpu_ids=range(2))
    machine[1].configure(lvt_lint0=LINT0_EXTINT)
    return machine


# --- KVM_INTERRUPT --------------------------------------------------------------------------------


@clause("kvm-interrupt.errno")
@pytest.mark.parametrize(
    "irqchip, vector, outcome",
    [("split", 0xFF, "accepted"), ("split", 0x100, "EINVAL"), ("full", 0x51, "ENXIO")],
    ids=["split", "split-0x100", "full"],
)
def test_outcome_of_kvm_interrupt(machines, irqchip, vector, outcome):
    machine = machines(irqchip=irqchip)
    expect("outcome", outcome_of(machine[0].vcpu.interrupt, vector), outcome)


@clause("kvm-interrupt.errno")
def test_one_interrupt_is_queued_at_a_time(split):
    split[1].cli()
    outcomes = [outcome_of(split[1].vcpu.interrupt, vector) for vector in (0x51, 0x52)]
    expect("outcomes", outcomes, ["accepted", "EEXIST"])
    split[1].sti()
    expect_taken(split[1], 0x51)


@clause("extint.taken")
@each.vector([0x20, 0x51, 0xFF])
def test_queued_interrupt_is_taken_without_the_lapic(split, vector):
    split[1].vcpu.interrupt(vector)
    taken = split[1].take()
    expect("vectors taken", [record.vector for record in taken], [vector])
    expect("ISR, IRR in the handler", (taken[0].isr, taken[0].irr), (set(), set()))


@clause("extint.taken")
@each.value("first", ["message", "interrupt"], "{}-first")
@each.vector([0x31, 0x91])
def test_queued_interrupt_is_taken_before_messages(split, first, vector):
    if first == "interrupt":
        split[1].vcpu.interrupt(0x51)
    split.signal(fixed(vector)).returns(1).accepted_by(1)
    if first == "message":
        split[1].vcpu.interrupt(0x51)
    expect_taken(split[1], 0x51, vector)


@clause("extint.taken")
def test_both_wait_while_if_is_cleared(split):
    split[1].cli()
    split[1].vcpu.interrupt(0x51)
    split.signal(fixed(0x91)).returns(1).accepted_by(1)
    expect_taken(split[1])
    split[1].sti()
    expect_taken(split[1], 0x51, 0x91)


@clause("extint.taken")
@NEEDS_IN_SERVICE
def test_vector_in_service_does_not_hold_a_queued_interrupt(split):
    split[1].handler(pause=True, nest=True)
    split.send(fixed(0x91))
    split[1].run_to_handler()
    for vector in (0x41, 0x42):
        split.send(fixed(vector))
    split[1].handler(eoi=False)
    split[1].vcpu.interrupt(0x31)
    split[1].step()
    expect("vectors taken", [record.vector for record in split[1].log()], [0x91, 0x31])
    expect("ISR", split[1].lapic.isr, {0x91})


@clause("extint.lint0")
def test_queued_interrupt_waits_while_lint0_is_masked(split):
    split[1].configure(lvt_lint0=LINT0_MASKED)
    split[1].vcpu.interrupt(0x51)
    split.signal(fixed(0x91)).returns(1).accepted_by(1)
    expect_taken(split[1], 0x91)
    split[1].configure(lvt_lint0=LINT0_EXTINT)
    expect_taken(split[1], 0x51)


# --- the interrupt window -------------------------------------------------------------------------


def expect_window(cpu):
    """Raise Mismatch unless the guest leaves KVM_RUN because its interrupt window is open."""
    expect("exit", cpu.run_to_window(), "KVM_EXIT_IRQ_WINDOW_OPEN")
    expect("ready for injection", cpu.vcpu.kvm_run.ready_for_interrupt_injection, 1)


def expect_no_window(cpu, ready=0):
    """Run ``cpu`` to the exit of its idle loop; raise GuestError for the exit of the window."""
    cpu.vcpu.kvm_run.request_interrupt_window = 1
    cpu.step()
    cpu.vcpu.kvm_run.request_interrupt_window = 0
    expect("ready for injection", cpu.vcpu.kvm_run.ready_for_interrupt_injection, ready)


@clause("extint.window")
def test_open_window_exits(split):
    expect_window(split[1])
    split[1].vcpu.interrupt(0x51)
    expect_taken(split[1], 0x51)


@clause("extint.window")
def test_closed_window_does_not_exit_until_it_opens(split):
    split[1].cli()
    expect_no_window(split[1])
    split[1].sti()
    expect_window(split[1])


@clause("extint.window")
@each.vector([0x31, 0x91])
def test_window_opens_beside_a_pending_message(split, vector):
    split.signal(fixed(vector)).returns(1).accepted_by(1)
    expect_window(split[1])
    expect_taken(split[1], vector)


@clause("extint.window")
def test_window_is_closed_while_an_interrupt_is_queued(split):
    split[1].cli()
    split[1].vcpu.interrupt(0x51)
    expect_no_window(split[1])
    split[1].sti()
    expect_window(split[1])
    expect_taken(split[1], 0x51)


@clause("extint.window")
def test_window_is_closed_while_lint0_is_masked(split):
    split[1].configure(lvt_lint0=LINT0_MASKED)
    expect_no_window(split[1])


@clause("extint.window")
@NEEDS_IOAPIC
def test_full_irqchip_ignores_the_request(machine):
    expect_no_window(machine[0], ready=1)
