# SPDX-License-Identifier: GPL-2.0-only
"""Run the tests in booted kernels: carry out the schedule, and report what the guests say.

pytest-xdist, with booted kernels as execnet gateways, was tried and does not fit. It starts one
gateway after the other before the first test, waits for a hung one for ever, blames the test of
every worker in a dead kernel, has no second set of modules on the same boot, and its messages cost
twice as much as a test in an emulator.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from helpers.kernels.boot import Guest, without_interrupts
from helpers.kernels.checks import check_kernel, check_message, check_reports
from helpers.kernels.columns import Boot, Column
from helpers.kernels.frames import Garbage
from helpers.kernels.oops import last_words
from helpers.kernels.parameters import part_of
from helpers.kernels.schedule import HANGS, Action, GuestState, Schedule
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.reports import CONSOLE, put_column
from helpers.verdicts.session import Verdicts, clause_of, is_parallel, needs_of
from helpers.verdicts.tally import Tally


@dataclass(frozen=True, slots=True)
class _Gateway:
    id: str


@dataclass(frozen=True, slots=True)
class _Node:
    """What pytest's terminal and JUnit report read of a report's pytest-xdist worker."""

    gateway: _Gateway
    _workerinfocache: str


class Reports:
    """Hands the reports of guests to pytest, as if the tests had run here."""

    def __init__(self, session: pytest.Session, verdicts: Verdicts, columns: int) -> None:
        self.session = session
        self.config = session.config
        self.verdicts = verdicts
        self.items = {item.nodeid: item for item in session.items}
        self.columns = columns
        self._seen: set[str] = set()
        self._reported = 0

    def receive(
        self, boot: Boot, column: Column, test: str, serialized: Iterable[dict[str, Any]]
    ) -> int:
        """Log a test's reports. Return the number of failed ones. Raises Garbage before any."""
        reports = self._decoded(column, test, serialized)
        for report in reports:
            self._log(boot, column, report)
        return sum(report.failed for report in reports)

    def program_of(
        self, column: Column, test: str, serialized: Iterable[dict[str, Any]]
    ) -> bytes | None:
        """Return the C program of a failed test, given its reports. Raises Garbage."""
        reports = self._decoded(column, test, serialized)
        call = self.config.hook.pytest_kvm_program
        programs = (call(report=report) for report in reports if report.failed)
        return next(programs, None)

    def _decoded(
        self, column: Column, test: str, serialized: Iterable[dict[str, Any]]
    ) -> list[pytest.TestReport]:
        decode = partial(self.config.hook.pytest_report_from_serializable, config=self.config)
        clause = clause_of(self.items[test])
        reports = check_reports(test, clause.id if clause else "", serialized, decode)
        for report in reports:
            put_column(report, column.label)
        return reports

    def lose(
        self,
        boot: Boot,
        column: Column,
        test: str,
        text: str,
        console: Sequence[str] = (),
        timeout: float = 0.0,
    ) -> None:
        """Log a failure of a test whose guest died. ``text`` says how, and ends the ``console``.

        ``timeout`` are the seconds after which a guest that hangs was ended.
        """
        item = self.items[test]
        common: dict[str, Any] = {"nodeid": test, "location": item.location, "keywords": {}}
        for report in (
            pytest.TestReport(**common, outcome="failed", longrepr=text, when="call"),
            pytest.TestReport(**common, outcome="passed", longrepr=None, when="teardown"),
        ):
            self.verdicts.add_verdict(item, report, column.options, timeout)
            CONSOLE.put(report, list(console))
            self._log(boot, column, report)

    def _log(self, boot: Boot, column: Column, report: pytest.TestReport) -> None:
        put_column(report, column.label)
        origin = f"on {column.label}, Linux {boot.kernel.release}"
        vars(report)["node"] = _Node(_Gateway(column.label), origin)
        if report.when == "call" or not report.passed:
            self._advance(report.nodeid)
        hook = self.config.hook
        hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)

    def _advance(self, nodeid: str) -> None:
        """Correct pytest's progress, ids seen of tests collected: an id comes once per column."""
        self._reported += 1
        self._seen.add(nodeid)
        seen = len(self._seen)
        total = len(self.items) * self.columns
        expected = round(seen * total / min(self._reported, total))
        self.session.testscollected = max(seen, expected)

    def time_limit(self, test: str) -> float:
        """Return the seconds that a test may take. Its guest ends it at half of them."""
        mark = self.items[test].get_closest_marker("timeout")
        given = [*(mark.args if mark else ()), self.config.getoption("timeout")]
        timeout = next((value for value in given if value), self.config.getini("timeout"))
        return 2 * float(timeout) + 10 if float(timeout or 0) else float("inf")


class BootedRun:
    """A run of the session's tests over all columns of all boots, ``slots`` guests at a time.

    With ``matrix``, ``boots`` grow by the columns of each booted kernel's switches. ``refused`` are
    those whose switch cannot be turned: {label: reason}.
    """

    def __init__(
        self,
        reports: Reports,
        boots: list[Boot],
        launch: Callable[[Boot], Guest],
        slots: int,
        *,
        matrix: bool = False,
    ) -> None:
        self.reports = reports
        self.session = reports.session
        self.boots = boots
        self.matrix = matrix
        self.refused: dict[str, str] = {}
        self.launch = launch
        self.schedule = Schedule(
            [[self._tests_of(boot, column) for column in boot.columns] for boot in boots],
            slots,
            reports.time_limit,
            self.session.config.getoption("maxfail_each"),
            lambda boot: boots[boot].patience,
        )
        self.guests: dict[int, Guest] = {}
        self.collected: dict[int, list[str]] = {}
        self.selector = selectors.DefaultSelector()

    def _items_of(self, boot: Boot) -> dict[str, pytest.Item]:
        wanted = boot.emulator.parallel
        return {
            id: item
            for id, item in self.reports.items.items()
            if wanted is None or wanted == is_parallel(item)
        }

    def _tests_of(self, boot: Boot, column: Column) -> Sequence[str]:
        items = self._items_of(boot)
        hook = self.session.config.hook
        tests: Sequence[str] | None = hook.pytest_kvm_column_tests(column=column.label, items=items)
        return list(items) if tests is None else tests

    def run(self) -> None:
        """Run all tests. No guest is left behind, even by an exception."""
        try:
            self._carry_out(self.schedule.start(time.monotonic()))
            while self.guests:
                self._wait()
                # Obey -x, --maxfail and session.shouldstop, as pytest's own loop does.
                if self.session.shouldfail:
                    raise self.session.Failed(self.session.shouldfail)
                if self.session.shouldstop:
                    raise self.session.Interrupted(self.session.shouldstop)
                self._carry_out(self.schedule.start(time.monotonic()))
        finally:
            for guest in self.guests.values():
                guest.close()
            self.selector.close()

    def _wait(self) -> None:
        """Handle what guests say until the next deadline, then the guests that are silent."""
        patience = max(0.0, self.schedule.next_deadline() - time.monotonic())
        for key, _ in self.selector.select(None if patience == float("inf") else patience):
            if key.data in self.guests:
                self._receive(key.data)
        for number in self.schedule.overdue(time.monotonic()):
            if number in self.guests:
                console = self.guests[number].console()
                self._carry_out(self.schedule.expired(number, console, time.monotonic()))

    def _receive(self, number: int) -> None:
        guest = self.guests[number]
        try:
            for message in guest.receive():
                check_message(message, self.schedule.guests[number], self.collected.get(number))
                self._carry_out(self._handle(number, *message))
                if number not in self.guests:
                    return
        except EOFError:
            self._carry_out(self.schedule.died(number, "the kernel died", guest.console()))
        except Garbage as found:
            how = f"the guest sent garbage ({found})"
            self._carry_out(self.schedule.died(number, how, guest.console()))

    def _handle(self, number: int, kind: str, *arguments: Any) -> list[Action]:
        """Tell the schedule what a worker said; worker.py lists the messages."""
        now = time.monotonic()
        state = self.schedule.guests[number]
        match kind:
            case "ready" if missing := self._items_of(self.boots[state.boot]).keys() - arguments[0]:
                return self.schedule.failed(number, f"the guest does not find {min(missing)}")
            case "ready":
                self.collected[number] = arguments[0]
                return self.schedule.ready(number, now)
            case "done":
                return self.schedule.ready(number, now)
            case "column":
                kernel = check_kernel(arguments[0])
                return self.schedule.loaded(
                    number, {} if state.part else self._learn(state, kernel)
                )
            case "unlike":
                return self.schedule.refused(number, arguments[0], now)
            case "begin":
                return self.schedule.began(number, self.collected[number][arguments[0]], now)
            case "ended" | "reproduce":
                return self._receive_reports(number, kind, *arguments)
            case "failed":
                return self.schedule.failed(number, arguments[0])
        raise AssertionError(f"the worker said {kind}")

    def _receive_reports(
        self, number: int, kind: str, collected: int, serialized: Iterable[dict[str, Any]]
    ) -> list[Action]:
        """Take the reports of a test that has ended, or answer by its C program."""
        state = self.schedule.guests[number]
        boot = self.boots[state.boot]
        column = boot.columns[state.column]
        test = self.collected[number][collected]
        if kind == "reproduce":
            program = self.reports.program_of(column, test, serialized)
            return [("program", number, program or b"")]
        failures = self.reports.receive(boot, column, test, serialized)
        return self.schedule.ended(number, test, failures)

    # --- parameters -------------------------------------------------------------------------------

    def _learn(self, state: GuestState, kernel: Kernel) -> dict[str, str]:
        """Record a column's kernel. Return the tests for which it is reloaded: {test: part}."""
        boot = self.boots[state.boot]
        column = boot.columns[state.column]
        tally = self.reports.verdicts.tally(column.label)
        if self.matrix and not (tally.kernel or column.is_tried):
            self._try_beside(column, kernel)
        tally.kernel = kernel
        needs = {test: needs_of(item) for test, item in self.reports.items.items()}
        facts = kernel.parameters, column.settings, column.modules
        parts = {test: part_of(needs[test], *facts) for test in needs if needs[test]}
        return {test: part for test, part in parts.items() if part}

    def _places_of(self, column: Column) -> list[tuple[int, Boot]]:
        """Return the boots that have a column, with their numbers."""
        return [
            (place, boot)
            for place, boot in enumerate(self.boots)
            if column.label in [each.label for each in boot.columns]
        ]

    def _try_beside(self, column: Column, kernel: Kernel) -> None:
        """Add the columns of --kvm-param=matrix that stand beside a column."""
        after = column.label
        for tried in column.beside(kernel.parameters):
            for place, boot in self._places_of(column):
                if tried.command_line == boot.command_line:
                    boot.columns.append(tried)
                    self.schedule.add_column(place, self._tests_of(boot, tried))
                else:
                    new = replace(boot, command_line=tried.command_line, columns=[tried])
                    self.boots.append(new)
                    self.schedule.add_boot(self._tests_of(new, tried))
            self.reports.verdicts.insert(tried.label, after)
            self.reports.columns += 1
            after = tried.label

    def _refuse(self, column: Column, reason: str) -> None:
        """Report a column that did not take its parameters; leave out a column of a matrix."""
        if not column.is_tried:
            self.reports.verdicts.tally(column.label).broken = reason
        elif column.label not in self.refused:
            self.refused[column.label] = reason
            del self.reports.verdicts.tallies[column.label]
            self.reports.columns -= 1

    # --- actions ----------------------------------------------------------------------------------

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case "start", number, place:
                    with without_interrupts():
                        self.guests[number] = self.launch(self.boots[place])
                    self.selector.register(self.guests[number], selectors.EVENT_READ, number)
                case "load", number, column, part:
                    boot = self.guests[number].boot
                    wanted = boot.columns[column]
                    asks = boot.directory(wanted), list(wanted.modules), wanted.settings, part
                    self.guests[number].send("column", *asks, wanted.options)
                case "send", number, tests:
                    numbers = {test: n for n, test in enumerate(self.collected[number])}
                    self.guests[number].send("run", [numbers[test] for test in tests])
                case "program", number, program:
                    self.guests[number].send("program", program)
                case "end", number:
                    self.guests[number].send("end")
                case "close", number:
                    self.selector.unregister(self.guests[number])
                    self.guests[number].close()
                    del self.guests[number]
                case "lose", place, column, test, how, console:
                    boot = self.boots[place]
                    words = last_words(console, boot.kernel.tree)
                    text = f"{how} in this test. Its last words:\n{words}"
                    limit = boot.patience * self.reports.time_limit(test)
                    timeout = limit if how == HANGS else 0.0
                    self.reports.lose(boot, boot.columns[column], test, text, console, timeout)
                case "break", place, column, reason:
                    if self.boots[place].columns[column].label not in self.refused:
                        self._tally(place, column).broken = reason
                case "refuse", place, column, reason:
                    self._refuse(self.boots[place].columns[column], reason)
                case "leave", place, column, unrun:
                    self._tally(place, column).left = unrun

    def _tally(self, boot: int, column: int) -> Tally:
        return self.reports.verdicts.tally(self.boots[boot].columns[column].label)
