"""Judging booted kernels: which guest runs which test, and what becomes of those that die.

pytest-xdist's own way, a booted kernel as an execnet gateway, was tried first. It brings up one
gateway after the other before the first test, waits for a hung one for ever, blames the test of
every worker in a dead kernel, has no place for a second set of modules on the same boot, and its
messages are twice the price of a test in an emulator.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.kernels.boot import MEMORY, Guest, Images, Processor
from helpers.kernels.columns import Boot
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.reports import put_column
from helpers.verdicts.session import Verdicts

BOOT_SECONDS = 300
SILENT_SECONDS = 90  # of a console, during a boot; four times what a machine under load took
DECODE_SECONDS = 60  # for an oops; a vmlinux with debug info takes some
_TIMED_OUT = 124  # timeout(1)
_WORTH_A_BOOT = 200  # tests
_CHUNK = 16  # tests, with --maxfail-each: a guest given more could not leave a kernel soon
_CONSOLE_LINES = 40

_LINE = re.compile(r"\.[chS]:\d")
_DYING = re.compile(r"BUG:|Oops|Kernel panic|general protection fault|stack-protector|RIP:")


@dataclass
class Work:
    """What is left to do for a boot: for each column the node ids that no guest has yet."""

    boot: Boot
    pending: list[deque[str]]
    guests: int = 0

    @property
    def left(self) -> int:
        return sum(map(len, self.pending))


@dataclass
class Seat:
    """A guest and what it was given. ``column`` is -1 until it is ready for one.

    ``backwards``: whether it is given the last of the tests that are left. The others take the
    first, so that what a guest remembers of a column's tests serves it in the next column.

    Until then ``console`` is what it had said when it was last looked after, and it has until
    ``booted_by``.
    """

    guest: Guest
    work: Work
    booted_by: float
    deadline: float
    backwards: bool
    console: list[str] = field(default_factory=list)
    column: int = -1
    given: deque[str] = field(default_factory=deque)
    running: str = ""
    is_ended: bool = False


class Judging:
    """One run over all boots; ``slots`` guests at a time."""

    def __init__(
        self,
        session: pytest.Session,
        boots: Sequence[Boot],
        images: Images,
        processor: Processor,
        slots: int,
        verdicts: Verdicts,
    ) -> None:
        self.session = session
        self.hook = session.config.hook
        self.images = images
        self.processor = processor
        self.slots = slots
        self.verdicts = verdicts
        self.items = {item.nodeid: item for item in session.items}
        self.works = [
            Work(boot, [deque(self._tests_of(column.label)) for column in boot.columns])
            for boot in boots
        ]
        self.columns = sum(len(boot.columns) for boot in boots)
        self.maxfail = session.config.getoption("maxfail_each")
        self.failures: Counter[str] = Counter()
        self.seats: dict[Guest, Seat] = {}
        self.selector = selectors.DefaultSelector()
        self.seen: set[str] = set()
        self.reported = 0

    def _tests_of(self, label: str) -> Iterable[str]:
        tests: list[str] | None = self.hook.pytest_kvm_column_tests(column=label, items=self.items)
        return self.items if tests is None else tests

    def run(self) -> None:
        """Until all tests of all columns are reported. Guests are gone afterwards, whatever."""
        try:
            self._start()
            while self.seats:
                self._wait()
                self._check()
                self._start()
        finally:
            for seat in self.seats.values():
                seat.guest.close()
            self.selector.close()

    def _check(self) -> None:
        """As pytest's own loop after every test: -x, --maxfail, session.shouldstop."""
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise self.session.Interrupted(self.session.shouldstop)

    # --- guests -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Boot what is not booted yet; with slots to spare, where most is left to do."""
        while len(self.seats) < self.slots:
            waiting = [
                work
                for work in self.works
                if work.left and (not work.guests or work.left >= _WORTH_A_BOOT * (work.guests + 1))
            ]
            if not waiting:
                return
            work = max(waiting, key=lambda work: (not work.guests, work.left / (work.guests + 1)))
            guest = Guest(work.boot, self.images.of(work.boot), self.processor)
            work.guests += 1
            now = time.monotonic()
            first = not any(s.work is work and not s.backwards for s in self.seats.values())
            self.seats[guest] = Seat(
                guest, work, now + BOOT_SECONDS, now + SILENT_SECONDS, backwards=not first
            )
            self.selector.register(guest, selectors.EVENT_READ, guest)

    def _stop(self, seat: Seat) -> None:
        self.selector.unregister(seat.guest)
        del self.seats[seat.guest]
        seat.work.guests -= 1
        seat.guest.close()

    def _wait(self) -> None:
        """Handle what the guests say next, and those that have said nothing for too long."""
        deadline = min(seat.deadline for seat in self.seats.values())
        patience = max(0.0, deadline - time.monotonic())
        for key, _ in self.selector.select(None if patience == float("inf") else patience):
            seat = self.seats[key.data]
            try:
                for message in seat.guest.receive():
                    self._handle(seat, *message)
                    if seat.guest not in self.seats:
                        break
            except EOFError:
                self._died(seat, "the kernel died")
        for seat in list(self.seats.values()):
            if time.monotonic() > seat.deadline:
                self._overdue(seat)

    def _overdue(self, seat: Seat) -> None:
        """A deadline has passed; a boot that has something new on its console gets another."""
        now, said = time.monotonic(), seat.guest.console()
        if seat.column >= 0:
            self._died(seat, "no sign of life for too long: the kernel hangs")
        elif said == seat.console:
            self._died(seat, f"nothing on its console for {SILENT_SECONDS} s: the kernel hangs")
        elif now > seat.booted_by:
            self._died(seat, f"not up after {BOOT_SECONDS} s: the kernel hangs")
        else:
            seat.console, seat.deadline = said, min(now + SILENT_SECONDS, seat.booted_by)

    def _handle(self, seat: Seat, kind: str, *arguments: Any) -> None:
        match kind:
            case "ready":
                self._ready(seat, *arguments)
            case "column":
                tally = self.verdicts.tally(self._label(seat))
                tally.kernel = Kernel(**arguments[1])
                self._give(seat)
            case "begin":
                seat.running = arguments[0]
                seat.deadline = time.monotonic() + self._patience(seat.running)
                self._give(seat)
            case "ended":
                seat.running = ""
                seat.given.remove(arguments[0])
                self._report(seat, arguments[1])
            case "done":
                self._next_column(seat)
            case "failed":
                self._give_up(seat, arguments[0])

    def _patience(self, nodeid: str) -> float:
        """Seconds: the guest watches a test's timeout; where it cannot, the kernel hangs."""
        config = self.session.config
        mark = self.items[nodeid].get_closest_marker("timeout")
        given = [*(mark.args if mark else ()), config.getoption("timeout")]
        timeout = next((value for value in given if value), config.getini("timeout"))
        return 2 * float(timeout) + 10 if float(timeout or 0) else float("inf")

    def _ready(self, seat: Seat, nodeids: list[str]) -> None:
        if missing := self.items.keys() - nodeids:
            self._give_up(seat, f"the guest does not find {min(missing)}")
        else:
            self._next_column(seat)

    def _next_column(self, seat: Seat) -> None:
        left = [number for number, pending in enumerate(seat.work.pending) if pending]
        if not left:
            self._stop(seat)
            return
        seat.column, seat.is_ended = left[0], False
        seat.deadline = time.monotonic() + BOOT_SECONDS
        column = seat.work.boot.columns[seat.column]
        parameters = {name: options for name, _, options in column.modules}
        seat.guest.send("column", seat.column, parameters, list(column.options))

    def _give(self, seat: Seat) -> None:
        """Keep a guest in work: it must know the test after the one that it runs."""
        pending = seat.work.pending[seat.column]
        while len(seat.given) < 3 and not seat.is_ended:
            if not pending:
                seat.is_ended = True
                seat.guest.send("end")
                return
            share = max(2, len(pending) // (2 * seat.work.guests))
            share = min(share, _CHUNK, len(pending)) if self.maxfail else min(share, len(pending))
            take = pending.pop if seat.backwards else pending.popleft
            chunk = [take() for _ in range(share)]
            if seat.backwards:
                chunk.reverse()
            seat.given.extend(chunk)
            seat.guest.send("run", chunk)

    # --- reports ----------------------------------------------------------------------------------

    def _label(self, seat: Seat) -> str:
        return seat.work.boot.columns[seat.column].label

    def _report(self, seat: Seat, reports: Iterable[dict[str, Any]]) -> None:
        for data in reports:
            report = self.hook.pytest_report_from_serializable(
                config=self.session.config, data=data
            )
            self._log(seat, report)

    def _log(self, seat: Seat, report: pytest.TestReport) -> None:
        label = self._label(seat)
        # What pytest-xdist's reports have, and pytest's terminal shows.
        said = f"on {label}, Linux {seat.work.boot.kernel.release}"
        node = SimpleNamespace(gateway=SimpleNamespace(id=label), _workerinfocache=said)
        put_column(report, label)
        vars(report)["node"] = node
        if report.when == "call" or not report.passed:
            self.reported += 1
            self.seen.add(report.nodeid)
            # pytest's progress is ids seen / tests collected, and an id comes once per column.
            total = len(self.items) * self.columns
            self.session.testscollected = max(
                len(self.seen), round(len(self.seen) * total / min(self.reported, total))
            )
        self.hook.pytest_runtest_logreport(report=report)
        self._count(seat, report)
        if report.when == "teardown":
            self.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)

    def _count(self, seat: Seat, report: pytest.TestReport) -> None:
        """Leave a kernel that has failed often enough; what a guest has been given still runs."""
        label = self._label(seat)
        self.failures[label] += report.failed
        if self.failures[label] == self.maxfail and report.failed:
            left = seat.work.pending[seat.column]
            self.verdicts.tally(label).left = len(left)
            left.clear()

    # --- deaths -----------------------------------------------------------------------------------

    def _died(self, seat: Seat, how: str) -> None:
        """Fail the test that was running, and leave the others to a fresh boot."""
        console = seat.guest.console()
        if not seat.running:
            last = next((line for line in reversed(console) if line), "it said nothing")
            self._give_up(seat, f"{how} with no test running; its last words: {last}")
            return
        item = self.items[seat.running]
        seat.given.remove(seat.running)
        pending = seat.work.pending[seat.column]
        if seat.backwards:
            pending.extend(seat.given)
        else:
            pending.extendleft(reversed(seat.given))
        self._stop(seat)
        words = last_words(console, seat.work.boot.kernel.tree)
        text = f"{how} in this test. Its last words:\n{words}"
        common: dict[str, Any] = {"nodeid": item.nodeid, "location": item.location, "keywords": {}}
        reports = (
            pytest.TestReport(**common, outcome="failed", longrepr=text, when="call"),
            pytest.TestReport(**common, outcome="passed", longrepr=None, when="teardown"),
        )
        options = seat.work.boot.columns[seat.column].options
        for report in reports:
            self.verdicts.add_verdict(item, report, options)
            self._log(seat, report)

    def _give_up(self, seat: Seat, reason: str) -> None:
        """A column that cannot be judged; before the first one is loaded, all of the boot's."""
        columns = range(len(seat.work.pending)) if seat.column < 0 else [seat.column]
        for number in columns:
            seat.work.pending[number].clear()
            self.verdicts.tally(seat.work.boot.columns[number].label).broken = reason
        self._stop(seat)


def last_words(console: Sequence[str], tree: Path | None = None) -> str:
    """The end of a dead kernel's console, from its oops on; decoded if its tree has symbols."""
    dying = [number for number, line in enumerate(console) if _DYING.search(line)]
    first = dying[0] if dying else len(console)
    text = "\n".join(console[min(first, max(0, len(console) - _CONSOLE_LINES)) :])
    return _decode(text, tree) if tree and dying else text


def _decode(oops: str, tree: Path) -> str:
    """An oops with file and line of each frame; as it is where the tree has no debug info."""
    # make O=DIR leaves a link to the sources in DIR.
    places = (tree / "scripts", tree / "source/scripts")
    found = (place / "decode_stacktrace.sh" for place in places)
    decoder = next(filter(Path.exists, found), None)
    vmlinux = tree / "vmlinux"
    if decoder is None or not vmlinux.exists():
        return oops
    # "auto" is where the sources are, the tree where the modules are.
    command = ["timeout", str(DECODE_SECONDS)]  # with all that the script starts
    command += [str(decoder), str(vmlinux), "auto", str(tree)]
    decoded = subprocess.run(command, input=oops, capture_output=True, text=True, check=False)
    if decoded.returncode == _TIMED_OUT:
        return oops
    # Without debug info "panic+0x107/0x290" becomes "panic (??:?)".
    return decoded.stdout if _LINE.search(decoded.stdout) else oops


def slots(wanted: int | None) -> int:
    """How many guests there can be at once: one per core, or ``wanted``, as memory allows."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(1, min(wanted or len(os.sched_getaffinity(0)), available // MEMORY))
