# SPDX-License-Identifier: GPL-2.0-only
"""The fixtures of the suites, and the plugins. The work is in helpers/."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.apic import ApicMode
from helpers.apic.model import Switches
from helpers.apic.topology import Irqchip
from helpers.guest import Machine
from helpers.guest.pool import MachinePool
from helpers.kvm import System
from helpers.verdicts.kernel import Kernel, running_kernel
from helpers.verdicts.switches import switches_of

pytest_plugins = [
    "helpers.sigterm_plugin",
    "helpers.verdicts.plugin",
    "helpers.verdicts.clause_plugin",
    "helpers.verdicts.architecture_plugin",
    "helpers.sweep.sequences_plugin",
    "helpers.sweep.messages_plugin",
    "helpers.races.soak_plugin",
    "helpers.races.scale_plugin",
    "helpers.report.html_plugin",
    "helpers.report.paths_plugin",
    "helpers.report.results_plugin",
    "helpers.kernels.plugin",
    "helpers.program.plugin",
    "helpers.record.plugin",
    "helpers.ci.selection_plugin",
    "helpers.ci.junit_plugin",
    "helpers.ci.logs_plugin",
    "helpers.ci.kcidb_plugin",
    "helpers.ci.ktap_plugin",
    "helpers.ci.exit_plugin",
]


def pytest_markeval_namespace() -> dict[str, Kernel]:
    """Names that the condition of a ``skipif`` mark can use."""
    return {"kernel": running_kernel()}


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """An open /dev/kvm."""
    # A VM of 300 vCPUs, beside those in the pool, needs more than the usual limit of 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with System() as opened:
        yield opened


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The properties of the kernel under test."""
    return running_kernel()


@pytest.fixture(scope="session")
def switches(kernel: Kernel, system: System) -> Switches:
    """The switches of the model that match the kernel under test."""
    return switches_of(kernel, system)


@pytest.fixture
def machines(system: System) -> Iterator[Callable[..., Machine]]:
    """Return a new machine, which the test alone uses: ``machines(vcpu_ids=[0, 300])``.

    The options are those of helpers.guest.Machine. The machine is closed after the test.
    """
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Machine:
            return stack.enter_context(Machine(system, **options))

        yield make


@pytest.fixture
def irqchip() -> Irqchip | None:
    """The irqchip of ``machine``, for tests to parametrize; None for helpers.guest's default.

    A fixture of its own, since requesting ``request`` costs 0.3 ms a test.
    """
    return None


@pytest.fixture
def apic_mode() -> ApicMode:
    """The APIC mode of ``machine``'s LAPICs, for tests to parametrize."""
    return ApicMode.XAPIC


@pytest.fixture
def x2apic_api() -> int:
    """The features of KVM_CAP_X2APIC_API that ``machine`` enables, for tests to parametrize."""
    return 0


@pytest.fixture(scope="session")
def shared_machine(system: System) -> Iterator[Callable[..., Machine]]:
    """Return a machine in its power-on state: ``shared_machine(vcpu_ids=[0, 300])``.

    As ``machines``, but the machine may have served other tests with the same options. Creating a
    VM is the slowest part of most tests.
    """
    with MachinePool(system) as pool:
        yield pool.machine


@pytest.fixture
def machine(
    shared_machine: Callable[..., Machine],
    irqchip: Irqchip | None,
    apic_mode: ApicMode,
    x2apic_api: int,
) -> Machine:
    """Four vCPUs, IDs 0-3, in their power-on state. The flat logical ID of an xAPIC is 1 << ID."""
    return shared_machine(
        irqchip=irqchip, vcpu_ids=range(4), apic_mode=apic_mode, x2apic_api=x2apic_api
    )
