# SPDX-License-Identifier: GPL-2.0-only
"""An ITS that the guest sets up by its own loads and stores, as a host does by the ioctl.

Clauses: arm.guest-tables.
"""

import pytest

from helpers.guest import expect
from helpers.its import Message, commands, registers
from helpers.verdicts import clause
from suites.arm64.common import (
    EVENTS,
    FIRST,
    deliver_before,
    expect_blocked,
    expect_delivery,
    expect_taken,
)


def write(machine, offset, value, cpu=0):
    """Have the guest write a 64-bit register of the ITS."""
    machine[cpu].operate("WRITE64", machine.its.address + offset, value)


def command(machine, *given, cpu=0):
    """Have the guest execute commands."""
    write(machine, registers.GITS_CWRITER, machine.its.queue(*given), cpu)


@pytest.fixture
def by_guest(machines):
    """A machine whose guest sets up redistributors and ITS, and maps the events of EVENTS."""
    machine = machines(ready=False)
    machine.place()
    machine.initialize()
    machine.set_gicd(registers.GICD_CTLR_ARE_DS | registers.GICD_CTLR_ENABLE_GRP1)
    machine.write_configuration()
    for cpu in machine.cpus:
        for offset, value in machine.lpi_tables(cpu).items():
            cpu.operate("WRITE64", cpu.redistributor + offset, value)
        control = cpu.redistributor + registers.GICR_CTLR
        cpu.operate("WRITE32", control, registers.GICR_CTLR_ENABLE_LPIS)
    for offset, value in machine.its.bases().items():
        write(machine, offset, value)
    machine[0].operate("WRITE32", machine.its.address + registers.GITS_CTLR, 1)
    command(machine, *(commands.mapc(index, index) for index in range(2)))
    for devid in (1, 2):
        command(machine, commands.mapd(devid, machine.its.new_itt(5), 5))
    for event in EVENTS:
        command(machine, commands.mapti(event.devid, event.event, event.lpi, event.vcpu))
    return machine


EACH = pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.devid}-{event.event}")


@clause("arm.guest-tables")
@EACH
def test_event_mapped_by_the_guest_is_delivered(by_guest, event):
    expect_delivery(by_guest, event.message, *event.pending)


@clause("arm.guest-tables")
@pytest.mark.parametrize("devid, event", [(1, 2), (1, 32), (3, 0), (0, 0)])
def test_event_not_mapped_by_the_guest_is_blocked(by_guest, devid, event):
    expect_blocked(by_guest, Message(devid, event))


@clause("arm.guest-tables")
@pytest.mark.parametrize("cpu", [0, 1])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_event_that_the_guest_discards_is_blocked(machine, again, cpu):
    deliver_before(machine, again)
    command(machine, commands.discard(FIRST.devid, FIRST.event), cpu=cpu)
    expect_blocked(machine, FIRST.message)


@clause("arm.guest-tables")
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_event_that_the_guest_moves_has_the_new_vcpu(machine, again):
    deliver_before(machine, again)
    command(machine, commands.movi(FIRST.devid, FIRST.event, 1))
    expect_delivery(machine, FIRST.message, 1, FIRST.lpi)


@clause("arm.guest-tables")
def test_int_by_the_guest_is_taken(machine):
    command(machine, commands.int_(1, 1))
    expect_taken(machine, (1, FIRST.lpi + 1))


@clause("arm.guest-tables")
def test_guest_that_disables_the_its_gets_nothing(machine):
    machine[0].operate("WRITE32", machine.its.address + registers.GITS_CTLR, 0)
    machine.signal(FIRST.message).reached_nobody()
    expect_taken(machine)
    machine[0].operate("WRITE32", machine.its.address + registers.GITS_CTLR, 1)
    expect_delivery(machine, FIRST.message, *FIRST.pending)


READABLE = {
    "GITS_TYPER": registers.GITS_TYPER,
    "GITS_CBASER": registers.GITS_CBASER,
    "GITS_CWRITER": registers.GITS_CWRITER,
    "GITS_CREADR": registers.GITS_CREADR,
    "GITS_BASER0": registers.GITS_BASER,
    "GITS_BASER1": registers.GITS_BASER + 8,
    "GITS_BASER2": registers.GITS_BASER + 16,
}


@clause("arm.guest-tables")
@pytest.mark.parametrize("name", READABLE)
def test_guest_and_host_read_the_same_register(machine, name):
    offset = READABLE[name]
    guest = machine[0].operate("READ64", machine.its.address + offset)
    expect(name, f"{guest:#x}", f"{machine.its[offset]:#x}")


@clause("arm.guest-tables")
def test_guest_and_host_read_the_same_control_register(machine):
    guest = machine[0].operate("READ32", machine.its.address + registers.GITS_CTLR)
    expect("GITS_CTLR", f"{guest:#x}", f"{machine.its[registers.GITS_CTLR]:#x}")


@clause("arm.guest-tables")
@pytest.mark.parametrize("offset", [0x70, 0x78], ids=["GICR_PROPBASER", "GICR_PENDBASER"])
@pytest.mark.parametrize("index", [0, 1])
def test_guest_and_host_read_the_same_redistributor(machine, offset, index):
    cpu = machine[index]
    guest = cpu.operate("READ64", cpu.redistributor + offset)
    expect("value", f"{guest:#x}", f"{cpu.get_gicr(offset) | cpu.get_gicr(offset + 4) << 32:#x}")


@clause("arm.guest-tables")
def test_store_of_the_guest_to_the_doorbell_is_no_message_of_a_device(machine):
    machine[0].operate("WRITE32", machine.its.doorbell, FIRST.event)
    expect("pending", machine.pending(), frozenset())
