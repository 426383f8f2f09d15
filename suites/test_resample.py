# SPDX-License-Identifier: GPL-2.0-only
"""Resampling irqfds: the EOI of a vector tells user space, which may then raise the line again.

Clauses: irqfd.resample, irqfd.resample-vector, irqfd.resample-full.

VFIO injects level-triggered interrupts this way. KVM knows an EOI by its vector alone: the EOI of a
message with the vector of a pin, or of a SINT, notifies, too.
"""

import os

import pytest

from helpers.guest import expect, sint_route
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites.common import (
    NEEDS_IN_SERVICE,
    NEEDS_SYNIC,
    NEEDS_SYNIC2,
    PIN,
    expect_taken,
    fixed,
    outcome_of,
    raise_pin,
    to,
)
from suites.names import LEVEL
from suites.test_synic import SINT0

SINT, SINT_GSI = 2, 24


def notifications(eventfd):
    """Return how often KVM has signalled ``eventfd``, and clear the count."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


@pytest.fixture
def resamplefd(pin_to_0):
    """The eventfd that KVM signals after an EOI of the pin's vector."""
    return resampling(pin_to_0.vm, PIN)


def resampling(vm, gsi):
    resamplefd = vm.eventfd()
    vm.irqfd(gsi, resamplefd)
    return resamplefd


def expect_notifications(cpu, resamplefd, count):
    """Write EOI; raise Mismatch unless KVM signals ``resamplefd`` then, and ``count`` times."""
    expect("notifications in service", notifications(resamplefd), 0)
    cpu.eoi()
    expect("notifications after the EOI", notifications(resamplefd), count)


@clause("irqfd.resample")
@NEEDS_IN_SERVICE
def test_eoi_of_the_pin_notifies(pin_to_0, resamplefd):
    raise_pin(pin_to_0)
    pin_to_0.vm.irq_line_status(PIN, 0)
    expect_notifications(pin_to_0[0], resamplefd, 1)


@clause("irqfd.resample")
@NEEDS_IN_SERVICE
def test_each_eoi_of_a_high_line_notifies(pin_to_0, resamplefd):
    raise_pin(pin_to_0)
    for _ in range(3):
        pin_to_0[0].eoi()
        expect_taken(pin_to_0[0], 0x61)
        expect("notifications after the EOI", notifications(resamplefd), 1)


@clause("irqfd.resample-vector")
@NEEDS_IN_SERVICE
def test_eoi_of_a_message_with_the_vector_of_the_pin_notifies(pin_to_0, resamplefd):
    pin_to_0.send(to(0, vector=0x61, trigger_mode=LEVEL, level=1))
    expect_taken(pin_to_0[0], 0x61)
    expect_notifications(pin_to_0[0], resamplefd, 1)


@clause("irqfd.resample-vector")
@NEEDS_IN_SERVICE
def test_eoi_of_another_vector_does_not_notify(pin_to_0, resamplefd):
    pin_to_0.send(to(0, vector=0x71, trigger_mode=LEVEL, level=1))
    expect_taken(pin_to_0[0], 0x71)
    expect_notifications(pin_to_0[0], resamplefd, 0)


@pytest.fixture
def sint(machines):
    """SINT 2 of vCPU 1, whose handler writes no EOI, has vector 0x61 and a GSI."""
    machine = machines(irqchip="full", vcpu_ids=range(2))
    machine[1].handler(eoi=False)
    machine[1].vcpu.enable_cap(abi.KVM_CAP_HYPERV_SYNIC2)
    machine[1].vcpu.set_msr(SINT0 + SINT, 0x61)
    machine.vm.set_gsi_routing([sint_route(SINT_GSI, 1, SINT)])
    return machine


@clause("irqfd.resample-vector")
@NEEDS_IN_SERVICE
@NEEDS_SYNIC
@NEEDS_SYNIC2
@pytest.mark.parametrize(
    ("vector", "count"),
    [
        pytest.param(0x61, 1, id="its", marks=deviation("apicv-sint-eoi-not-told")),
        pytest.param(0x71, 0, id="another"),
    ],
)
def test_eoi_of_a_message_with_the_vector_of_a_sint(sint, vector, count):
    resamplefd = resampling(sint.vm, SINT_GSI)
    sint.send(fixed(vector))
    expect_taken(sint[1], vector)
    expect_notifications(sint[1], resamplefd, count)


@clause("irqfd.resample-full")
def test_resampling_irqfd_is_for_a_full_irqchip(machines):
    vm = machines(irqchip="split", vcpu_ids=(0,)).vm
    expect("outcome", outcome_of(vm.irqfd, PIN, vm.eventfd()), "EINVAL")
