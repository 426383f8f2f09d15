# SPDX-License-Identifier: GPL-2.0-only
"""The IOAPIC of the model: lines, pins, Remote IRR, and the EOIs that reach an IOAPIC."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.apic import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.ioapic import (
    LEVEL,
    MASKED,
    PINS,
    REMOTE_IRR,
    Entry,
    EoiFilter,
    Ioapic,
    entry_of,
    message_of,
)
from helpers.apic.model import REFERENCE, Model
from helpers.apic.topology import Topology

PIN = 20
BIT = 1 << PIN
TO_1 = 1 << 56
LOSES = replace(REFERENCE, moved_routes_exit=False)
KEEPS = replace(REFERENCE, stale_eois_exit_once=False)


def level(vector: int = 0x61, destination: int = 1) -> Message:
    return Message(vector=vector, destination=destination, trigger_mode=TriggerMode.LEVEL)


@pytest.fixture
def ioapic() -> Ioapic:
    """All pins masked, two vCPUs."""
    made = Ioapic()
    made.topology = Topology.parse("0/ldr=0x1000000 1/ldr=0x2000000")
    return made


def program(ioapic: Ioapic, entry: int, irr: int = 0) -> None:
    entries = [MASKED] * PINS
    entries[PIN] = entry
    ioapic.load(entries, irr)


def vectors(ioapic: Ioapic) -> list[list[int]]:
    """Return IRR of each vCPU."""
    return [sorted(vcpu.irr) for vcpu in ioapic.topology.vcpus]


# --- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, message",
    [
        (0x61, Message(vector=0x61)),
        (TO_1 | LEVEL | 0x61, level()),
        (0x461, Message(vector=0x61, delivery_mode=DeliveryMode.NMI)),
        (3 << 56 | 0x841, Message(destination=3, destination_mode=DestinationMode.LOGICAL)),
        (MASKED | REMOTE_IRR | 1 << 13 | 0x41, Message()),
    ],
)
def test_message_of_an_entry(entry, message):
    assert message_of(entry) == message


def test_entry_of_a_message():
    fields = {"delivery_mode": DeliveryMode.NMI, "destination_mode": DestinationMode.LOGICAL}
    assert entry_of(Message(vector=0x61, destination=3, **fields)) == 3 << 56 | 0xC61
    assert entry_of(level()) == TO_1 | LEVEL | 0x61


# --- lines ----------------------------------------------------------------------------------------


def test_edge_is_sent_once(ioapic):
    program(ioapic, TO_1 | 0x61)
    assert [ioapic.set_line(PIN, 1), ioapic.set_line(PIN, 1)] == [1, 0]
    assert [ioapic.set_line(PIN, 0), ioapic.set_line(PIN, 1)] == [1, 1]
    assert vectors(ioapic) == [[], [0x61]]
    assert len(ioapic.sent) == 2


def test_sent_edge_is_not_shown(ioapic):
    program(ioapic, TO_1 | 0x61)
    ioapic.set_line(PIN, 1)
    assert (ioapic.irr, ioapic.shown_irr) == (BIT, 0)


def test_level_waits_for_the_eoi(ioapic):
    program(ioapic, TO_1 | LEVEL | 0x61)
    assert [ioapic.set_line(PIN, 1), ioapic.set_line(PIN, 1)] == [1, -1]
    assert ioapic.entries[PIN] & REMOTE_IRR
    assert (ioapic.shown_irr, len(ioapic.sent)) == (BIT, 1)


def test_masked_pin_sends_when_it_is_unmasked(ioapic):
    program(ioapic, MASKED | TO_1 | LEVEL | 0x61)
    assert ioapic.set_line(PIN, 1) == -1
    program(ioapic, TO_1 | LEVEL | 0x61, ioapic.shown_irr)
    assert vectors(ioapic) == [[], [0x61]]


@pytest.mark.parametrize("destination, remote_irr", [(5, 0), (0xFF, REMOTE_IRR)])
def test_remote_irr_is_set_unless_the_message_is_blocked(ioapic, destination, remote_irr):
    program(ioapic, destination << 56 | LEVEL | 0x61)
    ioapic.set_line(PIN, 1)
    assert ioapic.entries[PIN] & REMOTE_IRR == remote_irr


def test_remote_irr_is_set_where_a_search_finds_nobody(ioapic):
    ioapic.topology = Topology.parse("0/disabled")
    program(ioapic, 0xFF << 56 | LEVEL | 0x61)
    assert ioapic.set_line(PIN, 1) == -1
    assert ioapic.entries[PIN] & REMOTE_IRR


# --- EOIs -----------------------------------------------------------------------------------------


def run(
    topology: str,
    routes: list[Message],
    eois: EoiFilter,
    ioapic: Ioapic | None = None,
    switches: object = REFERENCE,
) -> Entry:
    """Enter vCPU 0."""
    return Entry(Topology.parse(topology), 0, eois, routes, ioapic, switches)  # type: ignore[arg-type]


def due() -> EoiFilter:
    return EoiFilter(is_due=True)


def test_eoi_of_a_routed_vector_exits():
    entry = run("0/irr=0x61+0x41", [level(destination=0)], due())
    assert (entry.vectors, entry.exits) == ([0x61, 0x41], [0x61])
    assert entry.vcpu == Topology.parse("0").vcpus[0]


def test_eoi_of_a_vector_that_another_vcpu_is_routed_does_not_exit():
    eois = due()
    assert run("0/irr=0x41 1", [level()], eois).exits == []
    assert run("0/irr=0x61 1", [level()], eois).exits == []


def test_eoi_of_a_moved_route_exits_once():
    eois = due()
    assert run("0/irr=0x61 1", [level()], eois).exits == [0x61]
    assert run("0/irr=0x61 1", [level()], eois).exits == []


def test_eoi_of_a_moved_route_exits_for_ever():
    eois = due()
    for _ in range(2):
        assert run("0/irr=0x61 1", [level()], eois, switches=KEEPS).exits == [0x61]


def test_eoi_of_a_moved_route_is_lost():
    assert run("0/irr=0x61 1", [level()], due(), switches=LOSES).exits == []


def test_overlooked_vector_is_not_taken(ioapic):
    program(ioapic, LEVEL | REMOTE_IRR | 0x61)
    eois, topology = due(), Topology.parse("0/irr=0x61/tmr=0x61")
    entry = Entry(topology, 0, eois, ioapic.level_routes(), ioapic, is_overlooked=True)
    assert (entry.vectors, entry.vcpu, eois.is_due) == ([], topology.vcpus[0], False)
    assert ioapic.entries[PIN] & REMOTE_IRR


def test_disabled_lapic_is_not_scanned():
    eois = due()
    run("0/disabled/irr=0x61", [level(destination=0)], eois)
    assert (eois.vectors, eois.is_due) == (frozenset(), False)


@pytest.mark.parametrize(
    "vcpu, remote_irr",
    [
        ("0/irr=0x61/tmr=0x61", 0),
        ("0/irr=0x61", REMOTE_IRR),
        ("0/irr=0x61/tmr=0x61/eoi-suppressed", REMOTE_IRR),
        ("0/irr=0x41/tmr=0x41", REMOTE_IRR),
    ],
)
def test_eoi_of_a_level_vector_clears_remote_irr(ioapic, vcpu, remote_irr):
    program(ioapic, LEVEL | REMOTE_IRR | 0x61)
    run(vcpu, ioapic.level_routes(), due(), ioapic)
    assert ioapic.entries[PIN] & REMOTE_IRR == remote_irr


def test_eoi_sends_the_edge_of_a_pin_again(ioapic):
    entries = [MASKED] * PINS
    entries[PIN], entries[PIN + 1] = 0x61, LEVEL | 0x61
    ioapic.topology = Topology.parse("0")
    ioapic.load(entries, 0)
    ioapic.set_line(PIN, 1)
    entry = run("0/irr=0x61/tmr=0x61", ioapic.level_routes(), due(), ioapic)
    assert entry.vectors == [0x61, 0x61]


def test_level_vector_of_another_vcpu_is_that_vcpus(ioapic):
    program(ioapic, TO_1 | LEVEL | REMOTE_IRR | 0x61)
    eois = EoiFilter()
    eois.scan(ioapic.topology.vcpus[0], ioapic.level_routes(), Model(ioapic.topology), moved=True)
    assert eois.vectors == frozenset()
