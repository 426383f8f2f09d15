# SPDX-License-Identifier: GPL-2.0-only
"""Irqchips: none, full and split; which of them take messages, and when each can be made.

Clauses: msi.needs-irqchip, msi.flags, message.delivery-mode, split.creation, irqchip.before-vcpus,
abi.errno.

A split irqchip leaves PIC and IOAPIC to user space. Its LAPICs are in the kernel like those of a
full irqchip, and messages reach them alike.
"""

from errno import EINVAL
from itertools import product

import pytest

from helpers.apic import DeliveryMode
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import expect_refused, expect_same_effects, make_irqchip, outcome_of, to


@clause("msi.needs-irqchip")
@each.value("vcpus", range(3), "{}-vcpus")
def test_without_irqchip_every_message_is_an_error(machines, vcpus):
    machine = machines(irqchip="none", vcpu_ids=range(vcpus), power_on=False)
    for delivery_mode, destination in product(DeliveryMode, (0, vcpus, 0xFF)):
        machine.signal(to(destination, delivery_mode=delivery_mode)).fails(EINVAL)
    events = [cpu.vcpu.get_events() for cpu in machine.cpus]
    expect("pending NMIs", [event.nmi.pending for event in events], [0] * vcpus)
    expect("pending SMIs", [event.smi.pending for event in events], [0] * vcpus)


@clause("msi.needs-irqchip")
@each.value("flags", [0, 1, 1 << 31], "flags{:#x}")
def test_without_irqchip_no_flag_helps(machines, flags):
    machine = machines(irqchip="none", vcpu_ids=(0,), power_on=False)
    machine.signal(to(0), flags=flags).fails(EINVAL)


@clause("msi.needs-irqchip")
@each.irqchip
def test_with_irqchip_a_message_is_delivered(machine):
    machine.signal(to(2)).returns(1).accepted_by(2)


@clause("msi.needs-irqchip")
@pytest.mark.parametrize("kind", ["full", "split"])
def test_irqchip_made_late_takes_messages(machines, kind):
    machine = machines(irqchip="none", vcpu_ids=())
    machine.signal(to(0)).fails(EINVAL)
    make_irqchip(machine, kind)
    machine.signal(to(0)).returns(1).accepted_by(0)


@clause("msi.needs-irqchip")
@each.value("pins", [0, 1, 24, 4095, 4096], "{}-pins")
def test_split_irqchip_of_any_number_of_pins_takes_messages(machines, pins):
    machine = machines(irqchip="none", vcpu_ids=())
    make_irqchip(machine, "split", pins)
    machine.signal(to(0)).returns(1).accepted_by(0)


# --- the same with a split irqchip ----------------------------------------------------------------


@clause("msi.flags")
@pytest.mark.parametrize("irqchip", ["split"])
@each.bit(range(1, 32))
def test_split_irqchip_rejects_undefined_flag(machine, bit):
    machine.signal(to(0xFF), flags=1 << bit).fails(EINVAL).reached_nobody()


@clause("message.delivery-mode")
@each.delivery_mode()
@each.destination_mode
def test_split_irqchip_delivers_as_a_full_one(shared_machine, delivery_mode, destination_mode):
    message = to(2, destination_mode, delivery_mode=delivery_mode, vector=0x51)
    machines = [shared_machine(irqchip=kind, vcpu_ids=range(4)) for kind in ("full", "split")]
    full, split = (machine.signal(message) for machine in machines)
    expect("return value", split.returned, full.returned)
    expect_same_effects(message, split.effects(), full.effects())


# --- split.creation and irqchip.before-vcpus: when an irqchip can be made -------------------------

# Steps of a sequence. A test's id joins their names.


def create(vm):
    vm.create_irqchip()


def split(vm):
    vm.split_irqchip()


def vcpu(vm):
    vm.create_vcpu(0)


def each_sequence(rules):
    return pytest.mark.parametrize(
        "steps", rules, ids=["-".join(step.__name__ for step in steps) for steps in rules]
    )


SPLIT_RULES = {(vcpu, split): "EEXIST", (create, split): "EEXIST", (split, split): "EEXIST"}
CREATE_RULES = {(vcpu, create): "EINVAL", (create, create): "EEXIST", (split, create): "EEXIST"}
RULES = SPLIT_RULES | CREATE_RULES
"""The errno of the last step, by all steps."""


@pytest.fixture
def vm(machines, steps):
    """A VM that has taken all steps but the last."""
    new = machines(irqchip="none", vcpu_ids=()).vm
    for step in steps[:-1]:
        step(new)
    return new


@clause("split.creation")
@each_sequence(SPLIT_RULES)
def test_splitting_fails_once_a_vcpu_or_irqchip_exists(vm, steps):
    expect_refused(steps[-1], vm)


@clause("irqchip.before-vcpus")
@each_sequence(CREATE_RULES)
def test_irqchip_is_created_before_vcpus_and_once(vm, steps):
    expect_refused(steps[-1], vm)


@clause("abi.errno")
@each_sequence(RULES)
def test_errno_of_an_irqchip_made_too_late(vm, steps):
    expect("outcome", outcome_of(steps[-1], vm), RULES[steps])


@clause("msi.needs-irqchip")
def test_irqchip_refused_too_late_does_not_exist(machines):
    machine = machines(irqchip="none", vcpu_ids=(0,), power_on=False)
    expect_refused(machine.vm.create_irqchip)
    machine.signal(to(0)).fails(EINVAL)


@clause("split.creation")
@pytest.mark.parametrize(
    "pins, flags", [(4097, 0), (24, 1)], ids=["more-pins-than-routes", "undefined-flag"]
)
def test_invalid_split_is_refused(machines, pins, flags):
    vm = machines(irqchip="none", vcpu_ids=()).vm
    expect_refused(vm.enable_cap, abi.KVM_CAP_SPLIT_IRQCHIP, pins, flags=flags)
