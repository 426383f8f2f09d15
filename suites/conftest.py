# SPDX-License-Identifier: GPL-2.0-only
"""Machines with x2APICs, a machine with a level-triggered pin, and machines that are migrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from helpers.apic import ApicMode
from helpers.guest import Machine
from helpers.guest.saved import STEPS, migrate
from helpers.kvm import System
from suites.common import IDS, SMALL_IDS, level_entry, program_pin
from suites.names import BOTH


@pytest.fixture
def x2apic_offered(system: System) -> None:
    """A kernel whose CPUID offers the x2APIC."""
    system.require_x2apic()


@pytest.fixture
def large(shared_machine: Callable[..., Machine]) -> Machine:
    """x2APICs with IDS: 32-bit IDs, no broadcast quirk."""
    return shared_machine(vcpu_ids=IDS, apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)


@pytest.fixture
def small(shared_machine: Callable[..., Machine], x2apic_api: int) -> Machine:
    """x2APICs with SMALL_IDS. A test parametrizes ``x2apic_api`` to enable KVM_CAP_X2APIC_API."""
    return shared_machine(vcpu_ids=SMALL_IDS, apic_mode=ApicMode.X2APIC, x2apic_api=x2apic_api)


@pytest.fixture
def misnamed(machines: Callable[..., Machine]) -> Machine:
    """Two xAPICs and two x2APICs. KVM_SET_LAPIC gave the last x2APIC ID 7 instead of 3."""
    machine = machines(vcpu_ids=range(4))
    machine[2].apic_mode = machine[3].apic_mode = ApicMode.X2APIC
    machine[3].configure(id=7)
    return machine


@pytest.fixture
def pin_to_0(machines: Callable[..., Machine]) -> Machine:
    """The level-triggered pin sends vector 0x61 to vCPU 0, whose handler writes no EOI."""
    machine = machines(irqchip="full", vcpu_ids=range(2))
    program_pin(machine, level_entry(0))
    machine[0].handler(eoi=False)
    return machine


@pytest.fixture
def migrated(machines: Callable[..., Machine]) -> Callable[..., Machine]:
    """Return a function that migrates a machine to a new one, which only KVM_SET_CPUID2 touched."""

    def to_new_machine(old: Machine, order: Sequence[str] = STEPS) -> Machine:
        setting = old.setting()
        new = machines(
            irqchip=setting.irqchip,
            vcpu_ids=setting.vcpu_ids,
            x2apic_api=setting.x2apic_api,
            power_on=False,
        )
        for cpu in new.cpus:
            cpu.set_cpuid()
        migrate(old, new, order)
        return new

    return to_new_machine
