# SPDX-License-Identifier: GPL-2.0-only
"""The test guest: machines, the probe that they run, injections and their effects."""

from helpers.guest.build import build, disagreement
from helpers.guest.cpu import Cpu, Taken
from helpers.guest.expect import Mismatch, expect
from helpers.guest.injection import (
    Injection,
    Snapshot,
    effect_between,
    irqchip_route,
    journal,
    sint_route,
    start_over,
)
from helpers.guest.machine import Machine
from helpers.guest.running import GuestError
from helpers.kvm.msi import msi_of, msi_route

__all__ = [
    "Cpu",
    "GuestError",
    "Injection",
    "Machine",
    "Mismatch",
    "Snapshot",
    "Taken",
    "build",
    "disagreement",
    "effect_between",
    "expect",
    "irqchip_route",
    "journal",
    "msi_of",
    "msi_route",
    "sint_route",
    "start_over",
]
