# SPDX-License-Identifier: GPL-2.0-only
"""Races, traffic and teardown in random order, for minutes, with an account of every message."""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from helpers.apic import ApicMode, Message
from helpers.apic.model import Switches
from helpers.apic.topology import Irqchip
from helpers.guest import Machine, Mismatch, msi_of, sender
from helpers.guest.running import GuestError
from helpers.kvm import System
from helpers.races.pairs import PAIRS, Pair, RaceMachines
from helpers.races.streams import OPERATIONS, VCPUS, edge_senders, level_senders
from helpers.races.teardown import ENDINGS, end_one
from helpers.races.traffic import Account, Traffic, expect_complete

_ROUNDS = 200
_MILLISECONDS = 300
_PLAIN_MESSAGES = 1 << 15
_BETWEEN_MEASUREMENTS = 30  # Seconds.


@dataclass(slots=True)
class Work:
    """What a soak has done: ``steps`` in all, ``rounds`` of races, ``vms`` that were ended.

    ``overlapped``: rounds in which all threads were calling KVM at some time.
    ``rates``: messages per second of a plain C loop to a vCPU that does not run, measured in the
    course of the soak. ``fds`` and ``kilobytes`` (MemAvailable) are those at the start and the end.
    """

    account: Account = field(default_factory=Account)
    steps: int = 0
    rounds: int = 0
    overlapped: int = 0
    vms: int = 0
    seconds: float = 0
    traffic_seconds: float = 0
    rates: list[float] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    kilobytes: list[int] = field(default_factory=list)

    def progress(self) -> str:
        """Return the work as a few words."""
        return f"{self.account.sent:,} messages, {self.rounds:,} rounds, {self.vms:,} VMs"

    def lines(self) -> list[str]:
        """Return the account as text."""
        done = self.account
        rate = done.sent / max(self.traffic_seconds, 1e-3)
        plain = sum(self.rates) / max(len(self.rates), 1)
        counts = ["sent", "taken", "coalesced", "lost", "repeated", "misdirected"]
        return [
            f"{self.steps:,} steps in {self.seconds:.0f} s: {self.rounds:,} rounds of races "
            f"({self.overlapped:,} at the same time), {self.vms:,} VMs ended under fire",
            ", ".join(f"{getattr(done, name):,} {name}" for name in counts),
            f"{rate:,.0f} messages/s to running guests, {plain:,.0f}/s in a plain C loop",
            f"file descriptors {_from_to(self.fds)}, MemAvailable {_from_to(self.kilobytes)} KiB",
        ]


def _from_to(numbers: list[int]) -> str:
    return " to ".join(f"{number:,}" for number in (numbers[:1] + numbers[-1:]))


class Soak:
    """A number of steps. Step N does what seed N says; a soak of seed N starts with step N."""

    def __init__(
        self, system: System, switches: Switches, *, vector_hashing: bool, in_service: bool
    ) -> None:
        self.work = Work()
        self._system, self._switches = system, switches
        self._vector_hashing, self._in_service = vector_hashing, in_service
        self._machines = RaceMachines(system)

    def run(self, seed: int, seconds: float, show: Callable[[int, float], None]) -> None:
        """Run steps until the time is up. Call ``show(seed, seconds)`` before each.

        Raises Mismatch, GuestError or KernelComplaint for the first step that fails.
        """
        work, start = self.work, time.monotonic()
        self._measure()
        measured = start
        try:
            while (now := time.monotonic()) < start + seconds:
                if now > measured + _BETWEEN_MEASUREMENTS:
                    self._measure_rate()
                    measured = now
                show(seed + work.steps, now - start)
                self._step(seed + work.steps)
                work.steps += 1
        finally:
            work.seconds = time.monotonic() - start
            self._machines.close()
            self._measure()
        if work.fds[-1] > work.fds[0]:
            raise Mismatch("file descriptors", str(work.fds[0]), str(work.fds[-1]))

    def _measure(self) -> None:
        """Measure the rate of the plain loop, count file descriptors, read the free memory."""
        self._measure_rate()
        self.work.fds.append(len(os.listdir("/proc/self/fd")))
        self.work.kilobytes.append(available_kilobytes())

    def _measure_rate(self) -> None:
        with Machine(self._system, vcpu_ids=range(VCPUS)) as machine:
            self.work.rates.append(plain_rate(machine, Message(destination=1), _PLAIN_MESSAGES))

    def _step(self, seed: int) -> None:
        choose = random.Random(seed)
        step = choose.choice((self._race, self._race, self._traffic, self._teardown))
        try:
            step(choose, seed)
        except (Mismatch, GuestError) as failure:
            failure.add_note(f"step {self.work.steps} of the soak, seed {seed}")
            raise

    def _race(self, choose: random.Random, seed: int) -> None:
        names = choose.choice(PAIRS)
        with self._machines.machine(names) as machine:
            pair = Pair(
                *(machine, names, self._switches),
                vector_hashing=self._vector_hashing,
                rounds=_ROUNDS,
                seed=seed,
            )
            pair.run()
        self.work.rounds += pair.rounds
        self.work.overlapped += pair.overlapped

    def _traffic(self, choose: random.Random, _: int) -> None:
        operation = choose.choice(OPERATIONS)
        apic_mode = choose.choice((ApicMode.XAPIC, ApicMode.X2APIC))
        is_level = self._in_service and choose.random() < 0.25
        irqchip: Irqchip | None = "split" if is_level else None
        make = level_senders if is_level else edge_senders
        with Machine(
            self._system, irqchip=irqchip, vcpu_ids=range(VCPUS), apic_mode=apic_mode
        ) as machine:
            start = time.monotonic()
            account = Traffic(machine, operation, make(machine)).run(_MILLISECONDS)
            self.work.traffic_seconds += time.monotonic() - start
        self.work.account.add(account)
        expect_complete(account)

    def _teardown(self, choose: random.Random, seed: int) -> None:
        end_one(choose.choice(ENDINGS), seed)
        self.work.vms += 1


def plain_rate(machine: Machine, message: Message, count: int) -> float:
    """Return messages per second: sender.c sends ``message`` ``count`` times."""
    values = (ctypes.c_uint32 * count)()
    expected = (ctypes.c_int16 * count)(*[machine.send(message)] * count)
    start = time.monotonic()
    sent, _ = sender.send_values(machine.fd, msi_of(message), "data", values, expected)
    return sent / (time.monotonic() - start)


def available_kilobytes() -> int:
    """Return MemAvailable of /proc/meminfo."""
    with open("/proc/meminfo") as file:
        lines = (line.split() for line in file)
        return next(int(words[1]) for words in lines if words[0] == "MemAvailable:")
