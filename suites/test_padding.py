# SPDX-License-Identifier: GPL-2.0-only
"""Padding, and a devid without KVM_MSI_VALID_DEVID.

Clauses: msi.pad, abi.ignored.

struct kvm_msi has 12 bytes of padding for later extensions. A kernel that ignores them can never
use them: existing callers may leave garbage there. This suite therefore requires EINVAL, though no
kernel so far looks at the padding.
"""

from dataclasses import replace
from errno import EINVAL

import pytest

from helpers.verdicts import clause, deviation
from suites import each
from suites.common import to

PAD_BYTES = range(12)
TO_ONE = to(1)


def pad(byte: int, value: int) -> bytes:
    """Return twelve bytes, all zero but ``byte``."""
    return bytes(value if index == byte else 0 for index in PAD_BYTES)


PADDINGS = [
    *(pytest.param(pad(byte, 0xFF), id=f"byte{byte}") for byte in PAD_BYTES),
    *(pytest.param(pad(0, 1 << bit), id=f"byte0-bit{bit}") for bit in range(8)),
    *(pytest.param(pad(11, 1 << bit), id=f"byte11-bit{bit}") for bit in range(8)),
    pytest.param(b"\xff" * 12, id="all-ones"),
]

DEVIDS = [*(1 << bit for bit in range(32)), 0xFFFFFFFF]


@clause("msi.pad")
@deviation("pad-not-checked")
@pytest.mark.parametrize("padding", PADDINGS)
def test_nonzero_padding_is_rejected(machine, padding):
    machine.signal(TO_ONE, pad=padding).fails(EINVAL).reached_nobody()


@clause("msi.pad")
@deviation("pad-not-checked")
@each.value("devid", DEVIDS)
def test_devid_without_its_flag_is_rejected(machine, devid):
    machine.signal(TO_ONE, devid=devid).fails(EINVAL).reached_nobody()


@clause("abi.ignored")
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_does_not_change_what_is_delivered(machine, padding):
    machine.signal(TO_ONE, pad=padding).returns(1).accepted_by(1)


@clause("abi.ignored")
def test_devid_without_its_flag_does_not_change_what_is_delivered(machine):
    for vector, devid in enumerate(DEVIDS, 0x40):
        machine.signal(replace(TO_ONE, vector=vector), devid=devid).returns(1).accepted_by(1)
