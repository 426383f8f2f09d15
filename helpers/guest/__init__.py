"""The test guest: machines, the probe inside them, injections and their effects."""

from helpers.guest.expect import Mismatch, expect
from helpers.guest.injection import Injection, Snapshot
from helpers.guest.machine import Cpu, GuestError, Machine, Taken

__all__ = [
    "Cpu",
    "GuestError",
    "Injection",
    "Machine",
    "Mismatch",
    "Snapshot",
    "Taken",
    "expect",
]
