# SPDX-License-Identifier: GPL-2.0-only
"""Routes and irqfds with a device ID, beside the direct message.

Clauses: arm.route, arm.route-devid-required.
"""

import pytest

from helpers.guest import expect
from helpers.its import Message
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites.arm64.common import (
    EACH_EVENT,
    FIRST,
    HISTORY,
    deliver_before,
    expect_delivery,
    expect_taken,
)

GSI = 40


def route(machine, message, gsi=GSI):
    """Make ``message`` the only route, of ``gsi``."""
    machine.vm.set_gsi_routing([message.route(gsi)])


@clause("arm.route")
@HISTORY
@EACH_EVENT
def test_irqfd_delivers_as_the_message_does(machine, event, again):
    deliver_before(machine, again)
    route(machine, event.message)
    machine.vm.signal_irqfd(GSI)
    expect("pending", machine.pending(), frozenset({event.pending}))
    expect_taken(machine, event.pending)


@clause("arm.route")
@pytest.mark.parametrize(
    "message",
    [Message(3, 0), Message(1, 2), Message(1, 32), Message(1, 0, 0xFEE00000), Message(0, 0)],
    ids=["device", "event", "beyond", "address", "device-0"],
)
def test_irqfd_of_an_unmapped_message_reaches_nobody(machine, message):
    route(machine, message)
    machine.vm.signal_irqfd(GSI)
    expect("pending", machine.pending(), frozenset())
    expect_taken(machine)


@clause("arm.route")
@HISTORY
def test_irqfd_after_the_route_has_changed_is_the_new_message(machine, again):
    deliver_before(machine, again)
    route(machine, FIRST.message)
    route(machine, Message(2, 0))
    machine.vm.signal_irqfd(GSI)
    expect_taken(machine, (1, 8192 + 64))


@clause("arm.route")
def test_direct_message_needs_no_route(machine):
    machine.vm.set_gsi_routing([])
    expect_delivery(machine, FIRST.message, *FIRST.pending)


@clause("arm.route")
@HISTORY
def test_irqfd_to_a_disabled_its_reaches_nobody(machine, again):
    deliver_before(machine, again)
    route(machine, FIRST.message)
    machine.its.enabled = False
    machine.vm.signal_irqfd(GSI)
    expect("pending", machine.pending(), frozenset())


def without_device_id(event):
    return Message(event.devid, event.event, flags=event.message.flags & ~abi.KVM_MSI_VALID_DEVID)


@clause("arm.route-devid-required")
@EACH_EVENT
def test_route_without_device_id_reaches_nobody(machine, event):
    route(machine, without_device_id(event))
    machine.vm.signal_irqfd(GSI)
    expect("pending", machine.pending(), frozenset())


@clause("arm.route-devid-required")
@deviation("arm-devid-flag-cached")
@EACH_EVENT
def test_route_without_device_id_reaches_nobody_after_delivery_of_the_event(machine, event):
    deliver_before(machine, True)
    route(machine, without_device_id(event))
    machine.vm.signal_irqfd(GSI)
    expect("taken without KVM_MSI_VALID_DEVID", bool(machine.pending()), False)
