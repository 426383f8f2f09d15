# SPDX-License-Identifier: GPL-2.0-only
"""A KVM that lies: a plugin between suite and kernel that tells one lie about KVM_SIGNAL_MSI.

    pytest suites -p tests.liar --lie=always-1 --caught=caught.json

Every other ioctl has the answer of the kernel. ``--caught`` writes the tests that failed to a file.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EFAULT, EINVAL
from pathlib import Path
from typing import Any

import pytest

from helpers.apic import DeliveryMode, DestinationMode, LapicPage, Message, Register, TriggerMode
from helpers.guest import running, sender
from helpers.kvm import abi, ioctl
from helpers.sweep import sequences

Outcome = tuple[int, int]
"""Return value, and errno or 0."""

kernel = ioctl.raw_ioctl
"""The call that every lie is told about: the answer of the kernel."""


# --- memory of this process, which may be unreadable or read-only -------------------------------


class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


_libc = ctypes.CDLL(None)


def _copy(by: Callable[..., int], struct: ctypes.Structure, address: int) -> bool:
    size = ctypes.sizeof(struct)
    here, there = IoVec(ctypes.addressof(struct), size), IoVec(address, size)
    return by(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == size


def read_msi(address: int) -> abi.kvm_msi | None:
    """Return a copy of the structure at ``address``, None if the memory cannot be read."""
    msi = abi.kvm_msi()
    return msi if _copy(_libc.process_vm_readv, msi, address) else None


def write_msi(msi: abi.kvm_msi, address: int) -> None:
    """Write ``msi`` to ``address``, or nothing if the memory cannot be written."""
    _copy(_libc.process_vm_writev, msi, address)


# --- the call that is lied about ------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One KVM_SIGNAL_MSI. ``msi``: a copy of the structure at ``address``, None if unreadable."""

    liar: Liar
    fd: int
    address: int
    msi: abi.kvm_msi | None

    @property
    def message(self) -> Message:
        msi = self.msi or abi.kvm_msi()
        return Message.decode(msi.address_lo, msi.address_hi, msi.data)

    def send(self, **changes: Any) -> Outcome:
        """Send the message with ``changes`` to its fields or to the flags. Return the outcome."""
        if self.msi is None or not changes:
            return kernel(self.fd, abi.KVM_SIGNAL_MSI.number, self.address)
        flags = changes.pop("flags", self.msi.flags)
        message = replace(self.message, **changes)
        msi = abi.kvm_msi.from_buffer_copy(self.msi)
        msi.address_lo, msi.address_hi = message.address_lo, message.address_hi
        msi.data, msi.flags = message.data, flags
        return kernel(self.fd, abi.KVM_SIGNAL_MSI.number, ctypes.addressof(msi))

    @property
    def idle_vcpus(self) -> list[int]:
        """Return the vCPUs of the VM that are not running: their LAPICs can be read."""
        return [fd for fd in self.liar.vcpus[self.fd] if fd not in self.liar.running]

    @property
    def all_idle(self) -> bool:
        return self.idle_vcpus == self.liar.vcpus[self.fd]

    @contextmanager
    def lapics_unchanged(self) -> Iterator[None]:
        """Restore every LAPIC that changes meanwhile."""
        before = {vcpu: get_lapic(vcpu) for vcpu in self.idle_vcpus}
        yield
        for vcpu, page in before.items():
            if get_lapic(vcpu) != page:
                set_lapic(vcpu, page)


def get_lapic(vcpu: int) -> LapicPage:
    state = abi.kvm_lapic_state()
    kernel(vcpu, abi.KVM_GET_LAPIC.number, ctypes.addressof(state))
    return LapicPage(bytes(state.regs))


def set_lapic(vcpu: int, page: LapicPage) -> None:
    state = abi.kvm_lapic_state.from_buffer_copy(page.raw)
    kernel(vcpu, abi.KVM_SET_LAPIC.number, ctypes.addressof(state))


# --- the lies -------------------------------------------------------------------------------------

INTERRUPTS = (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)


def no_lie(call: Call) -> Outcome:
    """No lie: the control of the experiment."""
    return call.send()


def always_1(call: Call) -> Outcome:
    """The return value is always 1."""
    call.send()
    return 1, 0


def always_0(call: Call) -> Outcome:
    """The return value is always 0."""
    call.send()
    return 0, 0


def always_einval(call: Call) -> Outcome:
    """The call always fails with EINVAL."""
    call.send()
    return -1, EINVAL


def flags_not_checked(call: Call) -> Outcome:
    """Undefined flags are ignored."""
    return call.send(flags=0)


def delivers_to_all(call: Call) -> Outcome:
    """Every vCPU gets the message. The return value counts the addressed vCPUs alone."""
    outcome = call.send()
    if outcome[0] > 0:
        physical = DestinationMode.PHYSICAL
        call.send(destination=0xFF, destination_mode=physical, redirection_hint=0)
    return outcome


def never_delivers(call: Call) -> Outcome:
    """No vCPU gets the message. The return value counts deliveries.

    An interrupt is removed from IRR again. Where a vCPU is running, or for other messages, the lie
    sends the reserved delivery mode, which is accepted and without effect.
    """
    mode = call.message.delivery_mode
    if mode is not DeliveryMode.EXTINT and not (mode in INTERRUPTS and call.all_idle):
        mode = DeliveryMode.REMRD
    with call.lapics_unchanged():
        return call.send(delivery_mode=mode)


def delivers_twice(call: Call) -> Outcome:
    """An interrupt that the guest has taken becomes pending once more."""
    outcome = call.send()
    if call.message.delivery_mode in INTERRUPTS and outcome[0] > 0:
        for vcpu in call.idle_vcpus:
            call.liar.owed[vcpu] |= get_lapic(vcpu).irr & {call.message.vector}
    return outcome


def next_vector(call: Call) -> Outcome:
    """The interrupt arrives with the next higher vector."""
    return call.send(vector=call.message.vector + 1 & 0xFF)


def wrong_vcpu(call: Call) -> Outcome:
    """The vCPU with a neighbouring ID gets a message to a physical destination."""
    message = call.message
    if message.destination_mode is DestinationMode.LOGICAL or message.destination & 0xFF == 0xFF:
        return call.send()
    return call.send(destination=message.destination ^ 1)


def tmr_wrong(call: Call) -> Outcome:
    """An edge-triggered message arrives as level-triggered, and the reverse."""
    return call.send(trigger_mode=TriggerMode(1 - call.message.trigger_mode))


def writes_to_the_struct(call: Call) -> Outcome:
    """The return value is also written into the padding."""
    result, errno = call.send()
    if call.msi is not None:
        call.msi.pad[0] = result & 0xFF
        write_msi(call.msi, call.address)
    return result, errno


def null_accepted(call: Call) -> Outcome:
    """A NULL pointer counts as a delivered message."""
    outcome = call.send()
    return (1, 0) if call.address == 0 and outcome == (-1, EFAULT) else outcome


Lie = Callable[[Call], Outcome]

LIES: dict[str, Lie] = {
    lie.__name__.replace("_", "-"): lie
    for lie in (
        *(no_lie, always_1, always_0, always_einval, flags_not_checked),
        *(delivers_to_all, never_delivers, delivers_twice, next_vector, wrong_vcpu, tmr_wrong),
        *(writes_to_the_struct, null_accepted),
    )
}


# --- the liar -------------------------------------------------------------------------------------


class Liar:
    """Replaces ``helpers.kvm.ioctl.raw_ioctl``.

    ``vcpus``: file descriptors of the vCPUs by that of their VM. ``running``: vCPUs inside KVM_RUN.
    ``owed``: vectors by vCPU that become pending again when the guest has taken them.
    """

    def __init__(self, lie: Lie) -> None:
        self.lie = lie
        self.vcpus: dict[int, list[int]] = defaultdict(list)
        self.running: set[int] = set()
        self.owed: dict[int, frozenset[int]] = defaultdict(frozenset)

    def __call__(self, fd: int, number: int, argument: int) -> Outcome:
        match number:
            case abi.KVM_SIGNAL_MSI.number:
                return self.lie(Call(self, fd, argument, read_msi(argument)))
            case abi.KVM_RUN.number:
                return self._run(fd)
        result, errno = kernel(fd, number, argument)
        match number:
            case abi.KVM_CREATE_VM.number:
                self.vcpus.pop(result, None)
            case abi.KVM_CREATE_VCPU.number if result >= 0:
                self.vcpus[fd].append(result)
                self.owed.pop(result, None)
        return result, errno

    def _run(self, vcpu: int) -> Outcome:
        self.running.add(vcpu)
        try:
            outcome = kernel(vcpu, abi.KVM_RUN.number, 0)
        finally:
            self.running.discard(vcpu)
        if self.owed[vcpu]:
            self._pay(vcpu)
        return outcome

    def _pay(self, vcpu: int) -> None:
        """Make owed vectors pending again that the guest has taken."""
        page = get_lapic(vcpu)
        taken = self.owed[vcpu] - page.irr
        self.owed[vcpu] -= taken
        page.set_vectors(Register.IRR, page.irr | taken)
        set_lapic(vcpu, page)


def send(
    fd: int, msi: abi.kvm_msi, word: str, values: Iterable[int], expected: Iterable[int]
) -> Outcome:
    """Replace ``helpers.guest.sender.send_values``, whose C loop makes no call of raw_ioctl()."""
    base, sent, got = getattr(msi, word), 0, 0
    for value, wanted in zip(values, expected, strict=True):
        setattr(msi, word, base | value)
        result, errno = ioctl.raw_ioctl(fd, abi.KVM_SIGNAL_MSI.number, ctypes.addressof(msi))
        got = result if result >= 0 else -errno
        if got != wanted:
            break
        sent += 1
    setattr(msi, word, base)
    return sent, got


class Record:
    """Writes the node ids of failed tests, of errors and of all other tests to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.tests: dict[str, list[str]] = {"failed": [], "errors": [], "others": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests["failed" if report.when == "call" else "errors"].append(report.nodeid)
        elif report.when == "call":
            self.tests["others"].append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.tests))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lies")
    group.addoption("--lie", choices=LIES, default="no-lie", help="what KVM_SIGNAL_MSI lies about")
    group.addoption("--caught", metavar="FILE", help="write the tests that failed to FILE")


def pytest_configure(config: pytest.Config) -> None:
    ioctl.raw_ioctl = Liar(LIES[config.option.lie])
    sender.send_values = send
    if config.option.lie != "no-lie":
        running.DEADLINE = 1.0  # A lie makes many tests wait until the deadline.
        sequences.SHRINKING_SECONDS = 1  # Well within the timeout of test_liar.py.
    if config.option.caught and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config.option.caught))
