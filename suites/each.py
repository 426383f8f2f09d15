# SPDX-License-Identifier: GPL-2.0-only
"""Parametrizations: a test marked ``@each.irqchip`` runs once with each irqchip.

Verdicts are archived under test ids, so the id of a value never changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, TriggerMode


def value(name: str, values: Iterable[Any], form: str = "{:#x}") -> pytest.MarkDecorator:
    """Parametrize with ``values``; ``form`` makes a test id of each."""
    return pytest.mark.parametrize(name, values, ids=form.format)


def member(name: str, members: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize with members of an enumeration; a test id is the member's name."""
    return pytest.mark.parametrize(name, members, ids=_name_of)


def _name_of(member: Enum) -> str:
    return member.name


def bit(bits: Iterable[int]) -> pytest.MarkDecorator:
    return value("bit", bits, "bit{}")


def index(indices: Iterable[int]) -> pytest.MarkDecorator:
    """Parametrize with the vCPU that a message is sent to."""
    return value("index", indices, "to-{}")


def vector(vectors: Iterable[int]) -> pytest.MarkDecorator:
    return value("vector", vectors, "{:#04x}")


def delivery_mode(*modes: Any) -> pytest.MarkDecorator:
    """Parametrize with ``modes``, or with all delivery modes."""
    return member("delivery_mode", modes or DeliveryMode)


def x2apic_api(*features: int) -> pytest.MarkDecorator:
    """Parametrize with features of KVM_CAP_X2APIC_API."""
    return pytest.mark.parametrize("x2apic_api", features, ids=_FEATURES.__getitem__)


_FEATURES = ("not-enabled", "32bit-ids", "no-quirk", "32bit-ids-no-quirk")

destination_mode = member("destination_mode", DestinationMode)
trigger_mode = member("trigger_mode", TriggerMode)
apic_mode = member("apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC])
irqchip = pytest.mark.parametrize("irqchip", ["full", "split"])

arbitration = pytest.mark.parametrize(
    "fields",
    [{"delivery_mode": DeliveryMode.LOWEST_PRIORITY}, {"redirection_hint": 1}],
    ids=["lowest-priority", "redirection-hint"],
)
"""The two ways to have one LAPIC of several chosen, as fields of a message."""
