# SPDX-License-Identifier: GPL-2.0-only
"""The guest's tables decide: what is not mapped is blocked, what is moved has another target.

Clauses: arm.unmapped-blocked, arm.out-of-range-blocked, arm.unmapping,
arm.discard-pending, arm.move, arm.commands.

A message whose translation KVM has cached must notice each of these commands, too.
"""

import pytest

from helpers.arm64 import layout
from helpers.guest import expect
from helpers.its import Message, commands
from helpers.its.registers import VALID
from helpers.verdicts import clause, deviation
from suites import each
from suites.arm64.common import (
    EACH_EVENT,
    FIRST,
    HISTORY,
    ON_1,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_taken,
    move,
)

# --- arm.unmapped-blocked -------------------------------------------------------------------------


@clause("arm.unmapped-blocked")
@pytest.mark.parametrize("event", [2, 3, 16, 30])
def test_event_that_is_not_mapped_is_blocked(machine, event):
    expect_blocked(machine, Message(1, event))


@clause("arm.unmapped-blocked")
@each.value("devid", [0, 3, 100, 8191])
def test_device_that_is_not_mapped_is_blocked(machine, devid):
    expect_blocked(machine, Message(devid, 0))


@clause("arm.unmapped-blocked")
def test_nothing_is_mapped_in_a_new_its(machines):
    expect_blocked(machines(), Message(1, 0))


@clause("arm.unmapped-blocked")
def test_device_without_events_is_blocked(machines):
    machine = machines()
    machine.its.map_device(1)
    expect_blocked(machine, Message(1, 0))


@clause("arm.unmapped-blocked")
@each.value("collection", [2, 5, 8191])
def test_event_in_an_unmapped_collection_is_blocked_until_the_collection_is_mapped(
    machine, collection
):
    message = machine.map(1, 7, 9000, collection)
    expect_blocked(machine, message)
    machine.its.command(commands.mapc(collection, 1))
    expect_delivery(machine, message, 1, 9000)


@clause("arm.unmapped-blocked")
@pytest.mark.parametrize("vcpu", [2, 7, 0xFFFF])
def test_collection_of_a_vcpu_that_is_not_there_is_blocked(machine, vcpu):
    machine.its.command(commands.mapc(3, vcpu))
    expect_blocked(machine, machine.map(1, 7, 9000, 3))


# --- arm.out-of-range-blocked ---------------------------------------------------------------------


@clause("arm.out-of-range-blocked")
@HISTORY
@each.value("devid", [8192, 0xFFFF, 0x10000, 0x10001, 0x1FFFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_device_beyond_the_device_table_is_blocked(machine, devid, again):
    deliver_before(machine, again)
    machine.its.map_device(devid)
    expect_blocked(machine, machine.map(devid, 0, 9000, 0))


@clause("arm.out-of-range-blocked")
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 15])
def test_event_beyond_the_translation_table_is_blocked(machine, bits):
    machine.its.map_device(9, bits)
    for event in (1 << bits, 1 << bits | 1, 1 << 16, (1 << 32) - 1):
        expect_blocked(machine, machine.map(9, event, 9000, 0))


@clause("arm.out-of-range-blocked")
@pytest.mark.parametrize("intid", [0, 1, 32, 100, 1023, 8191, 0x10000, 0x10000 + 9000])
def test_event_of_an_intid_that_is_no_lpi_is_blocked(machine, intid):
    expect_blocked(machine, machine.map(1, 7, intid, 0))


@clause("arm.out-of-range-blocked")
@pytest.mark.parametrize("bits", [17, 24, 32])
def test_translation_table_of_too_many_events_is_not_mapped(machine, bits):
    machine.its.command(commands.mapd(9, machine.its.tables + layout.ITTS, bits))
    expect_blocked(machine, machine.map(9, 0, 9000, 0))


@clause("arm.out-of-range-blocked")
@each.value("collection", [8192, 0xFFFF])
def test_collection_beyond_the_collection_table_is_not_mapped(machine, collection):
    machine.its.command(commands.mapc(collection, 0))
    expect_blocked(machine, machine.map(1, 7, 9000, collection))


@clause("arm.out-of-range-blocked")
@each.value("devid", [0, 8191, 8192, 0x8000, 0xFFFF])
def test_two_level_device_table_has_the_devices_of_its_valid_entries(machines, devid):
    machine = machines(indirect=True)
    level2 = machine.its.tables + layout.LEVEL2
    place = machine.its.tables + layout.DEVICES + 8 * (devid // 8192)
    machine.write(place, (VALID | level2).to_bytes(8, "little"))
    machine.its.map_device(devid)
    expect_delivery(machine, machine.map(devid, 0, 9000, 1), 1, 9000)
    other = devid ^ 8192
    machine.its.map_device(other)
    expect_blocked(machine, machine.map(other, 0, 9001, 1))


# --- arm.unmapping --------------------------------------------------------------------------------


def unmap(machine, how):
    """Take FIRST's event out of the tables."""
    its = machine.its
    match how:
        case "discard":
            its.command(commands.discard(FIRST.devid, FIRST.event))
        case "mapd":
            its.command(commands.mapd(FIRST.devid, its.tables + layout.ITTS, 5, valid=False))
        case "mapc":
            its.command(commands.mapc(FIRST.vcpu, 0, valid=False))


UNMAPPINGS = pytest.mark.parametrize("how", ["discard", "mapd", "mapc"])


@clause("arm.unmapping")
@HISTORY
@UNMAPPINGS
def test_unmapped_event_is_blocked(machine, how, again):
    deliver_before(machine, again)
    unmap(machine, how)
    expect_blocked(machine, FIRST.message)


@clause("arm.unmapping")
@HISTORY
@UNMAPPINGS
def test_other_events_stay_mapped(machine, how, again):
    deliver_before(machine, again)
    unmap(machine, how)
    expect_blocked(machine, FIRST.message)
    expect_delivery(machine, Message(2, 0), 1, 8192 + 64)


@clause("arm.unmapping")
@HISTORY
@UNMAPPINGS
def test_event_that_is_mapped_again_is_delivered(machine, how, again):
    deliver_before(machine, again)
    unmap(machine, how)
    if how != "discard":
        machine.its.command(commands.mapc(FIRST.vcpu, FIRST.vcpu))
        machine.its.map_device(FIRST.devid)
    machine.map(FIRST.devid, FIRST.event, 9000, 0)
    expect_delivery(machine, FIRST.message, 0, 9000)


@clause("arm.unmapping")
@pytest.mark.parametrize("how", ["discard", "mapd"])
def test_event_that_is_unmapped_while_its_lpi_is_pending_is_blocked(machine, how):
    machine.send(FIRST.message)
    unmap(machine, how)
    machine.signal(FIRST.message).blocked().reached_nobody()


@clause("arm.unmapping")
@HISTORY
@EACH_EVENT
def test_discarded_event_is_blocked(machine, event, again):
    deliver_before(machine, again)
    machine.its.command(commands.discard(event.devid, event.event))
    expect_blocked(machine, event.message)


@clause("arm.discard-pending")
@deviation("arm-discard-keeps-pending")
@HISTORY
def test_discard_removes_the_pending_state(machine, again):
    deliver_before(machine, again)
    machine.signal(FIRST.message).returns(1).pends(FIRST.pending)
    machine.its.command(commands.discard(FIRST.devid, FIRST.event))
    expect_taken(machine)


# --- arm.move -------------------------------------------------------------------------------------


@clause("arm.move")
@HISTORY
@pytest.mark.parametrize("how", ["movi", "mapc"])
def test_moved_event_is_taken_by_the_new_vcpu(machine, how, again):
    deliver_before(machine, again)
    move(machine, how)
    expect_delivery(machine, FIRST.message, 1, FIRST.lpi)


@clause("arm.move")
@HISTORY
@pytest.mark.parametrize("how", ["movi", "movall"])
def test_pending_lpi_moves_to_the_new_vcpu(machine, how, again):
    deliver_before(machine, again)
    machine.signal(FIRST.message).returns(1).pends(FIRST.pending)
    move(machine, how)
    expect("pending", machine.pending(), frozenset({(1, FIRST.lpi)}))
    expect_taken(machine, (1, FIRST.lpi))


@clause("arm.move")
@HISTORY
def test_movall_moves_all_pending_lpis(machine, again):
    deliver_before(machine, again)
    for event in (0, 1, 31):
        machine.send(Message(1, event))
    machine.its.command(commands.movall(0, 1))
    moved = {(1, 8192), (1, 8193), (1, 0xFFFF)}
    expect("pending", machine.pending(), frozenset(moved))
    expect("taken", sorted(machine.take()), sorted(moved))


@clause("arm.move")
@HISTORY
def test_moved_event_leaves_the_other_events(machine, again):
    deliver_before(machine, again)
    move(machine, "movi")
    expect_delivery(machine, ON_1.message, *ON_1.pending)
    expect_delivery(machine, Message(1, 31), 0, 0xFFFF)


@clause("arm.move")
@EACH_EVENT
def test_event_moves_there_and_back(machine, event):
    for target in (1 - event.vcpu, event.vcpu):
        machine.its.command(commands.movi(event.devid, event.event, target))
        expect_delivery(machine, event.message, target, event.lpi)


@clause("arm.move")
@HISTORY
@pytest.mark.parametrize("target", range(8))
def test_event_moves_to_each_vcpu(machines, target, again):
    machine = machines(vcpus=8)
    machine.its.map_device(1)
    message = machine.map(1, 0, FIRST.lpi, 3)
    deliver_before(machine, again, FIRST)
    machine.its.command(commands.movi(1, 0, target))
    expect_delivery(machine, message, target, FIRST.lpi)


@clause("arm.move")
@HISTORY
def test_event_moved_to_an_unmapped_collection_stays(machine, again):
    deliver_before(machine, again)
    machine.its.command(commands.movi(1, 0, 7))
    expect_delivery(machine, FIRST.message, *FIRST.pending)


# --- arm.commands ---------------------------------------------------------------------------------


@clause("arm.commands")
@HISTORY
@EACH_EVENT
def test_int_makes_the_lpi_pending(machine, event, again):
    deliver_before(machine, again)
    machine.its.command(commands.int_(event.devid, event.event))
    expect("pending", machine.pending(), frozenset({event.pending}))
    expect_taken(machine, event.pending)


@clause("arm.commands")
@HISTORY
@EACH_EVENT
def test_clear_makes_the_lpi_not_pending(machine, event, again):
    deliver_before(machine, again)
    machine.send(event.message)
    machine.its.command(commands.clear(event.devid, event.event))
    expect("pending", machine.pending(), frozenset())
    expect_taken(machine)
    expect_delivery(machine, event.message, *event.pending)


@clause("arm.commands")
def test_sync_changes_nothing(machine):
    machine.its.command(commands.sync(0), commands.sync(1))
    expect_delivery(machine, FIRST.message, *FIRST.pending)


@clause("arm.commands")
def test_command_queue_wraps_around(machine):
    for _ in range(5):
        machine.its.command(*[commands.sync(0)] * 500)
    expect_delivery(machine, machine.map(1, 7, 9000, 1), 1, 9000)


@clause("arm.commands")
def test_unknown_command_is_passed_over(machine):
    machine.its.command(bytes([0x1F]) + bytes(31), commands.mapti(1, 7, 9000, 1))
    expect_delivery(machine, Message(1, 7), 1, 9000)
