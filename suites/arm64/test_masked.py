# SPDX-License-Identifier: GPL-2.0-only
"""An LPI that the guest does not take now stays pending, and is taken when the guest can.

Clauses: arm.masked-pends, arm.distributor-enable, arm.configuration.
"""

import pytest

from helpers.arm64 import layout
from helpers.arm64.running import RunningArm64
from helpers.guest import expect
from helpers.its import commands
from helpers.its.registers import GICD_CTLR, GICD_CTLR_ARE_DS, GICD_CTLR_ENABLE_GRP1
from helpers.kvm import abi
from helpers.verdicts import clause, deviation, parallel
from suites import each
from suites.arm64.common import (
    EACH_EVENT,
    FIRST,
    HISTORY,
    deliver_before,
    expect_delivery,
    expect_taken,
)

# --- arm.masked-pends -----------------------------------------------------------------------------


def mask(machine, what):
    """Keep the vCPU of FIRST from taking the LPI; return a function that lets it."""
    cpu = machine[FIRST.vcpu]
    match what:
        case "pstate":
            cpu.operate("MASK")
            return lambda: cpu.operate("UNMASK")
        case "pmr":
            cpu.operate("PMR", value=0)
            return lambda: cpu.operate("PMR", value=0xFF)
        case "pmr-equal":
            cpu.operate("PMR", value=0xA0)
            return lambda: cpu.operate("PMR", value=0xA8)
        case "igrpen1":
            cpu.operate("IGRPEN1", value=0)
            return lambda: cpu.operate("IGRPEN1", value=1)


WAYS = pytest.mark.parametrize("what", ["pstate", "pmr", "pmr-equal", "igrpen1"])


@clause("arm.masked-pends")
@WAYS
@HISTORY
def test_masked_lpi_pends_and_is_taken_when_unmasked(machine, what, again):
    deliver_before(machine, again)
    cpu = machine[FIRST.vcpu]
    before = len(cpu.taken)
    unmask = mask(machine, what)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine)
    expect("pending", machine.pending(), frozenset({FIRST.pending}))
    unmask()
    machine.take()
    expect("INTIDs", cpu.taken[before:], [FIRST.lpi])
    expect("pending", machine.pending(), frozenset())


@clause("arm.masked-pends")
@WAYS
def test_messages_of_a_masked_lpi_coalesce(machine, what):
    unmask = mask(machine, what)
    before = len(machine[FIRST.vcpu].taken)
    for _ in range(3):
        machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine)
    unmask()
    machine.take()
    expect("INTIDs", machine[FIRST.vcpu].taken[before:], [FIRST.lpi])


@clause("arm.masked-pends")
@parallel
@HISTORY
def test_lpi_of_a_stopped_vcpu_pends_and_is_taken_when_runnable(machine, again):
    deliver_before(machine, again)
    machine[0].vcpu.set_mp_state(abi.KVM_MP_STATE_STOPPED)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    with RunningArm64(machine[0]) as thread:
        thread.wait_until_asleep()
        expect("woken", thread.kick(), False)
    machine[0].vcpu.set_mp_state(abi.KVM_MP_STATE_RUNNABLE)
    expect_taken(machine, FIRST.pending)


@clause("arm.masked-pends")
@EACH_EVENT
def test_highest_pending_interrupt_is_the_lpi(machine, event):
    cpu = machine[event.vcpu]
    cpu.operate("MASK")
    machine.signal(event.message).delivered()
    expect("ICC_HPPIR1_EL1", cpu.operate("HPPIR1"), event.lpi)
    cpu.operate("UNMASK")
    expect("INTIDs", cpu.taken, [event.lpi])


# --- arm.distributor-enable -----------------------------------------------------------------------

WRITERS = pytest.mark.parametrize("writer", ["host", "guest"])


def set_group_1(machine, writer, enabled):
    """Write GICD_CTLR, by KVM_SET_DEVICE_ATTR or by a store of vCPU 1."""
    control = GICD_CTLR_ARE_DS | (GICD_CTLR_ENABLE_GRP1 if enabled else 0)
    if writer == "host":
        machine.set_gicd(control)
    else:
        machine[1].operate("WRITE32", layout.GICD + GICD_CTLR, control)


@clause("arm.distributor-enable")
@WRITERS
@HISTORY
def test_lpi_pends_while_the_distributor_is_disabled(machine, writer, again):
    deliver_before(machine, again)
    set_group_1(machine, writer, False)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine)


@clause("arm.distributor-enable")
@deviation("arm-distributor-enable-forgets")
@WRITERS
@HISTORY
def test_lpi_made_pending_is_taken_when_the_distributor_is_enabled(machine, writer, again):
    deliver_before(machine, again)
    set_group_1(machine, writer, False)
    machine.signal(FIRST.message).delivered()
    set_group_1(machine, writer, True)
    expect_taken(machine, FIRST.pending)


@clause("arm.distributor-enable")
@WRITERS
@HISTORY
def test_lpi_after_the_distributor_is_enabled_again_is_taken(machine, writer, again):
    deliver_before(machine, again)
    set_group_1(machine, writer, False)
    set_group_1(machine, writer, True)
    expect_delivery(machine, FIRST.message, *FIRST.pending)


# --- arm.configuration ----------------------------------------------------------------------------


def reread(machine, how):
    """Have the ITS read the configuration of FIRST's LPI again."""
    one = commands.inv(FIRST.devid, FIRST.event)
    machine.its.command(one if how == "inv" else commands.invall(FIRST.vcpu))


REREAD = pytest.mark.parametrize("how", ["inv", "invall"])


@clause("arm.configuration")
@HISTORY
@REREAD
def test_disabled_lpi_pends_and_is_taken_when_enabled(machine, how, again):
    deliver_before(machine, again)
    machine.configure_lpi(FIRST.lpi, enabled=False)
    reread(machine, how)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine)
    machine.configure_lpi(FIRST.lpi)
    reread(machine, how)
    expect_taken(machine, FIRST.pending)


@clause("arm.configuration")
@REREAD
def test_enabled_lpi_is_not_taken_before_the_configuration_is_read_again(machine, how):
    machine.configure_lpi(FIRST.lpi, enabled=False)
    reread(machine, how)
    machine.configure_lpi(FIRST.lpi)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine)


@clause("arm.configuration")
def test_disabled_lpi_is_taken_until_the_configuration_is_read_again(machine):
    machine.configure_lpi(FIRST.lpi, enabled=False)
    machine.signal(FIRST.message).delivered().pends(FIRST.pending)
    expect_taken(machine, FIRST.pending)


@clause("arm.configuration")
@each.value("lpi", [9000, 0xFF00])
def test_lpi_disabled_when_mapped_pends(machine, lpi):
    machine.configure_lpi(lpi, enabled=False)
    message = machine.map(2, 12, lpi, 1)
    machine.signal(message).delivered().pends((1, lpi))
    expect_taken(machine)
    machine.configure_lpi(lpi)
    machine.its.command(commands.inv(2, 12))
    expect_taken(machine, (1, lpi))


@clause("arm.configuration")
def test_disabling_one_lpi_leaves_the_others(machine):
    machine.configure_lpi(FIRST.lpi, enabled=False)
    reread(machine, "inv")
    machine.map(1, 9, 9000, 0)
    machine.signal(FIRST.message).delivered()
    machine.signal(machine.map(1, 10, 9001, 0)).delivered()
    expect_taken(machine, (0, 9001))
