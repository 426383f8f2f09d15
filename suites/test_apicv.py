# SPDX-License-Identifier: GPL-2.0-only
"""Messages to a running vCPU, and APICv turned off and on while vectors are in flight.

Clauses: guest.running, guest.hlt, lapic.inhibited.

With APICv or AVIC a running vCPU takes an interrupt without an exit, from a posted-interrupt
descriptor. KVM collects what was posted when the vCPU exits. KVM does without APICv while a
debugger blocks interrupts, while an xAPIC ID is not the vCPU ID, and while a SINT has AutoEOI. The
clauses hold without APICv, too.
"""

import pytest

from helpers.apic import Register
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation, parallel
from suites import each
from suites.common import (
    NEEDS_BLOCK_IRQ,
    NEEDS_IN_SERVICE,
    NEEDS_SYNIC,
    NEEDS_SYNIC2,
    enter_handler,
    expect_eoi_exit,
    expect_logged,
    expect_taken,
    fixed,
    route_pin_to,
    to,
)
from suites.names import LEVEL, NMI
from suites.test_block_irq import block, unblock
from suites.test_synic import AUTO_EOI, MASKED, SINT0

VECTORS = range(0x20, 0x100, 7)


@pytest.fixture
def pair(machines, apic_mode):
    """Two vCPUs that the test alone uses."""
    return machines(vcpu_ids=range(2), apic_mode=apic_mode)


def taken(cpu):
    """Return the vectors that ``cpu`` has taken or takes now, in ascending order."""
    return sorted(record.vector for record in cpu.take())


# --- guest.running: messages to a vCPU that does not exit -----------------------------------------


@clause("guest.running")
@parallel
def test_running_guest_takes_a_burst(pair):
    with pair[1].spinning() as running:
        for vector in VECTORS:
            pair.send(fixed(vector))
        running.wait_until_taken(len(VECTORS))
    expect("vectors taken", taken(pair[1]), list(VECTORS))


@clause("guest.running")
@parallel
def test_running_guest_takes_a_vector_as_often_as_it_is_sent(pair):
    with pair[1].spinning() as running:
        for count in range(1, 33):
            pair.send(fixed(0x41))
            running.wait_until_taken(count)
    expect_logged(pair[1], *[0x41] * 32)


@clause("guest.running")
@parallel
def test_running_guest_takes_vectors_and_nmis(pair):
    with pair[1].spinning() as running:
        for count in range(1, 33, 2):
            pair.send(fixed(0x41))
            running.wait_until_taken(count)
            pair.send(to(1, delivery_mode=NMI))
            running.wait_until_taken(count + 1)
    expect_logged(pair[1], *[0x41, 2] * 16)


@clause("guest.running")
@parallel
def test_exit_right_after_a_message_loses_none(pair):
    for vector in VECTORS:
        with pair[1].spinning():
            pair.send(fixed(vector))
    expect("vectors taken", taken(pair[1]), list(VECTORS))


@clause("guest.running")
@parallel
def test_vectors_wait_in_irr_while_the_guest_runs_with_interrupts_disabled(pair):
    pair[1].cli()
    with pair[1].spinning() as running:
        for vector in (0x41, 0x91, 0x61):
            pair.send(fixed(vector))
        running.kick()
        expect("IRR", pair[1].lapic.irr, {0x41, 0x61, 0x91})
    pair[1].step()
    pair[1].sti()
    expect_taken(pair[1], 0x91, 0x61, 0x41)


@clause("guest.hlt")
@parallel
def test_each_message_ends_a_halt(pair):
    for vector in VECTORS:
        with pair[1].halted() as running:
            pair.send(fixed(vector))
            running.finish()
        expect_logged(pair[1], vector)


# --- lapic.inhibited: vCPU 0 turns the processor's help off and on for all vCPUs ------------------


def start_auto_eoi(cpu):
    cpu.vcpu.enable_cap(abi.KVM_CAP_HYPERV_SYNIC2)
    cpu.vcpu.set_msr(SINT0, AUTO_EOI | 0xE0)


def stop_auto_eoi(cpu):
    cpu.vcpu.set_msr(SINT0, MASKED)


def change_id(cpu):
    cpu.configure(id=9)


def restore_id(cpu):
    cpu.configure(id=0)


def each_inhibitor(*auto_eoi_marks, with_id=True):
    """Parametrize with what inhibits APICv. ``auto_eoi_marks`` are marks for AutoEOI alone.

    ``with_id`` includes a changed xAPIC ID, which no x2APIC has.
    """
    needs = [NEEDS_SYNIC, NEEDS_SYNIC2, *auto_eoi_marks]
    return pytest.mark.parametrize(
        ("start", "stop"),
        [
            pytest.param(block, unblock, id="block-irq", marks=NEEDS_BLOCK_IRQ),
            *[pytest.param(change_id, restore_id, id="apic-id")] * with_id,
            pytest.param(start_auto_eoi, stop_auto_eoi, id="auto-eoi", marks=needs),
        ],
    )


@pytest.fixture
def in_flight(pair):
    """Vector 0x61 is in service on vCPU 1, whose handler writes no EOI, and 0x41 is pending."""
    pair[1].handler(eoi=False)
    pair.send(fixed(0x61))
    pair[1].step()
    pair.send(fixed(0x41))
    pair[1].log()
    return pair


def expect_in_flight(cpu, in_service, pending):
    expect("ISR", cpu.lapic.isr, in_service)
    expect("IRR", cpu.lapic.irr, pending)


@clause("lapic.inhibited")
@NEEDS_IN_SERVICE
@each_inhibitor(deviation("inhibited-apicv-loses-posted-vectors"))
def test_vectors_in_flight_stay(in_flight, start, stop):
    for switch in (start, stop):
        switch(in_flight[0])
        expect_taken(in_flight[1])
        expect_in_flight(in_flight[1], {0x61}, {0x41})
    in_flight[1].eoi()
    expect_taken(in_flight[1], 0x41)


@clause("lapic.inhibited")
@NEEDS_IN_SERVICE
@each_inhibitor(deviation("inhibited-apicv-loses-posted-vectors"))
def test_eoi_lets_the_pending_vector_go(in_flight, start, stop):
    start(in_flight[0])
    in_flight[1].eoi()
    expect_taken(in_flight[1], 0x41)
    stop(in_flight[0])
    expect_in_flight(in_flight[1], {0x41}, set())


@clause("lapic.inhibited")
@NEEDS_IN_SERVICE
@each_inhibitor()
def test_vector_above_the_one_in_service_is_taken(in_flight, start, stop):
    for switch, vector in ((start, 0x71), (stop, 0x81)):
        switch(in_flight[0])
        in_flight.signal(fixed(vector)).returns(1).accepted_by(1)
        expect_taken(in_flight[1], vector)
    expect_in_flight(in_flight[1], {0x61, 0x71, 0x81}, {0x41})


@clause("lapic.inhibited")
@deviation("activated-apicv-ends-another-vector")
@NEEDS_IN_SERVICE
@each.apic_mode
@each_inhibitor(deviation("inhibited-apicv-loses-posted-vectors"), with_id=False)
def test_eoi_ends_the_vector_taken_while_inhibited(in_flight, start, stop):
    start(in_flight[0])
    in_flight.send(fixed(0x71))
    expect_taken(in_flight[1], 0x71)
    stop(in_flight[0])
    in_flight[1].eoi()
    expect_in_flight(in_flight[1], {0x61}, {0x41})


@clause("lapic.inhibited")
@each_inhibitor(deviation("inhibited-apicv-loses-posted-vectors"))
def test_tpr_holds_a_vector(pair, start, stop):
    pair[1].write(Register.TPR, 0x70)
    pair.send(fixed(0x61))
    for switch in (start, stop):
        switch(pair[0])
        expect_taken(pair[1])
    pair[1].write(Register.TPR, 0)
    expect_taken(pair[1], 0x61)


@clause("lapic.inhibited")
@parallel
@each_inhibitor()
def test_running_guest_takes_messages_before_and_after(pair, start, stop):
    with pair[1].spinning() as running:
        for count in range(1, 17, 2):
            start(pair[0])
            pair.send(fixed(0x41))
            running.wait_until_taken(count)
            stop(pair[0])
            pair.send(fixed(0x41))
            running.wait_until_taken(count + 1)
    expect_logged(pair[1], *[0x41] * 16)


@clause("lapic.inhibited")
@parallel
@each_inhibitor()
def test_running_guest_with_interrupts_disabled_keeps_all_vectors(pair, start, stop):
    pair[1].cli()
    with pair[1].spinning():
        for switch, vector in ((start, 0x41), (stop, 0x51), (start, 0x61), (stop, 0x71)):
            pair.send(fixed(vector))
            switch(pair[0])
    expect_in_flight(pair[1], set(), {0x41, 0x51, 0x61, 0x71})
    pair[1].step()
    pair[1].sti()
    expect_taken(pair[1], 0x71, 0x61, 0x51, 0x41)


@clause("lapic.inhibited")
@NEEDS_IN_SERVICE
@each_inhibitor()
def test_eoi_of_a_level_route_exits(machines, start, stop):
    pair = machines(irqchip="split", vcpu_ids=range(2))
    route_pin_to(pair, 1)
    pair[1].step()
    for switch in (start, stop):
        pair.send(to(1, vector=0x61, trigger_mode=LEVEL, level=1))
        enter_handler(pair[1])
        switch(pair[0])
        expect_eoi_exit(pair[1], 0x61)
