# SPDX-License-Identifier: GPL-2.0-only
"""Bits of address and data that have no meaning, in all combinations.

Clauses: message.ignored-bits, msi.address-hi-ignored, msi.address-hi-zero, msi.address-hi-bits.

A single bit that is ignored proves little: a decoder may read a field of several bits, or compare
the word with a constant. Each test sends all combinations of the 14 lowest, or 14 highest, of the
bits.
"""

from errno import EINVAL

import pytest

from helpers.apic import ApicMode
from helpers.guest.sender import combinations, signal_each, windows
from helpers.verdicts import clause
from suites.common import to
from suites.names import BOTH

ADDRESS_LO = 0xFFF00FF3
"""Bits 31:20, 11:4, 1:0."""
DATA = 0xFFFF7800
"""Bits 31:16, 14:11."""
ADDRESS_HI_7_0 = 0xFF
ADDRESS_HI_31_8 = 0xFFFFFF00
ADDRESS_HI = ADDRESS_HI_31_8 | ADDRESS_HI_7_0

PARTS = pytest.mark.parametrize("part", [0, 1], ids=["lowest", "highest"])


@pytest.fixture
def combined(part):
    """Return a function that lists all combinations of a mask's lowest or highest bits."""
    return lambda mask: combinations(windows(mask)[part])


@pytest.fixture
def wide(shared_machine):
    """x2APICs 0, 1, 2 and 0x300, with 32-bit IDs."""
    return shared_machine(vcpu_ids=(0, 1, 2, 0x300), apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)


@clause("message.ignored-bits")
@PARTS
def test_address_lo(machine, combined):
    message = to(1, address_base=0)
    signal_each(machine, message, "address_lo", combined(ADDRESS_LO), returns=1).accepted_by(1)


@clause("message.ignored-bits")
@PARTS
def test_data(machine, combined):
    signal_each(machine, to(1), "data", combined(DATA), returns=1).accepted_by(1)


@clause("msi.address-hi-ignored")
@PARTS
def test_address_hi_without_32bit_ids(machine, combined):
    values = combined(ADDRESS_HI)
    signal_each(machine, to(1), "address_hi", values, returns=1).accepted_by(1)


@clause("msi.address-hi-zero")
@PARTS
def test_address_hi_7_0_with_32bit_ids(wide, combined):
    values = [value if value & ADDRESS_HI_7_0 else value | 0x80 for value in combined(ADDRESS_HI)]
    signal_each(wide, to(1), "address_hi", values, returns=-EINVAL).reached_nobody()


@clause("msi.address-hi-bits")
@PARTS
def test_absent_32bit_id(wide, combined):
    values = [value for value in combined(ADDRESS_HI_31_8) if value not in (0, 0xFFFFFF00)]
    signal_each(wide, to(1), "address_hi", values, returns=0).reached_nobody()


@clause("msi.address-hi-bits")
@PARTS
def test_present_32bit_id_among_absent_ones(wide, combined):
    values = combined(ADDRESS_HI_31_8 & ~0x300)
    message = to(0x300)
    signal_each(wide, message, "address_hi", [0], returns=1).accepted_by(3)
    signal_each(wide, message, "address_hi", values[1:-1], returns=0).reached_nobody()
