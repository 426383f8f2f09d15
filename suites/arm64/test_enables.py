# SPDX-License-Identifier: GPL-2.0-only
"""The guest's enable bits, GITS_CTLR.Enabled and GICR_CTLR.EnableLPIs; the reset of an ITS.

Clauses: arm.its-disabled-blocked, arm.its-enabled-again, arm.lpis-disabled-blocked,
arm.lpis-disabled-others, arm.lpis-disabled-silent, arm.reset.

A guest that disables the ITS or its LPIs blocks the message: api.rst has 0 for that.
"""

import pytest

from helpers.guest import expect
from helpers.its import Message, commands, registers
from helpers.kvm import abi_arm64 as arm
from helpers.verdicts import clause, deviation
from suites.arm64.common import (
    EACH_EVENT,
    EVENTS,
    FIRST,
    HISTORY,
    ON_1,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_taken,
    map_events,
    move,
)

# --- arm.its-disabled-blocked and arm.its-enabled-again -------------------------------------------


@clause("arm.its-disabled-blocked")
@deviation("arm-its-disabled-fails")
@HISTORY
@EACH_EVENT
def test_message_to_a_disabled_its_is_blocked(machine, event, again):
    deliver_before(machine, again)
    machine.its.enabled = False
    expect_blocked(machine, event.message)


@clause("arm.its-disabled-blocked")
@deviation("arm-its-disabled-fails")
@pytest.mark.parametrize("devid, event", [(3, 0), (1, 2), (0xFFFFFFFF, 0), (1, 0xFFFFFFFF)])
def test_unmapped_message_to_a_disabled_its_is_blocked(machine, devid, event):
    machine.its.enabled = False
    expect_blocked(machine, Message(devid, event))


@clause("arm.its-enabled-again")
@HISTORY
@EACH_EVENT
def test_message_to_an_its_that_is_enabled_again_is_delivered(machine, event, again):
    deliver_before(machine, again)
    machine.its.enabled = False
    machine.signal(event.message).reached_nobody()
    machine.its.enabled = True
    expect_taken(machine)
    expect_delivery(machine, event.message, *event.pending)


@clause("arm.its-enabled-again")
def test_lpi_pending_when_the_its_is_disabled_is_taken(machine):
    machine.send(FIRST.message)
    machine.its.enabled = False
    expect_taken(machine, FIRST.pending)


# --- arm.lpis-disabled-blocked and arm.lpis-disabled-others ---------------------------------------


@clause("arm.lpis-disabled-blocked")
@deviation("arm-lpis-disabled-fails")
@HISTORY
@EACH_EVENT
def test_message_to_a_vcpu_with_lpis_disabled_is_blocked(machine, event, again):
    deliver_before(machine, again)
    machine[event.vcpu].lpis_enabled = False
    machine.signal(event.message).blocked()
    expect_taken(machine)


@clause("arm.lpis-disabled-others")
@HISTORY
@EACH_EVENT
def test_message_to_a_vcpu_with_lpis_disabled_reaches_nobody(machine, event, again):
    deliver_before(machine, again)
    machine[event.vcpu].lpis_enabled = False
    machine.signal(event.message)
    expect_taken(machine)
    machine[event.vcpu].lpis_enabled = True
    expect_delivery(machine, event.message, *event.pending)


@clause("arm.lpis-disabled-others")
@HISTORY
@EACH_EVENT
def test_lpis_of_another_vcpu_are_delivered(machine, event, again):
    deliver_before(machine, again)
    machine[1 - event.vcpu].lpis_enabled = False
    machine.signal(event.message).delivered()
    expect_taken(machine, event.pending)


@clause("arm.lpis-disabled-others")
@pytest.mark.parametrize("disabled", range(8))
def test_one_of_eight_vcpus_has_lpis_disabled(machines, disabled):
    machine = machines(vcpus=8)
    machine.its.map_device(1)
    messages = [machine.map(1, index, 9000 + index, index) for index in range(8)]
    machine[disabled].lpis_enabled = False
    for index, message in enumerate(messages):
        expect(f"vCPU {index} delivered", machine.signal(message).result > 0, index != disabled)
    expect_taken(machine, *((index, 9000 + index) for index in range(8) if index != disabled))


@clause("arm.lpis-disabled-others")
@deviation("arm-lpis-disabled-drops-moved")
@HISTORY
@pytest.mark.parametrize("how", ["movi", "movall"])
def test_pending_lpi_that_was_moved_away_is_taken(machine, how, again):
    deliver_before(machine, again)
    machine.signal(FIRST.message).returns(1).pends(FIRST.pending)
    move(machine, how)
    machine[0].lpis_enabled = False
    expect_taken(machine, (1, FIRST.lpi))


# --- arm.lpis-disabled-silent ---------------------------------------------------------------------


MOVED = pytest.mark.parametrize("how", ["movi", "mapc"])


@clause("arm.lpis-disabled-silent")
@MOVED
def test_first_message_of_an_event_moved_to_a_vcpu_with_lpis_disabled(machine, how):
    machine[1].lpis_enabled = False
    move(machine, how)
    machine.signal(FIRST.message)
    expect_taken(machine)


@clause("arm.lpis-disabled-silent")
@pytest.mark.parametrize(
    "how", ["movi", pytest.param("mapc", marks=deviation("arm-mapc-to-lpis-disabled"))]
)
def test_message_of_an_event_moved_to_a_vcpu_with_lpis_disabled(machine, how):
    machine[1].lpis_enabled = False
    deliver_before(machine, True, FIRST)
    move(machine, how)
    machine.signal(FIRST.message)
    expect_taken(machine)


# --- arm.reset ------------------------------------------------------------------------------------


@clause("arm.reset")
@HISTORY
@EACH_EVENT
def test_reset_its_delivers_nothing(machine, event, again):
    deliver_before(machine, again)
    machine.its.control(arm.KVM_DEV_ARM_ITS_CTRL_RESET)
    sent = machine.signal(event.message).reached_nobody()
    expect("delivered", sent.result > 0, False)
    expect_taken(machine)


@clause("arm.reset")
@HISTORY
def test_reset_its_that_is_enabled_again_has_nothing_mapped(machine, again):
    deliver_before(machine, again)
    machine.its.control(arm.KVM_DEV_ARM_ITS_CTRL_RESET)
    machine.its.set_up()
    for event in EVENTS:
        expect_blocked(machine, event.message)


@clause("arm.reset")
@HISTORY
def test_reset_its_can_be_set_up_again(machine, again):
    deliver_before(machine, again)
    machine.its.control(arm.KVM_DEV_ARM_ITS_CTRL_RESET)
    machine.its.set_up()
    machine.its.command(*(commands.mapc(index, index) for index in range(2)))
    map_events(machine)
    for event in EVENTS:
        expect_delivery(machine, event.message, *event.pending)


@clause("arm.reset")
@pytest.mark.parametrize("offset", [0x0, 0x80, 0x88, 0x90, 0x100, 0x108])
def test_reset_its_has_no_valid_register(machine, offset):
    machine.its.control(arm.KVM_DEV_ARM_ITS_CTRL_RESET)
    expected = {0x0: registers.GITS_CTLR_ENABLED}.get(offset, registers.VALID)
    mask = 0xFFFFF if offset in (0x88, 0x90) else expected
    expect(f"register {offset:#x}", machine.its[offset] & mask, 0)


@clause("arm.reset")
@HISTORY
def test_reset_of_one_its_leaves_the_other(two_itss, again):
    first, second = two_itss.itss
    second.map_device(FIRST.devid)
    other = two_itss.map(FIRST.devid, FIRST.event, 9000, 1, second)
    if again:
        for message in (FIRST.message, ON_1.message, other):
            two_itss.send(message)
        two_itss.take()
    first.control(arm.KVM_DEV_ARM_ITS_CTRL_RESET)
    expect_delivery(two_itss, other, 1, 9000)
    two_itss.signal(FIRST.message).reached_nobody()
