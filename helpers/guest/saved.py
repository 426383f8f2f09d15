# SPDX-License-Identifier: GPL-2.0-only
"""The state of a machine, read by KVM_GET_* and restored into another machine by KVM_SET_*.

What a VMM does to migrate a VM. GSI routes, KVM_SET_BOOT_CPU_ID and capabilities cannot be read:
the VMM repeats the calls on the new VM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

from helpers.apic import LapicPage, Register
from helpers.guest import layout
from helpers.guest.cpu import Cpu
from helpers.guest.machine import Machine
from helpers.kvm import abi, recording

STEPS = ("sregs", "regs", "lapic", "events", "mp_state")
"""The ioctls that restore a vCPU, in the usual order."""

LEGAL_ORDERS = [
    order for order in permutations(STEPS) if order.index("sregs") < order.index("lapic")
]
"""The APIC mode in KVM_SET_SREGS decides the format of KVM_SET_LAPIC (api.rst, KVM_SET_LAPIC)."""

ORDERS = LEGAL_ORDERS[::7]
"""Orders in which each ioctl once directly follows each other ioctl, and once is the last."""


@dataclass(frozen=True, slots=True)
class SavedVcpu:
    """The state of a vCPU. Fields are compared by content, as the bytes of a structure.

    ``number`` is the one by which a recorder knows the state.
    """

    mp_state: int
    sregs: bytes
    regs: bytes
    lapic: LapicPage
    events: bytes
    number: int = field(default=-1, compare=False)

    @classmethod
    def read(cls, cpu: Cpu) -> SavedVcpu:
        """Complete a pending I/O instruction (api.rst, The kvm_run structure), then read all state.

        The mp_state is first: KVM_GET_MP_STATE processes a pending INIT or SIPI, which changes the
        registers.
        """
        vcpu = cpu.vcpu
        vcpu.finish_exit()
        mp_state = vcpu.get_mp_state()
        return cls(
            mp_state=mp_state,
            sregs=bytes(vcpu.get_sregs()),
            regs=bytes(vcpu.get_regs()),
            lapic=cpu.lapic,
            events=bytes(vcpu.get_events()),
            number=recording.active.state_saved(vcpu.fd) if recording.active else -1,
        )

    def differing(self, other: SavedVcpu) -> list[str]:
        """Return the names of the parts that differ. PPR, which KVM computes, does not count."""
        if recording.active:
            recording.active.states_compared(self.number, other.number)
        pages = LapicPage(self.lapic.raw), LapicPage(other.lapic.raw)
        for page in pages:
            page[Register.PPR] = 0
        mine, others = replace(self, lapic=pages[0]), replace(other, lapic=pages[1])
        return [name for name in STEPS if getattr(mine, name) != getattr(others, name)]

    def restore(self, cpu: Cpu, order: Sequence[str] = STEPS) -> None:
        """Write the state to another vCPU, in ``order``."""
        with recording.restoring(self.number):
            for step in order:
                self._restore(cpu, step)

    def _restore(self, cpu: Cpu, step: str) -> None:
        vcpu = cpu.vcpu
        match step:
            case "sregs":
                vcpu.set_sregs(abi.kvm_sregs.from_buffer_copy(self.sregs))
            case "regs":
                vcpu.set_regs(abi.kvm_regs.from_buffer_copy(self.regs))
            case "lapic":
                cpu.lapic = self.lapic
            case "events":
                vcpu.set_events(abi.kvm_vcpu_events.from_buffer_copy(self.events))
            case "mp_state":
                vcpu.set_mp_state(self.mp_state)


def migrate(old: Machine, new: Machine, order: Sequence[str] = STEPS) -> None:
    """Copy the memory and the vCPUs of ``old`` to ``new``, which has as many vCPUs.

    Memory that the probe never writes is the same in both already.
    """
    saved = [SavedVcpu.read(cpu) for cpu in old.cpus]
    areas = slice(layout.AREAS, layout.AREAS + len(old.cpus) * layout.AREA_SIZE)
    for written in (layout.SMRAM, areas):
        new.memory[written] = old.memory[written]
    for cpu, state in zip(new.cpus, saved, strict=True):
        state.restore(cpu, order)
