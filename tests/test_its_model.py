# SPDX-License-Identifier: GPL-2.0-only
"""The model of the ITS, compared with cases written by hand; commands, byte by byte."""

from __future__ import annotations

import pytest

from helpers.its import Message, commands
from helpers.its.message import FIRST_ITS
from helpers.its.model import Model, Setting

SECOND_ITS = FIRST_ITS + 0x20000


@pytest.fixture
def model() -> Model:
    """Two ITSs. Device 1 has 4 events in the first; event 0 is LPI 8192 in collection 0, vCPU 0."""
    model = Model.of(2, [FIRST_ITS, SECOND_ITS])
    model.mapd(model.itss[0], 1, 2)
    model.mapti(model.itss[0], 1, 0, 8192, 0)
    model.mapti(model.itss[0], 1, 3, 8195, 1)
    return model


OUTCOMES = {
    "mapped": (Message(1, 0), "1", (0, 8192)),
    "last-event": (Message(1, 3), "1", (1, 8195)),
    "other-address-of-the-frame": (Message(1, 0, FIRST_ITS), "1", (0, 8192)),
    "event-not-mapped": (Message(1, 1), "0", None),
    "event-beyond": (Message(1, 4), "0", None),
    "event-alias": (Message(1, 0x10000), "0", None),
    "device-not-mapped": (Message(2, 0), "0", None),
    "other-its": (Message(1, 0, SECOND_ITS + 0x10040), "0", None),
    "below": (Message(1, 0, FIRST_ITS - 1), "-1 EINVAL", None),
    "above": (Message(1, 0, SECOND_ITS + 0x20000), "-1 EINVAL", None),
    "no-devid": (Message(1, 0, flags=0), "-1 EINVAL", None),
    "undefined-flag": (Message(1, 0, flags=3), "-1 EINVAL", None),
}


@pytest.mark.parametrize("message, returned, lpi", OUTCOMES.values(), ids=OUTCOMES)
def test_outcome(model, message, returned, lpi):
    outcome = model.signal(message)
    assert (outcome.returned, outcome.lpi) == (returned, lpi)
    assert model.pending_lpis() == ({lpi} if lpi else set())


def test_no_its_is_no_device():
    assert Model.of(1, []).predict(Message()).returned == "-1 ENODEV"


def test_disabled_its_is_busy(model):
    model.itss[0].enabled = False
    assert model.predict(Message(2, 0)).returned == "-1 EBUSY"


def test_disabled_lpis_are_busy_on_their_vcpu_only(model):
    model.vcpus[0].lpis_enabled = False
    assert model.predict(Message(1, 0)).returned == "-1 EBUSY"
    assert model.predict(Message(1, 3)).returned == "1"


UNMAPPINGS = {
    "discard": lambda model, its: model.discard(its, 1, 0),
    "mapd": lambda model, its: model.mapd(its, 1, 2, valid=False),
    "mapd-again": lambda model, its: model.mapd(its, 1, 2),
    "mapc": lambda model, its: model.mapc(its, 0, 0, valid=False),
}


@pytest.mark.parametrize("unmap", UNMAPPINGS.values(), ids=UNMAPPINGS)
def test_unmapped_event_is_blocked(model, unmap):
    unmap(model, model.itss[0])
    assert model.predict(Message(1, 0)).returned == "0"


IGNORED = {
    "device-beyond": lambda model, its: model.mapd(its, 8192, 2),
    "too-many-events": lambda model, its: model.mapd(its, 5, 17),
    "no-such-vcpu": lambda model, its: model.mapc(its, 5, 2),
    "event-beyond": lambda model, its: model.mapti(its, 1, 4, 9000, 0),
    "no-lpi": lambda model, its: model.mapti(its, 1, 1, 8191, 0),
    "mapped-already": lambda model, its: model.mapti(its, 1, 0, 9000, 1),
    "no-device": lambda model, its: model.mapti(its, 2, 0, 9000, 1),
    "to-an-unmapped-collection": lambda model, its: model.movi(its, 1, 0, 7),
    "discard-of-nothing": lambda model, its: model.discard(its, 1, 1),
}


@pytest.mark.parametrize("command", IGNORED.values(), ids=IGNORED)
def test_command_is_ignored(model, command):
    before = repr(model.itss)
    command(model, model.itss[0])
    assert repr(model.itss) == before


def test_moved_event_takes_its_pending_lpi_along(model):
    model.signal(Message(1, 0))
    model.movi(model.itss[0], 1, 0, 1)
    assert model.pending_lpis() == {(1, 8192)}
    assert model.predict(Message(1, 0)).lpi == (1, 8192)


def test_configuration_counts_when_read(model):
    model.table[8192] = Setting(enabled=False)
    model.signal(Message(1, 0))
    assert model.take() == [(0, 8192)]
    model.inv(model.itss[0], 1, 0)
    model.signal(Message(1, 0))
    assert model.take() == []
    model.table[8192] = Setting()
    model.invall(model.itss[0], 0)
    assert model.take() == [(0, 8192)]


def test_masked_vcpu_takes_nothing(model):
    model.signal(Message(1, 0))
    model.vcpus[0].masked = True
    assert model.take() == []
    model.vcpus[0].masked = False
    assert model.take() == [(0, 8192)]


def test_int_and_clear(model):
    model.int_(model.itss[0], 1, 3)
    assert model.pending_lpis() == {(1, 8195)}
    model.clear(model.itss[0], 1, 3)
    assert model.pending_lpis() == set()


COMMANDS = {
    "mapd": (commands.mapd(7, 0x40500000, 5), (0x7_00000008, 4, 1 << 63 | 0x40500000, 0)),
    "mapd-invalid": (commands.mapd(7, 0, 5, valid=False), (0x7_00000008, 4, 0, 0)),
    "mapc": (commands.mapc(3, 2), (9, 0, 1 << 63 | 2 << 16 | 3, 0)),
    "mapti": (commands.mapti(7, 1, 8192, 3), (0x7_0000000A, 8192 << 32 | 1, 3, 0)),
    "mapi": (commands.mapi(7, 9000, 3), (0x7_0000000B, 9000, 3, 0)),
    "movi": (commands.movi(7, 1, 3), (0x7_00000001, 1, 3, 0)),
    "movall": (commands.movall(1, 2), (0x0E, 0, 1 << 16, 2 << 16)),
    "discard": (commands.discard(7, 1), (0x7_0000000F, 1, 0, 0)),
    "inv": (commands.inv(7, 1), (0x7_0000000C, 1, 0, 0)),
    "invall": (commands.invall(3), (0x0D, 0, 3, 0)),
    "int": (commands.int_(7, 1), (0x7_00000003, 1, 0, 0)),
    "clear": (commands.clear(7, 1), (0x7_00000004, 1, 0, 0)),
    "sync": (commands.sync(2), (5, 0, 2 << 16, 0)),
}


@pytest.mark.parametrize("command, words", COMMANDS.values(), ids=COMMANDS)
def test_command(command, words):
    assert len(command) == commands.SIZE
    found = tuple(int.from_bytes(command[at : at + 8], "little") for at in range(0, 32, 8))
    assert found == words


def test_message_is_the_structure_of_the_ioctl():
    msi = Message(7, 5, 0x1_08090040, pad=b"\x01" * 12).msi
    assert (msi.address_lo, msi.address_hi, msi.data) == (0x08090040, 1, 5)
    assert (msi.flags, msi.devid, bytes(msi.pad)) == (1, 7, b"\x01" * 12)
