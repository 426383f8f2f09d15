# SPDX-License-Identifier: GPL-2.0-only
"""VMs that end while guests run, and while messages, irqfds and routes are under way.

Each VM lives in a forked child, which closes all file descriptors in the midst of it, or is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from helpers.apic import Message
from helpers.guest import GuestError, Machine, Mismatch, msi_of, msi_route
from helpers.kvm import KvmError, System, abi, recording
from helpers.kvm.process import fork
from helpers.kvm.vm import routing_table
from helpers.races.race import SIGNAL_EVENT, Call, Race, ioctl_call, message_call
from helpers.races.streams import OPERATIONS, VCPUS, edge_senders
from helpers.races.traffic import Sender, Traffic

Ending = Literal["closed", "killed"]
ENDINGS: tuple[Ending, ...] = ("closed", "killed")

_END = 20.0  # Seconds that a child may take to end.
_RELEASE = 10.0  # Seconds that KVM may take to release what the child had.

_MOST_MILLISECONDS = 8  # The longest time that a VM lives under fire.
_FOREVER = 1 << 30  # Rounds, or milliseconds.


def end_one(ending: Ending, seed: int) -> None:
    """Make a VM in a child, and end it under fire. Raises Mismatch if anything of it remains."""
    recording.leave_out("a process that ends")
    choose = random.Random(seed)
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os.close(reader)
        _live(writer, choose, is_closing=ending == "closed")
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as ready:
            if ready.read(1) != b"!":
                raise GuestError(f"the child made no VM: status {_wait(child)}")
        if ending == "killed":
            time.sleep(choose.random() * _MOST_MILLISECONDS / 1000)
            os.kill(child, signal.SIGKILL)
        status = _wait(child)
    except BaseException:
        _kill(child)
        raise
    expected = 0 if ending == "closed" else -signal.SIGKILL
    if status != expected:
        raise Mismatch("end of the process", str(expected), str(status), f"seed {seed}")
    _wait_until(lambda: not remains_of(child), lambda: ", ".join(remains_of(child)), seed)


def _wait(child: int) -> int:
    """Return the exit status of a child, or the negative number of the signal that ended it."""
    deadline = time.monotonic() + _END
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    raise Mismatch("end of the process", "an end", f"none in {_END} s")


def _kill(child: int) -> None:
    """Kill a child and wait for its end, unless the child was waited for."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _wait_until(condition: Callable[[], bool], rest: Callable[[], str], seed: int) -> None:
    deadline = time.monotonic() + _RELEASE
    while not condition():
        if time.monotonic() > deadline:
            raise Mismatch("left by an ended VM", "nothing", rest(), f"seed {seed}")
        time.sleep(0.001)


def remains_of(pid: int) -> list[str]:
    """Return what KVM keeps for the VMs of a process: entries of debugfs, kernel threads."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        entries = os.listdir("/sys/kernel/debug/kvm")
        found += [f"debugfs kvm/{entry}" for entry in entries if entry.startswith(f"{pid}-")]
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            name = path.read_text().strip()
            if name.startswith("kvm-") and name.endswith((f"/{pid}", f"-{pid}")):
                found.append(f"thread {name}")
    return found


# --- in the child ---------------------------------------------------------------------------------


def _live(ready: int, choose: random.Random, *, is_closing: bool) -> NoReturn:
    """Run a VM under fire; close it after a time, or wait to be killed. The process ends here."""
    status = 1
    try:
        with System() as system:
            machine = Machine(system, vcpu_ids=range(VCPUS))
            operation = choose.choice(OPERATIONS)
            traffic = Traffic(machine, operation, _threads_only(machine))
            shots = (lambda: traffic.run(_FOREVER), _churn(machine, choose).run)
            for shot in shots:
                threading.Thread(target=_until_closed, args=(shot,), daemon=True).start()
            os.write(ready, b"!")
            time.sleep(choose.random() * _MOST_MILLISECONDS / 1000)
            if is_closing:
                _close_all(machine, choose)
            else:
                time.sleep(_END)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _threads_only(machine: Machine) -> list[Sender]:
    """Return the senders that are threads: a process would survive the child."""
    return [sender for sender in edge_senders(machine) if not sender.is_process]


def _until_closed(shoot: Callable[[], object]) -> None:
    # Whatever fails, fails because the file descriptors were closed.
    with contextlib.suppress(Mismatch, GuestError, KvmError, OSError):
        shoot()


def _churn(machine: Machine, choose: random.Random) -> Race:
    """Return a race of messages, eventfd writes, routes, and of an irqfd that comes and goes."""
    gsi, event = 200, machine.vm.eventfd()
    tables = [routing_table([msi_route(gsi, Message(0xE0, to))]) for to in (0, 0xFF)]
    assign, deassign = (
        abi.kvm_irqfd(fd=event, gsi=gsi, flags=flags) for flags in (0, abi.KVM_IRQFD_FLAG_DEASSIGN)
    )
    threads = [
        [[message_call("message", machine.fd, msi_of(Message(0xE1, 0xFF)))] * 3],
        [[Call("irqfd", event, 0, what=SIGNAL_EVENT)] * 3],
        [[ioctl_call("KVM_IRQFD", machine.fd, abi.KVM_IRQFD, each) for each in (assign, deassign)]],
        [
            [
                ioctl_call("KVM_SET_GSI_ROUTING", machine.fd, abi.KVM_SET_GSI_ROUTING, table)
                for table in tables
            ]
        ],
    ]
    longer = [[[replace(call, pause=2000) for call in phase] for phase in each] for each in threads]
    return Race(longer, [[]], rounds=_FOREVER, seed=choose.randrange(1 << 31))


def _close_all(machine: Machine, choose: random.Random) -> None:
    """Close the file descriptors of the VM, its vCPUs and its eventfds, in any order."""
    fds = [machine.fd, *(cpu.vcpu.fd for cpu in machine.cpus), *machine.vm.eventfds]
    choose.shuffle(fds)
    for fd in fds:
        os.close(fd)
        time.sleep(choose.random() / 1000)
