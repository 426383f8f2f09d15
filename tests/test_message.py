# SPDX-License-Identifier: GPL-2.0-only
"""Messages: encoding and decoding are inverses, and each bit belongs to one field."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.apic import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.message import LAYOUT, padding_of, translate_extended_destination

WORDS = ("address_lo", "address_hi", "data")
ZERO = Message(vector=0, address_base=0)
BITS = [(field, bit) for field in LAYOUT for bit in range(field.high - field.low + 1)]

word = st.integers(0, 2**32 - 1)


def words(message: Message) -> tuple[int, int, int]:
    return message.address_lo, message.address_hi, message.data


@given(word, word, word)
def test_decoding_and_encoding_gives_back_the_words(address_lo, address_hi, data):
    message = Message.decode(address_lo, address_hi, data)
    assert words(message) == (address_lo, address_hi, data)


@given(word, word, word)
def test_encoding_and_decoding_gives_back_the_message(address_lo, address_hi, data):
    message = Message.decode(address_lo, address_hi, data)
    assert Message.decode(*words(message)) == message


@given(word, word, word)
def test_fields_have_their_types(address_lo, address_hi, data):
    message = Message.decode(address_lo, address_hi, data)
    assert isinstance(message.destination_mode, DestinationMode)
    assert isinstance(message.delivery_mode, DeliveryMode)
    assert isinstance(message.trigger_mode, TriggerMode)


@pytest.mark.parametrize("name", WORDS)
def test_layout_has_each_bit_of_a_word_once(name):
    covered = Counter(bit for f in LAYOUT if f.word == name for bit in range(f.low, f.high + 1))
    assert covered == Counter(range(32))


def test_layout_has_the_fields_of_a_message():
    destination = {"destination_7_0", "destination_31_8"}
    names = {field.name for field in LAYOUT} - destination | {"destination"}
    assert names == {field.name for field in fields(Message)}


@pytest.mark.parametrize("field, bit", BITS, ids=[f"{f.word}-bit{f.low + b}" for f, b in BITS])
def test_each_bit_of_a_field_is_one_bit_of_its_word(field, bit):
    name, value = field.name, 1 << bit
    if name == "destination_31_8":
        value <<= 8
    if name.startswith("destination_") and name != "destination_mode":
        name = "destination"
    message = replace(ZERO, **{name: value})
    expected = [1 << field.low + bit if name == field.word else 0 for name in WORDS]
    assert list(words(message)) == expected
    assert Message.decode(*expected) == message


def test_plain_message_is_what_a_device_writes():
    message = Message(vector=0x41, destination=2)
    assert words(message) == (0xFEE02000, 0, 0x41)


def test_every_field_of_the_sdm_is_in_its_place():
    message = Message(
        vector=0x41,
        destination=0x12345678,
        destination_mode=DestinationMode.LOGICAL,
        delivery_mode=DeliveryMode.NMI,
        redirection_hint=1,
        trigger_mode=TriggerMode.LEVEL,
        level=1,
    )
    assert words(message) == (0xFEE7800C, 0x12345600, 0xC441)


@pytest.mark.parametrize(
    "name, value, place",
    [
        ("vector", 256, "data[7:0]"),
        ("vector", -1, "data[7:0]"),
        ("redirection_hint", 2, "address_lo[3]"),
        ("level", 2, "data[14]"),
        ("delivery_mode", 8, "data[10:8]"),
        ("address_base", 0x1000, "address_lo[31:20]"),
        ("address_hi_reserved", 0x100, "address_hi[7:0]"),
        ("data_reserved_31_16", 1 << 16, "data[31:16]"),
        ("destination", 1 << 32, "32 bits"),
        ("destination", -1, "32 bits"),
    ],
)
def test_value_that_does_not_fit_is_refused(name, value, place):
    with pytest.raises(ValueError, match="does not fit") as refused:
        Message(**{name: value})
    assert str(refused.value) == f"{name} {value:#x} does not fit {place}"


@pytest.mark.parametrize(
    "message, shown",
    [
        (Message(), "<Message FIXED vector 0x41, to physical 0x0>"),
        (
            Message(0xFE, 0x1FF, DestinationMode.LOGICAL, DeliveryMode.NMI, 1, TriggerMode.LEVEL),
            "<Message NMI vector 0xfe, to logical 0x1ff, RH=1, level-triggered>",
        ),
        (
            Message(level=1, address_base=0, data_reserved_31_16=0xFF),
            "<Message FIXED vector 0x41, to physical 0x0, level=0x1, address_base=0x0, "
            "data_reserved_31_16=0xff>",
        ),
    ],
    ids=["plain", "modes", "unusual-fields"],
)
def test_repr_says_what_is_not_plain(message, shown):
    assert repr(message) == shown


def test_decoded_rows_name_modes():
    rows = Message(delivery_mode=DeliveryMode.INIT, trigger_mode=TriggerMode.LEVEL).decoded()
    assert [row[:3] for row in rows] == [(f.word, f.bits, f.name) for f in LAYOUT]
    assert ("data", "10:8", "delivery_mode", "0x5 INIT") in rows
    assert ("data", "15", "trigger_mode", "0x1 LEVEL") in rows
    assert ("address_lo", "31:20", "address_base", "0xfee") in rows


# --- as text --------------------------------------------------------------------------------------


@given(word, word, word)
def test_text_is_read_as_written(address_lo, address_hi, data):
    message = Message.decode(address_lo, address_hi, data)
    assert Message.parse(message.text) == message
    assert Message.parse(f"{address_lo:#x}:{address_hi:x}:{data:#010x}") == message


@pytest.mark.parametrize(
    "text, message",
    [
        ("vector=0x41 destination=0", Message()),
        ("vector=0x30 destination=0x1ff", Message(0x30, 0x1FF)),
        ("vector=9 destination=0xa", Message(9, 10)),
        (
            "vector=1 destination=2 destination_mode=logical delivery_mode=lowest_priority "
            "redirection_hint=1 trigger_mode=level",
            Message(1, 2, DestinationMode(1), DeliveryMode(1), 1, TriggerMode(1)),
        ),
        ("vector=0x41 destination=0 address_base=0", Message(address_base=0)),
    ],
)
def test_text_says_what_is_not_plain(text, message):
    assert message.text == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("vector=66", Message(0x42)),
        ("delivery_mode=NMI", Message(delivery_mode=DeliveryMode.NMI)),
        ("delivery_mode=Lowest-Priority", Message(delivery_mode=DeliveryMode.LOWEST_PRIORITY)),
        ("delivery_mode=0x5", Message(delivery_mode=DeliveryMode.INIT)),
        ("fee0300c:0x100:441", Message.decode(0xFEE0300C, 0x100, 0x441)),
    ],
)
def test_other_ways_to_write_it_are_understood(text, message):
    assert Message.parse(text) == message


def test_words_that_are_left_out_are_zero():
    assert Message.from_words({"data": "0x41"}) == Message.decode(0, 0, 0x41)
    assert Message.from_words({"address_lo": 0x1000}) == Message.decode(0x1000, 0, 0)


NAMES = " ".join(field.name for field in fields(Message))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("nmi", "message: 'nmi' is neither FIELD=VALUE nor address_lo:address_hi:data in hex"),
        ("vectr=1", f"message: no field 'vectr'; the fields are {NAMES}"),
        ("vector=", "vector: '' is not a number"),
        ("vector=41h", "vector: '41h' is not a number"),
        ("vector=0x100", "vector 0x100 does not fit data[7:0]"),
        ("destination=-1", "destination: -1 does not fit 32 bits"),
        (
            "delivery_mode=8",
            "delivery_mode: '8' is neither one of fixed lowest_priority smi remrd nmi init sipi "
            "extint nor a number below 8",
        ),
        (
            "trigger_mode=levle",
            "trigger_mode: 'levle' is neither one of edge level nor a number below 2",
        ),
        ("1:2", "message '1:2': 2 words, not address_lo:address_hi:data"),
        ("1:2:3g", "data: '0x3g' is not a number"),
        ("100000000:0:0", "address_lo: 0x100000000 does not fit 32 bits"),
    ],
)
def test_bad_word_is_named(text, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Message.parse(text)


@pytest.mark.parametrize("text", ["", "00" * 11, "00" * 13, "0g" * 12])
def test_padding_is_12_bytes(text):
    with pytest.raises(ValueError, match=f"^pad: '{text}' is not 12 bytes in hex$"):
        padding_of(text)


@given(st.integers(0, 0x7FFF), word, st.integers(0, 255))
def test_extended_destination_is_moved_to_address_hi(destination, data, address_hi):
    address_lo = 0xFEE00000 | (destination & 0xFF) << 12 | destination >> 8 << 5
    message = Message.decode(address_lo, address_hi, data)
    expected = (address_lo & ~0xFE0, address_hi | destination >> 8 << 8, data)
    assert words(translate_extended_destination(message)) == expected


def test_message_in_the_remappable_format_is_not_translated():
    message = Message.decode(0xFEE00FF0, 0, 0)
    assert translate_extended_destination(message) == message
