# SPDX-License-Identifier: GPL-2.0-only
"""A message of a mapped event: its LPI is taken once, by the vCPU of the event's collection.

Clauses: arm.delivery, arm.devid-selects, arm.data-selects, arm.coalesce, arm.priority.
"""

from dataclasses import replace

import pytest

from helpers.guest import expect
from helpers.its import Message, commands
from helpers.its.registers import FIRST_LPI
from helpers.verdicts import clause
from suites import each
from suites.arm64.common import (
    EACH_EVENT,
    EACH_VCPU,
    EVENTS,
    FIRST,
    HISTORY,
    ON_1,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_taken,
)

# --- arm.delivery ---------------------------------------------------------------------------------


@clause("arm.delivery")
@EACH_EVENT
@HISTORY
def test_lpi_is_taken_once_by_the_vcpu_of_the_collection(machine, event, again):
    deliver_before(machine, again, event)
    expect_delivery(machine, event.message, *event.pending)
    expect_taken(machine)


@clause("arm.delivery")
@EACH_VCPU
@HISTORY
def test_each_vcpu_can_be_the_target(machines, vcpus, index, again):
    machine = machines(vcpus=vcpus)
    machine.its.map_device(7)
    message = machine.map(7, 3, FIRST_LPI + 5, index)
    for _ in range(1 + again):
        expect_delivery(machine, message, index, FIRST_LPI + 5)


@clause("arm.delivery")
@each.value("lpi", [FIRST_LPI, FIRST_LPI + 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_each_lpi_can_be_mapped(machine, lpi):
    for event in EVENTS:
        machine.its.command(commands.discard(event.devid, event.event))
    expect_delivery(machine, machine.map(2, 9, lpi, 1), 1, lpi)


@clause("arm.delivery")
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])
def test_first_and_last_event_of_a_table_of_each_size_is_delivered(machine, bits):
    machine.its.map_device(9, bits)
    for event, lpi in ((0, 9000), ((1 << bits) - 1, 9001)):
        expect_delivery(machine, machine.map(9, event, lpi, 1), 1, lpi)


@clause("arm.delivery")
@each.value("devid", [0, 1, 255, 256, 4096, 8190, 8191])
def test_each_device_of_the_table_can_be_mapped(machines, devid):
    machine = machines()
    machine.its.map_device(devid)
    expect_delivery(machine, machine.map(devid, 4, 9000, 1), 1, 9000)


@clause("arm.delivery")
@each.value("collection", [0, 1, 2, 255, 8191])
def test_each_collection_of_the_table_can_be_mapped(machine, collection):
    machine.its.command(commands.mapc(collection, 1))
    expect_delivery(machine, machine.map(1, 7, 9000, collection), 1, 9000)


@clause("arm.delivery")
def test_mapi_maps_an_event_to_the_lpi_of_its_number(machine):
    machine.its.map_device(9, 16)
    machine.its.command(commands.mapi(9, 9000, 1))
    expect_delivery(machine, Message(9, 9000), 1, 9000)


@clause("arm.delivery")
@HISTORY
def test_events_of_all_vcpus_are_delivered_in_one_go(machine, again):
    deliver_before(machine, again)
    for event in EVENTS:
        machine.signal(event.message).returns(1).pends(event.pending)
    taken = sorted(machine.take())
    expect("taken", taken, sorted(event.pending for event in EVENTS))


# --- arm.devid-selects ----------------------------------------------------------------------------


@clause("arm.devid-selects")
@HISTORY
def test_same_event_of_another_device_is_another_lpi(machine, again):
    deliver_before(machine, again)
    for event in (EVENTS[0], EVENTS[3]):
        expect_delivery(machine, event.message, *event.pending)


@clause("arm.devid-selects")
@HISTORY
@each.value("devid", [0, 3, 0x101, 8191, 0x10001, 0x1000001, 0x80000001, 0xFFFFFFFF])
def test_same_event_of_an_unmapped_device_is_blocked(machine, devid, again):
    deliver_before(machine, again)
    expect_blocked(machine, replace(FIRST.message, devid=devid))


# --- arm.data-selects -----------------------------------------------------------------------------

ALIASES = [0x20, 0x40, 0x100, 0x10000, 0x10001, 0x8000_0000, 0xFFFF_0000, 0xFFFF_FFFF]


@clause("arm.data-selects")
@HISTORY
@each.value("data", ALIASES)
def test_data_is_not_truncated_to_a_mapped_event(machine, data, again):
    deliver_before(machine, again)
    expect_blocked(machine, Message(1, data))


@clause("arm.data-selects")
@HISTORY
@pytest.mark.parametrize("devid, data", [(0, 0x10000), (1, 0x20000), (0, 0x20005), (3, 0)])
def test_no_other_device_and_data_stand_for_a_mapped_event(machine, devid, data, again):
    deliver_before(machine, again)
    expect_blocked(machine, Message(devid, data))


@clause("arm.data-selects")
@HISTORY
@pytest.mark.parametrize("event", [2, 15, 30])
def test_events_between_mapped_events_are_others(machine, event, again):
    deliver_before(machine, again)
    expect_blocked(machine, Message(1, event))


# --- arm.coalesce ---------------------------------------------------------------------------------


@clause("arm.coalesce")
@HISTORY
@pytest.mark.parametrize("times", [2, 3, 10])
def test_pending_lpi_is_taken_once(machine, times, again):
    deliver_before(machine, again)
    for _ in range(times):
        machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine, FIRST.pending)
    expect_taken(machine)


@clause("arm.coalesce")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("event", [FIRST, ON_1], ids=["vcpu0", "vcpu1"])
def test_message_between_acknowledge_and_eoi_is_taken_once_more(machine, times, event):
    machine.signal(event.message).returns(1)
    cpu = machine[event.vcpu]
    expect("INTID", cpu.run_to_handler(), event.lpi)
    for _ in range(times):
        machine.signal(event.message).delivered().pends(event.pending)
    expect("INTIDs", cpu.step(), [event.lpi])
    expect_taken(machine)


@clause("arm.coalesce")
def test_message_after_each_entry_is_taken_each_time(machine):
    for _ in range(20):
        expect_delivery(machine, FIRST.message, *FIRST.pending)


# --- arm.priority ---------------------------------------------------------------------------------


@clause("arm.priority")
@pytest.mark.parametrize("urgent", [0, 1, 2])
def test_lpi_of_the_lowest_priority_value_is_taken_first(machine, urgent):
    lpis = [9000, 9001, 9002]
    machine.configure_lpi(lpis[urgent], priority=0x20)
    messages = [machine.map(2, 10 + number, lpi, 0) for number, lpi in enumerate(lpis)]
    for message in messages:
        machine.signal(message).returns(1)
    expect("first", machine.take()[0], (0, lpis[urgent]))


@clause("arm.priority")
def test_changed_priority_counts_after_inv(machine):
    low, high = EVENTS[0], EVENTS[4]
    machine.configure_lpi(high.lpi, priority=0x20)
    machine.its.command(commands.inv(high.devid, high.event))
    for event in (low, high):
        machine.signal(event.message).returns(1)
    expect_taken(machine, high.pending, low.pending)


@clause("arm.priority")
@each.value("priority", [0x00, 0x20, 0xA0, 0xF0])
def test_lpi_of_each_priority_is_taken(machine, priority):
    machine.configure_lpi(9000, priority=priority)
    expect_delivery(machine, machine.map(2, 10, 9000, 0), 0, 9000)
