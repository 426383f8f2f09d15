"""A test guest: a VM with an irqchip, vCPUs with LAPICs, and the probe in its memory.

The host steps it: inject, enter, read the log. No sleeps; every run of a vCPU ends at a port the
probe writes to, and a vCPU that does not get there is interrupted by the test's own deadline.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Self

from helpers.apic import ApicMode, DeliveryMode, LapicPage, Message, Register
from helpers.apic.effect import Effect
from helpers.apic.lapic import (
    APIC_BASE_ENABLE,
    APIC_BASE_X2APIC,
    SVR_ENABLE,
    SVR_RESET,
    VectorSet,
    vectors_of,
)
from helpers.apic.topology import Irqchip, Topology
from helpers.guest import layout
from helpers.guest.assemble import probe
from helpers.guest.injection import Injection, Setting, Snapshot, effect_between
from helpers.kvm import KvmError, System, Vcpu, Vm, abi
from helpers.kvm.closing import Closing
from helpers.kvm.ioctl import Call, trace

# What these leave behind an ioctl clears; the others leave latches that none does.
_LEAVE_NO_TRACE = {
    DeliveryMode.FIXED,
    DeliveryMode.LOWEST_PRIORITY,
    DeliveryMode.EXTINT,
    DeliveryMode.NMI,
}

# What the kernel's map of LAPICs is built from; it is built again after each write of these.
_MAPPED = {Register.ID, Register.LDR, Register.DFR}

DEADLINE = 10.0
"""Seconds that a vCPU in a thread may take to do what a test waits for."""

journal: deque[Injection] = deque(maxlen=64)
"""The latest injections of any machine, oldest first; the report shows those of one test."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An interrupt as the guest's handler logged it: vectors as sets, the rest as read."""

    vector: int
    apic_base: int
    id: int
    tpr: int
    ppr: int
    ldr: int
    svr: int
    isr: VectorSet
    tmr: VectorSet
    irr: VectorSet


class GuestError(AssertionError):
    """The guest left the path the probe prescribes: a fault, an unexpected exit, no end."""


_FLAT = abi.kvm_segment(limit=0xFFFFFFFF, selector=layout.DATA, type=3, present=1, db=1, s=1, g=1)
_NO_EVENTS = abi.kvm_vcpu_events(flags=abi.KVM_VCPUEVENT_VALID_NMI_PENDING)


@cache
def _idle(area: int) -> abi.kvm_regs:
    """What a vCPU with this area of guest memory enters the probe with."""
    rip, rsp = layout.PROBE + layout.ENTRY64, area + layout.STACK_TOP
    return abi.kvm_regs(rip=rip, rsp=rsp, rflags=0x202)


def _apic_mode_in(sregs: abi.kvm_sregs) -> ApicMode:
    return ApicMode(sregs.apic_base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC))


class Cpu:
    """One vCPU of a machine with its LAPIC and its area of guest memory."""

    def __init__(self, machine: Machine, index: int, vcpu: Vcpu) -> None:
        self.machine = machine
        self.index = index
        self.vcpu = vcpu
        self._area = layout.AREAS + index * layout.AREA_SIZE
        self.control = layout.Control.from_buffer(machine.memory, self._area)
        self._apic_mode: ApicMode | None = None
        self._has_cpuid = False

    # --- the host's view --------------------------------------------------------------------------

    @property
    def lapic(self) -> LapicPage:
        """A copy of the register page (KVM_GET_LAPIC)."""
        return LapicPage(bytes(self.vcpu.get_lapic()))

    @lapic.setter
    def lapic(self, page: LapicPage) -> None:
        self.vcpu.set_lapic(abi.kvm_lapic_state.from_buffer_copy(page.raw))
        self.machine.map_is_built()

    @property
    def apic_mode(self) -> ApicMode:
        """The LAPIC's mode; it is read when something may have changed it."""
        if self._apic_mode is None:
            self._apic_mode = _apic_mode_in(self.vcpu.get_sregs())
        return self._apic_mode

    @apic_mode.setter
    def apic_mode(self, apic_mode: ApicMode) -> None:
        """Switch through KVM_SET_SREGS, as a host that restores a vCPU does."""
        self.machine.shared = False
        self._write_sregs(self.vcpu.get_sregs(), apic_mode)

    def _write_sregs(self, sregs: abi.kvm_sregs, apic_mode: ApicMode) -> None:
        """Write these, which have been read, with the LAPIC in another mode."""
        old = _apic_mode_in(sregs)
        sregs.apic_base &= ~(APIC_BASE_ENABLE | APIC_BASE_X2APIC)
        sregs.apic_base |= apic_mode.value
        self.vcpu.set_sregs(sregs)
        self._apic_mode = None
        if self.apic_mode is not old:
            self.machine.map_is_built()

    @property
    def mp_state(self) -> int:
        return self.vcpu.get_mp_state()

    @mp_state.setter
    def mp_state(self, state: int) -> None:
        if state == abi.KVM_MP_STATE_SIPI_RECEIVED:
            self.machine.shared = False
        self.vcpu.set_mp_state(state)

    def configure(self, **registers: int) -> Cpu:
        """Write LAPIC registers through KVM_SET_LAPIC, by lower-case name: ``svr=0xFF``.

        ``id`` and, in xAPIC mode, ``ldr`` are the 8-bit IDs in bits 31:24 of their registers.
        """
        page = self.lapic
        for name, value in registers.items():
            register = Register[name.upper()]
            page[register] = value << 24 if register in (Register.ID, Register.LDR) else value
        self.lapic = page
        return self

    def configure_vectors(self, register: Register, vectors: Sequence[int]) -> None:
        """Make ``vectors`` the contents of ISR, TMR or IRR through KVM_SET_LAPIC."""
        page = self.lapic
        page.set_vectors(register, vectors)
        self.lapic = page

    def snapshot(self) -> Snapshot:
        lapic = self.lapic
        events = self.vcpu.get_events()
        mp_state = self.mp_state
        if events.smi.latched_init:  # reading the mp_state has reset the LAPIC
            self.machine.map_is_built()
        return Snapshot(
            lapic=lapic,
            nmi_pending=events.nmi.pending,
            smi_pending=events.smi.pending,
            latched_init=events.smi.latched_init,
            mp_state=mp_state,
        )

    # --- running ----------------------------------------------------------------------------------

    def run_to(self, *ports: int) -> int:
        """Enter the guest until it writes to one of ``ports``; which one. Raises GuestError."""
        reason = self._enter()
        port = int(self.vcpu.kvm_run.u.io.port) if reason == abi.KVM_EXIT_IO else -1
        if port == layout.PORT_FAULT:
            raise GuestError(f"vCPU {self.index}: exception {self.vcpu.get_regs().rax & 0xFF}")
        if port not in ports:
            raise GuestError(f"vCPU {self.index}: unexpected {self.vcpu.describe_exit()}")
        return port

    def _enter(self) -> int:
        """KVM_RUN until it ends for another reason than a signal whose handler did not raise."""
        while (reason := self.vcpu.run()) == abi.KVM_EXIT_INTR:
            pass
        return reason

    def step(self) -> None:
        """Enter once, to the idle loop's next exit: one deliverable interrupt is taken."""
        self.run_to(layout.PORT_IDLE)

    def take(self) -> list[Taken]:
        """Step until an entry takes no further interrupt; what was taken, in order."""
        taken: list[Taken] = []
        while True:
            self.step()
            new = self.log()
            if not new:
                return taken
            taken += new

    def log(self) -> list[Taken]:
        """The records since the last call, oldest first, and forget them."""
        count = self.control.taken
        if count > layout.LOG_RECORDS:
            raise GuestError(f"vCPU {self.index}: {count} interrupts, the log has room for fewer")
        records = [self._record(number) for number in range(count)]
        self.control.taken = 0
        return records

    def _record(self, number: int) -> Taken:
        size = ctypes.sizeof(layout.Record)
        place = self._area + layout.LOG + number * size
        record = layout.Record.from_buffer_copy(self.machine.memory, place)
        return Taken(
            vector=record.vector,
            apic_base=record.apic_base,
            id=record.id,
            tpr=record.tpr,
            ppr=record.ppr,
            ldr=record.ldr,
            svr=record.svr,
            isr=vectors_of(record.isr),
            tmr=vectors_of(record.tmr),
            irr=vectors_of(record.irr),
        )

    def run_to_handler(self) -> None:
        """Enter until the handler stops, which it must have been told to (``pause``)."""
        self.run_to(layout.PORT_HANDLER)

    def eoi_exit(self) -> int | None:
        """Enter until the idle loop takes no more: the vector of a KVM_EXIT_IOAPIC_EOI on the way.

        None where no EOI exits to user space.
        """
        exited = None
        while True:
            if self._enter() == abi.KVM_EXIT_IOAPIC_EOI:
                exited = int(self.vcpu.kvm_run.u.eoi.vector)
            elif not self.log():
                return exited

    # --- what the guest does itself ---------------------------------------------------------------

    def _operate(self, operation: str, argument: int = 0, value: int = 0) -> int:
        self._prepare(operation, argument, value)
        self.step()
        return int(self.control.value)

    def _prepare(self, operation: str, argument: int = 0, value: int = 0) -> None:
        self.control.argument = argument
        self.control.value = value
        self.control.operation = layout.OPERATIONS.index(operation)

    def read(self, register: Register) -> int:
        """The guest reads a LAPIC register: MMIO in xAPIC mode, the MSR in x2APIC mode."""
        return self._operate("LAPIC_READ", register)

    def write(self, register: Register, value: int) -> None:
        """The guest writes a LAPIC register."""
        was_enabled = register is Register.SVR and self.lapic.software_enabled
        self._operate("LAPIC_WRITE", register, value)
        if register in _MAPPED or (
            register is Register.SVR and was_enabled != bool(value & SVR_ENABLE)
        ):
            self.machine.map_is_built()

    def eoi(self) -> None:
        self.write(Register.EOI, 0)

    def rdmsr(self, msr: int) -> int:
        return self._operate("RDMSR", msr)

    def wrmsr(self, msr: int, value: int) -> None:
        self.machine.shared = False
        old = self.apic_mode
        self._operate("WRMSR", msr, value)
        self._apic_mode = None
        if self.apic_mode is not old:
            self.machine.map_is_built()

    def cli(self) -> None:
        self._operate("CLI")

    def sti(self) -> None:
        self._operate("STI")

    def handler(self, *, eoi: bool = True, pause: bool = False, nest: bool = False) -> None:
        """How the handler ends: with EOI or not; stopping at PORT_HANDLER, interruptible or not."""
        flags = eoi * layout.FLAG_EOI | pause * layout.FLAG_PAUSE | nest * layout.FLAG_NEST
        self.control.flags = flags

    @contextlib.contextmanager
    def halted(self) -> Iterator[Running]:
        """The vCPU in a thread, asleep in HLT inside KVM_RUN."""
        self._prepare("HLT")
        self.control.halts = 0
        with Running(self) as running:
            running.wait_for(lambda: self.control.halts > 0, "it to come to HLT")
            running.wait_until_asleep()
            yield running

    @contextlib.contextmanager
    def spinning(self) -> Iterator[Running]:
        """The vCPU in a thread, running guest code without ever leaving by itself."""
        self.control.stop = 0
        self._prepare("SPIN")
        with Running(self) as running:
            running.wait_for(lambda: self.control.spins > 0, "the guest's loop to start")
            try:
                yield running
            finally:
                self.control.stop = 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Running]:
        """The vCPU in a thread, asleep inside KVM_RUN in whatever mp_state it has."""
        with Running(self) as running:
            running.wait_until_asleep()
            yield running

    def set_cpuid(self) -> None:
        """All that KVM supports, once: a vCPU that has run may take no other (KVM_SET_CPUID2)."""
        if not self._has_cpuid:
            self.vcpu.set_cpuid(self.machine.cpuid)
            self._has_cpuid = True

    def power_on(self, apic_mode: ApicMode = ApicMode.XAPIC) -> None:
        """Software-enabled, runnable at the probe's idle loop; xAPIC: LDR bit ``index``, flat."""
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
        self._write_sregs(sregs, apic_mode)
        self.reset()
        registers = {"svr": SVR_ENABLE | SVR_RESET}
        if apic_mode is ApicMode.XAPIC and self.index < 8:
            registers["ldr"] = 1 << self.index
        self.configure(**registers)

    def reset(self) -> None:
        """Back to :meth:`power_on`'s state, but for the LAPIC and what KVM_SET_SREGS holds."""
        ctypes.memset(ctypes.addressof(self.control), 0, ctypes.sizeof(self.control))
        self.control.self_address = self._area
        self.handler()
        self.vcpu.set_regs(_idle(self._area))
        self.vcpu.set_events(_NO_EVENTS)
        self.mp_state = abi.KVM_MP_STATE_RUNNABLE


class Running(Closing):
    """A vCPU inside KVM_RUN in a thread of its own, until the probe's next exit or a kick."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self._stop = False
        self._failure: BaseException | None = None
        self._exit = abi.KVM_EXIT_INTR
        self._thread = threading.Thread(target=self._run, name=f"vCPU {cpu.index}", daemon=True)

    def __enter__(self) -> Self:
        # A handler must exist for the kick to interrupt KVM_RUN instead of ending the process.
        signal.signal(signal.SIGUSR1, _ignore)
        self._thread.start()
        return self

    def close(self) -> None:
        self.kick()

    def _run(self) -> None:
        try:
            while not self._stop:
                self._exit = self.cpu.vcpu.run()
                if self._exit != abi.KVM_EXIT_INTR:
                    return
        except BaseException as failure:
            self._failure = failure

    @property
    def left(self) -> bool:
        """Whether the guest has left KVM_RUN."""
        return not self._thread.is_alive()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until ``condition()``; GuestError after DEADLINE seconds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                raise GuestError(f"vCPU {self.cpu.index}: waited {DEADLINE:.0f} s for {what}")
            os.sched_yield()

    def wait_until_asleep(self) -> None:
        """Until the thread sleeps in KVM_RUN (proc_pid_syscall(5) says so), or has left it."""
        path = f"/proc/self/task/{self._thread.native_id}/syscall"
        marker = f"16 {self.cpu.vcpu.fd:#x} {abi.KVM_RUN.number:#x} "

        def asleep() -> bool:
            try:
                with open(path) as file:
                    return file.read().startswith(marker)
            except (FileNotFoundError, ProcessLookupError):
                return True  # the thread has ended; the test will see that it left

        self.wait_for(asleep, "it to sleep in KVM_RUN")

    def wait_until_taken(self, count: int) -> None:
        """Until the guest's log has ``count`` records."""
        self.wait_for(lambda: self.cpu.control.taken >= count, f"interrupt number {count}")

    def finish(self) -> None:
        """Wait for the guest to leave to the idle port by itself."""
        self.wait_for(lambda: self.left, "it to leave KVM_RUN")
        self._join()
        port = int(self.cpu.vcpu.kvm_run.u.io.port) if self._exit == abi.KVM_EXIT_IO else -1
        if port != layout.PORT_IDLE:
            raise GuestError(f"vCPU {self.cpu.index}: unexpected {self.cpu.vcpu.describe_exit()}")

    def kick(self) -> bool:
        """Make KVM_RUN return wherever it is; True when the guest had left by itself."""
        by_itself = self.left
        self._stop = True
        self.cpu.vcpu.kvm_run.immediate_exit = 1
        deadline = time.monotonic() + DEADLINE
        while not self.left:
            if time.monotonic() > deadline:
                raise GuestError(f"vCPU {self.cpu.index} cannot be kicked out of KVM_RUN")
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR1)
            self._thread.join(0.01)
        self.cpu.vcpu.kvm_run.immediate_exit = 0
        self._join()
        return by_itself

    def _join(self) -> None:
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


@cache
def _image() -> tuple[tuple[int, bytes], ...]:
    """What is in guest memory at power-on: (address, bytes) of probe, tables and SMI handler."""
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


class Machine(Closing):
    """A VM with ``irqchip`` and a vCPU per entry of ``vcpu_ids``, each in its power-on state.

    ``x2apic_api`` is KVM_CAP_X2APIC_API's args[0], enabled before the vCPUs are made (0: not
    enabled), ``apic_mode`` the LAPICs'. ``power_on`` False: the vCPUs stay as KVM_CREATE_VCPU made
    them.
    ``shared``: whether :meth:`reset` brings back all that was done to the machine; what it cannot
    bring back clears the flag.
    """

    def __init__(
        self,
        system: System,
        *,
        irqchip: Irqchip = "full",
        vcpu_ids: Sequence[int] = (0,),
        x2apic_api: int = 0,
        apic_mode: ApicMode = ApicMode.XAPIC,
        power_on: bool = True,
    ) -> None:
        self.irqchip = irqchip
        self.shared = power_on
        self._pristine: list[Snapshot] = []
        self._seen: tuple[Call | None, list[Snapshot]] = (None, [])
        self.unmapped: int | None = None
        self._mapped_api = 0
        self.cpuid = system.supported_cpuid()
        self.has_smm = system.check_extension(abi.KVM_CAP_X86_SMM) > 0
        with contextlib.ExitStack() as undo:
            self._vm = undo.enter_context(system.create_vm())
            if irqchip == "full":
                self._vm.create_irqchip()
            elif irqchip == "split":
                self._vm.split_irqchip()
            if x2apic_api:
                self._vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
            self.memory = self._load_probe(len(vcpu_ids))
            self.cpus: list[Cpu] = []
            for vcpu_id in vcpu_ids:
                self.add_cpu(vcpu_id)
            if power_on:
                for cpu in self.cpus:
                    cpu.power_on(apic_mode)
                self._pristine = self.snapshots()
            undo.pop_all()

    def close(self) -> None:
        self._vm.close()

    @property
    def vm(self) -> Vm:
        """The VM, for what a machine does not do itself: this cannot be undone by a reset."""
        self.shared = False
        return self._vm

    @property
    def fd(self) -> int:
        """The VM's file descriptor."""
        return self._vm.fd

    def __getitem__(self, index: int) -> Cpu:
        return self.cpus[index]

    def add_cpu(self, vcpu_id: int) -> Cpu:
        """Create the next vCPU, fresh from KVM_CREATE_VCPU."""
        cpu = Cpu(self, len(self.cpus), self._vm.create_vcpu(vcpu_id))
        self.cpus.append(cpu)
        self.map_is_built()
        self.unmapped = cpu.index
        return cpu

    def map_is_built(self) -> None:
        """The kernel has built its map of LAPICs again, of all vCPUs there are."""
        self.unmapped = None
        self._mapped_api = self._vm.x2apic_api

    def reset(self) -> bool:
        """All vCPUs back to power-on; False when this machine cannot be brought back."""
        if not self.shared or len(self.cpus) != len(self._pristine):
            return False
        for cpu, pristine in zip(self.cpus, self._pristine, strict=True):
            cpu.vcpu.finish_exit()
            cpu.reset()
            cpu.lapic = pristine.lapic
        return self.snapshots() == self._pristine

    def _load_probe(self, vcpus: int) -> mmap.mmap:
        # Room for vCPUs that a test adds later, in whole 2 MiB pages.
        size = layout.AREAS + (vcpus + 8) * layout.AREA_SIZE
        memory = self._vm.add_memory(0, -(-size // 0x200000) * 0x200000)
        for address, content in _image():
            memory[address : address + len(content)] = content
        return memory

    @property
    def smis_handled(self) -> int:
        """How often the SMI handler ran, on any vCPU."""
        counter = self.memory[layout.SMI_COUNTER : layout.SMI_COUNTER + 4]
        return int.from_bytes(counter, "little")

    # --- injecting --------------------------------------------------------------------------------

    def signal(
        self, message: Message, *, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)
    ) -> Injection:
        """KVM_SIGNAL_MSI, with every vCPU's state before and after it; errors do not raise."""
        self.shared &= message.delivery_mode in _LEAVE_NO_TRACE
        msi = msi_of(message, flags, devid, pad)
        return self.observe(msi, lambda: self._signal(msi))

    def send(self, message: Message) -> int:
        """KVM_SIGNAL_MSI without looking at the vCPUs, one of which may be running."""
        self.shared &= message.delivery_mode in _LEAVE_NO_TRACE
        return self._vm.signal_msi(msi_of(message))

    @property
    def start_page(self) -> int:
        """The vector of a SIPI that starts an AP in the probe."""
        return layout.PROBE >> 12

    def boot(self, index: int) -> None:
        """Start an AP by INIT and SIPI, up to its idle loop."""
        for mode, vector in ((DeliveryMode.INIT, 0), (DeliveryMode.SIPI, self.start_page)):
            self.send(Message(vector=vector, destination=index, delivery_mode=mode))
        self[index].step()
        self.map_is_built()

    def _signal(self, msi: abi.kvm_msi) -> tuple[int, int]:
        try:
            return self._vm.signal_msi(msi), 0
        except KvmError as error:
            return -1, error.errno or 0

    def snapshots(self) -> list[Snapshot]:
        """Every vCPU as the host sees it; none where LAPICs are not in the kernel."""
        found = [] if self.irqchip == "none" else [cpu.snapshot() for cpu in self.cpus]
        settled = not any(snapshot.latched_init for snapshot in found)  # it has been processed
        self._seen = (trace[-1] if trace and settled else None, found)
        return found

    def _snapshots_before(self) -> list[Snapshot]:
        """As :meth:`snapshots`, but those of the last time where no ioctl was called since."""
        call, seen = self._seen
        return seen if trace and trace[-1] is call else self.snapshots()

    def setting(self) -> Setting:
        """What the snapshots do not show."""
        api = self._vm.x2apic_api
        return Setting(
            irqchip=self.irqchip,
            x2apic_api=api,
            vcpu_ids=tuple(cpu.vcpu.vcpu_id for cpu in self.cpus),
            apic_modes=() if self.irqchip == "none" else tuple(cpu.apic_mode for cpu in self.cpus),
            unmapped=self.unmapped,
            mapped_api=self._mapped_api if self.cpus and self._mapped_api != api else None,
        )

    def topology(self, vector_hashing: bool = True) -> Topology:
        """The machine as it is now, as the model sees it."""
        snapshots = self.snapshots()  # first: they make the kernel process a pending INIT
        return self.setting().topology(snapshots, vector_hashing, self.has_smm)

    def observe(self, msi: abi.kvm_msi, inject: Callable[[], tuple[int, int]]) -> Injection:
        """Run ``inject``, which sends ``msi`` one way or another: (return value, errno)."""
        before = self._snapshots_before()
        setting = self.setting()
        result, code = inject()
        after = self.snapshots()
        injection = Injection(msi, result, code, before, after, setting)
        journal.append(injection)
        return injection

    # --- the other ways to send a message ---------------------------------------------------------

    def raise_line(self, gsi: int, message: Message) -> Injection:
        """KVM_IRQ_LINE_STATUS of ``gsi``, which is routed to ``message``; result: the status."""
        return self.observe(msi_of(message), lambda: (self._vm.irq_line_status(gsi, 1), 0))

    def raise_irqfd(self, gsi: int) -> list[Effect]:
        """Signal an irqfd of ``gsi``; it reports no status, so only the effects."""
        before = self._snapshots_before()
        fd = self._vm.irqfd(gsi)
        os.eventfd_write(fd, 1)
        self._vm.deassign_irqfd(fd, gsi)  # waits for the injection
        return [effect_between(b, a) for b, a in zip(before, self.snapshots(), strict=True)]


def msi_of(message: Message, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)) -> abi.kvm_msi:
    """The structure that KVM_SIGNAL_MSI takes."""
    words = (message.address_lo, message.address_hi, message.data)
    msi = abi.kvm_msi(*words, flags, devid)
    msi.pad[:] = pad
    return msi


def msi_route(
    gsi: int, message: Message, flags: int = 0, devid: int = 0
) -> abi.kvm_irq_routing_entry:
    """A GSI route to ``message`` (api.rst 4.52)."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_MSI, flags=flags)
    msi = entry.u.msi
    msi.address_lo, msi.address_hi, msi.data = message.address_lo, message.address_hi, message.data
    msi.devid = devid
    return entry
