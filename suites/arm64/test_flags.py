# SPDX-License-Identifier: GPL-2.0-only
"""The flags field, the device ID that KVM_MSI_VALID_DEVID announces, and padding.

Clauses: arm.devid-required, arm.devid-required-again, arm.flags-undefined, arm.pad.

With an ITS a message without a device ID has no meaning: the device selects the translation table.
"""

from dataclasses import replace
from errno import EINVAL

import pytest

from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.arm64.common import EACH_EVENT, FIRST, expect_refused, expect_taken

UNDEFINED_BITS = each.bit(range(1, 32))
VALID = abi.KVM_MSI_VALID_DEVID

# --- arm.devid-required ---------------------------------------------------------------------------


@clause("arm.devid-required")
@EACH_EVENT
def test_first_message_without_device_id_is_refused(machine, event):
    expect_refused(machine, replace(event.message, flags=0))


@clause("arm.devid-required")
@each.value("devid", [0, 3, 0xFFFFFFFF], "devid{:#x}")
def test_message_without_device_id_of_an_unmapped_device_is_refused(machine, devid):
    expect_refused(machine, replace(FIRST.message, devid=devid, flags=0))


@clause("arm.devid-required")
def test_refused_message_is_not_delivered_later(machine):
    machine.signal(replace(FIRST.message, flags=0)).refused()
    machine.signal(FIRST.message).returns(1).pends(FIRST.pending)
    expect_taken(machine, FIRST.pending)


@clause("arm.devid-required-again")
@deviation("arm-devid-flag-cached")
@EACH_EVENT
def test_message_without_device_id_is_refused_after_delivery_of_the_event(shared, event):
    expect_refused(shared, replace(event.message, flags=0))


@clause("arm.devid-required-again")
@pytest.mark.parametrize("devid", [0, 3, 0xFFFF], ids="devid{:#x}".format)
def test_message_without_the_flag_and_with_another_device_id_is_refused(shared, devid):
    expect_refused(shared, replace(FIRST.message, devid=devid, flags=0))


# --- arm.flags-undefined --------------------------------------------------------------------------


@clause("arm.flags-undefined")
@UNDEFINED_BITS
@pytest.mark.parametrize("beside", [0, VALID], ids=["alone", "beside-valid-devid"])
def test_undefined_flag_is_rejected(shared, bit, beside):
    message = replace(FIRST.message, flags=1 << bit | beside)
    shared.signal(message).fails(EINVAL).reached_nobody()


@clause("arm.flags-undefined")
@each.value("flags", [0xFFFFFFFF, 0xFFFFFFFE, 1 << 1, 1 << 31 | VALID])
def test_undefined_flags_are_rejected_in_the_first_message(machine, flags):
    machine.signal(replace(FIRST.message, flags=flags)).fails(EINVAL).reached_nobody()
    expect_taken(machine)


# --- arm.pad --------------------------------------------------------------------------------------

PADDINGS = [bytes(0xFF if index == byte else 0 for index in range(12)) for byte in range(12)]


@clause("arm.pad")
@deviation("arm-pad-not-checked")
@pytest.mark.parametrize("pad", [*PADDINGS, b"\xff" * 12], ids=bytes.hex)
def test_nonzero_padding_is_rejected(shared, pad):
    shared.signal(replace(FIRST.message, pad=pad)).fails(EINVAL).reached_nobody()
