# SPDX-License-Identifier: GPL-2.0-only
"""A guest that sends garbage on its channel is a dead kernel, and no crash of the host."""

from __future__ import annotations

import itertools
import marshal
import math
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.kernels import frames, run
from helpers.kernels.columns import Boot, Column
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.frames import Garbage, Unpacker, pack
from helpers.kernels.locate import BootFiles
from helpers.kernels.run import BootedRun
from helpers.verdicts import clause
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.reports import Verdict, column_of, put_verdict
from helpers.verdicts.session import Verdicts
from tests import test_booted_run

TESTS = ["suites/test_it.py::test_passes", "suites/test_it.py::test_fails"]
KERNEL = Kernel("6.99", (6, 99), "kvm_amd", "cpu", {"KVM_CAP_MSI": 1}, {"kvm.x": "Y"})
HEADER = 8
Mutation = Callable[[random.Random, tuple[Any, ...]], bytes]


class Item:
    """A test of a clause."""

    def iter_markers(self, _: str) -> list[pytest.Mark]:
        return []

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return clause("msi.pad").mark if name == "clause" else None


def report(test: str, when: Any, outcome: Any, longrepr: Any = None) -> pytest.TestReport:
    where = ("suites/test_it.py", 3, test.partition("::")[2])
    made = pytest.TestReport(test, where, {"msi.pad": 1}, outcome, longrepr, when)
    made.sections.append(("Captured stdout call", "some output"))
    put_verdict(made, Verdict("msi.pad", repeat=f"pytest {test}"))
    return made


@dataclass
class Guest:
    """A guest that sends messages as a worker does, and the frame ``number`` mutated.

    ``reports`` are those of each test. A guest with nothing to say is dead.
    """

    boot: Boot
    reports: list[list[dict[str, Any]]]
    number: int
    mutate: Callable[[tuple[Any, ...]], bytes]
    unread: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = itertools.count()
        self.unpacker = Unpacker()
        self.say("ready", TESTS)

    def say(self, *message: Any) -> None:
        is_mutated = next(self.count) == self.number
        self.unread.append(self.mutate(message) if is_mutated else pack(*message))

    def send(self, kind: str, *arguments: Any) -> None:
        match kind:
            case "column":
                self.say("column", asdict(KERNEL))
            case "run":
                for test in arguments[0]:
                    self.say("begin", test)
                    self.say("ended", test, self.reports[test])
            case "end":
                self.say("done")

    def receive(self) -> Iterator[tuple[Any, ...]]:
        if not self.unread:
            raise EOFError
        return self.unpacker.feed(self.unread.pop(0))

    def console(self) -> list[str]:
        return ["its last words"]

    def close(self) -> None:
        pass


class Selector:
    """Takes the place of selectors.DefaultSelector: every guest can be read."""

    def __init__(self) -> None:
        self.keys: dict[Any, Any] = {}

    def register(self, guest: Any, _events: int, number: int) -> None:
        self.keys[guest.console] = number

    def unregister(self, guest: Any) -> None:
        del self.keys[guest.console]

    def select(self, _timeout: float | None) -> list[Any]:
        return [(SimpleNamespace(data=number), 1) for number in self.keys.values()]

    def close(self) -> None:
        pass


class Reports(run.Reports):
    """Reports of a session of two tests, which reach the tallies and no terminal."""

    def __init__(self, config: pytest.Config, verdicts: Verdicts) -> None:
        self.session: Any = SimpleNamespace(shouldfail=False, shouldstop=False)
        options = {"maxfail_each": 0, "timeout": 0}
        hook = SimpleNamespace(
            pytest_kvm_column_tests=lambda **_: None,
            pytest_report_from_serializable=config.hook.pytest_report_from_serializable,
        )
        self.config: Any = SimpleNamespace(
            hook=hook, getoption=options.get, getini=lambda _: "60", pytest=config
        )
        self.session.config = self.config
        self.verdicts = verdicts
        self.columns = 1
        items: dict[str, Any] = {test: Item() for test in TESTS}
        self.items = items
        self.lost: list[str] = []

    def _log(self, boot: Boot, column: Column, report: pytest.TestReport) -> None:
        del boot
        run.put_column(report, column.label)
        assert column_of(report)
        self.verdicts.pytest_runtest_logreport(report)

    def lose(
        self, boot: Boot, column: Column, test: str, text: str, console: object, timeout: float
    ) -> None:
        del boot, column, test, console, timeout
        self.lost.append(text)


@pytest.fixture
def play(pytestconfig, monkeypatch):
    """Run a kernel whose guest sends frame ``number`` mutated; return the run."""
    monkeypatch.setattr(run.selectors, "DefaultSelector", Selector)
    encode = pytestconfig.hook.pytest_report_to_serializable
    whens = [("setup", "passed"), ("call", "failed"), ("teardown", "passed")]
    serialized = [
        [
            encode(config=pytestconfig, report=report(test, when, outcome, f"E   {outcome}"))
            for when, outcome in whens
        ]
        for test in TESTS
    ]
    verdicts = Verdicts(pytestconfig)

    def play(number: int, mutate: Callable[[tuple[Any, ...]], bytes]) -> Any:
        verdicts.tallies.clear()
        verdicts.tally("k")
        column = Column("k", test_booted_run.MODULES, {}, [])
        boot = Boot(BootFiles("6.99", Path("i"), Path("m")), Qemu.software(), {}, "", [column])
        # Guests of later boots are well.
        numbers = itertools.chain([number], itertools.repeat(1000))

        def launch(boot: Boot) -> Any:
            return Guest(boot, serialized, next(numbers), mutate)

        done = BootedRun(Reports(pytestconfig, verdicts), [boot], launch, 1)
        done.run()
        return done

    yield play
    verdicts.log.close()


def flaws(played: Any) -> tuple[str, list[str]]:
    """Return why a kernel was not judged, and what became of the tests that it lost."""
    return played.reports.verdicts.tally("k").broken, played.reports.lost


# --- mutations ------------------------------------------------------------------------------------


def framed(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + zlib.crc32(content).to_bytes(4, "little") + content


def mutated(chance: random.Random, content: bytes) -> bytes:
    """Return bytes with a few changes."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0 if place < len(made):
                made[place] ^= 1 << chance.randrange(8)
            case 1 if place < len(made):
                made[place] = chance.choice(b"\x00\xff()[{<>rcsltuzZiIgN0\xa8\xdb\xe9")
            case 2:
                made[place:place] = chance.randbytes(chance.randint(1, 9))
            case 3:
                del made[place : place + chance.randint(1, 9)]
            case 4:
                made[place : place + 4] = chance.choice([0x7FFFFFFF, 1 << 31, 3]).to_bytes(4, "big")
            case 5:
                del made[place:]
    return bytes(made)


def bytes_of_the_frame(chance: random.Random, message: tuple[Any, ...]) -> bytes:
    return mutated(chance, pack(*message))


def bytes_behind_the_checksum(chance: random.Random, message: tuple[Any, ...]) -> bytes:
    return framed(mutated(chance, marshal.dumps(message)))


STRANGE: list[Any] = [
    None,
    -1,
    1 << 70,
    1.5,
    math.nan,
    math.inf,
    "",
    "done",
    "ended",
    b"\xff",
    [],
    {},
    (),
    True,
    [[]],
]


def changed(chance: random.Random, value: Any) -> Any:
    """Return a value with a part of it replaced."""
    if not chance.randrange(4) or not value:
        return chance.choice(STRANGE)
    match value:
        case dict():
            key = chance.choice(list(value))
            return value | {key: changed(chance, value[key])}
        case list() | tuple():
            place = chance.randrange(len(value))
            made = [*value[:place], changed(chance, value[place]), *value[place + 1 :]]
            return type(value)(made)
    return chance.choice(STRANGE)


def values_of_the_message(chance: random.Random, message: tuple[Any, ...]) -> bytes:
    made = changed(chance, message)
    return pack(*made) if isinstance(made, tuple) else framed(marshal.dumps(made))


MUTATIONS: list[Mutation] = [
    bytes_of_the_frame,
    bytes_behind_the_checksum,
    values_of_the_message,
]
FRAMES = 7  # ready, column, begin, ended, begin, ended, done


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[each.__name__ for each in MUTATIONS])
def test_mutated_frames_crash_and_hang_nothing(play, mutation, record_property):
    """Each test is reported, lost with its reason, or left behind by a kernel that is broken."""
    chance = random.Random(mutation.__name__)
    garbage = 0
    for number in range(3400):
        played = play(number % FRAMES, lambda message: mutation(chance, message))
        broken, lost = flaws(played)
        tally = played.reports.verdicts.tally("k")
        assert broken or len(tally.results) + len(lost) == len(TESTS)
        garbage += any("the guest sent garbage (" in text for text in [broken, *lost])
    record_property("garbage", garbage)
    assert garbage > 1000


# --- what is told ---------------------------------------------------------------------------------


def test_guest_without_a_mutated_frame_is_judged(play):
    assert flaws(play(1000, lambda _: b"")) == ("", [])


def test_garbage_costs_the_test_that_runs(play):
    broken, (lost,) = flaws(play(3, lambda message: pack(*message)[:-1] + b"?"))
    assert lost.startswith("the guest sent garbage (a frame with a wrong checksum) in this test.")
    assert broken == ""


def test_garbage_without_a_test_breaks_the_kernel(play):
    broken, lost = flaws(play(0, lambda _: framed(b"c" + bytes(40))))
    assert broken.startswith(
        "the guest sent garbage (a frame with a value that is not plain data) with no test running"
    )
    assert lost == []


@pytest.mark.parametrize(
    "number, message",
    [
        (0, ("done",)),
        (0, ("column", asdict(KERNEL))),
        (1, ("ready", TESTS)),
        (1, ("column", asdict(KERNEL) | {"release": 6})),
        (1, ("begin", 0)),
        (1, ("done",)),
        (2, ("begin", 1)),
        (2, ("begin", -2)),
        (2, ("done",)),
        (2, ("unlike", "a reason")),
        (2, ("reproduce", 0, [])),
        (3, ("begin", 1)),
        (3, ("ended", 0, [])),
        (3, ("ended", 0, [{"$report_type": "TestReport"}])),
        (3, ("ended", 1, [])),
        (3, ("reproduce", 0, [])),
        (3, ("reproduce", 1, [])),
        (3, ("said", 1)),
        (3, ()),
    ],
)
def test_message_out_of_turn_is_garbage(play, number, message):
    broken, lost = flaws(play(number, lambda _: pack(*message)))
    assert any("the guest sent garbage (" in text for text in [broken, *lost])


def test_reports_of_another_test_are_garbage(play):
    def swapped(message: tuple[Any, ...]) -> bytes:
        kind, test, reports = message
        return pack(kind, test, [data | {"nodeid": TESTS[1]} for data in reports])

    assert "reports that are not those of the test" in str(flaws(play(3, swapped)))


# --- frames ---------------------------------------------------------------------------------------

GIGABYTES = (0x7FFFFFF0).to_bytes(4, "little")


@pytest.mark.parametrize(
    "content",
    [
        b"(" + GIGABYTES,
        b"[" + GIGABYTES + b"N",
        b"s" + GIGABYTES,
        b"l" + GIGABYTES,
        b"(" + b"\xff" * 4,
        b")\x01" * 5000 + b"N",
        b"\xa9\x01r" + bytes(4),
        b")\x01r\x05\0\0\0",
        b")\x01{)\0N0",
        b")\x01<\0\0\0\0",
        b")\x01\xceN",
        b")\x01NN",
        b"N",
        b"",
    ],
    ids=[
        *("long-tuple", "long-list", "long-bytes", "long-number", "negative", "deep", "itself"),
        *("no-reference", "key", "set", "constant", "two-values", "no-tuple", "empty"),
    ],
)
def test_frame_is_checked_before_it_is_decoded(content, monkeypatch):
    if content != b"N":
        monkeypatch.setattr(frames.marshal, "loads", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(Garbage):
        list(Unpacker().feed(framed(content)))


def test_frame_that_is_too_long_is_not_waited_for():
    with pytest.raises(Garbage, match="a frame of 4294967295 bytes"):
        list(Unpacker().feed(b"\xff" * HEADER))


def test_plain_data_of_every_kind_arrives():
    shared = "x" * 300
    message = (
        *("a", "é", shared, shared, b"b", 0, -5, 1 << 40, -1 << 90, 1.5, True, False, None),
        {"k": [1, (2, {3: {}})], shared: [shared]},
        list(range(300)),
        tuple(range(300)),
    )
    assert list(Unpacker().feed(pack(*message))) == [message]
