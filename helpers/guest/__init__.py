"""The test guest: machines, the probe inside them, injections and their effects."""

from helpers.guest.build import build, disagreement
from helpers.guest.expect import Mismatch, expect
from helpers.guest.injection import Injection, Snapshot, effect_between
from helpers.guest.machine import Cpu, GuestError, Machine, Taken, journal, msi_of, msi_route

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
    "journal",
    "msi_of",
    "msi_route",
]
