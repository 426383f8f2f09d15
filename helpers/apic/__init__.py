# SPDX-License-Identifier: GPL-2.0-only
"""MSI messages, LAPIC registers and the model. Opens no file descriptor."""

from helpers.apic.lapic import ApicMode, LapicPage, Register, show_vectors
from helpers.apic.message import DeliveryMode, DestinationMode, Message, TriggerMode

__all__ = [
    "ApicMode",
    "DeliveryMode",
    "DestinationMode",
    "LapicPage",
    "Message",
    "Register",
    "TriggerMode",
    "show_vectors",
]
