# SPDX-License-Identifier: GPL-2.0-only
"""Machines with a VGICv3 and ITSs, and events that are mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.arm64 import Machine
from helpers.kvm import System
from suites.arm64.common import EVENTS, map_events


@pytest.fixture
def machines(system: System) -> Iterator[Callable[..., Machine]]:
    """Return a new machine: ``machines(vcpus=8, itss=2)``. Closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Machine:
            return stack.enter_context(Machine(system, **options))

        yield make


@pytest.fixture
def machine(machines: Callable[..., Machine]) -> Machine:
    """Return a machine with two vCPUs and one ITS, which has the events of EVENTS mapped."""
    machine = machines()
    map_events(machine)
    return machine


@pytest.fixture(scope="session")
def pool() -> Iterator[dict[str, Machine]]:
    """Machines that serve one test after another."""
    machines: dict[str, Machine] = {}
    yield machines
    for machine in machines.values():
        machine.close()


@pytest.fixture
def shared(system: System, pool: dict[str, Machine]) -> Machine:
    """As ``machine``, for tests that only send messages. Each event has been sent once."""
    kept = pool.pop("shared", None)
    if kept is None or kept.take() or kept.pending():
        if kept:
            kept.close()
        kept = Machine(system)
        map_events(kept)
        for event in EVENTS:
            kept.send(event.message)
        kept.take()
    pool["shared"] = kept
    return kept


@pytest.fixture
def two_itss(machines: Callable[..., Machine]) -> Machine:
    """Two vCPUs, two ITSs. Only the first ITS has the events of EVENTS."""
    machine = machines(itss=2)
    map_events(machine)
    return machine
