# SPDX-License-Identifier: GPL-2.0-only
"""Two threads against each other: two writers, or a writer and a sender.

After each round both threads rest, and KVM must answer every message as the model does for the
state that the writers have left. Between the last write and the messages, nothing else is called:
a write would have KVM build its map of LAPICs again, and hide a stale map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations_with_replacement, product
from typing import Any

from helpers.apic import DestinationMode, LapicPage, Message
from helpers.apic.model import Model, Outcome, Switches
from helpers.apic.topology import Topology
from helpers.guest import Machine, Mismatch, msi_of, msi_route
from helpers.kvm import System, abi, attempt, show_result
from helpers.kvm.closing import Closing
from helpers.races.counting import count_interrupts
from helpers.races.race import IOCTL, Call, Race, Wrong, line_call, message_call, show
from helpers.races.writers import (
    GSI,
    NEW_IDS,
    ROUTED,
    ROUTES,
    SENDERS,
    STICKY,
    VCPUS,
    WRITERS,
    State,
)

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

PAIRS = [*combinations_with_replacement(WRITERS, 2), *product(SENDERS, WRITERS)]
"""Every writer against every writer, and every sender against every writer, by name."""

_PHASES = 2
_ROUTED_ROUNDS = 4
_FIRST, _LAST = 0x30, 0x80  # The checker's first vector in a round, and after the last round.

# Every ID that a writer gives to a vCPU, and some that no vCPU has.
_PHYSICAL = (*range(VCPUS), *NEW_IDS, 0x11, 0x13, 0x41, 0x42, 0x77, 0xFF, 0x101)
_LOGICAL = (*(1 << bit for bit in range(8)), 0x0F, 0x31, 0x32, 0xF1, 0xFF)


def _messages(first_vector: int) -> Iterator[Message]:
    """Yield a message to every ID, each with a vector of its own."""
    modes = [DestinationMode.PHYSICAL] * len(_PHYSICAL) + [DestinationMode.LOGICAL] * len(_LOGICAL)
    for number, to in enumerate(zip((*_PHYSICAL, *_LOGICAL), modes, strict=True)):
        yield Message(first_vector + number, *to)


@lru_cache(maxsize=1 << 10)
def _outcomes(topology: Topology, switches: Switches, first_vector: int) -> tuple[Outcome, ...]:
    model = Model(topology, switches)
    return tuple(map(model.predict, _messages(first_vector)))


def _code(outcome: Outcome) -> int:
    return -outcome.errno if outcome.errno else outcome.result


class Pair:
    """A race of two threads on a machine: writers, or a sender and a writer, by name.

    The machine has VCPUS vCPUs, with the IDs and flat logical IDs of power-on.
    """

    def __init__(
        self,
        machine: Machine,
        names: tuple[str, str],
        switches: Switches,
        *,
        vector_hashing: bool,
        rounds: int,
        seed: int,
    ) -> None:
        self.machine = machine
        self._names, self._seed, self._switches = names, seed, switches
        self._vector_hashing = vector_hashing
        self._has_route = bool(set(names) & set(ROUTED))
        if self._has_route:
            machine.vm.set_gsi_routing([msi_route(GSI, ROUTES[0])])
        threads, states = self._programs()
        checks = [self._checks(state) for state in states]
        if set(names) & set(STICKY):
            rounds = _PHASES
        elif "routes" in names:
            rounds = min(rounds, _ROUTED_ROUNDS)
        self._race = Race(threads, checks, rounds=rounds, seed=seed)

    def _programs(self) -> tuple[list[list[Sequence[Call]]], list[State]]:
        """Return the phases of both threads, and the state after each phase."""
        topology = self.machine.topology(self._vector_hashing)
        states = [State(topology, ROUTES[0])] * _PHASES
        threads: list[list[Sequence[Call]]] = []
        for index, name in enumerate(self._names, start=1):
            if name in SENDERS:
                threads.append([SENDERS[name](self.machine)] * _PHASES)
                continue
            changes = WRITERS[name](self.machine, index)
            threads.append([change.calls for change in changes])
            for phase, change in enumerate(changes):
                states[phase:] = map(change.on, states[phase:])
        return threads, states

    def _checks(self, state: State) -> list[Call]:
        """Return the messages that are sent after a phase, each with the result of the model."""
        topology, fd = state.topology, self.machine.fd
        outcomes = _outcomes(topology, self._switches, _FIRST)
        calls = []
        for message, outcome in zip(_messages(_FIRST), outcomes, strict=True):
            call = message_call(str(message), fd, msi_of(message))
            calls.append(replace(call, pause=0, expected=_code(outcome)))
        if not self._has_route:
            return calls
        routed = _code(Model(topology, self._switches).predict(state.route))
        line = line_call(f"GSI {GSI} to {state.route}", fd, GSI)
        return [*calls, replace(line, pause=0, expected=routed)]

    @property
    def rounds(self) -> int:
        return self._race.rounds

    @property
    def overlapped(self) -> int:
        """The number of rounds in which both threads were calling KVM at some time."""
        return self._race.overlapped

    def run(self) -> None:
        """Run the race. Raises Mismatch where a message does not do what the model says."""
        wrong = self._race.run()
        self._adopt()
        try:
            if wrong:
                self._report(wrong)
            self._expect_settled()
        except Mismatch as mismatch:
            mismatch.add_note("\n".join([f"seed {self._seed}", *self._race.schedule()]))
            raise

    def _adopt(self) -> None:
        """Tell the machine what the threads have done."""
        seen: list[tuple[int, int, Any, int]] = []
        for program in range(len(self._names)):
            for call, got in self._race.results(program):
                if call.what == IOCTL:
                    seen.append((call.fd, call.request, call.argument, got))
                if call.creates and got >= 0:
                    self.machine.adopt_cpu(int(call.argument), got)
        self.machine.called_elsewhere(seen)

    def _report(self, wrong: Wrong) -> None:
        checks = wrong.program == len(self._names)
        name = "return value" if checks else f"result of {wrong.call.name}"
        expected = show(wrong.call.expected) if checks else "success"
        where = f"round {wrong.round} of {' and '.join(self._names)}"
        raise Mismatch(name, expected, wrong.got, f"{wrong.call.name}, after {where}")

    def _expect_settled(self) -> None:
        """Send a message to every ID; compare the return value and every vCPU with the model."""
        machine = self.machine
        topology = machine.topology(self._vector_hashing)
        outcomes = _outcomes(topology, self._switches, _LAST)
        expected: list[set[int]] = [set() for _ in topology.vcpus]
        for message, outcome in zip(_messages(_LAST), outcomes, strict=True):
            result = show_result(*attempt(machine.fd, abi.KVM_SIGNAL_MSI, msi_of(message)))
            if result != outcome.returned:
                raise Mismatch(
                    "return value", outcome.returned, result, f"{message}, after the last round"
                )
            for accepted in outcome.accepted:
                expected[accepted].add(message.vector)
        for index, vectors in enumerate(expected):
            pending = {vector for vector in machine[index].lapic.irr if vector >= _LAST}
            if pending != vectors:
                raise Mismatch(f"IRR of vCPU {index}", _text(vectors), _text(pending))


def _text(vectors: Iterable[int]) -> str:
    return " ".join(f"{vector:#04x}" for vector in sorted(vectors)) or "nothing"


class RaceMachines(Closing):
    """Machines that serve one race after another."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._machines: dict[bool, Machine] = {}
        self._pages: list[LapicPage] = []

    def close(self) -> None:
        for machine in self._machines.values():
            machine.close()
        self._machines.clear()

    @contextlib.contextmanager
    def machine(self, names: Iterable[str]) -> Iterator[Machine]:
        """Yield a machine for a race of these writers. A failure of the block discards it."""
        is_sticky = bool(set(names) & set(STICKY))
        machine = self._machines.pop(is_sticky, None)
        if machine and len(machine.cpus) + 2 * _PHASES > VCPUS + len(NEW_IDS):
            machine.close()
            machine = None
        machine = self._restored(machine) if machine else self._new()
        try:
            yield machine
        except BaseException:
            machine.close()
            raise
        self._machines[is_sticky] = machine

    def _new(self) -> Machine:
        machine = Machine(self._system, vcpu_ids=range(VCPUS))
        self._pages = [cpu.lapic for cpu in machine.cpus]
        for cpu in machine.cpus:
            count_interrupts(machine, cpu)
        return machine

    def _restored(self, machine: Machine) -> Machine:
        for cpu, page in zip(machine.cpus, self._pages, strict=False):
            cpu.vcpu.finish_exit()
            cpu.reset()
            count_interrupts(machine, cpu)
            cpu.lapic = page
        return machine
