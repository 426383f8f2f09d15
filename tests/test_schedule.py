# SPDX-License-Identifier: GPL-2.0-only
"""The schedule of booted kernels, with guests that exist in memory alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from helpers.kernels.schedule import BOOT_SECONDS, SILENT_SECONDS, WORTH_A_BOOT, Action, Schedule

LIMIT = 30.0
"""Seconds that each test may take."""


@dataclass
class Guest:
    """A guest that does as it is told. ``state`` is what it does next."""

    state: str = "boot"
    column: int = -1
    queue: deque[str] = field(default_factory=deque)
    failures: int = 0
    is_complete: bool = False


class Play:
    """A run of a schedule. Boots are lists of columns, a column is a string, a letter is a test.

    ``fails`` are the tests that fail, ``kills`` those that kill their guest, ``unloadable`` the
    columns (of any boot) that cannot be loaded, ``unlike`` those whose modules do not take their
    parameters, ``needs`` the parts of the tests that need other parameters than the loaded ones.
    """

    def __init__(
        self,
        *boots: Sequence[str],
        slots: int = 1,
        maxfail: int = 0,
        fails: str = "",
        kills: str = "",
        unloadable: Sequence[int] = (),
        unlike: Sequence[int] = (),
        needs: Mapping[str, str] = {},
    ) -> None:
        self.schedule = Schedule(boots, slots, lambda _: LIMIT, maxfail)
        self.fails, self.kills = fails, kills
        self.unloadable, self.unlike, self.needs = unloadable, unlike, needs
        self.guests: dict[int, Guest] = {}
        self.log: list[Action] = []
        self.ran: dict[int, str] = {}
        """By guest: the tests that ended, a space and its name before each part of a column."""

    def carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self.log.append(action)
            match action:
                case "start", number, _:
                    self.guests[number], self.ran[number] = Guest(), ""
                case "load", number, column, part:
                    guest = self.guests[number]
                    guest.state, guest.column, guest.is_complete = "load", column, False
                    guest.queue.clear()
                    guest.failures = 0
                    self.ran[number] += f" {part}"
                case "send", number, tests:
                    self.guests[number].queue.extend(tests)
                case "end", number:
                    self.guests[number].is_complete = True
                case "close", number:
                    del self.guests[number]

    def step(self, number: int) -> None:
        """Let a guest do one thing."""
        guest = self.guests[number]
        match guest.state:
            case "boot":
                self.carry_out(self.schedule.ready(number, 0))
            case "load" if guest.column in self.unloadable:
                self.carry_out(self.schedule.failed(number, "it cannot be loaded"))
            case "load" if guest.column in self.unlike:
                self.carry_out(self.schedule.refused(number, "it reads back N", 0))
            case "load":
                guest.state = "idle"
                self.carry_out(self.schedule.loaded(number, self.needs))
            case "idle" if guest.queue:
                assert len(guest.queue) > 1 or guest.is_complete, "it must know the next test"
                guest.state = "test"
                self.carry_out(self.schedule.began(number, guest.queue[0], 0))
            case "idle":
                assert guest.is_complete
                self.carry_out(self.schedule.ready(number, 0))
            case "test" if guest.queue[0] in self.kills:
                self.carry_out(self.schedule.died(number, "it died", ["last words"]))
            case "test":
                test = guest.queue.popleft()
                guest.state = "idle"
                self.ran[number] += test
                guest.failures += test in self.fails
                self.carry_out(self.schedule.ended(number, test, int(test in self.fails)))
                if 0 < self.schedule.maxfail <= guest.failures:
                    guest.queue.clear()
                    guest.is_complete = True

    def run(self) -> Play:
        self.carry_out(self.schedule.start(0))
        while self.guests:
            for number in list(self.guests):
                if number in self.guests:
                    self.step(number)
            self.carry_out(self.schedule.start(0))
        return self

    def until_test(self, test: str) -> Play:
        """Run until a test begins."""
        self.carry_out(self.schedule.start(0))
        while not any(g.state == "test" and g.queue[0] == test for g in self.guests.values()):
            for number in list(self.guests):
                self.step(number)
        return self

    @property
    def unrun(self) -> dict[tuple[int, int], int]:
        """By boot and column: the number of tests that did not run because the column was left."""
        return {(boot, column): unrun for _, boot, column, unrun in self.those("leave")}

    def those(self, name: str) -> list[Action]:
        """The actions of this name that were carried out."""
        return [action for action in self.log if action[0] == name]


def letters(number: int) -> str:
    return "".join(chr(0x4E00 + place) for place in range(number))


MANY = letters(2 * WORTH_A_BOOT)
"""A column that is worth two guests."""


# --- who runs what --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4, 17, 400])
def test_one_guest_runs_all_tests_in_order(number):
    assert Play([letters(number)]).run().ran == {0: " " + letters(number)}


def test_columns_of_a_boot_share_its_guest():
    assert Play(["abc", "abcd", "b"]).run().ran == {0: " abc abcd b"}


def test_column_without_tests_is_not_loaded():
    play = Play(["", "ab", ""]).run()
    assert play.those("load") == [("load", 0, 1, "")]


def test_nothing_to_run_boots_nothing():
    assert Play(["", ""], []).run().log == []


def test_boots_take_turns_in_a_slot():
    assert Play(["ab"], ["cd"]).run().ran == {0: " ab", 1: " cd"}


def test_two_guests_share_a_column_from_both_ends():
    first, last = Play([MANY], slots=2).run().ran.values()
    assert sorted(first + last) == sorted("  " + MANY)
    assert max(first) < min(last.strip())
    assert list(last[:50]) == sorted(last[:50])
    assert abs(len(first) - len(last)) < 5


def test_small_boot_is_not_worth_a_second_guest():
    assert Play([MANY[1:]], slots=2).run().ran.keys() == {0}


def test_boot_without_a_guest_comes_first():
    play = Play([MANY * 2], ["ab"], slots=2)
    play.carry_out(play.schedule.start(0))
    assert play.those("start") == [("start", 0, 0), ("start", 1, 1)]


def test_guest_that_is_up_when_nothing_is_left_is_closed():
    play = Play([MANY], slots=2)
    play.carry_out(play.schedule.start(0))
    while 0 in play.guests:
        play.step(0)
    play.step(1)
    assert (play.guests, play.ran) == ({}, {0: " " + MANY, 1: ""})


# --- deaths ---------------------------------------------------------------------------------------


def test_death_costs_the_test_that_ran():
    play = Play(["abcdefgh", "xy"], kills="c").run()
    assert play.ran == {0: " ab", 1: " defgh xy"}
    assert play.those("lose") == [("lose", 0, 0, "c", "it died", ["last words"])]
    assert play.those("break") == []


def test_death_of_the_guest_that_takes_the_last_tests():
    play = Play([MANY], slots=2, kills=MANY[-50]).run()
    assert list(play.ran[0]) == sorted(play.ran[0])
    assert sorted("".join(play.ran.values()).replace(" ", "")) == sorted(set(MANY) - {MANY[-50]})
    assert play.schedule.boots[0][0].unfinished == 0


def test_death_between_tests_breaks_the_column():
    play = Play(["abc", "xy"]).until_test("a")
    play.step(0)
    play.carry_out(play.schedule.died(0, "it died", ["said", "more", ""]))
    reason = "it died with no test running; its last words: more"
    assert play.those("break") == [("break", 0, 0, reason)]
    assert play.run().ran == {0: " a", 1: " xy"}


def test_death_before_the_guest_is_up_breaks_all_columns():
    play = Play(["abc", "xy"])
    play.carry_out(play.schedule.start(0))
    play.carry_out(play.schedule.died(0, "it died", []))
    reason = "it died with no test running; its last words: it said nothing"
    assert play.those("break") == [("break", 0, 0, reason), ("break", 0, 1, reason)]
    assert play.run().ran == {0: ""}


def test_column_that_cannot_be_loaded_leaves_the_others():
    play = Play(["abc", "def", "xy"], unloadable=[1]).run()
    assert play.those("break") == [("break", 0, 1, "it cannot be loaded")]
    assert play.ran == {0: " abc ", 1: " xy"}


# --- tests that need other parameters -------------------------------------------------------------

NEEDS = {"b": "N:", "d": "N:", "f": "0:"}
"""Tests of a column "abcdef", and the part that each needs."""


def test_parts_come_last_and_each_reloads_once():
    assert Play(["abcdef", "xdy"], needs=NEEDS).run().ran == {0: " ace N:bd 0:f xy N:d"}


def test_column_of_a_part_alone():
    play = Play(["bd"], needs=NEEDS).run()
    assert play.ran == {0: "  N:bd"}
    assert play.those("load") == [("load", 0, 0, ""), ("load", 0, 0, "N:")]


def test_guest_that_gets_no_test_of_a_part_does_not_reload():
    play = Play(["bd" + MANY], slots=2, needs=NEEDS).run()
    assert sorted(ran[-4:] == "N:bd" for ran in play.ran.values()) == [False, True]
    assert [load[3] for load in play.those("load")] == ["", "", "N:"]


def test_death_in_a_part_costs_the_test_that_ran():
    play = Play(["abcdef", "xy"], needs=NEEDS, kills="b").run()
    assert play.ran == {0: " ace N:", 1: " N:d 0:f xy"}
    assert play.those("lose") == [("lose", 0, 0, "b", "it died", ["last words"])]


def test_failure_in_a_part_counts_for_its_column():
    play = Play(["abcdef", "xy"], needs=NEEDS, fails="ab", maxfail=2).run()
    assert play.ran == {0: " ace N:b", 1: " xy"}
    assert play.unrun == {(0, 0): 2}


def test_column_that_is_left_runs_none_of_its_parts():
    play = Play(["abcdef", "xy"], needs=NEEDS, fails="a", maxfail=1).run()
    assert (play.ran, play.unrun) == ({0: " a xy"}, {(0, 0): 5})


# --- columns that a booted kernel turns out to have -----------------------------------------------


def test_added_column_runs_on_its_boot():
    play = Play(["ab"]).until_test("a")
    play.schedule.add_column(0, "xy")
    assert play.run().ran == {0: " ab xy"}


def test_added_boot_runs_in_its_turn():
    play = Play(["ab"]).until_test("a")
    play.schedule.add_boot("xy")
    assert play.run().ran == {0: " ab", 1: " xy"}


def test_column_that_is_not_what_was_asked_for_costs_no_boot():
    play = Play(["abc", "def", "xy"], unlike=[1]).run()
    assert play.those("refuse") == [("refuse", 0, 1, "it reads back N")]
    assert play.ran == {0: " abc  xy"}


# --- --maxfail-each -------------------------------------------------------------------------------


@pytest.mark.parametrize("maxfail, ran", [(1, "ab"), (2, "abcd"), (3, "abcde"), (4, MANY)])
def test_guest_leaves_at_once(maxfail, ran):
    column = "abcde" + MANY[5:]
    play = Play([column], maxfail=maxfail, fails="bde").run()
    assert play.ran == {0: " " + ran.replace(MANY[:5], "abcde")}
    assert play.unrun.get((0, 0), 0) == len(column) - len(ran)


def test_other_columns_and_boots_go_on():
    play = Play(["abc", "xy"], ["cde"], maxfail=1, fails="b").run()
    assert play.ran == {0: " ab xy", 1: " cde"}
    assert play.unrun == {(0, 0): 1}


def test_guest_leaves_after_its_own_failures():
    play = Play([MANY, "ab", "xy"], slots=2, maxfail=1, fails=MANY[1] + "a").run()
    assert play.ran[0] == f" {MANY[:2]} a xy"


def test_last_test_leaves_nothing_to_leave():
    play = Play(["abc", "xy"], maxfail=1, fails="c").run()
    assert (play.ran, play.unrun) == ({0: " abc xy"}, {})


def test_deaths_are_failures():
    play = Play(["abcdef"], maxfail=2, kills="bd").run()
    assert (play.ran, play.unrun) == ({0: " a", 1: " c"}, {(0, 0): 2})
    assert len(play.those("lose")) == 2


def test_two_guests_leave_together_even_in_a_test():
    play = Play([MANY], slots=2, maxfail=1, fails=MANY[1]).until_test(MANY[1])
    assert {guest.state for guest in play.guests.values()} == {"test"}
    play.step(0)
    assert (play.guests.keys(), play.unrun) == ({0}, {(0, 0): len(MANY) - 3})
    assert len(play.run().ran) == 2


def test_guest_of_another_column_stays():
    play = Play(["ab", MANY], slots=2, maxfail=1, kills="a").until_test("a")
    play.step(0)
    assert play.guests.keys() == {1}


def test_without_maxfail_nothing_is_left():
    play = Play(["abc"], fails="abc").run()
    assert (play.ran, play.unrun) == ({0: " abc"}, {})


# --- hangs ----------------------------------------------------------------------------------------


@pytest.fixture
def booting():
    """A play whose guest was started at time 0, and is not up."""
    play = Play(["abc"])
    play.carry_out(play.schedule.start(0))
    return play


def hang(play, now, *console):
    """The console at a time that is past the deadline."""
    assert play.schedule.next_deadline() < now
    assert play.schedule.overdue(now) == [0]
    play.carry_out(play.schedule.expired(0, list(console), now))


def test_boot_in_time_is_left_alone(booting):
    assert booting.schedule.overdue(SILENT_SECONDS) == []


def test_silent_boot_hangs(booting):
    hang(booting, SILENT_SECONDS + 1)
    (broken,) = booting.those("break")
    assert f"nothing on its console for {SILENT_SECONDS} s: the kernel hangs" in broken[-1]


def test_boot_that_falls_silent_hangs(booting):
    hang(booting, SILENT_SECONDS + 1, "Linux version")
    assert booting.those("break") == []
    hang(booting, 2 * SILENT_SECONDS + 2, "Linux version")
    assert "its last words: Linux version" in booting.those("break")[0][-1]


def test_boot_that_never_ends_hangs(booting):
    for turn in range(1, 4):
        hang(booting, turn * (SILENT_SECONDS + 1), *"line" * turn)
    assert booting.those("break") == []
    hang(booting, BOOT_SECONDS + 1, "another line")
    assert f"not up after {BOOT_SECONDS} s: the kernel hangs" in booting.those("break")[0][-1]


def test_module_that_hangs_when_loaded_breaks_its_column(booting):
    booting.step(0)
    assert booting.schedule.overdue(BOOT_SECONDS) == []
    hang(booting, BOOT_SECONDS + 1, "loading")
    (broken,) = booting.those("break")
    assert "the kernel hangs with no test running" in broken[-1]


def test_test_that_hangs_is_lost():
    play = Play(["abc"]).until_test("b")
    assert play.schedule.overdue(LIMIT) == []
    hang(play, LIMIT + 1, "said")
    how = "no sign of life for too long: the kernel hangs"
    assert play.those("lose") == [("lose", 0, 0, "b", how, ["said"])]
    assert play.run().ran == {0: " a", 1: " c"}


def test_test_without_a_limit_never_hangs():
    play = Play(["abc"])
    play.schedule.time_limit = lambda _: float("inf")
    play.until_test("b")
    assert play.schedule.next_deadline() == float("inf")
    assert play.schedule.overdue(1e9) == []
