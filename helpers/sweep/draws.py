# SPDX-License-Identifier: GPL-2.0-only
"""What made-up sequences are made of: the values that Hypothesis draws for each step.

The values, their order and the names of a rule's arguments decide what a seed draws. A change here
changes the sequence of every seed.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, SVR_ENABLE, SVR_RESET
from helpers.apic.topology import MpState
from helpers.kvm import abi

MOST_VCPUS = 8

# Neighbours, other x2APIC clusters, the broadcast, and IDs whose low byte is the ID of another.
VCPU_ID = st.sampled_from((*range(6), 7, 8, 15, 16, 17, 20, 44, 255, 256, 257, 300))
FIRST_VCPU_IDS = st.lists(VCPU_ID, max_size=4, unique=True)

NTH = st.integers(0, MOST_VCPUS - 1)
"""The number of a vCPU, modulo how many there are."""

IRQCHIP = st.sampled_from(("full", "split"))
ENABLED_MODE = st.sampled_from((ApicMode.XAPIC, ApicMode.X2APIC))
X2APIC_API = st.integers(
    1, abi.KVM_X2APIC_API_USE_32BIT_IDS | abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
)
FIRST_X2APIC_API = st.one_of(st.just(0), st.just(0), X2APIC_API)

_RUNNABLE, _UNINITIALIZED, _INIT_RECEIVED, _HALTED, _, _RESET_HOLD = MpState
MP_STATE = st.sampled_from((_RUNNABLE, _HALTED, _UNINITIALIZED, _INIT_RECEIVED, _RESET_HOLD))

REGISTER_WRITE = st.sampled_from(
    (
        *((Register.SVR, svr) for svr in (SVR_ENABLE | SVR_RESET, SVR_RESET, SVR_ENABLE | 0x31)),
        *((Register.ID, id << 24) for id in (0, 1, 2, 3, 5, 16, 44, 255)),
        *((Register.LDR, id << 24) for id in (0, 1, 2, 4, 6, 0x11, 0x12, 0x21, 0xF1, 0xFF)),
        (Register.LDR, 0x00FFFFFF),  # Not zero, but no logical ID.
        *((Register.DFR, dfr) for dfr in (DFR_FLAT, DFR_CLUSTER, 0x7FFFFFFF)),
    )
)
"""A LAPIC register and the value to write."""

_NUMBERS = (0xFF, 0, 1, 0xFFFFFFFF, 0xF, 0x1F, 0x100, 0x101, 0xFFFFFF00, 0xFFFF, 0x1FFFF, 0x100FFFF)
DESTINATION = st.one_of(st.sampled_from(_NUMBERS), VCPU_ID, st.integers(0, (1 << 32) - 1))

# --- messages -------------------------------------------------------------------------------------

_FIXED, _LOWEST, _SMI, _REMRD, _NMI, _INIT, _SIPI, _EXTINT = DeliveryMode
# Weights: a delivery mode is drawn as often as it is listed.
_DELIVERY_MODES = (
    *(*[_FIXED] * 4, *[_LOWEST] * 4, *[_NMI] * 2),
    *(_SMI, _REMRD, _INIT, _SIPI, _EXTINT),
)
_MORE: list[dict[str, Any]] = [
    {"address_base": 0},
    {"address_reserved_11_4": 0xFF},
    {"address_ignored_1_0": 3},
    {"address_hi_reserved": 0x80},
    {"data_reserved_31_16": 0xFFFF},
    {"data_reserved_13_11": 7},
    {"level": 1},
    {"flags": abi.KVM_MSI_VALID_DEVID, "devid": 0x10},
    {"flags": 2},
    {"flags": 1 << 31},
    {"devid": 0xFFFF},
    {"pad": b"\xff" * 12},
]
_CONTENT = st.fixed_dictionaries(
    {
        "vector": st.integers(0, 255),
        "delivery_mode": st.sampled_from(_DELIVERY_MODES),
        "redirection_hint": st.sampled_from((0, 0, 0, 1)),
        "trigger_mode": st.sampled_from(TriggerMode),
        "more": st.sampled_from([{}] * 2 * len(_MORE) + _MORE),
    }
)
Contents = list[dict[str, Any]]
CONTENTS = st.lists(_CONTENT, min_size=1, max_size=3)
"""Up to three messages without destination: fields of Message, and ``more``, one further field of
Message or of struct kvm_msi."""


def message_of(
    content: dict[str, Any], destination: int, destination_mode: DestinationMode
) -> tuple[Message, dict[str, Any]]:
    """Return the message of drawn contents, and the other drawn fields of struct kvm_msi."""
    values = content | content["more"]
    del values["more"]
    entry = {name: values.pop(name) for name in ("flags", "devid", "pad") if name in values}
    return Message(destination=destination, destination_mode=destination_mode, **values), entry
