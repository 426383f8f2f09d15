# SPDX-License-Identifier: GPL-2.0-only
"""Pins of the IOAPIC in the kernel, changed between an interrupt and its EOI.

Clauses: ioapic.mask, ioapic.remote-irr, ioapic.entry, ioapic.edge, ioapic.saved, ioapic.rtc.

A message and a pin can share a vector. KVM finds the pins of an EOI by the vector, so a pin that
was reprogrammed in between must neither lose its EOI nor take the EOI of another interrupt.
"""

import pytest

from helpers.apic.ioapic import LEVEL as LEVEL_TRIGGERED
from helpers.apic.ioapic import MASKED, REMOTE_IRR
from helpers.guest import expect, irqchip_route
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    NEEDS_IN_SERVICE,
    PIN,
    expect_remote_irr,
    expect_taken,
    level_entry,
    program_pin,
    raise_pin,
    to,
)
from suites.names import LEVEL

IOAPIC = 0xFEC00000
SELECT, WINDOW, REDIRECTION = 0x00, 0x10, 0x10
RTC_PIN = 8

# Fields of a redirection table entry: Intel 82093AA, "I/O Redirection Table Registers".
LOWEST_PRIORITY, LOGICAL, DELIVERY_STATUS = 1 << 8, 1 << 11, 1 << 12
EDGE_TO_0 = 0x61
TO_0 = level_entry(0)


def by_guest(machine, entry, pin=PIN):
    """Have vCPU 1 program the pin."""
    for half in (1, 0):
        machine[1].store(IOAPIC + SELECT, REDIRECTION + 2 * pin + half)
        machine[1].store(IOAPIC + WINDOW, entry >> 32 * half & 0xFFFFFFFF)


each_writer = pytest.mark.parametrize("program", [by_guest, program_pin], ids=["guest", "host"])


def expect_sent(cpu, sent):
    """Raise Mismatch unless vector 0x61 is pending, or not pending, in IRR."""
    expect("vector pending", 0x61 in cpu.lapic.irr, sent)


@pytest.fixture
def idle(machines):
    """Two vCPUs whose handlers write no EOI. The pin is masked."""
    machine = machines(irqchip="full", vcpu_ids=range(2))
    for cpu in machine.cpus:
        cpu.handler(eoi=False)
    return machine


@pytest.fixture
def serving(idle):
    """vCPU 0 serves vector 0x61 of the level-triggered pin, whose line is high."""
    program_pin(idle, TO_0)
    raise_pin(idle)
    return idle


# --- masked and unmasked --------------------------------------------------------------------------


@clause("ioapic.mask")
@each_writer
@pytest.mark.parametrize("entry", [TO_0, EDGE_TO_0], ids=["level", "edge"])
def test_masked_pin_sends_nothing(idle, program, entry):
    program(idle, entry | MASKED)
    idle.vm.irq_line_status(PIN, 1)
    expect_taken(idle[0])
    expect_remote_irr(idle, 0)


@clause("ioapic.mask")
@each_writer
@each.value("line", [1, 0], "line{}")
def test_unmasked_level_pin_sends_while_its_line_is_high(idle, program, line):
    program(idle, TO_0 | MASKED)
    idle.vm.irq_line_status(PIN, 1)
    idle.vm.irq_line_status(PIN, line)
    program(idle, TO_0)
    expect_sent(idle[0], bool(line))
    expect_remote_irr(idle, line)


@clause("ioapic.mask")
@NEEDS_IN_SERVICE
@each_writer
def test_eoi_of_a_masked_pin_clears_remote_irr_and_sends_nothing(serving, program):
    program(serving, TO_0 | MASKED)
    expect_remote_irr(serving, 1)
    serving[0].eoi()
    expect_remote_irr(serving, 0)
    expect_taken(serving[0])


@clause("ioapic.mask")
@NEEDS_IN_SERVICE
@each_writer
@each.value("line", [1, 0], "line{}")
def test_pin_unmasked_after_the_eoi_sends_while_its_line_is_high(serving, program, line):
    program(serving, TO_0 | MASKED)
    serving[0].eoi()
    serving.vm.irq_line_status(PIN, line)
    program(serving, TO_0)
    expect_sent(serving[0], bool(line))
    expect_remote_irr(serving, line)


@clause("ioapic.mask")
@NEEDS_IN_SERVICE
@each_writer
def test_pin_unmasked_before_the_eoi_waits_for_the_eoi(serving, program):
    program(serving, TO_0 | MASKED)
    program(serving, TO_0)
    expect_sent(serving[0], False)
    expect_remote_irr(serving, 1)
    serving[0].eoi()
    expect_taken(serving[0], 0x61)


# --- Remote IRR -----------------------------------------------------------------------------------


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@pytest.mark.parametrize(
    "mode", [LOGICAL, LOGICAL | LOWEST_PRIORITY], ids=["fixed", "lowest-priority"]
)
@each.index(range(2))
def test_eoi_of_a_logical_pin_clears_remote_irr(idle, mode, index):
    program_pin(idle, 1 << index << 56 | mode | TO_0)
    idle.vm.irq_line_status(PIN, 1)
    expect_taken(idle[index], 0x61)
    expect_remote_irr(idle, 1)
    idle.vm.irq_line_status(PIN, 0)
    idle[index].eoi()
    expect_remote_irr(idle, 0)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@each_writer
def test_eoi_clears_remote_irr_of_a_pin_that_became_logical(serving, program):
    program(serving, 2 << 56 | LOGICAL | TO_0)
    serving.vm.irq_line_status(PIN, 0)
    serving[0].eoi()
    expect_remote_irr(serving, 0)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@each_writer
def test_eoi_is_for_pins_of_its_vector(serving, program):
    program(serving, LEVEL_TRIGGERED | 0x62)
    serving.vm.irq_line_status(PIN, 0)
    serving[0].eoi()
    expect_remote_irr(serving, 1)
    serving.send(to(0, vector=0x62, trigger_mode=LEVEL))
    expect_taken(serving[0], 0x62)
    serving[0].eoi()
    expect_remote_irr(serving, 0)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
@pytest.mark.parametrize("other, kept", [(0x61, 0), (0x51, 1)], ids=["same-vector", "other-vector"])
def test_eoi_is_for_all_pins_of_its_vector(idle, other, kept):
    program_pin(idle, TO_0)
    program_pin(idle, LEVEL_TRIGGERED | other, PIN + 1)
    for pin in (PIN + 1, PIN):
        idle.vm.irq_line_status(pin, 1)
    expect_taken(idle[0], 0x61)
    for pin in (PIN + 1, PIN):
        idle.vm.irq_line_status(pin, 0)
    idle[0].eoi()
    expect_remote_irr(idle, 0)
    expect_remote_irr(idle, kept, PIN + 1)


@clause("ioapic.remote-irr")
@NEEDS_IN_SERVICE
def test_pin_joins_a_pending_message_of_its_vector(idle):
    program_pin(idle, TO_0)
    idle[0].cli()
    idle.send(to(0, vector=0x61))
    idle.vm.irq_line_status(PIN, 1)
    idle[0].sti()
    expect_taken(idle[0], 0x61)
    idle.vm.irq_line_status(PIN, 0)
    idle[0].eoi()
    expect_remote_irr(idle, 0)


# --- what the guest can write ---------------------------------------------------------------------


@clause("ioapic.entry")
def test_guest_cannot_set_read_only_bits(idle):
    by_guest(idle, TO_0 | MASKED | REMOTE_IRR | DELIVERY_STATUS)
    entry = idle.vm.get_ioapic().chip.ioapic.redirtbl[PIN]
    expect("entry of the pin", entry, TO_0 | MASKED)


@clause("ioapic.entry")
@NEEDS_IN_SERVICE
def test_guest_cannot_clear_remote_irr_of_a_level_pin(serving):
    by_guest(serving, 1 << 56 | MASKED | TO_0)
    expect_remote_irr(serving, 1)


@clause("ioapic.entry")
@NEEDS_IN_SERVICE
def test_pin_made_edge_triggered_loses_remote_irr(serving):
    by_guest(serving, MASKED | EDGE_TO_0)
    expect_remote_irr(serving, 0)
    by_guest(serving, TO_0)
    expect_sent(serving[0], True)
    expect_remote_irr(serving, 1)


# --- edge-triggered -------------------------------------------------------------------------------


@clause("ioapic.edge")
@each_writer
def test_edge_pin_sends_at_each_rising_edge(idle, program):
    idle[0].handler()
    program(idle, EDGE_TO_0)
    for _ in range(2):
        idle.vm.irq_line_status(PIN, 1)
        expect_remote_irr(idle, 0)
        expect_taken(idle[0], 0x61)
        idle.vm.irq_line_status(PIN, 1)
        idle.vm.irq_line_status(PIN, 0)
        expect_taken(idle[0])


@clause("ioapic.edge")
@NEEDS_IN_SERVICE
def test_edge_in_service_is_taken_after_the_eoi(idle):
    program_pin(idle, EDGE_TO_0)
    idle.vm.irq_line_status(PIN, 1)
    expect_taken(idle[0], 0x61)
    for level in (0, 1):
        idle.vm.irq_line_status(PIN, level)
    expect_taken(idle[0])
    idle[0].eoi()
    expect_taken(idle[0], 0x61)


@clause("ioapic.edge")
def test_edge_at_a_masked_pin_is_lost(idle):
    by_guest(idle, MASKED | EDGE_TO_0)
    idle.vm.irq_line_status(PIN, 1)
    by_guest(idle, EDGE_TO_0)
    expect_taken(idle[0])


# --- saved and restored ---------------------------------------------------------------------------


@clause("ioapic.saved")
@NEEDS_IN_SERVICE
@each.value("line", [1, 0], "line{}")
def test_restored_pin_still_waits_for_its_eoi(serving, line):
    serving.vm.set_ioapic(serving.vm.get_ioapic())
    expect_remote_irr(serving, 1)
    expect_sent(serving[0], False)
    serving.vm.irq_line_status(PIN, line)
    serving[0].eoi()
    expect_taken(serving[0], *[0x61] * line)
    expect_remote_irr(serving, line)


def restore_lapic(old, new):
    new[0].lapic = old[0].lapic


def restore_ioapic(old, new):
    new.vm.set_ioapic(old.vm.get_ioapic())


each_order = pytest.mark.parametrize(
    "steps",
    [(restore_lapic, restore_ioapic), (restore_ioapic, restore_lapic)],
    ids=["lapic-first", "ioapic-first"],
)


@clause("ioapic.saved")
@NEEDS_IN_SERVICE
@each_order
def test_eoi_in_another_vm_clears_remote_irr(serving, machines, steps):
    other = machines(irqchip="full", vcpu_ids=range(2))
    other[0].handler(eoi=False)
    for step in steps:
        step(serving, other)
    expect_remote_irr(other, 1)
    expect_taken(other[0])
    other[0].eoi()
    expect_taken(other[0], 0x61)  # The line is still high.
    other.vm.irq_line_status(PIN, 0)
    other[0].eoi()
    expect_remote_irr(other, 0)


@clause("ioapic.saved")
@NEEDS_IN_SERVICE
@each_order
def test_pending_pin_is_taken_once_in_another_vm(idle, machines, steps):
    program_pin(idle, TO_0)
    idle.vm.irq_line_status(PIN, 1)
    other = machines(irqchip="full", vcpu_ids=range(2))
    other[0].handler(eoi=False)
    for step in steps:
        step(idle, other)
    expect_taken(other[0], 0x61)
    expect_remote_irr(other, 1)


# --- the pin of the RTC ---------------------------------------------------------------------------


@pytest.fixture
def rtc(idle):
    """The edge-triggered pin of the RTC sends vector 0x61 to vCPU 0."""
    program_pin(idle, EDGE_TO_0, RTC_PIN)
    # By default the GSI is a pin of the PIC, too.
    idle.vm.set_gsi_routing([irqchip_route(RTC_PIN, abi.KVM_IRQCHIP_IOAPIC, RTC_PIN)])
    return idle


def raise_rtc(machine):
    machine.vm.irq_line_status(RTC_PIN, 0)
    return machine.vm.irq_line_status(RTC_PIN, 1)


@clause("ioapic.rtc")
@NEEDS_IN_SERVICE
@deviation("apicv-rtc-not-coalesced")
def test_edge_of_the_rtc_is_coalesced_until_the_eoi(rtc):
    expect("status of the first edge", raise_rtc(rtc), 1)
    expect("status while pending", raise_rtc(rtc), 0)
    expect_taken(rtc[0], 0x61)
    expect("status in service", raise_rtc(rtc), 0)
    rtc[0].eoi()
    expect("status after the EOI", raise_rtc(rtc), 1)


@clause("ioapic.rtc")
@NEEDS_IN_SERVICE
def test_eoi_of_the_old_vector_counts_for_the_rtc(rtc):
    expect("status of the first edge", raise_rtc(rtc), 1)
    by_guest(rtc, EDGE_TO_0 + 0x10, RTC_PIN)
    expect_taken(rtc[0], 0x61)
    rtc[0].eoi()
    expect("status after the EOI", raise_rtc(rtc), 1)
    expect_taken(rtc[0], 0x71)
