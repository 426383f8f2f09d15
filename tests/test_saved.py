# SPDX-License-Identifier: GPL-2.0-only
"""The orders in which a saved vCPU is restored, and the comparison of saved states."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

import pytest

from helpers.apic import LapicPage, Register
from helpers.guest.saved import LEGAL_ORDERS, ORDERS, STEPS, SavedVcpu

STATE = SavedVcpu(0, b"sregs", b"regs", LapicPage(), b"events")


def test_each_legal_order_has_the_apic_mode_before_the_lapic():
    assert len(LEGAL_ORDERS) == 60
    assert all(order.index("sregs") < order.index("lapic") for order in LEGAL_ORDERS)


def test_selected_orders_have_each_step_directly_after_each_other():
    neighbours = {pair for order in ORDERS for pair in pairwise(order)}
    assert neighbours == set(permutations(STEPS, 2)) - {("lapic", "sregs")}
    assert {order[-1] for order in ORDERS} == set(STEPS) - {"sregs"}


def changed(register: int) -> LapicPage:
    page = LapicPage()
    page[register] = 1
    return page


@pytest.mark.parametrize(
    "change, differing",
    [
        ({}, []),
        ({"lapic": changed(Register.PPR)}, []),
        ({"lapic": changed(Register.TPR)}, ["lapic"]),
        ({"mp_state": 1}, ["mp_state"]),
        ({"events": b"", "regs": b""}, ["regs", "events"]),
    ],
    ids=["nothing", "ppr", "tpr", "mp-state", "events-and-regs"],
)
def test_differing_parts_are_named(change, differing):
    assert STATE.differing(replace(STATE, **change)) == differing
