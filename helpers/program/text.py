# SPDX-License-Identifier: GPL-2.0-only
"""C source text: literals, names of the uapi, structures field by field, lines of 100 columns."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence

from helpers.apic import Register
from helpers.guest import layout
from helpers.kvm import abi

_WIDTH = 100
_TAB = 8

Field = tuple[str, int]
"""The C name of a field, such as ``u.msi.data``, and its value."""

_NAMED = {
    "cap": "KVM_CAP_",
    "mp_state": "KVM_MP_STATE_",
    "type": "KVM_IRQ_ROUTING_",
}
"""By field, the prefix of the constants that its values have in the uapi."""


def c_identifier(nodeid: str) -> str:
    """Return the name of the C function of a test."""
    file, _, test = nodeid.removeprefix("suites/").partition("::")
    return re.sub(r"\W+", "_", f"{test}_in_{file.removesuffix('.py')}").strip("_")


def string(text: str) -> str:
    """Return a C string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def number(value: int) -> str:
    """Return a C integer literal."""
    if -10 < value < 10:
        return str(value)
    return f"{value:#x}" + ("ull" if value > 0xFFFFFFFF else "")


def register(offset: int) -> str:
    """Return the name of a LAPIC register, or of a word of ISR, TMR or IRR."""
    for each in (Register.ISR, Register.TMR, Register.IRR):
        if each < offset < each + 0x80:
            return f"APIC_{each.name} + {offset - each:#x}"
    return f"APIC_{Register(offset).name}" if offset in set(Register) else f"{offset:#x}"


def statement(code: str, depth: int = 1) -> str:
    """Return a statement, broken behind commas so that no line exceeds the width."""
    lines, line, used = [], "\t" * depth, _TAB * depth
    for part in _parts(code):
        if used + len(part.rstrip()) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line, used = "\t" * (depth + 2), _TAB * (depth + 2)
        line += part
        used += len(part)
    return "\n".join([*lines, line.rstrip()])


def _parts(code: str) -> Iterator[str]:
    """Yield the parts of a statement that may stand on lines of their own."""
    start, quoted = 0, False
    for place, char in enumerate(code):
        if char == '"' and code[place - 1] != "\\":
            quoted = not quoted
        elif char == " " and not quoted and code[place - 1] in ",{":
            yield code[start : place + 1]
            start = place + 1
    yield code[start:]


def fields_of(struct: type[ctypes.Structure], content: bytes) -> list[Field]:
    """Return every field of a structure that is a number, with its value."""
    return list(_walk(struct.from_buffer_copy(content), ""))


def _walk(value: object, name: str) -> Iterator[Field]:
    if isinstance(value, ctypes.Union):
        yield from _walk_union(value, name)
    elif isinstance(value, ctypes.Structure):
        for field, *_ in value._fields_:
            yield from _walk(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, ctypes.Array):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]")
    else:
        assert isinstance(value, int)
        yield c_name(name), value


_MEMBER = {"chip": "ioapic"}
"""By the name of a union, the member that stands for it. Else the pad does, which covers all."""


def _walk_union(union: ctypes.Union, name: str) -> Iterator[Field]:
    member = _MEMBER.get(name, "")
    if name.endswith("u") and bytes(union) == bytes(ctypes.sizeof(union)):
        return
    assert member, f"union {name}"
    yield from _walk(getattr(union, member), f"{name}.{member}")


def c_name(place: str) -> str:
    """Return the name in the C header of a field of helpers.kvm.abi."""
    if place == "triple_fault":
        return "triple_fault.pending"
    return f"{place}.bits" if place.startswith("chip.ioapic.redirtbl") else place


def route(entry: abi.kvm_irq_routing_entry) -> str:
    """Return an initializer of a routing entry."""
    member = {
        abi.KVM_IRQ_ROUTING_IRQCHIP: "irqchip",
        abi.KVM_IRQ_ROUTING_MSI: "msi",
        abi.KVM_IRQ_ROUTING_HV_SINT: "hv_sint",
    }.get(entry.type, "")
    fields = [(name, getattr(entry, name)) for name in ("gsi", "type", "flags", "pad")]
    if member:
        part = getattr(entry.u, member)
        fields += [(f"u.{member}.{name}", getattr(part, name)) for name, *_ in part._fields_]
        shown = ctypes.sizeof(part)
    else:
        shown = 0
    hidden = bytes(entry.u)[shown:]
    words = [hidden[at : at + 4] for at in range(0, len(hidden), 4)]
    for index, word in enumerate(words, shown // 4):
        fields.append((f"u.pad[{index}]", int.from_bytes(word, "little")))
    return f"{{ {initializers(fields)} }}"


def initializers(fields: Sequence[Field]) -> str:
    """Return designated initializers of the fields that are not 0."""
    return ", ".join(f".{name} = {value_of(name, value)}" for name, value in fields if value)


def value_of(name: str, value: int) -> str:
    """Return the value of a field: the name of the constant, or a number."""
    prefix = _NAMED.get(name)
    names = vars(abi).items() if prefix else ()
    return next(
        (each for each, known in names if each.startswith(prefix or "") and known == value),
        number(value),
    )


def routes_of(table: bytes) -> list[abi.kvm_irq_routing_entry]:
    """Return the entries of an argument of KVM_SET_GSI_ROUTING."""
    start, size = ctypes.sizeof(abi.kvm_irq_routing), ctypes.sizeof(abi.kvm_irq_routing_entry)
    places = range(start, len(table) - size + 1, size)
    return [abi.kvm_irq_routing_entry.from_buffer_copy(table, place) for place in places]


def string_of_bytes(content: bytes) -> str:
    """Return a C string literal of any bytes."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in content) + '"'


def exit_name(reason: int) -> str:
    """Return the constant of an exit reason."""
    return abi.EXIT_NAMES.get(reason, str(reason))


def port_name(port: int) -> str:
    """Return the constant of a port of the probe."""
    names = [name for name in vars(layout) if name.startswith("PORT_")]
    return next((name for name in names if getattr(layout, name) == port), f"{port:#x}")
