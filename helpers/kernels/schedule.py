# SPDX-License-Identifier: GPL-2.0-only
"""Decide which guest runs which test, and what becomes of the tests of a guest that dies.

The schedule knows no process, no socket, no clock and no pytest. run.py reports to it the messages
of the guests, their deaths and the time, and carries out the actions that each call returns, in
order.

A boot is a kernel to boot. A boot has columns: the KVM modules and parameters to test on it, one
after the other. A column has parts: its tests as the modules are loaded, part "", and then those
that need other parameters, a part for each such set. Loading a part reloads the modules. A guest is
one running instance of a boot; two guests of a boot share its tests. Boots, the columns of a boot
and guests are known by their numbers, tests by their node ids, parts by their parameters. Times are
seconds of a monotonic clock.

The state of a column is

    pending        the tests that no guest has, in order, by part
    unfinished     the number of tests that have not ended, pending or not
    failures       the number of failed reports

and the state of a guest is

    boot           the boot that the guest is an instance of
    takes_last     whether the guest is sent the last of the pending tests. The other guest of a
                   boot is sent the first ones, so that its caches serve it in the next column
    column         the column whose tests the guest runs; -1 until the guest is up
    part           the part of the column
    sent           the tests that were sent to the guest and have not ended, in order
    running        the first of these, once it has begun; else empty
    failures       the number of failed reports that the guest sent of its part
    is_complete    whether the guest has been told that no more tests of the part follow
    deadline       the time after which a silent guest hangs
    boot_deadline  the time after which a guest that is not up hangs, silent or not
    console        the console of a guest that is not up, when its deadline last passed

An action is one of

    "start", guest, boot            boot a guest
    "load", guest, column, part     tell a guest to load the modules of a column for a part
    "send", guest, tests            send tests to a guest, to run after those that it has
    "end", guest                    tell a guest that no more tests of its part follow
    "close", guest                  end a guest at once; the schedule has forgotten it
    "lose", boot, column, test, how, console
                                    report a test as failed, because its guest died or hung
    "leave", boot, column, unrun    report that a column was left, and the number of tests not run
    "break", boot, column, reason   report that a column cannot be tested, or not to the end
    "refuse", boot, column, reason  report that a column did not take its parameters
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

BOOT_SECONDS = 300
SILENT_SECONDS = 90
"""Longest silence of a console during a boot. A loaded machine took a quarter of it."""
WORTH_A_BOOT = 200
"""Tests per guest from which on another guest of the same boot saves time."""
WORTH_A_LOAD = 40
"""The least number of tests for which a second guest of a boot loads the same modules."""
HANGS = "no sign of life for too long: the kernel hangs"
"""How a guest died whose test did not end in time."""
_SENT_AHEAD = 3
"""Tests that a guest has at least: the running one, the next one, one on the way."""


@dataclass
class ColumnState:
    """The state of one column; see above."""

    pending: defaultdict[str, deque[str]]
    unfinished: int
    failures: int = 0

    @classmethod
    def of(cls, tests: Sequence[str]) -> ColumnState:
        return cls(defaultdict(deque, {"": deque(tests)}), len(tests))


@dataclass
class GuestState:
    """The state of one guest; see above."""

    boot: int
    takes_last: bool
    deadline: float
    boot_deadline: float
    console: list[str] = field(default_factory=list)
    column: int = -1
    part: str = ""
    sent: deque[str] = field(default_factory=deque)
    running: str = ""
    failures: int = 0
    is_complete: bool = False


Action = tuple[Any, ...]


class Schedule:
    """The schedule of one run.

    ``boots`` are the tests of each column of each boot. ``slots`` is the number of guests that run
    at a time. ``time_limit`` returns the seconds after which a test that has not ended means that
    its guest hangs. A column is left after ``maxfail`` failures; 0 means never. ``patience``
    returns the factor by which the guests of a boot may exceed all limits of time.
    """

    def __init__(
        self,
        boots: Sequence[Sequence[Sequence[str]]],
        slots: int,
        time_limit: Callable[[str], float],
        maxfail: int,
        patience: Callable[[int], float] = lambda _boot: 1,
    ) -> None:
        self.boots = [list(map(ColumnState.of, boot)) for boot in boots]
        self.slots = slots
        self.time_limit = time_limit
        self.maxfail = maxfail
        self.patience = patience
        self.guests: dict[int, GuestState] = {}
        self._numbers = count()

    def start(self, now: float) -> list[Action]:
        """Fill the free slots with guests."""
        actions: list[Action] = []
        while len(self.guests) < self.slots and (boot := self._neediest()) is not None:
            guest = next(self._numbers)
            others = [other for other in self.guests.values() if other.boot == boot]
            takes_last = any(not other.takes_last for other in others)
            factor = self.patience(boot)
            self.guests[guest] = GuestState(
                boot,
                takes_last,
                deadline=now + factor * SILENT_SECONDS,
                boot_deadline=now + factor * BOOT_SECONDS,
            )
            actions.append(("start", guest, boot))
        return actions

    def _neediest(self) -> int | None:
        """Return the boot that another guest helps most; None if no boot is worth another."""
        guests = Counter(guest.boot for guest in self.guests.values())
        share: dict[int, float] = {}
        for boot, columns in enumerate(self.boots):
            pending = sum(len(part) for column in columns for part in column.pending.values())
            if pending and (not guests[boot] or pending >= WORTH_A_BOOT * (guests[boot] + 1)):
                share[boot] = pending / (guests[boot] + 1)
        return max(share, key=lambda boot: (not guests[boot], share[boot]), default=None)

    def next_deadline(self) -> float:
        """Return the time at which :meth:`overdue` has to be asked again."""
        return min((guest.deadline for guest in self.guests.values()), default=float("inf"))

    def overdue(self, now: float) -> list[int]:
        """Return the guests whose deadline has passed; each needs a call of :meth:`expired`."""
        return [number for number, guest in self.guests.items() if now > guest.deadline]

    def add_column(self, boot: int, tests: Sequence[str]) -> None:
        """Add a column to a boot, after its others."""
        self.boots[boot].append(ColumnState.of(tests))

    def add_boot(self, tests: Sequence[str]) -> None:
        """Add a boot of one column, after the others."""
        self.boots.append([ColumnState.of(tests)])

    def _column(self, guest: GuestState) -> ColumnState:
        return self.boots[guest.boot][guest.column]

    # --- what guests say --------------------------------------------------------------------------

    def ready(self, number: int, now: float) -> list[Action]:
        """Handle a guest that is up, or has run all tests of a part of a column."""
        guest = self.guests[number]
        place = self._next_part(number)
        if place is None:
            return [self._close(number)]
        guest.column, guest.part = place
        guest.failures, guest.is_complete = 0, False
        guest.deadline = now + self.patience(guest.boot) * BOOT_SECONDS
        return [("load", number, *place)]

    def _next_part(self, number: int) -> tuple[int, str] | None:
        """Return the next column and part for a guest; None if other guests run the rest."""
        guests = self.guests.items()
        boot = self.guests[number].boot
        taken = {(g.column, g.part) for other, g in guests if g.boot == boot and other != number}
        for column, state in enumerate(self.boots[boot]):
            for part, tests in state.pending.items():
                if len(tests) >= WORTH_A_LOAD or (tests and (column, part) not in taken):
                    return column, part
        return None

    def loaded(self, number: int, needs: Mapping[str, str]) -> list[Action]:
        """Handle a guest that has loaded the modules of its column for its part.

        ``needs`` are the tests that the loaded parameters do not suit: {test: its part}.
        """
        pending = self._column(self.guests[number]).pending
        waiting = pending[""]
        pending[""] = deque(test for test in waiting if test not in needs)
        for test in filter(needs.get, waiting):
            pending[needs[test]].append(test)
        return self._feed(number)

    def refused(self, number: int, reason: str, now: float) -> list[Action]:
        """Handle a guest whose modules did not take the parameters of its column."""
        guest = self.guests[number]
        self._column(guest).pending.clear()
        return [("refuse", guest.boot, guest.column, reason), *self.ready(number, now)]

    def began(self, number: int, test: str, now: float) -> list[Action]:
        """Handle the beginning of a test."""
        guest = self.guests[number]
        guest.running = test
        guest.deadline = now + self.patience(guest.boot) * self.time_limit(test)
        return self._feed(number)

    def ended(self, number: int, test: str, failures: int) -> list[Action]:
        """Handle the end of a test that had this many failed reports."""
        guest = self.guests[number]
        guest.running = ""
        guest.sent.remove(test)
        guest.failures += failures
        return self._count(guest, failures)

    def failed(self, number: int, reason: str) -> list[Action]:
        """Handle a guest that cannot test its column; one that is not up can test none."""
        guest = self.guests[number]
        columns = range(len(self.boots[guest.boot])) if guest.column < 0 else [guest.column]
        for column in columns:
            self.boots[guest.boot][column].pending.clear()
        broken = [("break", guest.boot, column, reason) for column in columns]
        return [self._close(number), *broken]

    # --- silence and death ------------------------------------------------------------------------

    def expired(self, number: int, console: list[str], now: float) -> list[Action]:
        """Handle a passed deadline. A boot whose console is not silent gets another one."""
        guest = self.guests[number]
        if guest.column >= 0:
            return self.died(number, HANGS, console)
        silent, boot = (self.patience(guest.boot) * each for each in (SILENT_SECONDS, BOOT_SECONDS))
        if console == guest.console:
            how = f"nothing on its console for {silent:.0f} s: the kernel hangs"
            return self.died(number, how, console)
        if now > guest.boot_deadline:
            return self.died(number, f"not up after {boot:.0f} s: the kernel hangs", console)
        guest.console = console
        guest.deadline = min(now + silent, guest.boot_deadline)
        return []

    def died(self, number: int, how: str, console: list[str]) -> list[Action]:
        """Handle a dead guest: fail the test that ran, leave the others to another guest."""
        guest = self.guests[number]
        test = guest.running
        if not test:
            last = next((line for line in reversed(console) if line), "it said nothing")
            return self.failed(number, f"{how} with no test running; its last words: {last}")
        guest.sent.remove(test)
        pending = self._column(guest).pending[guest.part]
        if guest.takes_last:
            pending.extend(guest.sent)
        else:
            pending.extendleft(reversed(guest.sent))
        lost = ("lose", guest.boot, guest.column, test, how, console)
        return [self._close(number), lost, *self._count(guest, failures=1)]

    # --- decisions --------------------------------------------------------------------------------

    def _feed(self, number: int) -> list[Action]:
        """Send tests to a guest that has too few: it must know the one after the running one."""
        guest = self.guests[number]
        pending = self._column(guest).pending[guest.part]
        guests = sum(other.boot == guest.boot for other in self.guests.values())
        actions: list[Action] = []
        while len(guest.sent) < _SENT_AHEAD and not guest.is_complete:
            if not pending:
                guest.is_complete = True
                return [*actions, ("end", number)]
            share = min(len(pending), max(2, len(pending) // (2 * guests)))
            take = pending.pop if guest.takes_last else pending.popleft
            tests = [take() for _ in range(share)]
            if guest.takes_last:
                tests.reverse()
            guest.sent.extend(tests)
            actions.append(("send", number, tests))
        return actions

    def _count(self, guest: GuestState, failures: int) -> list[Action]:
        """Count an ended test. After ``maxfail`` failures, the column's guests leave the column.

        A guest that sent all these failures drops its other tests by itself. The rest is closed.
        """
        column = self._column(guest)
        column.unfinished -= 1
        column.failures += failures
        if not (0 < self.maxfail <= column.failures and column.unfinished):
            return []
        column.pending.clear()
        place = (guest.boot, guest.column)
        if guest.failures >= self.maxfail:
            guest.sent.clear()
            guest.is_complete = True
        at = {
            number: (other.boot, other.column)
            for number, other in self.guests.items()
            if other is not guest or guest.failures < self.maxfail
        }
        closed = [self._close(number) for number in at if at[number] == place]
        return [*closed, ("leave", *place, column.unfinished)]

    def _close(self, number: int) -> Action:
        del self.guests[number]
        return ("close", number)
