# SPDX-License-Identifier: GPL-2.0-only
"""The effect of a message on a vCPU, as KVM_GET_LAPIC and other ioctls show it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from helpers.apic.lapic import show_vectors
from helpers.apic.topology import MpState, VcpuState, show_mp_state


@dataclass(frozen=True, slots=True)
class Effect:
    """The changes that a message makes to one vCPU; false if there are none.

    ``nmi``, ``smi`` and ``init`` count what became pending. ``mp_state`` is (before, after).
    ``registers`` names the other registers that changed: no message may change them.
    """

    irr_set: frozenset[int] = frozenset()
    irr_cleared: frozenset[int] = frozenset()
    tmr_set: frozenset[int] = frozenset()
    tmr_cleared: frozenset[int] = frozenset()
    nmi: int = 0
    smi: int = 0
    init: int = 0
    mp_state: tuple[int, int] | None = None
    registers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != NOTHING

    def on(self, vcpu: VcpuState) -> VcpuState:
        """Return ``vcpu`` with the effect applied."""
        return replace(
            vcpu,
            irr=vcpu.irr - self.irr_cleared | self.irr_set,
            tmr=vcpu.tmr - self.tmr_cleared | self.tmr_set,
            nmi=vcpu.nmi + self.nmi,
            smi=vcpu.smi + self.smi,
            init=vcpu.init + self.init,
            mp_state=MpState(self.mp_state[1]) if self.mp_state else vcpu.mp_state,
        )

    def __str__(self) -> str:
        parts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value == each.default:
                continue
            if each.name == "mp_state":
                parts.append("mp_state " + "->".join(show_mp_state(state) for state in value))
            elif each.name == "registers":
                parts.append("changed " + " ".join(value))
            elif isinstance(value, frozenset):
                parts.append(f"{each.name.replace('_', ' ').upper()} {show_vectors(value)}")
            else:
                parts.append(f"{each.name.upper()} {'pending' if value == 1 else f'{value:+}'}")
        return ", ".join(parts) or "nothing"


NOTHING = Effect()
