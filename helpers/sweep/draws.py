# SPDX-License-Identifier: GPL-2.0-only
"""What generated sequences are made of: the values that Hypothesis draws for each step.

The values, their order and the names of a rule's arguments decide what a seed draws. A change here
changes the sequence of every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

from hypothesis import strategies as st

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.ioapic import MASKED, REMOTE_IRR
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, SVR_ENABLE, SVR_RESET, SVR_SUPPRESS_EOI
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

BOOT = st.one_of(st.none(), NTH)
"""The number of the first vCPU that KVM_SET_BOOT_CPU_ID names; None does not call the ioctl."""

CR8 = st.integers(0, 15)

_EVENTS = (
    *(("nmi_masked", 1), ("nmi_masked", 0), ("nmi", 1), ("nmi", 2), ("nmi", 0)),
    *(("shadow", 1), ("shadow", 0), ("smm", 1), ("smm", 1), ("smm", 0)),
    *(("smi", 1), ("smi", 0), ("init", 1), ("init", 0)),
)
EVENTS = st.sampled_from([dict(pair) for pair in combinations_with_replacement(_EVENTS, 2)])
"""Fields of VcpuState to write by KVM_SET_VCPU_EVENTS."""

_RUNNABLE, _UNINITIALIZED, _INIT_RECEIVED, _HALTED, _, _RESET_HOLD = MpState
MP_STATE = st.sampled_from((_RUNNABLE, _HALTED, _UNINITIALIZED, _INIT_RECEIVED, _RESET_HOLD))

REGISTER_WRITE = st.sampled_from(
    (
        *((Register.SVR, svr) for svr in (SVR_ENABLE | SVR_RESET, SVR_RESET, SVR_ENABLE | 0x31)),
        (Register.SVR, SVR_SUPPRESS_EOI | SVR_ENABLE | SVR_RESET),
        *((Register.TPR, tpr) for tpr in (0, 0x30, 0x40, 0x80, 0xF0)),
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
# Weights: a value is drawn as often as it is listed.
_DELIVERY_MODES = (
    *(*[_FIXED] * 4, *[_LOWEST] * 4, *[_NMI] * 2),
    *(_SMI, _REMRD, _INIT, _SIPI, _EXTINT),
)
_KINDS = [
    {"trigger_mode": trigger_mode, "redirection_hint": hint}
    for hint in (0, 0, 0, 1)
    for trigger_mode in TriggerMode
]
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
_SHARED = (0x61, 0x31, 0x41, 0x42, 0x82, 0xF1)
"""Vectors of routes and pins: few, so that messages share them."""

# Few draws: Hypothesis takes longer for a draw than KVM for a message.
_CONTENT = st.tuples(
    st.sampled_from((*range(256), *_SHARED * 40)),
    st.sampled_from(_DELIVERY_MODES),
    st.sampled_from(_KINDS),
    st.sampled_from([{}] * 2 * len(_MORE) + _MORE),
)
_ENTRY = ["flags", "devid", "pad"]  # fields of struct kvm_msi, but not of Message
Content = tuple[int, DeliveryMode, dict[str, Any], dict[str, Any]]
Contents = Sequence[Content]
CONTENT = st.tuples(_CONTENT)
"""One message, in the form of CONTENTS."""

CONTENTS = st.lists(_CONTENT, min_size=1, max_size=3)
"""One to three messages without destination. A message is a tuple: vector, delivery mode, {further
field of Message: value}, {field of Message or struct kvm_msi: value}. The last is often empty."""


# --- routes and pins ------------------------------------------------------------------------------

# Pins of the IOAPIC without a line to the PIC, and GSIs behind the pins.
PIN = st.sampled_from((20, 16, 21, 23))
GSI = st.sampled_from((20, 16, 21, 23, 24, 25))
LEVEL = st.sampled_from((1, 1, 1, 0))
ENTERS = st.booleans()
BY_IRQFD = st.sampled_from((False,) * 7 + (True,))

_LEVEL, _EDGE = {"trigger_mode": TriggerMode.LEVEL}, {"trigger_mode": TriggerMode.EDGE}
_LOGICAL = {"destination_mode": DestinationMode.LOGICAL}
ROUTED = st.tuples(
    st.sampled_from(_SHARED),
    st.sampled_from(
        (
            *[_LEVEL] * 3,
            *(_EDGE, _LEVEL | _LOGICAL, _EDGE | _LOGICAL),
            *({"delivery_mode": _LOWEST} | _LOGICAL | each for each in (_LEVEL, _EDGE)),
            *({"delivery_mode": _NMI} | each for each in (_LEVEL, _EDGE)),
        )
    ),
)
"""The message of a route or a pin, without destination: vector, and further fields of Message."""

Routed = tuple[int, dict[str, Any]]

ROUTES = st.lists(st.tuples(GSI, NTH, ROUTED), min_size=1, max_size=3)
"""(GSI, number of the vCPU that the message is for, message)."""

ENTRY_FLAGS = st.sampled_from((0, 0, 0, MASKED, REMOTE_IRR, 1 << 13))
"""Bits of a redirection entry besides the message: mask, Remote IRR, polarity."""


def message_of(
    content: Content, destination: int, destination_mode: DestinationMode
) -> tuple[Message, dict[str, Any]]:
    """Return the message of drawn contents, and the other drawn fields of struct kvm_msi."""
    vector, delivery_mode, kind, more = content
    values: dict[str, Any] = {"vector": vector, "delivery_mode": delivery_mode, **kind, **more}
    entry = {name: values.pop(name) for name in _ENTRY if name in values}
    return Message(destination=destination, destination_mode=destination_mode, **values), entry
