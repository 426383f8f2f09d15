# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory at power-on: the probe, descriptor tables, page tables and the SMI handler."""

from __future__ import annotations

import mmap
import struct
from functools import cache

from helpers.guest import layout
from helpers.guest.assemble import probe
from helpers.kvm import Vm, recording

_LARGE_PAGE = 0x200000


def add_memory(vm: Vm, vcpus: int) -> mmap.mmap:
    """Give a VM of ``vcpus`` vCPUs its memory. Leave room for 8 vCPUs that a test adds later."""
    size = layout.AREAS + (vcpus + 8) * layout.AREA_SIZE
    memory = vm.add_memory(0, -(-size // _LARGE_PAGE) * _LARGE_PAGE)
    for address, content in _image():
        memory[address : address + len(content)] = content
    if recording.active:
        recording.active.guest_loaded(vm.fd)
    return memory


@cache
def _image() -> tuple[tuple[int, bytes], ...]:
    """Return the content of guest memory at power-on: (guest-physical address, bytes) pairs."""
    code = probe()
    smi_handler = code[layout.SMI_HANDLER : layout.SMI_HANDLER + layout.SMI_HANDLER_SIZE]
    # Null, 64-bit code (accessed, L), data (accessed, writable).
    gdt = struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    idt = b""
    for vector in range(256):
        gate = layout.PROBE + layout.GATES + vector * layout.GATE_SIZE
        idt += struct.pack("<HHHHII", gate & 0xFFFF, layout.CODE64, 0x8E00, gate >> 16, 0, 0)
    directories = [layout.PAGE_DIRECTORIES + gib * 0x1000 for gib in range(4)]
    return (
        (layout.PROBE, code),
        (layout.SMBASE + 0x8000, smi_handler),
        (layout.GDT, gdt),
        (layout.IDT, idt),
        (layout.PML4, struct.pack("<Q", layout.PDPT | 7)),
        (layout.PDPT, struct.pack("<4Q", *(directory | 7 for directory in directories))),
        # 2 MiB pages, present, writable, user.
        (layout.PAGE_DIRECTORIES, struct.pack("<2048Q", *(p << 21 | 0x87 for p in range(2048)))),
    )
