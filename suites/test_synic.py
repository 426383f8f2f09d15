# SPDX-License-Identifier: GPL-2.0-only
"""Messages with a vector of Hyper-V's synthetic interrupt controller.

Clauses: synic.auto-eoi, synic.sint.

A vector that a SINT names with AutoEOI is never in service. That holds for a message with the
vector too, since KVM goes by the vector.
"""

import pytest

from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import NEEDS_SYNIC, NEEDS_SYNIC2, expect_taken, fixed

pytestmark = [NEEDS_SYNIC, NEEDS_SYNIC2]

# Hyper-V TLFS, "SINTx Registers".
SINT0 = 0x40000090
MASKED, AUTO_EOI = 1 << 16, 1 << 17


@pytest.fixture
def synic(machines, apic_mode):
    """Two vCPUs with SynICs; the handlers write no EOI. SINT 2 of vCPU 1: vector 0x61, AutoEOI."""
    machine = machines(vcpu_ids=range(2), apic_mode=apic_mode)
    for cpu in machine.cpus:
        cpu.vcpu.enable_cap(abi.KVM_CAP_HYPERV_SYNIC2)
        cpu.handler(eoi=False)
    set_sint(machine, 2, AUTO_EOI | 0x61)
    return machine


def set_sint(machine, sint, value):
    machine[1].vcpu.set_msr(SINT0 + sint, value)


def expect_in_service(machine, vector, vectors, index=1):
    """Send ``vector``; raise Mismatch unless its handler finds ``vectors`` in service."""
    machine.signal(fixed(vector, index)).returns(1).accepted_by(index)
    taken = machine[index].take()
    expect("vectors taken", [record.vector for record in taken], [vector])
    expect("ISR in the handler", taken[0].isr, vectors)
    expect("ISR at the host", machine[index].lapic.isr, vectors)


@clause("synic.auto-eoi")
@each.apic_mode
def test_auto_eoi_vector_is_never_in_service(synic):
    for _ in range(2):
        expect_in_service(synic, 0x61, set())


@clause("synic.auto-eoi")
@each.vector([0x31, 0x61, 0x91])
def test_vector_of_any_class_interrupts_an_auto_eoi_handler(synic, vector):
    synic[1].handler(eoi=False, pause=True, nest=True)
    synic.send(fixed(0x61))
    synic[1].run_to_handler()
    synic.send(fixed(vector))
    synic[1].run_to_handler()
    expect("vectors taken", [record.vector for record in synic[1].log()], [0x61, vector])


@clause("synic.auto-eoi")
def test_pending_vectors_are_taken_one_after_the_other(synic):
    for vector in (0x41, 0x61):
        synic.signal(fixed(vector)).returns(1).accepted_by(1)
    expect_taken(synic[1], 0x61, 0x41)
    expect("ISR", synic[1].lapic.isr, {0x41})


@clause("synic.auto-eoi")
def test_vector_in_service_holds_an_auto_eoi_vector(synic):
    expect_in_service(synic, 0x71, {0x71})
    synic.signal(fixed(0x61)).returns(1).accepted_by(1)
    expect_taken(synic[1])
    synic[1].eoi()
    expect_taken(synic[1], 0x61)


@clause("synic.sint")
@pytest.mark.parametrize(
    "value",
    [0x61, MASKED | AUTO_EOI | 0x61, AUTO_EOI | 0x62],
    ids=["no-auto-eoi", "masked", "other"],
)
def test_other_vectors_are_in_service(synic, value):
    set_sint(synic, 2, value)
    expect_in_service(synic, 0x61, {0x61})


@clause("synic.sint")
def test_vector_of_another_vcpu_is_in_service(synic):
    expect_in_service(synic, 0x61, {0x61}, index=0)


@clause("synic.sint")
def test_one_of_several_sints_decides_for_auto_eoi(synic):
    set_sint(synic, 3, 0x61)
    expect_in_service(synic, 0x61, set())
    set_sint(synic, 2, MASKED)
    expect_in_service(synic, 0x61, {0x61})
