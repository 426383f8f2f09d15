# SPDX-License-Identifier: GPL-2.0-only
"""Find how the kernel under test differs from the reference kernel."""

from __future__ import annotations

from dataclasses import replace

from helpers.apic import Message
from helpers.apic.model import REFERENCE, Switches
from helpers.apic.topology import Topology
from helpers.guest import disagreement
from helpers.kvm import System
from helpers.spec import DEVIATIONS, SwitchOff
from helpers.verdicts.kernel import Kernel


def switches_of(kernel: Kernel, system: System) -> Switches:
    """Return the switches of the running kernel.

    A switch is off if a deviation of this kernel names the switch, unless the deviation's case
    shows that the kernel has a backport of the fix.
    """
    off = [
        entry.switch
        for entry in DEVIATIONS.values()
        if entry.switch and entry.applies(kernel.version, kernel.vendor, kernel.parameters)
    ]
    return replace(REFERENCE, **{each.name: False for each in off if _shows(each, system)})


def _shows(switch: SwitchOff, system: System) -> bool:
    if not switch.message:
        return True
    case = Topology.parse(switch.topology), Message.parse(switch.message)
    try:
        return disagreement(system, *case, REFERENCE) is not None
    except ValueError:  # The topology cannot be built, and the reference kernel builds it.
        return True
