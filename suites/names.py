# SPDX-License-Identifier: GPL-2.0-only
"""Short names of values that stand in many tests."""

from __future__ import annotations

from helpers.apic import DeliveryMode, DestinationMode, TriggerMode
from helpers.apic.lapic import SVR_ENABLE, SVR_RESET
from helpers.kvm import abi

PHYSICAL, LOGICAL = DestinationMode
EDGE, LEVEL = TriggerMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

USE_32BIT_IDS = abi.KVM_X2APIC_API_USE_32BIT_IDS
DISABLE_QUIRK = abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
BOTH = USE_32BIT_IDS | DISABLE_QUIRK
"""All features of KVM_CAP_X2APIC_API that concern destinations."""

SVR_ENABLED = SVR_ENABLE | SVR_RESET
"""SVR of a software-enabled LAPIC, spurious vector 0xff."""
