# SPDX-License-Identifier: GPL-2.0-only
"""The address of a message: the doorbell of an ITS, GITS_TRANSLATER.

Clauses: arm.doorbell, arm.doorbell-translater, arm.two-its.
"""

from dataclasses import replace
from errno import EINVAL

import pytest

from helpers.arm64 import layout
from helpers.its import Message, commands
from helpers.its.registers import GITS_TRANSLATER
from helpers.verdicts import clause, deviation
from suites import each
from suites.arm64.common import (
    EVENTS,
    FIRST,
    HISTORY,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_refused,
    map_events,
)

ITS = layout.ITS[0]
HIGH = 0x1_0808_0000
OUTSIDE = [
    *(0, 0x40, GITS_TRANSLATER, layout.GICD, layout.GICR, layout.GICR + GITS_TRANSLATER),
    *(ITS - 1, ITS - 4, ITS + 0x20000, ITS + 0x20000 + GITS_TRANSLATER, layout.EXITS, layout.RAM),
    *(0xFEE00000, 0xFFFFFFFF, 1 << 32 | ITS + GITS_TRANSLATER, 1 << 63 | ITS + GITS_TRANSLATER),
    *(0xFFFFFFFF << 32 | ITS + GITS_TRANSLATER, (1 << 64) - 2),
]
"""Addresses that belong to no ITS."""

# --- arm.doorbell ---------------------------------------------------------------------------------


@clause("arm.doorbell")
@HISTORY
@each.value("address", OUTSIDE)
def test_address_outside_every_its_is_refused(machine, address, again):
    deliver_before(machine, again)
    message = replace(FIRST.message, address=address)
    machine.signal(message).fails(EINVAL).reached_nobody()
    expect_refused(machine, message)


@clause("arm.doorbell")
@HISTORY
@pytest.mark.parametrize("high", [0, 1, 2, 0x80000000, 0xFFFFFFFF])
def test_upper_half_of_the_address_counts(machines, high, again):
    machine = machines(bases=(HIGH,))
    map_events(machine)
    doorbell = Message(1, 0, HIGH + GITS_TRANSLATER)
    if again:
        machine.send(doorbell)
        machine.take()
    message = replace(doorbell, address=high << 32 | doorbell.address & 0xFFFFFFFF)
    if high == 1:
        expect_delivery(machine, message, *FIRST.pending)
    else:
        expect_refused(machine, message)


@clause("arm.doorbell")
@deviation("arm-last-address-wraps")
@HISTORY
@pytest.mark.parametrize("base", [0x0700_0000, 0x0])
def test_last_address_is_refused(machines, base, again):
    """The ITS is the device with the lowest address."""
    machine = machines(bases=(base,))
    map_events(machine)
    if again:
        machine.send(Message(1, 0, base + GITS_TRANSLATER))
        machine.take()
    expect_refused(machine, replace(FIRST.message, address=(1 << 64) - 1))


# --- arm.doorbell-translater ----------------------------------------------------------------------

INSIDE = [
    *(0, 4, 8, 0x40, 0x80, 0x88, 0x100, 0xFFFC, 0x10000, 0x1003C, 0x10041, 0x10044),
    *(0x10048, 0x1FFFC, 0x1FFFF),
]
"""Offsets into an ITS that are not GITS_TRANSLATER's."""


@clause("arm.doorbell-translater")
@deviation("arm-frame-is-doorbell")
@HISTORY
@each.value("offset", INSIDE)
def test_other_register_of_the_its_is_no_doorbell(machine, offset, again):
    deliver_before(machine, again)
    expect_refused(machine, replace(FIRST.message, address=ITS + offset))


# --- arm.two-its ----------------------------------------------------------------------------------


@clause("arm.two-its")
@HISTORY
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.devid}-{event.event}")
def test_event_is_mapped_in_one_its_only(two_itss, event, again):
    deliver_before(two_itss, again)
    expect_blocked(two_itss, replace(event.message, address=two_itss.itss[1].doorbell))
    expect_delivery(two_itss, event.message, *event.pending)


@clause("arm.two-its")
@HISTORY
def test_each_its_has_a_table_of_its_own(two_itss, again):
    second = two_itss.itss[1]
    second.map_device(FIRST.devid)
    other = two_itss.map(FIRST.devid, FIRST.event, 9000, 1, second)
    for _ in range(1 + again):
        expect_delivery(two_itss, FIRST.message, *FIRST.pending)
        expect_delivery(two_itss, other, 1, 9000)


@clause("arm.two-its")
@HISTORY
def test_commands_of_one_its_leave_the_other(two_itss, again):
    first, second = two_itss.itss
    second.map_device(FIRST.devid)
    other = two_itss.map(FIRST.devid, FIRST.event, 9000, 1, second)
    if again:
        for message in (FIRST.message, other):
            two_itss.send(message)
        two_itss.take()
    first.command(commands.discard(FIRST.devid, FIRST.event))
    expect_blocked(two_itss, FIRST.message)
    expect_delivery(two_itss, other, 1, 9000)


@clause("arm.two-its")
@HISTORY
def test_disabling_one_its_leaves_the_other(two_itss, again):
    deliver_before(two_itss, again)
    two_itss.itss[1].enabled = False
    expect_delivery(two_itss, FIRST.message, *FIRST.pending)


@clause("arm.two-its")
def test_address_between_two_itss_of_a_gap_is_refused(machines):
    machine = machines(itss=2, bases=(ITS, layout.ITS[1] + 0x10000))
    map_events(machine)
    message = replace(FIRST.message, address=ITS + 0x20000)
    expect_refused(machine, message)
    expect_blocked(machine, replace(FIRST.message, address=machine.itss[1].doorbell))
