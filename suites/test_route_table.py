# SPDX-License-Identifier: GPL-2.0-only
"""What KVM_SET_GSI_ROUTING accepts, and what it refuses.

Clauses: routing.table, routing.refused.

A message and a route share kvm_set_msi(). A table that is refused leaves the old one in force.
"""

import pytest

from helpers.guest import expect, irqchip_route, msi_route
from helpers.kvm import abi
from helpers.kvm.ioctl import ioctl
from helpers.verdicts import clause
from suites import each
from suites.common import outcome_of, program_pin, to

MASTER, SLAVE, IOAPIC = range(3)
PINS = {MASTER: 8, SLAVE: 8, IOAPIC: 24}
GSI = 40


def typed_route(number):
    entry = msi_route(GSI, to(0))
    entry.type = number
    return entry


def expect_table(machine, outcome, *entries):
    expect("outcome", outcome_of(machine.vm.set_gsi_routing, entries), outcome)


def to_vcpu_1(pin):
    """Return a redirection entry of vector 0x60 + pin to vCPU 1."""
    return 1 << 56 | 0x60 + pin


def pic_irrs(machine):
    """Return the IRRs of the two PICs; the IRR follows the last levels of the lines."""
    chips = [abi.kvm_irqchip(chip_id=chip) for chip in (MASTER, SLAVE)]
    for chip in chips:
        ioctl(machine.vm.fd, abi.KVM_GET_IRQCHIP, chip)
    return [bytes(chip.chip)[1] for chip in chips]


@pytest.fixture
def full(machines):
    """Two vCPUs and a full irqchip, with vector 0x41 to vCPU 1 as the only route."""
    machine = machines(irqchip="full", vcpu_ids=range(2))
    machine.vm.set_gsi_routing([msi_route(GSI, to(1))])
    return machine


def expect_old_table(machine):
    machine.raise_line(GSI, to(1)).returns(1).accepted_by(1)


# --- routing.table --------------------------------------------------------------------------------


@clause("routing.table")
@each.value("pin", range(24), "pin{}")
def test_route_to_a_pin_of_the_ioapic(full, pin):
    program_pin(full, to_vcpu_1(pin), pin)
    expect_table(full, "accepted", irqchip_route(GSI, IOAPIC, pin))
    full.vm.irq_line_status(GSI, 1)
    expect("IRR", full[1].lapic.irr, {0x60 + pin})


@clause("routing.table")
@pytest.mark.parametrize("irqchip", [MASTER, SLAVE, IOAPIC], ids=["master", "slave", "ioapic"])
def test_every_pin_of_an_irqchip_can_be_routed(full, irqchip):
    pins = range(PINS[irqchip])
    expect_table(full, "accepted", *(irqchip_route(GSI + pin, irqchip, pin) for pin in pins))


@clause("routing.table")
@pytest.mark.parametrize("irqchip", [MASTER, SLAVE], ids=["master", "slave"])
@each.value("pin", range(8), "pin{}")
def test_route_to_a_pin_of_the_pic(full, irqchip, pin):
    expect_table(full, "accepted", irqchip_route(GSI, irqchip, pin))
    expect("status", full.vm.irq_line_status(GSI, 1), 1)
    expected = [1 << pin, 0] if irqchip == MASTER else [1 << 2, 1 << pin]  # pin 2 cascades
    expect("IRRs of the PICs", pic_irrs(full), expected)
    full.vm.irq_line_status(GSI, 0)
    expect("IRR", full[1].lapic.irr, set())


@clause("routing.table")
def test_gsi_of_several_irqchips_raises_each(full):
    program_pin(full, to_vcpu_1(5), 5)
    entries = [irqchip_route(GSI, irqchip, 5) for irqchip in (MASTER, IOAPIC)]
    expect_table(full, "accepted", *entries)
    expect("status", full.vm.irq_line_status(GSI, 1), 2)
    expect("IRR", full[1].lapic.irr, {0x65})


@clause("routing.table")
def test_masked_pin_does_not_count(full):
    entries = [irqchip_route(GSI, irqchip, 5) for irqchip in (MASTER, IOAPIC)]
    expect_table(full, "accepted", *entries)
    expect("status", full.vm.irq_line_status(GSI, 1), 1)


@clause("routing.table")
@each.irqchip
def test_highest_gsi_is_routed(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=range(2))
    highest = machine.vm.check_extension(abi.KVM_CAP_IRQ_ROUTING) - 1
    for gsi in (highest, 0):
        expect_table(machine, "accepted", msi_route(gsi, to(1, vector=0x51)))
        machine.raise_line(gsi, to(1, vector=0x51)).returns(1).accepted_by(1)


@clause("routing.table")
def test_gsi_without_a_route_does_nothing(full):
    for gsi in (GSI - 1, GSI + 1, 4095, 4096, 0xFFFFFF):
        expect("status", full.vm.irq_line_status(gsi, 1), -1)
    expect("IRR", full[1].lapic.irr, set())


@clause("routing.table")
def test_table_replaces_the_old_one(full):
    expect_table(full, "accepted", msi_route(GSI + 1, to(1, vector=0x52)))
    expect("status", full.vm.irq_line_status(GSI, 1), -1)
    full.raise_line(GSI + 1, to(1, vector=0x52)).returns(1).accepted_by(1)


# --- routing.refused ------------------------------------------------------------------------------


@clause("routing.refused")
@pytest.mark.parametrize("irqchip", [MASTER, SLAVE, IOAPIC], ids=["master", "slave", "ioapic"])
def test_pin_that_an_irqchip_does_not_have_is_refused(full, irqchip):
    for pin in (PINS[irqchip], PINS[irqchip] + 1, 0xFFFFFFFF):
        expect_table(full, "EINVAL", irqchip_route(GSI, irqchip, pin))
    expect_old_table(full)


@clause("routing.refused")
@pytest.mark.parametrize("irqchip", [3, 4, 0xFFFFFFFF])
def test_irqchip_that_does_not_exist_is_refused(full, irqchip):
    expect_table(full, "EINVAL", irqchip_route(GSI, irqchip, 0))
    expect_old_table(full)


@clause("routing.refused")
@pytest.mark.parametrize("number", [0, 3, 6, 0xFFFFFFFF])
def test_type_that_x86_does_not_have_is_refused(full, number):
    expect_table(full, "EINVAL", typed_route(number))
    expect_old_table(full)


@clause("routing.refused")
@pytest.mark.parametrize("first", ["msi", "pin"])
@pytest.mark.parametrize("second", ["msi", "pin"])
def test_gsi_has_one_message_or_pins_of_different_irqchips(full, first, second):
    made = {"msi": msi_route(GSI, to(0)), "pin": irqchip_route(GSI, IOAPIC, 5)}
    expect_table(full, "EINVAL", made[first], made[second])
    expect_old_table(full)


@clause("routing.refused")
def test_refused_entry_refuses_the_table(full):
    good = [msi_route(gsi, to(0)) for gsi in range(3)]
    expect_table(full, "EINVAL", *good, irqchip_route(GSI, IOAPIC, 24), msi_route(3, to(0)))
    expect_old_table(full)
