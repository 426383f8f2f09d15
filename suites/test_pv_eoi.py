# SPDX-License-Identifier: GPL-2.0-only
"""Paravirtual EOI: a guest ends the service of a message by clearing a bit in memory.

Clauses: pv-eoi.skipped, pv-eoi.required, pv-eoi.disabled.

KVM sets the bit where nothing waits for the EOI. The handler of the guest starts by testing and
clearing the bit, and writes EOI to the LAPIC only if the bit was clear. An interrupt of the host
between injection and handler clears the bit, too, so of ten handlers one must find the bit set, or
none may.
"""

import pytest

from helpers.guest import expect
from helpers.verdicts import clause
from suites import each
from suites.common import (
    NEEDS_IN_SERVICE,
    PIN,
    WITHOUT_APICV,
    expect_remote_irr,
    expect_taken,
    fixed,
    level_entry,
    program_pin,
    route_pin_to,
    to,
)

pytestmark = NEEDS_IN_SERVICE

MSR_KVM_EOI_EN = 0x4B564D04


@pytest.fixture
def guest(machines, irqchip, apic_mode):
    """Two vCPUs with PV EOI. Their handlers write EOI only where KVM requires it."""
    machine = machines(irqchip=irqchip, vcpu_ids=range(2), apic_mode=apic_mode)
    for cpu in machine.cpus:
        cpu.wrmsr(MSR_KVM_EOI_EN, cpu.address_of("pv_eoi") | 1)
        cpu.handler(eoi=False, pv_eoi=True)
    return machine


def serve(cpu, send, *vectors):
    """Call ``send()``; raise Mismatch unless ``cpu`` takes ``vectors``, and none stays in service.

    Return how many handlers have skipped the write of EOI.
    """
    cpu.control.pv_eois = 0
    send()
    expect_taken(cpu, *vectors)
    expect("bit in memory", cpu.control.pv_eoi, 0)
    expect("ISR", cpu.lapic.isr, set())
    return cpu.control.pv_eois


def expect_skipped(cpu, send, vector):
    """Raise Mismatch unless one of ten handlers of ``vector`` skips the write of EOI."""
    skipped = any(serve(cpu, send, vector) for _ in range(10))
    expect("EOI skipped", skipped, True)


def sender(guest, *messages):
    def send():
        for message in messages:
            guest.signal(message).returns(1)

    return send


@clause("pv-eoi.skipped")
@WITHOUT_APICV
@each.apic_mode
def test_cleared_bit_ends_the_service(guest):
    for vector in (0x91, 0x41):
        expect_skipped(guest[1], sender(guest, fixed(vector)), vector)


@clause("pv-eoi.skipped")
@WITHOUT_APICV
def test_bit_is_of_its_vcpu(guest):
    for cpu in guest.cpus:
        expect_skipped(cpu, sender(guest, to(cpu.index)), 0x41)
        expect("EOIs skipped by the other", guest[1 - cpu.index].control.pv_eois, 0)
        cpu.control.pv_eois = 0


@clause("pv-eoi.skipped")
def test_guest_may_write_eoi_all_the_same(guest):
    guest[1].handler()
    for vector in (0x91, 0x41):
        serve(guest[1], sender(guest, fixed(vector)), vector)


@clause("pv-eoi.required")
def test_eoi_is_required_while_another_vector_is_pending(guest):
    send = sender(guest, fixed(0x91), fixed(0x41), fixed(0x61))
    skipped = serve(guest[1], send, 0x91, 0x61, 0x41)
    expect("EOIs skipped, but for the last vector", max(skipped, 1), 1)


@clause("pv-eoi.required")
@WITHOUT_APICV
@pytest.mark.parametrize("irqchip", ["split"])
def test_eoi_is_required_for_a_level_route(guest):
    route_pin_to(guest, 1)
    guest[1].step()  # KVM scans the routes when a vCPU is entered.
    for _ in range(10):
        guest.send(fixed(0x61))
        expect("vectors of KVM_EXIT_IOAPIC_EOI", guest[1].take_with_exits()[1], [0x61])
        expect("EOIs skipped", guest[1].control.pv_eois, 0)
    expect_skipped(guest[1], sender(guest, fixed(0x41)), 0x41)


@clause("pv-eoi.required")
def test_eoi_is_required_for_a_level_pin(guest):
    program_pin(guest, level_entry(0))

    def send():
        for level in (1, 0):
            guest.vm.irq_line_status(PIN, level)

    for _ in range(10):
        expect("EOIs skipped", serve(guest[0], send, 0x61), 0)
        expect_remote_irr(guest, 0)


@clause("pv-eoi.disabled")
def test_eoi_is_required_once_disabled(guest):
    guest[1].wrmsr(MSR_KVM_EOI_EN, 0)
    expect("EOIs skipped", serve(guest[1], sender(guest, fixed(0x41)), 0x41), 0)
