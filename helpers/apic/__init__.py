"""MSI messages and LAPIC registers. Knows nothing of file descriptors."""

from helpers.apic.lapic import LapicPage, Mode, Register, show_vectors
from helpers.apic.message import DeliveryMode, DestinationMode, Message, TriggerMode

__all__ = [
    "DeliveryMode",
    "DestinationMode",
    "LapicPage",
    "Message",
    "Mode",
    "Register",
    "TriggerMode",
    "show_vectors",
]
