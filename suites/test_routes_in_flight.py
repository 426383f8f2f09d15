# SPDX-License-Identifier: GPL-2.0-only
"""Routes of a split irqchip's IOAPIC, changed between an interrupt and its EOI.

Clauses: split.eoi-exit.

suites/test_in_flight.py moves a route to another vCPU. Here the route goes, gets another vector or
trigger mode, moves back, or is one of several.
"""

import pytest

from helpers.guest import expect, msi_route
from helpers.verdicts import clause, deviation
from suites.common import EACH_STAGE, NEEDS_IN_SERVICE, enter_handler, expect_eoi_exit, fixed, to
from suites.names import EDGE, LEVEL, LOGICAL


def route(machine, *messages):
    """Route IOAPIC pins, from pin 5 on, to ``messages``."""
    machine.vm.set_gsi_routing([msi_route(5 + i, message) for i, message in enumerate(messages)])


def level(*destination, vector=0x61):
    return to(*destination, vector=vector, trigger_mode=LEVEL, level=1)


@pytest.fixture
def routed(machines):
    """A split irqchip, with a level-triggered route of vector 0x61 to vCPU 0."""
    machine = machines(irqchip="split", vcpu_ids=range(2))
    route(machine, level(0))
    machine[0].step()  # KVM scans the routes when a vCPU is entered.
    return machine


def interrupt(machine, when):
    """Have vector 0x61 pending or in service on vCPU 0. Return the machine."""
    machine.send(level(0))
    if when == "in-service":
        enter_handler(machine[0])
    return machine


@clause("split.eoi-exit")
@EACH_STAGE
@pytest.mark.parametrize(
    "routes",
    [(), (to(0, vector=0x61, trigger_mode=EDGE),), (level(0, vector=0x62),)],
    ids=["none", "edge", "other-vector"],
)
def test_eoi_does_not_exit_without_the_route(routed, when, routes):
    sent = interrupt(routed, when)
    route(sent, *routes)
    expect_eoi_exit(sent[0], None)


@clause("split.eoi-exit")
@EACH_STAGE
def test_eoi_exits_for_the_new_vector_of_a_route(routed, when):
    sent = interrupt(routed, when)
    route(sent, level(0, vector=0x62))
    expect_eoi_exit(sent[0], None)
    sent.send(fixed(0x62, 0))
    expect_eoi_exit(sent[0], 0x62)


@clause("split.eoi-exit")
@EACH_STAGE
def test_eoi_exits_for_a_route_that_comes_back(routed, when):
    sent = interrupt(routed, when)
    route(sent)
    sent[1].step()
    route(sent, level(0))
    for _ in range(2):
        expect_eoi_exit(sent[0], 0x61)
        sent.send(fixed(0x61, 0))


@clause("split.eoi-exit")
@EACH_STAGE
def test_eoi_exits_for_a_route_that_moves_there_and_back(routed, when):
    sent = interrupt(routed, when)
    for index in (1, 0):
        route(sent, level(index))
        sent[1].step()
    for _ in range(2):
        expect_eoi_exit(sent[0], 0x61)
        sent.send(fixed(0x61, 0))


@clause("split.eoi-exit")
@EACH_STAGE
def test_eoi_exits_for_a_route_that_grows(routed, when):
    sent = interrupt(routed, when)
    route(sent, level(0xFF))
    for index in range(2):
        expect_eoi_exit(sent[0], 0x61)
        sent.send(fixed(0x61, index))
    expect_eoi_exit(sent[1], 0x61)


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
@deviation("moved-route-keeps-exiting")
@EACH_STAGE
def test_eoi_exits_once_for_a_route_that_became_logical_to_another(routed, when):
    sent = interrupt(routed, when)
    route(sent, level(2, LOGICAL))
    expect_eoi_exit(sent[0], 0x61)
    sent.send(fixed(0x61, 0))
    expect_eoi_exit(sent[0], None)


@clause("split.eoi-exit")
@EACH_STAGE
@pytest.mark.parametrize("routes", [(), (level(1),)], ids=["none", "moved"])
def test_route_that_changes_after_the_eoi_exits_no_more(routed, when, routes):
    sent = interrupt(routed, when)
    expect_eoi_exit(sent[0], 0x61)
    route(sent, *routes)
    sent[0].step()  # KVM scans the routes when a vCPU is entered.
    sent.send(fixed(0x61, 0))
    expect_eoi_exit(sent[0], None)


@clause("split.eoi-exit")
@EACH_STAGE
@pytest.mark.parametrize("kept", [level(0), to(0, vector=0x61)], ids=["level", "edge"])
def test_one_level_route_of_several_with_the_vector_is_enough(routed, when, kept):
    sent = interrupt(routed, when)
    route(sent, level(1), kept, level(0))
    for _ in range(2):
        expect_eoi_exit(sent[0], 0x61)
        sent.send(fixed(0x61, 0))


# --- two routes -----------------------------------------------------------------------------------


@pytest.fixture
def two_routes(machines):
    """A split irqchip, with level-triggered routes of vectors 0x61 and 0x71 to vCPU 0."""
    machine = machines(irqchip="split", vcpu_ids=range(2))
    route(machine, level(0), level(0, vector=0x71))
    machine[0].step()  # KVM scans the routes when a vCPU is entered.
    return machine


def move_two(machine):
    """Move both routes to vCPU 1 while their vectors are pending on vCPU 0. Return the machine."""
    for vector in (0x61, 0x71):
        machine.send(level(0, vector=vector))
    route(machine, level(1), level(1, vector=0x71))
    return machine


def expect_exits(cpu, *vectors):
    """Run ``cpu``; raise Mismatch unless the EOIs of ``vectors``, in this order, exit."""
    expect("vectors of KVM_EXIT_IOAPIC_EOI", cpu.take_with_exits()[1], list(vectors))


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
def test_each_eoi_exits_after_two_routes_moved(two_routes):
    two_moved = move_two(two_routes)
    expect_exits(two_moved[0], 0x71, 0x61)


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
@deviation("moved-route-keeps-exiting")
def test_each_eoi_exits_once_after_two_routes_moved(two_routes):
    two_moved = move_two(two_routes)
    expect_exits(two_moved[0], 0x71, 0x61)
    for vector in (0x61, 0x71):
        two_moved.send(fixed(vector, 0))
    expect_exits(two_moved[0])


@clause("split.eoi-exit")
@deviation("moved-route-loses-eoi")
@NEEDS_IN_SERVICE
def test_route_that_moved_exits_while_its_vector_is_pending(two_routes):
    two_moved = move_two(two_routes)
    two_moved[0].handler(pause=True)
    two_moved[0].run_to_handler()  # 0x71
    two_moved.send(fixed(0x71, 0))
    two_moved[0].handler()
    expect_exits(two_moved[0], 0x71, 0x71, 0x61)
