# SPDX-License-Identifier: GPL-2.0-only
"""The ITS and its model: messages around every boundary, and generated sequences.

Clauses: arm.model-messages, arm.model-sequences.
"""

from itertools import product

import pytest

from helpers.arm64 import layout
from helpers.arm64.pair import Pair
from helpers.arm64.sequence import Sequence
from helpers.its import Message
from helpers.its.registers import GITS_TRANSLATER, ITS_SIZE
from helpers.verdicts import clause
from suites.arm64.common import HISTORY

SEEDS = range(8)
STEPS = 250

DEVIDS = [0, 1, 2, 6, 7, 8, 255, 256, 8190, 8191, 8192, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF]
EVENTS = [0, 1, 2, 3, 4, 31, 32, 255, 256, 0xFFFF, 0x10000, 0x10001, 0x80000000, 0xFFFFFFFF]
OFFSETS = [-1, 0, GITS_TRANSLATER, GITS_TRANSLATER + 4, ITS_SIZE - 1, ITS_SIZE, 1 << 32]


@pytest.fixture
def swept(machines):
    """Devices with tables of four sizes; events mapped at the ends of each, and the model."""
    pair = Pair(machines())
    lpi = 8192
    for devid, bits in ((0, 1), (1, 2), (7, 5), (8191, 16)):
        pair.mapd(0, devid, bits)
        for event in sorted({0, 1, (1 << bits) - 1}):
            pair.command("mapti", 0, devid, event, lpi, lpi % 2)
            lpi += 1
    pair.command("mapti", 0, 7, 2, 9000, 5)
    return pair


@clause("arm.model-messages")
@HISTORY
@pytest.mark.parametrize("devid", DEVIDS, ids="device{:#x}".format)
def test_each_event_of_a_device(swept, devid, again):
    for event in EVENTS * (1 + again):
        swept.signal(Message(devid, event))
    swept.take()


@clause("arm.model-messages")
@pytest.mark.parametrize("offset", OFFSETS, ids="{:#x}".format)
def test_each_event_at_an_address(swept, offset):
    address = layout.ITS[0] + offset
    for devid, event in product(DEVIDS, EVENTS):
        swept.signal(Message(devid, event, address))
    swept.take()


@clause("arm.model-sequences")
@pytest.mark.parametrize("vcpus, itss", [(1, 1), (2, 1), (8, 2)], ids=["1-1", "2-1", "8-2"])
@pytest.mark.parametrize("seed", SEEDS, ids="seed{}".format)
def test_sequence(machines, seed, vcpus, itss):
    Sequence(seed, machines, vcpus, itss).run(STEPS)
