# SPDX-License-Identifier: GPL-2.0-only
"""Save a machine, and restore it into another: arm-vgic-its.rst, "ITS Restore Sequence"."""

from __future__ import annotations

from dataclasses import dataclass

from helpers.arm64 import layout
from helpers.arm64.cpu import Cpu
from helpers.arm64.its_device import ItsDevice
from helpers.arm64.machine import Machine
from helpers.its import registers
from helpers.kvm import abi_arm64 as arm

_TABLES = (
    *(registers.GITS_CBASER, registers.GITS_CREADR, registers.GITS_CWRITER),
    *(registers.GITS_BASER, registers.GITS_BASER + 8),
)


@dataclass(frozen=True, slots=True)
class State:
    """A saved machine.

    ``itss``: {offset: value} of the registers of each ITS. ``cpus``: PROPBASER, PENDBASER and CTLR
    of each redistributor. ``gicd``: GICD_CTLR. ``memory``: {address: content} of guest memory with
    the saved tables.
    """

    itss: list[dict[int, int]]
    cpus: list[tuple[int, int, int]]
    gicd: int
    memory: dict[int, bytes]


def save(machine: Machine) -> State:
    """Return the state of a machine whose vCPUs do not run. The machine can go on."""
    for its in machine.itss:
        its.control(arm.KVM_DEV_ARM_ITS_SAVE_TABLES)
    machine.save_pending_tables()
    offsets = (*_TABLES, registers.GITS_CTLR)
    return State(
        itss=[{offset: its[offset] for offset in offsets} for its in machine.itss],
        cpus=[_redistributor(cpu) for cpu in machine.cpus],
        gicd=machine.vgic.get(arm.KVM_DEV_ARM_VGIC_GRP_DIST_REGS, registers.GICD_CTLR, 32),
        memory={start: machine.read(start, size) for start, size in _used(machine)},
    )


def _used(machine: Machine) -> list[tuple[int, int]]:
    """Return the parts of guest memory in use: (address, size)."""
    pending = len(machine.cpus) * layout.PENDING_SIZE
    tables = [(its.tables, its.end_of_tables - its.tables) for its in machine.itss]
    return [(layout.CODE, layout.CONFIG_END - layout.CODE), (layout.PENDING, pending), *tables]


def _redistributor(cpu: Cpu) -> tuple[int, int, int]:
    wide = [
        cpu.get_gicr(offset) | cpu.get_gicr(offset + 4) << 32
        for offset in (registers.GICR_PROPBASER, registers.GICR_PENDBASER)
    ]
    return wide[0], wide[1], cpu.get_gicr(registers.GICR_CTLR)


def restore(machine: Machine, state: State) -> None:
    """Restore ``state`` into a machine that was made with ``ready=False``."""
    for address, content in state.memory.items():
        machine.write(address, content)
    machine.place()
    machine.initialize()
    machine.set_gicd(state.gicd)
    for cpu, (configuration, pending, control) in zip(machine.cpus, state.cpus, strict=True):
        cpu.set_gicr(registers.GICR_PROPBASER, configuration, 64)
        cpu.set_gicr(registers.GICR_PENDBASER, pending, 64)
        cpu.set_gicr(registers.GICR_CTLR, control)
    for its, saved in zip(machine.itss, state.itss, strict=True):
        its.end_of_tables = its.tables + len(state.memory[its.tables])
        restore_its(its, saved)


def restore_its(its: ItsDevice, saved: dict[int, int]) -> None:
    """Write the registers of an ITS, have KVM read the tables, then GITS_CTLR."""
    for offset in _TABLES:
        its[offset] = saved[offset]
    its.control(arm.KVM_DEV_ARM_ITS_RESTORE_TABLES)
    its[registers.GITS_CTLR] = saved[registers.GITS_CTLR]
