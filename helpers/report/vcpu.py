# SPDX-License-Identifier: GPL-2.0-only
"""Texts and pictures of a vCPU's state before and after a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, SVR_ENABLE
from helpers.report.details import VcpuChange, VcpuState


def facts(state: VcpuState) -> dict[str, str]:
    """Return the state without its vectors, each item as text: registers, pending, mp_state."""
    registers = cast("dict[str, int]", state["registers"])
    shown = {name: _register(name, value) for name, value in registers.items()}
    pending = " ".join(state["pending"]) or "none"
    return shown | {"pending": pending, "mp_state": state["mp_state"]}


def _register(name: str, value: int) -> str:
    match name:
        case "SVR":
            return f"{value:#x} {'enabled' if value & SVR_ENABLE else 'software-disabled'}"
        case "DFR":
            return {DFR_FLAT: "flat", DFR_CLUSTER: "cluster"}.get(value, f"{value:#x}")
        case "ID" | "LDR":
            return f"{value:#010x}"
    return f"{value:#04x}"


class Strip:
    """The picture of a 256-bit register: a column per vector, 256 wide and 12 high.

    The upper half shows the register before the message, the lower half after the message.
    """

    def __init__(self, name: str, before: Sequence[int], after: Sequence[int]) -> None:
        was, now = set(before), set(after)
        self.name = name
        self.kept, self.lost, self.gained = sorted(was & now), sorted(was - now), sorted(now - was)

    @property
    def paths(self) -> dict[str, str]:
        """SVG paths by CSS class."""
        lanes = {
            "kept": (self.kept, 0, 12),
            "lost": (self.lost, 0, 6),
            "gained": (self.gained, 6, 6),
        }
        return {
            css_class: "".join(
                f"M{first} {top}h{last - first + 1}v{height}h-{last - first + 1}z"
                for first, last in _runs(vectors)
            )
            for css_class, (vectors, top, height) in lanes.items()
            if vectors
        }


def strips(change: VcpuChange) -> list[Strip]:
    """Return the pictures of IRR, ISR and TMR, without registers that stayed empty."""
    states = change["before"], change["after"] or change["before"]
    was, now = (cast("dict[str, list[int]]", state["vectors"]) for state in states)
    return [Strip(name, was[name], now[name]) for name in was if was[name] or now[name]]


def ranges(vectors: Iterable[int]) -> str:
    """Return sorted vectors as ranges: ``0x41 0x60-0x7f``."""
    return " ".join(
        f"{first:#04x}" if first == last else f"{first:#04x}-{last:#04x}"
        for first, last in _runs(vectors)
    )


def _runs(vectors: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of successive numbers in sorted ``vectors``."""
    for _, run in groupby(enumerate(vectors), key=lambda numbered: numbered[1] - numbered[0]):
        numbers = [number for _, number in run]
        yield numbers[0], numbers[-1]
