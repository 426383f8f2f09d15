"""MSI messages and LAPIC registers. Knows nothing of file descriptors."""

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
