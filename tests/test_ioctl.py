# SPDX-License-Identifier: GPL-2.0-only
"""ioctl(2): named errors, interrupted calls, the trace; and resources, which are all released."""

from __future__ import annotations

import ctypes
import gc
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN, EBADF, EBUSY, EINTR, EINVAL
from pathlib import Path

import pytest

from helpers.apic import Message
from helpers.guest import GuestError, Machine, msi_route
from helpers.kvm import KvmError, System, UserPages, Vcpu, abi, ioctl
from helpers.kvm.compat import compat_ioctl, has_compat_entry

Answer = tuple[int, int]


class Kernel:
    """A substitute for ``raw_ioctl()``: returns ``answers`` in order, and records the calls."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.calls: list[tuple[int, int, int]] = []

    def __call__(self, fd: int, number: int, argument: int) -> Answer:
        self.calls.append((fd, number, argument))
        return self.answers.pop(0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The substitute for the kernel."""
    substitute = Kernel()
    monkeypatch.setattr(ioctl, "raw_ioctl", substitute)
    return substitute


# --- errors ---------------------------------------------------------------------------------------


def test_error_names_the_ioctl_and_the_errno():
    error = KvmError(abi.KVM_SIGNAL_MSI, EINVAL)
    assert str(error) == "KVM_SIGNAL_MSI: EINVAL (Invalid argument)"
    assert (error.name, error.errno) == ("EINVAL", EINVAL)


def test_errno_without_a_name_is_its_number():
    assert ioctl.errno_name(4095) == "4095"


def test_failed_ioctl_raises_its_errno(kernel):
    kernel.answers = [(-1, EBUSY)]
    with pytest.raises(KvmError, match=r"^KVM_GET_API_VERSION: EBUSY"):
        ioctl.ioctl(3, abi.KVM_GET_API_VERSION)


def test_kernel_itself_says_the_errno():
    with pytest.raises(KvmError, match=r"^KVM_GET_API_VERSION: EBADF"):
        ioctl.ioctl(-1, abi.KVM_GET_API_VERSION)


def test_structure_is_passed_by_its_address(kernel):
    msi = abi.kvm_msi()
    kernel.answers = [(1, 0)]
    assert ioctl.ioctl(3, abi.KVM_SIGNAL_MSI, msi) == 1
    assert kernel.calls == [(3, abi.KVM_SIGNAL_MSI.number, ctypes.addressof(msi))]


# --- interrupted calls ----------------------------------------------------------------------------


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    """A vCPU whose kvm_run page is plain memory."""
    fd = os.memfd_create("kvm_run")
    os.truncate(fd, 4096)
    with Vcpu(fd, 0, 4096) as made:
        yield made


def test_interrupted_ioctl_is_called_again(kernel):
    kernel.answers = [(-1, EINTR), (-1, EINTR), (7, 0)]
    assert ioctl.ioctl(3, abi.KVM_CHECK_EXTENSION, 5) == 7
    assert kernel.calls == [(3, abi.KVM_CHECK_EXTENSION.number, 5)] * 3


def test_interrupted_attempt_is_an_outcome(kernel):
    kernel.answers = [(-1, EINTR)]
    assert ioctl.attempt(3, abi.KVM_SIGNAL_MSI) == (-1, EINTR)


@pytest.mark.parametrize("errno", [EINTR, EAGAIN], ids=["EINTR", "EAGAIN"])
def test_interrupted_run_is_an_exit(kernel, vcpu, errno):
    kernel.answers = [(-1, errno)]
    assert vcpu.run() == abi.KVM_EXIT_INTR


def test_failed_run_is_an_error(kernel, vcpu):
    kernel.answers = [(-1, EINVAL)]
    with pytest.raises(KvmError, match=r"^KVM_RUN: EINVAL"):
        vcpu.run()


def test_run_returns_the_exit_reason(kernel, vcpu):
    kernel.answers = [(0, 0)]
    vcpu.kvm_run.exit_reason = abi.KVM_EXIT_SHUTDOWN
    assert vcpu.run() == abi.KVM_EXIT_SHUTDOWN


@pytest.mark.parametrize("answer", [(0, 0), (-1, EINTR)], ids=["completed", "EINTR"])
def test_finishing_an_exit_does_not_stop_later_runs(kernel, vcpu, answer):
    kernel.answers = [answer]
    vcpu.kvm_run.exit_reason = abi.KVM_EXIT_IO
    vcpu.finish_exit()
    assert vcpu.kvm_run.immediate_exit == 0
    assert len(kernel.calls) == 1


@pytest.mark.parametrize("reason", [abi.KVM_EXIT_UNKNOWN, abi.KVM_EXIT_INTR])
def test_exit_that_left_nothing_is_not_finished(kernel, vcpu, reason):
    vcpu.kvm_run.exit_reason = reason
    vcpu.finish_exit()
    assert kernel.calls == []


# --- the trace ------------------------------------------------------------------------------------


@pytest.fixture
def trace() -> Iterator[deque[ioctl.Call]]:
    """The trace, emptied before the test."""
    ioctl.trace.clear()
    yield ioctl.trace
    ioctl.trace.clear()


def test_trace_is_bounded(kernel, trace):
    kernel.answers = [(0, 0)] * 1000
    for fd in range(1000):
        ioctl.attempt(fd, abi.KVM_RUN)
    assert [call.fd for call in trace] == list(range(600, 1000))


def test_trace_shows_a_message_and_its_outcome(kernel, trace):
    kernel.answers = [(-1, EINVAL)]
    msi = abi.kvm_msi(address_lo=0xFEE01000, data=0x41, flags=2, pad=(1,))
    ioctl.attempt(3, abi.KVM_SIGNAL_MSI, msi)
    assert str(trace[0]) == (
        "KVM_SIGNAL_MSI(fd 3, address_lo=0xfee01000, address_hi=0x0, data=0x0041, flags=0x2, "
        "devid=0x0, pad=010000000000000000000000) = -1 EINVAL"
    )


def test_trace_shows_other_arguments(kernel, trace):
    kernel.answers = [(0, 0), (5, 0), (0, 0)]
    for argument in (0, 0x4D, abi.kvm_regs()):
        ioctl.attempt(3, abi.KVM_RUN, argument)
    arguments = ["fd 3) = 0", "fd 3, 0x4d) = 5", "fd 3, kvm_regs) = 0"]
    assert [str(call) for call in trace] == [f"KVM_RUN({argument}" for argument in arguments]


# --- the 32-bit entry -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", [1 << 32, 2**64 - 1], ids="{:#x}".format)
def test_compat_entry_takes_no_high_address(address):
    with pytest.raises(ValueError, match=f"address {address:#x} does not fit"):
        compat_ioctl(-1, abi.KVM_SIGNAL_MSI.number, address)


def test_compat_entry_returns_the_errno():
    if not has_compat_entry():
        pytest.skip("the kernel has no 32-bit system call entry (CONFIG_IA32_EMULATION)")
    assert compat_ioctl(-1, abi.KVM_SIGNAL_MSI.number, 0) == (-1, EBADF)


# --- resources ------------------------------------------------------------------------------------


def held() -> list[str]:
    """Return the open files of this process, and the mappings of vCPUs and guest memory."""
    gc.collect()
    files = [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    mappings = Path("/proc/self/maps").read_text().splitlines()
    ours = [line for line in mappings if "kvm" in line or "/dev/zero" in line]
    return sorted(f"{file.name} {os.readlink(file)}" for file in files) + ours


@contextmanager
def a_system() -> Iterator[None]:
    with System():
        yield


@contextmanager
def a_vm() -> Iterator[None]:
    with System() as system, system.create_vm() as vm:
        vm.create_irqchip()
        vm.add_memory(0, 0x200000)
        vm.create_vcpu(0)
        vm.create_vcpu(1)
        yield


@contextmanager
def an_irqfd() -> Iterator[None]:
    with System() as system, system.create_vm() as vm:
        vm.create_irqchip()
        vm.set_gsi_routing([msi_route(24, Message())])
        vm.irqfd(24)
        yield


@contextmanager
def a_machine() -> Iterator[None]:
    with System() as system, Machine(system, vcpu_ids=range(3)) as machine:
        machine.signal(Message(destination=1)).accepted_by(1)
        machine[1].take()
        yield


@contextmanager
def a_spinning_vcpu() -> Iterator[None]:
    with System() as system, Machine(system) as machine, machine[0].spinning():
        yield


@contextmanager
def a_halted_vcpu() -> Iterator[None]:
    with System() as system, Machine(system) as machine, machine[0].halted():
        yield


RESOURCES = [a_system, a_vm, an_irqfd, a_machine, a_spinning_vcpu, a_halted_vcpu]
EACH_RESOURCE = pytest.mark.parametrize(
    "resource", RESOURCES, ids=lambda resource: resource.__name__
)


@EACH_RESOURCE
def test_everything_is_released(resource):
    before = held()
    with resource():
        assert held() != before
    assert held() == before


@EACH_RESOURCE
def test_everything_is_released_when_a_test_fails(resource):
    before = held()
    with pytest.raises(ZeroDivisionError), resource():
        raise ZeroDivisionError
    assert held() == before


def test_vcpu_is_closed_while_a_view_of_its_exit_exists(system):
    before = held()
    machine = Machine(system)
    view = machine[0].vcpu.kvm_run.u.io
    machine.close()
    del machine, view
    assert held() == before


def test_vcpu_that_left_elsewhere_is_released(system):
    before = held()
    with pytest.raises(GuestError, match="port 0x1f1"), Machine(system) as machine:
        machine[0].handler(pause=True)
        machine.signal(Message())
        with machine[0].in_thread() as running:
            running.finish()
    del machine, running
    assert held() == before


def test_closing_twice_is_harmless(system):
    machine = Machine(system)
    machine.close()
    machine.close()


class FailingAt:
    """The kernel, but call number ``number`` fails with EBUSY."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self._kernel = ioctl.raw_ioctl

    def __call__(self, fd: int, number: int, argument: int) -> Answer:
        self.calls += 1
        return (-1, EBUSY) if self.calls - 1 == self.number else self._kernel(fd, number, argument)


@pytest.mark.parametrize("irqchip", ["full", "split"])
def test_machine_that_cannot_be_made_leaves_nothing(system, monkeypatch, irqchip):
    def make(failing: FailingAt) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(ioctl, "raw_ioctl", failing)
            Machine(system, irqchip=irqchip, vcpu_ids=range(2), x2apic_api=1).close()

    make(FailingAt(-1))  # System asks for the supported CPUID once.
    make(whole := FailingAt(-1))
    before = held()
    for number in range(whole.calls):
        with pytest.raises(KvmError, match="EBUSY"):
            make(FailingAt(number))
        assert held() == before, f"after call {number} failed"


def is_mapped(address: int) -> bool:
    """Return whether a mapping of this process, which may be merged with others, has an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(start <= address < end for start, end in ranges)


def test_user_pages_are_unmapped():
    with UserPages() as pages:
        assert is_mapped(pages.address)
    assert not is_mapped(pages.address)
