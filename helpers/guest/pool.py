# SPDX-License-Identifier: GPL-2.0-only
"""Machines that serve one test after another."""

from __future__ import annotations

from typing import Any

from helpers.guest.machine import Machine, default_irqchip
from helpers.kvm import System, recording
from helpers.kvm.closing import Closing


class MachinePool(Closing):
    """One machine for each set of options, replaced when a test did something that stays."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._machines: dict[Any, Machine] = {}

    def close(self) -> None:
        for machine in self._machines.values():
            machine.close()
        self._machines.clear()

    def machine(self, **options: Any) -> Machine:
        """Return a machine in its power-on state. The options are those of Machine."""
        if "vcpu_ids" in options:  # a list, a range and a tuple mean the same machine
            options["vcpu_ids"] = tuple(options["vcpu_ids"])
        options["irqchip"] = options.get("irqchip") or default_irqchip(self._system)
        key = frozenset(options.items())
        machine = self._machines.pop(key, None)
        # A tape starts with the making of its machine.
        if machine is not None and (recording.active or not machine.reset()):
            machine.close()
            machine = None
        self._machines[key] = machine or Machine(self._system, **options)
        return self._machines[key]
