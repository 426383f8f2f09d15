# SPDX-License-Identifier: GPL-2.0-only
"""One vCPU of a machine: the view of the host, stepping, and operations of the guest."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from helpers.apic import ApicMode, LapicPage, Register
from helpers.apic.lapic import APIC_BASE_X2APIC, SVR_ENABLE, SVR_RESET, VectorSet, vectors_of
from helpers.guest import layout
from helpers.guest.injection import Snapshot
from helpers.guest.ledger import IA32_APIC_BASE, Ledger, apic_mode_in
from helpers.guest.running import GuestError, Running, expect_port
from helpers.kvm import System, Vcpu, abi, recording


@dataclass(frozen=True, slots=True)
class Taken:
    """A record in the log of the guest: an interrupt, and the LAPIC as its handler read it.

    ``rip`` is the address of the interrupted instruction, the next one to execute.
    """

    vector: int
    rip: int
    apic_base: int
    id: int
    tpr: int
    ppr: int
    ldr: int
    svr: int
    isr: VectorSet
    tmr: VectorSet
    irr: VectorSet


_FLAT = abi.kvm_segment(limit=0xFFFFFFFF, selector=layout.DATA, type=3, present=1, db=1, s=1, g=1)
_EVENTS = {
    "nmi_masked": ("nmi", "masked", 0),
    "nmi": ("nmi", "pending", abi.KVM_VCPUEVENT_VALID_NMI_PENDING),
    "shadow": ("interrupt", "shadow", abi.KVM_VCPUEVENT_VALID_SHADOW),
    "smm": ("smi", "smm", abi.KVM_VCPUEVENT_VALID_SMM),
    "smi": ("smi", "pending", abi.KVM_VCPUEVENT_VALID_SMM),
    "init": ("smi", "latched_init", abi.KVM_VCPUEVENT_VALID_SMM),
}
"""By field of VcpuState: structure and field of kvm_vcpu_events, and the flag that goes with it."""

_READS = ("LAPIC_READ", "RDMSR", "READ_CR8")
"""Operations of the guest whose value a test reads."""

_NO_EVENTS = abi.kvm_vcpu_events(
    flags=abi.KVM_VCPUEVENT_VALID_NMI_PENDING | abi.KVM_VCPUEVENT_VALID_SHADOW
)


@cache
def _idle(area: int) -> abi.kvm_regs:
    """Return the registers with which a vCPU enters the idle loop of the probe."""
    rip, rsp = layout.PROBE + layout.ENTRY64, area + layout.STACK_TOP
    return abi.kvm_regs(rip=rip, rsp=rsp, rflags=0x202)


class Cpu:
    """One vCPU with its LAPIC and its area of guest memory.

    ``ledger`` watches the file descriptor of ``vcpu``.
    """

    def __init__(
        self, index: int, vcpu: Vcpu, memory: mmap.mmap, system: System, ledger: Ledger
    ) -> None:
        self.index = index
        self.vcpu = vcpu
        self._area = layout.AREAS + index * layout.AREA_SIZE
        self._memory = memory
        self.control = layout.Control.from_buffer(memory, self._area)
        self._system = system
        self._has_cpuid = False
        self._ledger = ledger

    # --- the view of the host ---------------------------------------------------------------------

    @property
    def lapic(self) -> LapicPage:
        """A copy of the register page (KVM_GET_LAPIC)."""
        state = self.vcpu.get_lapic()
        watched = recording.active.page(state) if recording.active else None
        return watched or LapicPage(bytes(state))

    @lapic.setter
    def lapic(self, page: LapicPage) -> None:
        self.vcpu.set_lapic(abi.kvm_lapic_state.from_buffer_copy(page.raw))

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE, read from KVM if a call may have changed the MSR."""
        known = None if recording.active else self._ledger.apic_bases.get(self.vcpu.fd)
        return int(self.vcpu.get_sregs().apic_base) if known is None else known

    @property
    def apic_mode(self) -> ApicMode:
        """The APIC mode in IA32_APIC_BASE."""
        return apic_mode_in(self.apic_base)

    @apic_mode.setter
    def apic_mode(self, apic_mode: ApicMode) -> None:
        """Switch by KVM_SET_SREGS, as a host that restores a vCPU does."""
        self._set_sregs(self.vcpu.get_sregs(), apic_mode)

    def _set_sregs(self, sregs: abi.kvm_sregs, apic_mode: ApicMode) -> None:
        with recording.hidden():  # a read that leads to a write checks nothing
            sregs.apic_base = sregs.apic_base & ~ApicMode.X2APIC.value | apic_mode.value
        if apic_mode is ApicMode.X2APIC:
            self._system.require_x2apic()
        self.vcpu.set_sregs(sregs)

    @property
    def mp_state(self) -> int:
        return self.vcpu.get_mp_state()

    @mp_state.setter
    def mp_state(self, state: int) -> None:
        self.vcpu.set_mp_state(state)

    def set_events(self, changes: Mapping[str, int]) -> None:
        """Write some events by KVM_SET_VCPU_EVENTS: fields of VcpuState, each with its value."""
        events = self.vcpu.get_events()
        events.flags = 0
        for name, value in changes.items():
            structure, field, valid = _EVENTS[name]
            setattr(getattr(events, structure), field, value)
            events.flags |= valid
        self.vcpu.set_events(events)

    def configure(self, **registers: int) -> Cpu:
        """Write LAPIC registers by KVM_SET_LAPIC and return self. ``svr=0xFF`` names a register.

        ``id`` and ``ldr`` are 8-bit IDs, written to bits 31:24 of their registers.
        """
        page = self.lapic
        for name, value in registers.items():
            page[Register[name.upper()]] = value << 24 if name in ("id", "ldr") else value
        self.lapic = page
        return self

    def configure_vectors(self, register: Register, vectors: Sequence[int]) -> None:
        """Replace the content of ISR, TMR or IRR by ``vectors``, by KVM_SET_LAPIC."""
        page = self.lapic
        page.set_vectors(register, vectors)
        self.lapic = page

    def snapshot(self) -> Snapshot:
        """Read the state of the vCPU. KVM then processes a pending INIT or SIPI."""
        lapic, events, mp_state = self.lapic, self.vcpu.get_events(), self.mp_state  # in this order
        nmi, smi = events.nmi, events.smi
        if smi.latched_init and not smi.smm:
            self._ledger.map_rebuilt()  # the INIT has reset the LAPIC
        return Snapshot(
            *(lapic, nmi.pending, smi.pending, smi.latched_init, mp_state),
            *(nmi.masked, int(events.interrupt.shadow > 0), smi.smm),
        )

    def address_of(self, field: str) -> int:
        """Return the guest-physical address of a field of layout.Control."""
        return self._area + int(getattr(layout.Control, field).offset)

    # --- running ----------------------------------------------------------------------------------

    def run_to(self, *ports: int) -> int:
        """Enter the guest until an exit to one of ``ports``. Return the port. Raises GuestError."""
        return expect_port(self.vcpu, self.index, self._enter(), *ports)

    def _enter(self) -> int:
        """Call KVM_RUN until an exit, again after each signal. Return the exit reason."""
        while (reason := self.vcpu.run()) == abi.KVM_EXIT_INTR:
            pass
        return reason

    def step(self) -> None:
        """Enter the guest until the idle loop exits. The guest takes at most one interrupt."""
        self.run_to(layout.PORT_IDLE)

    def take(self) -> list[Taken]:
        """Step until the guest takes no further interrupt. Return the new records, oldest first."""
        return self._take_recorded()[0] if recording.active else self._take()[0]

    def _take(self, exit_by_eoi: bool = False) -> tuple[list[Taken], list[int]]:
        taken: list[Taken] = []
        exits: list[int] = []
        while True:
            reason = self._enter()
            if exit_by_eoi and reason == abi.KVM_EXIT_IOAPIC_EOI:
                exits.append(int(self.vcpu.kvm_run.u.eoi.vector))
                continue
            expect_port(self.vcpu, self.index, reason, layout.PORT_IDLE)
            new = self._log()
            if not new:
                return taken, exits
            taken += new

    def _take_recorded(self, exit_by_eoi: bool = False) -> tuple[list[Taken], list[int]]:
        assert recording.active
        with recording.active.taking(self.vcpu.fd, exits=exit_by_eoi) as step:
            taken, exits = self._take(exit_by_eoi)
            return recording.active.watched_records(step, taken, exits), exits

    def take_with_exits(self) -> tuple[list[Taken], list[int]]:
        """Do as :meth:`take`. Return the vectors of all KVM_EXIT_IOAPIC_EOI, too."""
        return self._take_recorded(True) if recording.active else self._take(True)

    def log(self) -> list[Taken]:
        """Return the records since the last call, oldest first, and empty the log.

        Raises GuestError if the log has overflowed.
        """
        if recording.active:
            with recording.active.taking(self.vcpu.fd, runs=False) as step:
                return recording.active.watched_records(step, self._log())
        return self._log()

    def _log(self) -> list[Taken]:
        count = self.control.taken
        if count > layout.LOG_RECORDS:
            raise GuestError(f"vCPU {self.index}: {count} interrupts, the log has room for fewer")
        records = [self._record(number) for number in range(count)]
        self.control.taken = 0
        return records

    def _record(self, number: int) -> Taken:
        offset = self._area + layout.LOG + number * ctypes.sizeof(layout.Record)
        record = layout.Record.from_buffer_copy(self._memory, offset)
        fields: dict[str, Any] = {name: getattr(record, name) for name in Taken.__slots__}
        fields |= {name: vectors_of(fields[name]) for name in ("isr", "tmr", "irr")}
        return Taken(**fields)

    def run_to_handler(self) -> None:
        """Enter the guest until the handler stops. Requires ``handler(pause=True)``."""
        self.run_to(layout.PORT_HANDLER)

    def run_to_smi_handler(self) -> None:
        """Enter the guest until the SMI handler stops. Requires ``pause_smis``."""
        self.run_to(layout.PORT_SMI)

    def eoi_exit(self) -> int | None:
        """Do as :meth:`take`. Return the vector of the last KVM_EXIT_IOAPIC_EOI, or None."""
        _, exits = self.take_with_exits()
        return exits[-1] if exits else None

    def run_to_window(self) -> str:
        """Run a loop of the guest that never exits, with request_interrupt_window set.

        Return the exit in words.
        """
        self._prepare("SPIN")
        self.control.stop = 0
        self.vcpu.kvm_run.request_interrupt_window = 1
        try:
            self._enter()
        finally:
            self.vcpu.kvm_run.request_interrupt_window = 0
            self.control.stop = 1
        return self.vcpu.describe_exit()

    # --- operations of the guest ------------------------------------------------------------------

    def _operate(self, operation: str, argument: int = 0, value: int = 0) -> int:
        self._prepare(operation, argument, value)
        self.step()
        value = int(self.control.value)
        if recording.active and operation in _READS:
            recording.active.looked("value", value)
        return value

    def _prepare(self, operation: str, argument: int = 0, value: int = 0) -> None:
        self.control.argument = argument
        self.control.value = value
        self.control.operation = layout.OPERATIONS.index(operation)

    def read(self, register: Register) -> int:
        """Have the guest read a LAPIC register: by MMIO in xAPIC mode, by MSR in x2APIC mode."""
        return self._operate("LAPIC_READ", register)

    def write(self, register: Register, value: int) -> None:
        """Have the guest write a LAPIC register."""
        self.prepare_write(register, value)
        self.step()

    def prepare_write(self, register: Register, value: int) -> None:
        """Have the guest write a LAPIC register at the next entry."""
        was_enabled = register is Register.SVR and self.lapic.software_enabled
        self._ledger.guest_writes_register(register, value, was_enabled)
        self._prepare("LAPIC_WRITE", register, value)

    def eoi(self) -> None:
        self.write(Register.EOI, 0)

    def rdmsr(self, msr: int) -> int:
        return self._operate("RDMSR", msr)

    def wrmsr(self, msr: int, value: int) -> None:
        self.prepare_wrmsr(msr, value)
        self.step()

    def prepare_wrmsr(self, msr: int, value: int) -> None:
        """Have the guest write an MSR at the next entry."""
        if msr == IA32_APIC_BASE and value & APIC_BASE_X2APIC:
            self._system.require_x2apic()
        self._ledger.guest_writes_msr(self.vcpu.fd, msr, value, self.apic_mode)
        self._prepare("WRMSR", msr, value)

    def read_cr8(self) -> int:
        """Have the guest read CR8."""
        return self._operate("READ_CR8")

    def prepare_cr8(self, value: int) -> None:
        """Have the guest write CR8 at the next entry."""
        self._prepare("WRITE_CR8", 0, value)

    def write_cr8(self, value: int) -> None:
        """Have the guest write CR8."""
        self._operate("WRITE_CR8", 0, value)

    def store(self, address: int, value: int) -> None:
        """Have the guest write 32 bits at ``address``."""
        self._operate("STORE", address, value)

    def cli(self) -> None:
        self._operate("CLI")

    def sti(self) -> None:
        self._operate("STI")

    def handler(
        self, *, eoi: bool = True, pause: bool = False, nest: bool = False, pv_eoi: bool = False
    ) -> None:
        """Set the end of the handler: stop at PORT_HANDLER (``pause``), then write EOI (``eoi``).

        ``nest`` enables interrupts for the stop. With ``pv_eoi`` the handler starts by clearing the
        bit to which MSR_KVM_EOI_EN points, and writes EOI only if the bit was clear.
        """
        flags = eoi * layout.FLAG_EOI | pause * layout.FLAG_PAUSE | nest * layout.FLAG_NEST
        self.control.flags = flags | pv_eoi * layout.FLAG_PV_EOI

    # --- in a thread ------------------------------------------------------------------------------

    def in_thread(self) -> Running:
        """Return a context manager that runs the vCPU in a thread."""
        recording.leave_out("a vCPU in a thread")
        return Running(self.index, self.vcpu, self.control)

    @contextlib.contextmanager
    def halted(self) -> Iterator[Running]:
        """Run the vCPU in a thread, asleep in HLT inside KVM_RUN."""
        self._prepare("HLT")
        self.control.halts = 0
        with self.in_thread() as running:
            running.wait_for(lambda: self.control.halts > 0, "the guest to reach HLT")
            running.wait_until_asleep()
            yield running

    @contextlib.contextmanager
    def halted_without_exit(self) -> Iterator[Running]:
        """Run the vCPU in a thread, in HLT of a VM whose HLT does not exit, until an interrupt."""
        self._prepare("HLT_UNTIL_TAKEN")
        self.control.halts = 0
        with self.in_thread() as running:
            running.wait_for(lambda: self.control.halts > 0, "the guest to reach HLT")
            yield running

    @contextlib.contextmanager
    def spinning(self) -> Iterator[Running]:
        """Run the vCPU in a thread, in a loop of the guest that ends with the block."""
        self.control.stop = 0
        self._prepare("SPIN")
        with self.in_thread() as running:
            running.wait_for(lambda: self.control.spins > 0, "the guest's loop to start")
            try:
                yield running
            finally:
                self.control.stop = 1

    @contextlib.contextmanager
    def storing(self, address: int) -> Iterator[Running]:
        """Run the vCPU in a thread. Have the guest write to ``address``, then exit."""
        self._prepare("STORE", address)
        with self.in_thread() as running:
            yield running

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Running]:
        """Run the vCPU in a thread, asleep inside KVM_RUN in its present mp_state."""
        with self.in_thread() as running:
            running.wait_until_asleep()
            yield running

    # --- power-on ---------------------------------------------------------------------------------

    def set_cpuid(self) -> None:
        """Set all CPUID features that KVM supports, once.

        KVM refuses another table for a vCPU that has run (api.rst, KVM_SET_CPUID2).
        """
        if not self._has_cpuid:
            with recording.hidden():
                self.vcpu.set_cpuid(self._system.supported_cpuid)
            if recording.active:
                recording.active.cpuid_set(self.vcpu.fd)
            self._has_cpuid = True

    def power_on(self, apic_mode: ApicMode = ApicMode.XAPIC) -> None:
        """Make the vCPU runnable at the idle loop, with a software-enabled LAPIC.

        An xAPIC gets the flat logical ID ``1 << index``, up to index 7.
        """
        with recording.setting_up(self.vcpu.fd):
            self._set_up(apic_mode)
        registers = {"svr": SVR_ENABLE | SVR_RESET}
        if apic_mode is ApicMode.XAPIC and self.index < 8:
            registers["ldr"] = 1 << self.index
        self.configure(**registers)

    def _set_up(self, apic_mode: ApicMode) -> None:
        self.set_cpuid()
        sregs = self.vcpu.get_sregs()
        sregs.cr0, sregs.cr3, sregs.cr4 = 0x80000011, layout.PML4, 0x20  # PG ET PE; PAE
        sregs.efer = 0x500  # LME LMA
        sregs.gdt.base, sregs.gdt.limit = layout.GDT, 0x17
        sregs.idt.base, sregs.idt.limit = layout.IDT, 0xFFF
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, _FLAT)
        sregs.cs.selector, sregs.cs.type, sregs.cs.l, sregs.cs.db = layout.CODE64, 11, 1, 0
        sregs.gs.base = self._area
        self._set_sregs(sregs, apic_mode)
        self.reset()

    def reset(self) -> None:
        """Restore the state after :meth:`power_on`, except the LAPIC and the sregs."""
        ctypes.memset(ctypes.addressof(self.control), 0, ctypes.sizeof(self.control))
        self.control.self_address = self._area
        self.handler()
        self.vcpu.set_regs(_idle(self._area))
        self.vcpu.set_events(_NO_EVENTS)
        self.mp_state = abi.KVM_MP_STATE_RUNNABLE
