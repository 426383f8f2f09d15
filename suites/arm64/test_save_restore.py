# SPDX-License-Identifier: GPL-2.0-only
"""A VM that is saved and restored: its events and its pending LPIs are as before.

Clauses: arm.restore.

The order of the steps is that of arm-vgic-its.rst, "ITS Restore Sequence".
"""

import pytest

from helpers.arm64 import layout
from helpers.arm64.saved import restore, save
from helpers.guest import expect
from helpers.its import Message, commands
from helpers.verdicts import clause, deviation
from suites.arm64.common import (
    EVENTS,
    FIRST,
    HISTORY,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_taken,
    map_events,
)


@pytest.fixture
def migrated(machines):
    """Return a function that moves the state of a machine to a new machine."""

    def to_new_machine(old):
        new = machines(vcpus=len(old.cpus), itss=len(old.itss), ready=False)
        restore(new, save(old))
        return new

    return to_new_machine


@clause("arm.restore")
@HISTORY
def test_restored_events_are_delivered(machine, migrated, again):
    deliver_before(machine, again)
    new = migrated(machine)
    for event in EVENTS:
        expect_delivery(new, event.message, *event.pending)


@clause("arm.restore")
@HISTORY
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.devid}-{event.event}")
def test_pending_lpi_is_restored_and_taken_once(machine, migrated, event, again):
    deliver_before(machine, again)
    machine.signal(event.message).returns(1)
    new = migrated(machine)
    expect("pending", new.pending(), frozenset({event.pending}))
    expect_taken(new, event.pending)
    expect_taken(new)


@clause("arm.restore")
def test_all_pending_lpis_are_restored(machine, migrated):
    for event in EVENTS:
        machine.send(event.message)
    expect("pending", migrated(machine).pending(), frozenset(event.pending for event in EVENTS))


@clause("arm.restore")
def test_unmapped_events_are_blocked_after_restore(machine, migrated):
    machine.its.command(commands.discard(FIRST.devid, FIRST.event))
    new = migrated(machine)
    for message in (FIRST.message, Message(1, 2), Message(3, 0), Message(1, 32)):
        expect_blocked(new, message)


@clause("arm.restore")
def test_disabled_lpi_is_disabled_after_restore(machine, migrated):
    machine.configure_lpi(FIRST.lpi, enabled=False)
    machine.its.command(commands.inv(FIRST.devid, FIRST.event))
    new = migrated(machine)
    new.signal(FIRST.message).returns(1).pends(FIRST.pending)
    expect_taken(new)


@clause("arm.restore")
def test_moved_event_is_restored_at_the_new_vcpu(machine, migrated):
    machine.its.command(commands.movi(1, 0, 1))
    expect_delivery(migrated(machine), FIRST.message, 1, FIRST.lpi)


@clause("arm.restore")
@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_events_of_each_vcpu_are_restored(machines, migrated, vcpus):
    machine = machines(vcpus=vcpus)
    machine.its.map_device(1)
    messages = [machine.map(1, index, 9000 + index, index) for index in range(vcpus)]
    new = migrated(machine)
    for index, message in enumerate(messages):
        expect_delivery(new, message, index, 9000 + index)


@clause("arm.restore")
def test_both_itss_are_restored(two_itss, migrated):
    second = two_itss.itss[1]
    second.map_device(FIRST.devid)
    other = two_itss.map(FIRST.devid, FIRST.event, 9000, 1, second)
    new = migrated(two_itss)
    expect_delivery(new, FIRST.message, *FIRST.pending)
    expect_delivery(new, other, 1, 9000)


@clause("arm.restore")
def test_restored_machine_takes_commands(machine, migrated):
    new = migrated(machine)
    new.its.command(commands.mapti(1, 7, 9000, 1), commands.discard(1, 0))
    expect_delivery(new, Message(1, 7), 1, 9000)
    expect_blocked(new, FIRST.message)


@clause("arm.restore")
def test_machine_restored_twice_is_the_same(machine, migrated):
    machine.send(FIRST.message)
    new = migrated(migrated(machine))
    expect_taken(new, FIRST.pending)
    for event in EVENTS:
        expect_delivery(new, event.message, *event.pending)


@clause("arm.restore")
def test_saved_tables_name_the_mapped_devices_only(machine):
    table = save(machine).memory[machine.its.tables][layout.DEVICES :]
    entries = [devid for devid in range(8192) if table[8 * devid + 7] & 0x80]
    expect("devices", entries, [1, 2])


@clause("arm.restore")
def test_saving_changes_nothing(machine):
    machine.send(FIRST.message)
    save(machine)
    expect_taken(machine, FIRST.pending)
    for event in EVENTS:
        expect_delivery(machine, event.message, *event.pending)


@clause("arm.restore")
@deviation("arm-discard-leaves-entry")
@pytest.mark.parametrize("how", ["discard", "mapd"])
def test_event_unmapped_after_an_earlier_save_is_blocked_after_restore(machine, migrated, how):
    save(machine)
    unmap = {
        "discard": commands.discard(FIRST.devid, FIRST.event),
        "mapd": commands.mapd(FIRST.devid, 0, 5, valid=False),
    }
    machine.its.command(unmap[how])
    expect_blocked(migrated(machine), FIRST.message)


@clause("arm.restore")
def test_empty_its_is_restored(machines, migrated):
    machine = machines()
    new = migrated(machine)
    expect_blocked(new, FIRST.message)
    map_events(new)
    expect_delivery(new, FIRST.message, *FIRST.pending)
