# SPDX-License-Identifier: GPL-2.0-only
"""An injection: one KVM_SIGNAL_MSI, its return value, and every vCPU before and after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from helpers.apic import ApicMode, LapicPage, Message, Register
from helpers.apic.effect import NOTHING, Effect
from helpers.apic.lapic import SVR_SUPPRESS_EOI, bits
from helpers.apic.model import Outcome, effect_of
from helpers.apic.topology import Irqchip, MpState, Topology, VcpuState, show_mp_state
from helpers.guest.expect import Mismatch
from helpers.kvm import abi, errno_name, recording, show_result

__tracebackhide__ = True  # pytest shows a failure at the line of the test


class Snapshot(NamedTuple):
    """The state of a vCPU that the host can read.

    ``lapic`` is read first and ``mp_state`` last: KVM_GET_MP_STATE makes KVM process a pending INIT
    or SIPI. ``shadow`` is 1 in any interrupt shadow, since AMD does not tell STI from MOV SS.
    """

    lapic: LapicPage
    nmi_pending: int
    smi_pending: int
    latched_init: int
    mp_state: int
    nmi_masked: int = 0
    shadow: int = 0
    smm: int = 0


_KEPT = ("nmi_masked", "shadow", "smm")
"""Fields of a snapshot that no message changes."""

# The bits of a register page, as a little-endian number, except those of TMR and IRR.
_REST = ~sum(0xFFFFFFFF << 8 * word for word in range(Register.TMR, Register.ESR, 0x10))


def effect_between(before: Snapshot, after: Snapshot) -> Effect:
    """Return the difference of two snapshots. Every register of the page is compared."""
    if before == after:
        return NOTHING
    old, new = before.lapic, after.lapic
    states = (before.mp_state, after.mp_state)
    old_irr, new_irr, old_tmr, new_tmr = old.irr, new.irr, old.tmr, new.tmr
    return Effect(
        irr_set=new_irr - old_irr,
        irr_cleared=old_irr - new_irr,
        tmr_set=new_tmr - old_tmr,
        tmr_cleared=old_tmr - new_tmr,
        nmi=after.nmi_pending - before.nmi_pending,
        smi=after.smi_pending - before.smi_pending,
        init=after.latched_init - before.latched_init,
        mp_state=None if states[0] == states[1] else states,
        registers=(*_other_registers(old, new), *_other_events(before, after)),
    )


def _other_events(before: Snapshot, after: Snapshot) -> list[str]:
    return [name for name in _KEPT if getattr(before, name) != getattr(after, name)]


def _other_registers(old: LapicPage, new: LapicPage) -> tuple[str, ...]:
    """Return the names of the registers that differ, except IRR and TMR."""
    changed = int.from_bytes(old.raw, "little") ^ int.from_bytes(new.raw, "little")
    words = {bit // 32 for bit in bits(changed & _REST)}
    return tuple(_register_name(4 * word) for word in sorted(words))


def _register_name(offset: int) -> str:
    for register in Register:
        wide = 0x80 if register in (Register.ISR, Register.TMR, Register.IRR) else 4
        if register <= offset < register + wide:
            return register.name
    return f"{offset:#x}"


@dataclass(frozen=True, slots=True)
class Setting:
    """The state of a machine that no snapshot shows.

    ``apic_modes``: the APIC mode of each vCPU. ``unmapped``: index of the newest vCPU while the
    kernel's map of LAPICs lacks the vCPU, else None. ``mapped_api``: features of
    KVM_CAP_X2APIC_API when that map was built; None if still the same. ``bsps``: the BSP flag of
    each vCPU; empty if each has the flag's value after reset. ``boot_id``: the argument of
    KVM_SET_BOOT_CPU_ID.
    """

    irqchip: Irqchip = "full"
    x2apic_api: int = 0
    vcpu_ids: tuple[int, ...] = ()
    apic_modes: tuple[ApicMode, ...] = ()
    unmapped: int | None = None
    mapped_api: int | None = None
    bsps: tuple[int, ...] = ()
    boot_id: int = 0

    def vcpu(self, index: int, snapshot: Snapshot) -> VcpuState:
        """Return the state of vCPU ``index`` in the terms of the model."""
        page = snapshot.lapic
        apic_mode = self.apic_modes[index]
        return VcpuState(
            vcpu_id=self.vcpu_ids[index],
            apic_mode=apic_mode,
            software_enabled=page.software_enabled,
            id=-1 if apic_mode is ApicMode.X2APIC else page.xapic_id,  # -1: unused
            ldr=page[Register.LDR],
            dfr=page[Register.DFR],
            irr=page.irr,
            tmr=page.tmr,
            nmi=snapshot.nmi_pending,
            smi=snapshot.smi_pending,
            init=snapshot.latched_init,
            mp_state=MpState(snapshot.mp_state),
            mapped=index != self.unmapped,
            bsp=self.bsps[index] if self.bsps else -1,
            tpr=page[Register.TPR],
            isr=page.isr,
            eoi_suppressed=bool(page[Register.SVR] & SVR_SUPPRESS_EOI),
            nmi_masked=bool(snapshot.nmi_masked),
            shadow=bool(snapshot.shadow),
            smm=bool(snapshot.smm),
        )

    def topology(
        self, snapshots: Sequence[Snapshot], vector_hashing: bool = True, smm: bool = True
    ) -> Topology:
        """Return the machine in the terms of the model.

        ``vector_hashing`` and ``smm`` are properties of the kernel under test.
        """
        vcpus = tuple(self.vcpu(index, snapshot) for index, snapshot in enumerate(snapshots))
        return Topology(
            *(vcpus, self.irqchip, self.x2apic_api, vector_hashing, smm),
            *(self.mapped_api, self.boot_id),
        )


@dataclass(frozen=True, slots=True)
class Injection:
    """A message that was sent, with its outcome.

    The checks, from ``returns()`` to ``reached_nobody()``, raise Mismatch and return self.
    """

    msi: abi.kvm_msi
    result: int
    errno: int
    before: Sequence[Snapshot]
    after: Sequence[Snapshot]
    setting: Setting = field(default_factory=Setting)

    @property
    def message(self) -> Message:
        return Message.decode(self.msi.address_lo, self.msi.address_hi, self.msi.data)

    @property
    def returned(self) -> str:
        """The outcome in strace's notation: ``1``, or ``-1 EINVAL``."""
        return show_result(self.result, self.errno)

    def explain(self, most: int = 8) -> str:
        """Return the message, the outcome, and the change of at most ``most`` vCPUs as text."""
        names = ("address_lo", "address_hi", "data", "flags", "devid")
        words = [f"{name}={getattr(self.msi, name):#x}" for name in names]
        if any(self.msi.pad):
            words.append(f"pad={bytes(self.msi.pad).hex()}")
        lines = [f"{self.message}", f"  {' '.join(words)}", f"  returned {self.returned}"]
        for index, effect in enumerate(self.effects()[:most]):
            before = self.before[index]
            state = show_mp_state(before.mp_state)
            lines.append(f"  vCPU {index}: {effect}; before it {state} {before.lapic}")
        if len(self.before) > most:
            lines.append(f"  and {len(self.before) - most} more vCPUs")
        return "\n".join(lines)

    def effects(self) -> list[Effect]:
        effects = [effect_between(b, a) for b, a in zip(self.before, self.after, strict=True)]
        if recording.active:
            recording.active.effects_read(self, effects)
        return effects

    def _expect(self, holds: bool, subject: str, expected: object, actual: object) -> Injection:
        if not holds:
            if recording.active and recording.active.tolerates(
                subject, *map(str, (expected, actual))
            ):
                return self
            raise Mismatch(subject, str(expected), str(actual), sent=str(self.message))
        return self

    def _expect_return(self, holds: bool, expected: str) -> Injection:
        if recording.active:
            recording.active.return_checked(self, expected)
        return self._expect(holds, "return value", expected, self.returned)

    def _expect_effects(self, expected: Sequence[Effect]) -> Injection:
        if recording.active:
            recording.active.effects_checked(self, expected)
        for index, (effect, wanted) in enumerate(zip(self.effects(), expected, strict=True)):
            self._expect(effect == wanted, f"effect on vCPU {index}", wanted, effect)
        return self

    def returns(self, count: int) -> Injection:
        """Check that the return value is ``count``."""
        return self._expect_return(self.returned == str(count), str(count))

    def delivered(self) -> Injection:
        """Check that the return value is above 0."""
        return self._expect_return(self.result > 0, "> 0")

    def blocked(self) -> Injection:
        """Check that the return value is 0."""
        return self.returns(0)

    def fails(self, code: int) -> Injection:
        """Check that the return value is -1, with errno ``code``."""
        expected = f"-1 {errno_name(code)}"
        return self._expect_return(self.returned == expected, expected)

    def blocked_or_unmatched(self) -> Injection:
        """Check that the outcome is 0 or -1 EPERM.

        Both mean that no vCPU accepted the message. The documents leave the choice open.
        """
        return self._expect_return(self.returned in ("0", "-1 EPERM"), "0 or -1 EPERM")

    def accepted_by(self, *indices: int) -> Injection:
        """Check that these vCPUs changed as accepting the message requires, and no other vCPU."""
        message, expected = self.message, [NOTHING] * len(self.before)
        for index in indices:
            vcpu = self.setting.vcpu(index, self.before[index])
            expected[index] = effect_of(message, vcpu, message.delivery_mode)
        return self._expect_effects(expected)

    def answers(self, outcome: Outcome) -> Injection:
        """Check the return value and the effect on every vCPU against the model."""
        self._expect_return(self.returned == outcome.returned, outcome.returned)
        return self._expect_effects(outcome.effects)

    def reached_nobody(self) -> Injection:
        """Check that no vCPU changed."""
        return self.accepted_by()

    def acceptors(self) -> list[int]:
        """Return the indices of the vCPUs that changed."""
        acceptors = [index for index, effect in enumerate(self.effects()) if effect]
        if recording.active:
            recording.active.acceptors_read(self, acceptors)
        return acceptors


journal: deque[Injection] = deque(maxlen=64)
"""The latest injections, oldest first. The report shows the injections of one test."""


def start_over() -> None:
    """Forget what the test has done: what follows, on machines of its own, stands for the test."""
    journal.clear()
    recording.active = recording.active and recording.active.successor()


def irqchip_route(gsi: int, irqchip: int, pin: int) -> abi.kvm_irq_routing_entry:
    """Return a routing entry from ``gsi`` to a pin of an irqchip, KVM_IRQCHIP_*, in the kernel."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip, entry.u.irqchip.pin = irqchip, pin
    return entry


def sint_route(gsi: int, vcpu: int, sint: int) -> abi.kvm_irq_routing_entry:
    """Return a routing entry from ``gsi`` to a SINT of the SynIC with index ``vcpu``."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_HV_SINT)
    entry.u.hv_sint.vcpu, entry.u.hv_sint.sint = vcpu, sint
    return entry
