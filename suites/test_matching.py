# SPDX-License-Identifier: GPL-2.0-only
"""Destinations that KVM compares with each LAPIC: by search, and for the EOI of a route.

Clauses: dest.lowest-priority, dest.mixed-modes, dest.round-robin, split.eoi-exit,
split.msi-routes-only.

KVM finds most destinations in a map. Broadcasts, VMs that mix APIC modes, and the scan of the
routes of IOAPIC pins compare the destination with one LAPIC after the other.
"""

import pytest

from helpers.apic import ApicMode
from helpers.apic.lapic import DFR_CLUSTER
from helpers.guest import expect, sint_route
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import NEEDS_SYNIC, ROUND_ROBIN, expect_eoi_exit, outcome_of, route_pin_to, to
from suites.names import BOTH, DISABLE_QUIRK, FIXED, LOGICAL, LOWEST, NMI, USE_32BIT_IDS

# --- the last x2APIC cluster ends with the highest APIC ID ----------------------------------------


@clause("dest.lowest-priority")
@each.value("members", [1, 2, 3, 15, 16], "{}-members")
def test_last_cluster_ends_with_the_highest_id(machines, members):
    ids = (0, *range(256, 256 + members))
    machine = machines(vcpu_ids=ids, apic_mode=ApicMode.X2APIC, x2apic_api=USE_32BIT_IDS)
    for vector in range(0x30, 0x40):
        injection = machine.signal(to(0x10FFFF, LOGICAL, vector=vector, delivery_mode=LOWEST))
        injection.returns(1).accepted_by(*injection.acceptors())
        expect("number of acceptors", len(injection.acceptors()), 1)


# --- dest.mixed-modes: an x2APIC is compared by its x2APIC ID -------------------------------------


@pytest.fixture
def searched(machines):
    """An xAPIC with ID 0 and an x2APIC with ID 255. 0xff is a broadcast for the xAPIC alone."""
    machine = machines(vcpu_ids=(0, 255), x2apic_api=DISABLE_QUIRK)
    machine[1].apic_mode = ApicMode.X2APIC
    return machine


@clause("dest.mixed-modes")
@each.delivery_mode(FIXED, NMI)
def test_broadcast_of_xapics_is_the_id_of_an_x2apic(searched, delivery_mode):
    searched.signal(to(0xFF, delivery_mode=delivery_mode)).returns(2).accepted_by(0, 1)


# --- dest.round-robin where KVM searches ----------------------------------------------------------


def acceptors_of_eight(machine, *destination, **fields):
    """Return who accepts each of eight messages with vectors of their own."""
    return [
        machine.signal(to(*destination, vector=vector, **fields)).returns(1).acceptors()[0]
        for vector in range(0x41, 0x49)
    ]


@clause("dest.round-robin")
@ROUND_ROBIN
def test_lowest_priority_to_all_goes_round(machine):
    acceptors = acceptors_of_eight(machine, 0xFF, LOGICAL, delivery_mode=LOWEST)
    expect("acceptors", acceptors, [0, 1, 2, 3] * 2)


@clause("dest.round-robin")
@ROUND_ROBIN
def test_redirection_hint_to_all_does_not_go_round(machine):
    expect("acceptors", acceptors_of_eight(machine, 0xFF, redirection_hint=1), [0] * 8)


# --- split.eoi-exit: every kind of destination ----------------------------------------------------


def expect_exit_for_route(machine, own, destination, exits):
    """Raise Mismatch unless a level route to ``destination`` makes vCPU 1's EOI exit, or not.

    ``own`` is a destination (ID, destination mode) of vCPU 1, ``destination`` that of the route.
    """
    route_pin_to(machine, *destination)
    machine[1].step()  # KVM scans the routes when a vCPU is entered.
    machine.signal(to(*own, vector=0x61)).returns(1).accepted_by(1)
    expect_eoi_exit(machine[1], 0x61 if exits else None)


def each_destination(**destinations):
    return pytest.mark.parametrize("destination, exits", destinations.values(), ids=destinations)


SPLIT = pytest.mark.parametrize("irqchip", ["split"])


@clause("split.eoi-exit")
@SPLIT
@each.apic_mode
@each_destination(
    physical=((1,), True),
    broadcast=((0xFF,), True),
    logical=((0b0010, LOGICAL), True),
    logical_several=((0b1110, LOGICAL), True),
    logical_broadcast=((0xFF, LOGICAL), True),
    other_physical=((2,), False),
    other_logical=((0b1101, LOGICAL), False),
    nobody=((0, LOGICAL), False),
)
def test_eoi_exits_where_the_route_goes(machine, destination, exits):
    expect_exit_for_route(machine, (1,), destination, exits)


@clause("split.eoi-exit")
@SPLIT
@each_destination(
    new_id=((9,), True),
    first_id=((1,), False),
    new_logical_id=((0x40, LOGICAL), True),
    first_logical_id=((0x02, LOGICAL), False),
)
def test_eoi_exits_by_the_ids_that_count(machine, destination, exits):
    machine[1].configure(id=9, ldr=0x40)
    expect_exit_for_route(machine, (9,), destination, exits)


@clause("split.eoi-exit")
@SPLIT
@each_destination(
    member=((0x12, LOGICAL), True),
    members=((0x1F, LOGICAL), True),
    other_member=((0x1D, LOGICAL), False),
    other_cluster=((0x22, LOGICAL), False),
)
def test_eoi_exits_in_the_cluster(machine, destination, exits):
    for cpu in machine.cpus:
        cpu.configure(dfr=DFR_CLUSTER, ldr=0x10 | 1 << cpu.index)
    expect_exit_for_route(machine, (1,), destination, exits)


@clause("split.eoi-exit")
@each_destination(
    physical=((300,), True),
    low_byte=((300 & 0xFF,), False),
    broadcast=((0xFFFFFFFF,), True),
    byte_broadcast=((0xFF,), False),
    logical=((0x12_1000, LOGICAL), True),
    other_member=((0x12_0FFF, LOGICAL), False),
    other_cluster=((0x02_1000, LOGICAL), False),
)
def test_eoi_exits_by_32bit_ids(machines, destination, exits):
    machine = machines(
        irqchip="split", vcpu_ids=(0, 300), apic_mode=ApicMode.X2APIC, x2apic_api=BOTH
    )
    expect_exit_for_route(machine, (300,), destination, exits)


# --- split.msi-routes-only ------------------------------------------------------------------------


@clause("split.msi-routes-only")
@deviation("split-routes-to-synic")
@NEEDS_SYNIC
def test_synic_route_is_for_a_full_irqchip(machines):
    vm = machines(irqchip="split", vcpu_ids=(0,)).vm
    expect("outcome", outcome_of(vm.set_gsi_routing, [sint_route(24, 0, 0)]), "EINVAL")
