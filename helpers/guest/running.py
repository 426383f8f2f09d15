# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU in a thread of its own, inside KVM_RUN. For clauses about time: waking, concurrency."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from typing import Self

from helpers.guest import layout
from helpers.kvm import Vcpu, abi, recording
from helpers.kvm.closing import Closing

DEADLINE = 10.0
"""Seconds that a vCPU in a thread may take to reach the state that a test waits for."""

_IOCTL = 29 if platform.machine() == "aarch64" else 16
"""The number of the system call ioctl(2)."""


class GuestError(AssertionError):
    """The guest did not act as the probe prescribes: an exception, an unexpected exit, no exit."""


def expect_port(vcpu: Vcpu, index: int, reason: int, *ports: int) -> int:
    """Return the port of a KVM_EXIT_IO, one of ``ports``. Raises GuestError for any other exit."""
    if recording.active:
        recording.active.exit_expected(ports)
    port = int(vcpu.kvm_run.u.io.port) if reason == abi.KVM_EXIT_IO else -1
    if port == layout.PORT_FAULT:
        raise GuestError(f"vCPU {index}: exception {vcpu.get_regs().rax & 0xFF}")
    if port not in ports:
        raise GuestError(f"vCPU {index}: unexpected {vcpu.describe_exit()}")
    return port


class Running(Closing):
    """A vCPU inside KVM_RUN in a thread, until the next exit of the probe or a kick."""

    def __init__(self, index: int, vcpu: Vcpu, control: layout.Control | None) -> None:
        self._index = index
        self._vcpu = vcpu
        self._control = control
        self._stop = False
        self._failure: BaseException | None = None
        self._exit = abi.KVM_EXIT_INTR
        self._thread = threading.Thread(target=self._run, name=f"vCPU {index}", daemon=True)

    def __enter__(self) -> Self:
        # Without a handler the signal of the kick ends the process instead of interrupting KVM_RUN.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        self._thread.start()
        return self

    def close(self) -> None:
        self.kick()

    def _run(self) -> None:
        try:
            while not self._stop:
                self._exit = self._vcpu.run()
                if self._exit != abi.KVM_EXIT_INTR:
                    return
        except BaseException as failure:
            self._failure = failure

    @property
    def left(self) -> bool:
        """Whether the vCPU has left KVM_RUN."""
        return not self._thread.is_alive()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Poll ``condition()`` until true. Raises GuestError after DEADLINE seconds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                raise GuestError(f"vCPU {self._index}: waited {DEADLINE:.0f} s for {what}")
            os.sched_yield()

    def wait_until_asleep(self) -> None:
        """Wait until the thread sleeps in KVM_RUN (proc_pid_syscall(5)), or has left KVM_RUN."""
        path = f"/proc/self/task/{self._thread.native_id}/syscall"
        marker = f"{_IOCTL} {self._vcpu.fd:#x} {abi.KVM_RUN.number:#x} "

        def asleep() -> bool:
            try:
                with open(path) as file:
                    return file.read().startswith(marker)
            except (FileNotFoundError, ProcessLookupError):
                return True  # the thread has ended

        self.wait_for(asleep, "KVM_RUN to sleep")

    def wait_until_taken(self, count: int) -> None:
        """Wait until the log of the guest has ``count`` records."""
        control = self._control
        assert control
        self.wait_for(lambda: control.taken >= count, f"interrupt number {count}")

    def finish(self) -> None:
        """Wait for an exit to the idle port without a kick. Raises GuestError for another exit."""
        self.wait_for(lambda: self.left, "KVM_RUN to return")
        self._join()
        expect_port(self._vcpu, self._index, self._exit, layout.PORT_IDLE)

    def kick(self) -> bool:
        """Make KVM_RUN return. Return True if the vCPU had left KVM_RUN before the kick."""
        left_before = self.left
        self._stop = True
        self._vcpu.kvm_run.immediate_exit = 1
        deadline = time.monotonic() + DEADLINE
        while not self.left:
            if time.monotonic() > deadline:
                raise GuestError(f"vCPU {self._index} cannot be kicked out of KVM_RUN")
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR1)
            self._thread.join(0.01)
        self._vcpu.kvm_run.immediate_exit = 0
        self._join()
        return left_before

    def _join(self) -> None:
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
