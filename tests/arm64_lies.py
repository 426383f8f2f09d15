# SPDX-License-Identifier: GPL-2.0-only
"""A lying KVM for arm64: ``python -m tests.arm64_lies [LIE ...]``, on an arm64 kernel.

A lie stands between the suite and ioctl(2). The suite must fail under each, and pass
under none. The lines of the output: the lie, "caught" or "BELIEVED", and the test that caught it.
The exit code is the number of lies that were believed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from helpers.arm64 import layout
from helpers.its import registers
from helpers.kvm import abi
from helpers.kvm import abi_arm64 as arm
from helpers.kvm import ioctl as calls

TESTS = "suites/arm64"

Call = tuple[int, int, Any]
"""File descriptor, number and address of an ioctl."""


class Liar:
    """Stands for libc: ``ioctl()`` calls the real one by way of the lie."""

    def __init__(self, lie: Callable[[Liar, int, int, Any], int]) -> None:
        self._ioctl = calls._libc.ioctl
        self._lie = lie
        self.memory = 0
        self.writers: dict[int, int] = {}
        self.sent: dict[tuple[int, ...], int] = {}
        self.count = 0

    def ioctl(self, fd: int, number: int, address: Any) -> int:
        if number == abi.KVM_SET_USER_MEMORY_REGION.number:
            region = abi.kvm_userspace_memory_region.from_address(address)
            self.memory = region.userspace_addr
        return self._lie(self, fd, number, address)

    def real(self, fd: int, number: int, address: Any) -> int:
        return int(self._ioctl(fd, number, address))


def fail(code: int) -> int:
    ctypes.set_errno(code)
    return -1


def read(kind: Any, address: Any) -> Any:
    """Return the structure at an address; None at an address that cannot be read."""
    return kind.from_address(address) if 0x10000 < address < 1 << 48 else None


LIES: dict[str, Callable[[Liar, int, int, Any], int]] = {}


def result_lie(name: str, change: Callable[[int, int], int]) -> None:
    """Add a lie that changes the result of KVM_SIGNAL_MSI, given the result and errno."""

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        result = liar.real(fd, number, address)
        if number != abi.KVM_SIGNAL_MSI.number:
            return result
        return change(result, ctypes.get_errno() if result < 0 else 0)

    LIES[name] = lie


def instead_lie(name: str, result: int, code: int = 0) -> None:
    """Add a lie that does not call KVM_SIGNAL_MSI."""

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        if number != abi.KVM_SIGNAL_MSI.number:
            return liar.real(fd, number, address)
        return fail(code) if result < 0 else result

    LIES[name] = lie


def message_lie(name: str, change: Callable[[Liar, abi.kvm_msi], bool | None]) -> None:
    """Add a lie that changes the message. ``change`` returns whether the message gets lost."""

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        given = read(abi.kvm_msi, address) if number == abi.KVM_SIGNAL_MSI.number else None
        if given is None:
            return liar.real(fd, number, address)
        msi = abi.kvm_msi.from_buffer_copy(given)
        if change(liar, msi):
            return 1
        return liar.real(fd, number, ctypes.addressof(msi))

    LIES[name] = lie


def attribute_lie(
    name: str, ignored: Callable[[abi.kvm_device_attr], bool], request: abi.Request | None = None
) -> None:
    """Add a lie that ignores some calls of KVM_SET_DEVICE_ATTR."""
    wanted = (request or abi.KVM_SET_DEVICE_ATTR).number

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        if number == wanted and ignored(abi.kvm_device_attr.from_address(address)):
            return 0
        return liar.real(fd, number, address)

    LIES[name] = lie


def command_lie(name: str, number_of_command: int, valid: bool | None = None) -> None:
    """Add a lie that replaces a command of the ITS by SYNC. ``valid``: only with this bit V."""

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        if number == abi.KVM_SET_DEVICE_ATTR.number:
            attribute = abi.kvm_device_attr.from_address(address)
            group = attribute.group == arm.KVM_DEV_ARM_VGIC_GRP_ITS_REGS
            if group and attribute.attr == registers.GITS_CBASER:
                base = ctypes.c_uint64.from_address(attribute.addr).value & 0xFFFFFFFFF000
                liar.writers[fd] = liar.memory + base - layout.RAM
            elif group and attribute.attr == registers.GITS_CWRITER and fd in liar.writers:
                queue = (ctypes.c_uint64 * (layout.QUEUE_SIZE // 8)).from_address(liar.writers[fd])
                for start in range(0, len(queue), 4):
                    is_valid = bool(queue[start + 2] >> 63)
                    if queue[start] & 0xFF == number_of_command and valid in (None, is_valid):
                        queue[start : start + 4] = [0x05, 0, 0, 0]
        return liar.real(fd, number, address)

    LIES[name] = lie


def capability_lie(name: str, capability: int, answer: int) -> None:
    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        if number == abi.KVM_CHECK_EXTENSION.number and address == capability:
            return answer
        return liar.real(fd, number, address)

    LIES[name] = lie


def ignoring_lie(name: str, request: abi.Request) -> None:
    """Add a lie under which an ioctl succeeds and does nothing."""

    def lie(liar: Liar, fd: int, number: int, address: Any) -> int:
        return 0 if number == request.number else liar.real(fd, number, address)

    LIES[name] = lie


# --- results --------------------------------------------------------------------------------------

instead_lie("always-delivered", 1)
instead_lie("always-blocked", 0)
instead_lie("always-refused", -1, errno.EINVAL)
result_lie("delivers-but-returns-0", lambda result, code: min(0, _again(result, code)))
result_lie(
    "blocked-is-error", lambda result, code: fail(5) if result == 0 else _again(result, code)
)
result_lie("error-is-blocked", lambda result, _: max(result, 0))
result_lie("error-is-delivered", lambda result, _: 1 if result < 0 else result)
result_lie("fault-is-invalid", lambda result, code: _renamed(result, code, errno.EFAULT))
result_lie("no-device-is-invalid", lambda result, code: _renamed(result, code, errno.ENODEV))


def _again(result: int, code: int) -> int:
    return fail(code) if result < 0 else result


def _renamed(result: int, code: int, wanted: int) -> int:
    return fail(errno.EINVAL if code == wanted else code) if result < 0 else result


# --- messages -------------------------------------------------------------------------------------


def field_lie(name: str, field: str, change: Callable[[int], int]) -> None:
    """Add a lie that changes one field of the message."""

    def change_field(_: Liar, msi: abi.kvm_msi) -> None:
        setattr(msi, field, change(getattr(msi, field)))

    message_lie(name, change_field)


field_lie("event-other", "data", lambda data: data ^ 1 if data < 2 else data)
field_lie("event-16-bits", "data", lambda data: data & 0xFFFF)
field_lie("event-5-bits", "data", lambda data: data & 0x1F)
field_lie("device-ignored", "devid", lambda _: 1)
field_lie("device-16-bits", "devid", lambda devid: devid & 0xFFFF)
field_lie("device-24-bits", "devid", lambda devid: devid & 0xFFFFFF)
field_lie("flags-not-checked", "flags", lambda flags: flags & 1)
field_lie("last-flag-not-checked", "flags", lambda flags: flags & 0x7FFFFFFF)
field_lie("devid-not-required", "flags", lambda flags: flags | 1)
field_lie("address-hi-ignored", "address_hi", lambda _: 0)
field_lie("address-lo-ignored", "address_lo", lambda _: layout.ITS[0] + 0x10040)
field_lie("address-megabyte", "address_lo", lambda low: low & 0xFFF0_0000 | 0x9_0040)


def _lose_each_third(liar: Liar, _: abi.kvm_msi) -> bool:
    liar.count += 1
    return liar.count % 3 == 0


def _lose_repeated(liar: Liar, msi: abi.kvm_msi) -> bool:
    key = (msi.devid, msi.data)
    liar.sent[key] = liar.sent.get(key, 0) + 1
    return liar.sent[key] % 2 == 0


message_lie("each-third-lost", _lose_each_third)
message_lie("repeated-lost", _lose_repeated)


def _twice(liar: Liar, fd: int, number: int, address: Any) -> int:
    """Deliver a message once more when the guest has taken it."""
    result = liar.real(fd, number, address)
    if number == abi.KVM_SIGNAL_MSI.number and result > 0:
        liar.sent[(fd,)] = address
        liar.memory = address
        copy = abi.kvm_msi.from_buffer_copy(abi.kvm_msi.from_address(address))
        liar.writers[fd] = copy  # type: ignore[assignment]
    elif number == abi.KVM_RUN.number:
        liar.count += 1
        if liar.count % 2 == 0 and liar.writers:
            vm, copy = liar.writers.popitem()
            liar.real(vm, abi.KVM_SIGNAL_MSI.number, ctypes.addressof(copy))  # type: ignore[arg-type]
    return result


LIES["delivered-twice"] = _twice

# --- capabilities ---------------------------------------------------------------------------------

capability_lie("no-signal-msi", abi.KVM_CAP_SIGNAL_MSI, 0)
capability_lie("devid-never-needed", abi.KVM_CAP_MSI_DEVID, 0)
capability_lie("devid-always-needed", abi.KVM_CAP_MSI_DEVID, 1)

# --- commands -------------------------------------------------------------------------------------

command_lie("discard-ignored", 0x0F)
command_lie("movi-ignored", 0x01)
command_lie("movall-ignored", 0x0E)
command_lie("mapi-ignored", 0x0B)
command_lie("mapc-invalid-ignored", 0x09, valid=False)
command_lie("mapd-invalid-ignored", 0x08, valid=False)
command_lie("inv-ignored", 0x0C)
command_lie("invall-ignored", 0x0D)
command_lie("int-ignored", 0x03)
command_lie("clear-ignored", 0x04)

# --- attributes -----------------------------------------------------------------------------------


def control(command: int) -> Callable[[abi.kvm_device_attr], bool]:
    group = arm.KVM_DEV_ARM_VGIC_GRP_CTRL
    return lambda attribute: (attribute.group, attribute.attr) == (group, command)


def disabling(group: int, mask: int) -> Callable[[abi.kvm_device_attr], bool]:
    """Match a write of 0 to the control register, at offset 0, of a device."""

    def matches(attribute: abi.kvm_device_attr) -> bool:
        if attribute.group != group or attribute.attr & mask:
            return False
        return ctypes.c_uint32.from_address(attribute.addr).value == 0

    return matches


attribute_lie("reset-ignored", control(arm.KVM_DEV_ARM_ITS_CTRL_RESET))
attribute_lie("tables-not-saved", control(arm.KVM_DEV_ARM_ITS_SAVE_TABLES))
attribute_lie("tables-not-restored", control(arm.KVM_DEV_ARM_ITS_RESTORE_TABLES))
attribute_lie("pending-not-saved", control(arm.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES))
attribute_lie("its-not-disabled", disabling(arm.KVM_DEV_ARM_VGIC_GRP_ITS_REGS, 0xFFFF))
attribute_lie("lpis-not-disabled", disabling(arm.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0xFFFF))
ignoring_lie("irqfd-ignored", abi.KVM_IRQFD)
ignoring_lie("stop-ignored", abi.KVM_SET_MP_STATE)


def _route_gets_devid(liar: Liar, fd: int, number: int, address: Any) -> int:
    if number == abi.KVM_SET_GSI_ROUTING.number:
        first = address + ctypes.sizeof(abi.kvm_irq_routing)
        if abi.kvm_irq_routing.from_address(address).nr:
            abi.kvm_irq_routing_entry.from_address(first).flags |= 1
    return liar.real(fd, number, address)


LIES["route-devid-not-required"] = _route_gets_devid


# --- judging --------------------------------------------------------------------------------------


class Judge:
    """A plugin that runs the collected tests once under each lie, in a child, up to a failure."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names) or list(LIES)
        self.failed = ""
        self.believed = -1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge the lies, unless a test fails without a lie.

        In random order, since most lies fail tests of one file only.
        """
        items = random.Random(1).sample(session.items, len(session.items))
        if failed := self.judge("", session.items):
            print(f"no lie can be judged: without a lie {failed} fails")
            return True
        self.believed = 0
        for lie in self.names:
            caught = self.judge(lie, items)
            self.believed += not caught
            print(f"{lie:28} {'caught' if caught else 'BELIEVED'} {caught}", flush=True)
        print(f"{len(self.names)} lies, {self.believed} believed", flush=True)
        return True

    def judge(self, lie: str, items: Sequence[pytest.Item]) -> str:
        """Return the id of the first test that fails under a lie; empty if none does."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            if lie:
                calls._libc = Liar(LIES[lie])  # type: ignore[assignment]
            for item, following in pairwise([*items, None]):
                assert item
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    break
            os.write(writing, self.failed.encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            failed = pipe.read()
        status = os.waitpid(child, 0)[1]
        return failed or (f"exit status {status}" if status else "")


def main(names: Iterable[str]) -> int:
    """Judge the lies. Return the number of those that the suite believes; -1 for no judgement."""
    judge = Judge(names)
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", "--timeout=20"]
    pytest.main([*options, TESTS], plugins=[judge])
    return judge.believed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
