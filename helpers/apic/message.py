# SPDX-License-Identifier: GPL-2.0-only
"""MSI messages: the 32-bit words address_lo, address_hi and data, field by field.

address_lo and data are laid out as in Intel SDM vol. 3, "Message Address Register Format" and
"Message Data Register Format". address_hi is an extension of KVM (api.rst, KVM_SIGNAL_MSI). Each of
the 96 bits belongs to a named field, so that encoding and decoding are exact inverses.

A message has two text forms: the three words in hex, or fields. Fields that are left out are those
of a fixed, edge-triggered interrupt with vector 0x41 to physical APIC ID 0:

    fee0300c:0:441
    vector=0x41 destination=3 destination_mode=logical delivery_mode=nmi redirection_hint=1
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from operator import and_, attrgetter


class DeliveryMode(enum.IntEnum):
    """Data bits 10:8. Mode 3 is reserved in the Intel SDM, and APIC_DM_REMRD in Linux."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    REMRD = 3
    NMI = 4
    INIT = 5
    SIPI = 6
    EXTINT = 7


class DestinationMode(enum.IntEnum):
    """Address bit 2."""

    PHYSICAL = 0
    LOGICAL = 1


class TriggerMode(enum.IntEnum):
    """Data bit 15."""

    EDGE = 0
    LEVEL = 1


_ENUMS: dict[str, type[enum.IntEnum]] = {
    "delivery_mode": DeliveryMode,
    "destination_mode": DestinationMode,
    "trigger_mode": TriggerMode,
}


@dataclass(frozen=True, slots=True)
class Field:
    """The place of a field of :class:`Message`: bits ``high``:``low`` of ``word``."""

    name: str
    word: str
    high: int
    low: int
    meaning: str

    @property
    def mask(self) -> int:
        return (1 << (self.high - self.low + 1)) - 1

    @property
    def bits(self) -> str:
        return str(self.high) if self.high == self.low else f"{self.high}:{self.low}"


WORDS = ("address_lo", "address_hi", "data")

# All fields, most significant first. Message.destination joins the two parts of the destination.
LAYOUT = (
    Field("address_base", "address_lo", 31, 20, "0xfee in a message of a real device"),
    Field("destination_7_0", "address_lo", 19, 12, "destination bits 7:0"),
    Field("address_reserved_11_4", "address_lo", 11, 4, "reserved (extended destination ID)"),
    Field("redirection_hint", "address_lo", 3, 3, "1: one processor of the destination"),
    Field("destination_mode", "address_lo", 2, 2, "0 physical, 1 logical"),
    Field("address_ignored_1_0", "address_lo", 1, 0, "ignored"),
    Field("destination_31_8", "address_hi", 31, 8, "destination bits 31:8"),
    Field("address_hi_reserved", "address_hi", 7, 0, "must be zero with 32-bit IDs"),
    Field("data_reserved_31_16", "data", 31, 16, "reserved"),
    Field("trigger_mode", "data", 15, 15, "0 edge, 1 level"),
    Field("level", "data", 14, 14, "1 assert; ignored for edge"),
    Field("data_reserved_13_11", "data", 13, 11, "reserved"),
    Field("delivery_mode", "data", 10, 8, "delivery mode"),
    Field("vector", "data", 7, 0, "vector"),
)


_FIELDS_OF = {word: [(f.name, f.low) for f in LAYOUT if f.word == word] for word in WORDS}

_LIMITS = [
    *(
        (field.name, field.mask, f"{field.word}[{field.bits}]")
        for field in LAYOUT
        if not field.name.startswith("destination_") or field.name == "destination_mode"
    ),
    ("destination", 0xFFFFFFFF, "32 bits"),
]
_limited = attrgetter(*(name for name, _, _ in _LIMITS))
_BEYOND = [~mask for _, mask, _ in _LIMITS]


@dataclass(frozen=True, slots=True)
class Message:
    """One MSI message; ``destination`` is the whole 32-bit destination ID.

    Raises ValueError for a value that does not fit its field.
    """

    vector: int = 0x41
    destination: int = 0
    destination_mode: DestinationMode = DestinationMode.PHYSICAL
    delivery_mode: DeliveryMode = DeliveryMode.FIXED
    redirection_hint: int = 0
    trigger_mode: TriggerMode = TriggerMode.EDGE
    level: int = 0
    address_base: int = 0xFEE
    address_reserved_11_4: int = 0
    address_ignored_1_0: int = 0
    address_hi_reserved: int = 0
    data_reserved_31_16: int = 0
    data_reserved_13_11: int = 0

    def __post_init__(self) -> None:
        if not any(map(and_, _limited(self), _BEYOND)):
            return
        for name, mask, place in _LIMITS:
            if getattr(self, name) & ~mask:
                raise ValueError(f"{name} {getattr(self, name):#x} does not fit {place}")

    @property
    def destination_7_0(self) -> int:
        return self.destination & 0xFF

    @property
    def destination_31_8(self) -> int:
        return self.destination >> 8

    def _word(self, word: str) -> int:
        value = 0
        for name, low in _FIELDS_OF[word]:
            value |= getattr(self, name) << low
        return value

    @property
    def address_lo(self) -> int:
        return self._word("address_lo")

    @property
    def address_hi(self) -> int:
        return self._word("address_hi")

    @property
    def data(self) -> int:
        return self._word("data")

    @classmethod
    def decode(cls, address_lo: int, address_hi: int, data: int) -> Message:
        """Return the message with these 32-bit words; the inverse of the properties."""
        words = {"address_lo": address_lo, "address_hi": address_hi, "data": data}
        values = {f.name: words[f.word] >> f.low & f.mask for f in LAYOUT}
        destination = values.pop("destination_31_8") << 8 | values.pop("destination_7_0")
        return cls(
            destination=destination,
            destination_mode=DestinationMode(values.pop("destination_mode")),
            delivery_mode=DeliveryMode(values.pop("delivery_mode")),
            trigger_mode=TriggerMode(values.pop("trigger_mode")),
            **values,
        )

    @classmethod
    def from_words(cls, words: Mapping[str, object]) -> Message:
        """Decode words read from text or JSON; a missing word is 0. Raises ValueError."""
        return cls.decode(**{name: number_of(name, words.get(name, 0)) for name in WORDS})

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> Message:
        """Return the message with these fields, read from text or JSON.

        A value is a number, a number as text, or the name of an enum member in any case. Raises
        ValueError.
        """
        known = [field.name for field in fields(cls)]
        given: dict[str, int] = {}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"message: no field {name!r}; the fields are {' '.join(known)}")
            given[name] = _member_of(name, value) if name in _ENUMS else number_of(name, value)
        return cls(**given)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Message:
        """Return the message with this text form. Raises ValueError."""
        if ":" in text:
            words = [f"0x{word.removeprefix('0x')}" for word in text.split(":")]
            if len(words) != len(WORDS):
                raise ValueError(f"message {text!r}: {len(words)} words, not {':'.join(WORDS)}")
            return cls.from_words(dict(zip(WORDS, words, strict=True)))
        values: dict[str, object] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            if not equals:
                forms = f"neither FIELD=VALUE nor {':'.join(WORDS)} in hex"
                raise ValueError(f"message: {word!r} is {forms}")
            values[name] = value
        return cls.from_fields(values)

    @property
    def text(self) -> str:
        """The text form: vector, destination, and the fields that differ from ``Message()``."""
        return " ".join(
            f"{field.name}={_shown(field.name, value)}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
            or field.name in ("vector", "destination")
        )

    def decoded(self) -> list[tuple[str, str, str, str]]:
        """Return rows of word, bits, field name and value, in the order of ``LAYOUT``."""
        values = {f.name: f"{getattr(self, f.name):#x}" for f in LAYOUT}
        for name in _ENUMS:
            values[name] += f" {getattr(self, name).name}"
        return [(f.word, f.bits, f.name, values[f.name]) for f in LAYOUT]

    def __repr__(self) -> str:
        """Return one line: delivery mode, vector, destination, and the fields with other values."""
        shown = [
            f"{self.delivery_mode.name} vector {self.vector:#04x}",
            f"to {self.destination_mode.name.lower()} {self.destination:#x}",
        ]
        if self.redirection_hint:
            shown.append("RH=1")
        if self.trigger_mode:
            shown.append("level-triggered")
        for field in fields(self)[6:]:  # the six fields above are shown
            if (value := getattr(self, field.name)) != field.default:
                shown.append(f"{field.name}={value:#x}")
        return f"<Message {', '.join(shown)}>"


def number_of(name: str, value: object, bits: int = 32) -> int:
    """Return the number ``value``, an int or text, of ``bits`` bits. Raises ValueError."""
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{name}: {value!r} is not a number")
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name}: {value} does not fit {bits} bits")
    return number


def translate_extended_destination(message: Message) -> Message:
    """Return what a VMM sends to KVM for a guest's message with an extended destination ID.

    A guest that sees KVM_FEATURE_MSI_EXT_DEST_ID puts destination bits 14:8 into address bits 11:5.
    KVM does not decode address bits 11:5: the VMM moves them to address_hi bits 14:8. Address bit 4
    would announce the remappable format, which has no destination ID. Source: x86/cpuid.rst,
    KVM_FEATURE_MSI_EXT_DEST_ID; Intel VT-d, "Interrupt Requests in Remappable Format".
    """
    extension, remappable = divmod(message.address_reserved_11_4, 2)
    if remappable:
        return message
    destination = message.destination | extension << 8
    return replace(message, destination=destination, address_reserved_11_4=0)


def padding_of(text: str) -> bytes:
    """Return the 12 bytes of ``pad`` in struct kvm_msi, from hex. Raises ValueError."""
    try:
        pad = bytes.fromhex(text)
    except ValueError:
        pad = b""
    if len(pad) != 12:
        raise ValueError(f"pad: {text!r} is not 12 bytes in hex")
    return pad


def _member_of(name: str, value: object) -> enum.IntEnum:
    members = _ENUMS[name].__members__
    if (wanted := str(value).upper().replace("-", "_")) in members:
        return members[wanted]
    try:
        return _ENUMS[name](number_of(name, value))
    except ValueError:
        known = " ".join(member.lower() for member in members)
        raise ValueError(
            f"{name}: {value!r} is neither one of {known} nor a number below {len(members)}"
        ) from None


def _shown(name: str, value: int) -> str:
    if name in _ENUMS:
        return _ENUMS[name](value).name.lower()
    return str(value) if value < 10 else f"{value:#x}"
