"""Fixtures and plugins; the work is in helpers/."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.apic.model import Switches
from helpers.apic.topology import Irqchip
from helpers.guest import Machine
from helpers.kvm import System
from helpers.verdicts.kernel import Kernel, running_kernel
from helpers.verdicts.switches import switches_of

pytest_plugins = [
    "helpers.verdicts.plugin",
    "helpers.verdicts.clause_plugin",
    "helpers.sweep.hunt_plugin",
    "helpers.sweep.plugin",
    "helpers.report.plugin",
    "helpers.report.results",
    "helpers.kernels.plugin",
]


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """/dev/kvm."""
    with System() as opened:
        yield opened


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """What is known of the kernel under test."""
    return running_kernel()


@pytest.fixture(scope="session")
def switches(kernel: Kernel, system: System) -> Switches:
    """How the kernel under test differs from the reference kernel."""
    return switches_of(kernel, system)


@pytest.fixture
def machines(system: System) -> Iterator[Callable[..., Machine]]:
    """Make a test its own machines: ``machines(vcpu_ids=[0, 300], x2apic_api=1)``."""
    with contextlib.ExitStack() as made:

        def make(**options: Any) -> Machine:
            return made.enter_context(Machine(system, **options))

        yield make


@pytest.fixture
def irqchip() -> Irqchip:
    """The irqchip of ``machine``, for tests to parametrize; ``request`` would be dear."""
    return "full"


@pytest.fixture(scope="session")
def _pool() -> Iterator[dict[Any, Machine]]:
    pool: dict[Any, Machine] = {}
    yield pool
    for machine in pool.values():
        machine.close()


@pytest.fixture(scope="session")
def shared_machine(system: System, _pool: dict[Any, Machine]) -> Callable[..., Machine]:
    """As ``machines``, but the machine may have served other tests; it is in its power-on state.

    Creating and destroying a VM is the slow part of a test, so tests share one as long as all that
    was done to it can be undone.
    """

    def share(**options: Any) -> Machine:
        key = tuple(sorted(options.items()))
        pooled = _pool.pop(key, None)
        if pooled is not None and not pooled.reset():
            pooled.close()
            pooled = None
        _pool[key] = pooled or Machine(system, **options)
        return _pool[key]

    return share


@pytest.fixture
def machine(shared_machine: Callable[..., Machine], irqchip: Irqchip) -> Machine:
    """Four vCPUs, IDs 0-3, in their power-on state: xAPIC, software-enabled, flat LDR bit = ID."""
    return shared_machine(irqchip=irqchip, vcpu_ids=range(4))
