"""Fixtures and plugins; the work is in helpers/."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.guest import Machine
from helpers.guest.machine import Irqchip
from helpers.kvm import System
from helpers.verdicts.kernel import Kernel, running_kernel

pytest_plugins = ["helpers.verdicts.plugin"]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """/dev/kvm."""
    with System() as opened:
        yield opened


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """What is known of the kernel under test."""
    return running_kernel()


@pytest.fixture
def machines(system: System) -> Iterator[Callable[..., Machine]]:
    """Make a test its own machines: ``machines(vcpu_ids=[0, 300], x2apic_api=1)``."""
    with contextlib.ExitStack() as made:

        def make(**options: Any) -> Machine:
            return made.enter_context(Machine(system, **options))

        yield make


@pytest.fixture(params=["full", "split"])
def irqchip(request: pytest.FixtureRequest) -> Irqchip:
    """Each kind of in-kernel irqchip that handles MSI messages."""
    kind: Irqchip = request.param
    return kind


@pytest.fixture(scope="session")
def _pool(system: System) -> Iterator[dict[Irqchip, Machine]]:
    pool: dict[Irqchip, Machine] = {}
    yield pool
    for machine in pool.values():
        machine.close()


@pytest.fixture
def machine(system: System, irqchip: Irqchip, _pool: dict[Irqchip, Machine]) -> Machine:
    """Four vCPUs, IDs 0-3, in their power-on state: xAPIC, software-enabled, flat LDR bit = ID.

    Creating and destroying a VM is the slow part of a test, so tests share one as long as all that
    was done to it can be undone.
    """
    pooled = _pool.pop(irqchip, None)
    if pooled is not None and not pooled.reset():
        pooled.close()
        pooled = None
    _pool[irqchip] = pooled or Machine(system, irqchip=irqchip, vcpu_ids=range(4))
    return _pool[irqchip]
