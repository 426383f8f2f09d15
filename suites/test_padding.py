"""Padding and unannounced devid: must be rejected, says this suite; no kernel does so far."""

from dataclasses import replace
from errno import EINVAL

import pytest

from helpers.apic import Message
from helpers.verdicts import clause, deviation

PAD_BYTES = range(12)
TO_ONE = Message(destination=1)


def pad(byte: int, value: int) -> bytes:
    """Twelve bytes, all zero but one."""
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
@pytest.mark.parametrize("devid", DEVIDS, ids="{:#x}".format)
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
