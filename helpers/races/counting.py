# SPDX-License-Identifier: GPL-2.0-only
"""A guest whose handler counts interrupts, in place of a log."""

from __future__ import annotations

import ctypes

from helpers.guest import Cpu, Machine, layout


def count_interrupts(machine: Machine, cpu: Cpu) -> ctypes.Array[layout.Count]:
    """Have the handler count, and return the counts by vector, a view of guest memory."""
    cpu.control.flags = layout.FLAG_EOI | layout.FLAG_COUNT
    area = cpu.address_of("self_address")
    return (layout.Count * 256).from_buffer(machine.memory, area + layout.COUNTS)
