# SPDX-License-Identifier: GPL-2.0-only
"""A run over booted kernels, with guests that exist in memory alone: columns and parts."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.kernels.columns import Boot, Column
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.locate import BootFiles
from helpers.kernels.parameters import settings_of
from helpers.kernels.run import BootedRun
from helpers.verdicts import needs_parameter
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.session import Verdicts

MODULES = {"kvm": b"", "kvm_amd": b""}
DEFAULTS = {"kvm.vector_hashing": "Y", "kvm_amd.avic": "N", "kvm_amd.other": "Y"}


@dataclass
class Item:
    """The part of a test item that a run reads."""

    mark: pytest.Mark | None = None

    def iter_markers(self, _: str) -> list[pytest.Mark]:
        return [self.mark] if self.mark else []

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.mark if self.mark and self.mark.name == name else None


ITEMS = {
    "first": Item(),
    "needs-n": Item(needs_parameter("kvm.vector_hashing", "N").mark),
    "last": Item(),
}


@dataclass
class Guest:
    """A guest whose processor has no AVIC. ``log`` gets what it is told to load and to run."""

    boot: Boot
    log: list[str]
    said: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.log.append(f"boot {self.boot.command_line}".strip())
        self.say("ready", list(ITEMS))

    def say(self, *message: Any) -> None:
        self.said.append(message)
        self.theirs.send(b"!")

    def send(self, kind: str, *arguments: Any) -> None:
        match kind:
            case "column":
                _, modules, settings, part, _ = arguments
                self.load(modules, settings, settings_of(part))
            case "run":
                self.log += [list(ITEMS)[test] for test in arguments[0]]
                for test in arguments[0]:
                    self.say("begin", test)
                    self.say("ended", test, [])
            case "end":
                self.say("done")

    def load(self, modules: list[str], settings: dict[str, str], part: dict[str, str]) -> None:
        given = settings | part if modules else settings_of(self.boot.command_line)
        self.log.append(" ".join(["load", *map("=".join, given.items())]))
        parameters = DEFAULTS | given | {"kvm_amd.avic": "N"}
        if settings.get("kvm_amd.avic") == "Y":
            self.say("unlike", "it reads back N")
        else:
            self.say("column", asdict(Kernel("6.99", (6, 99), "kvm_amd", "", {}, parameters)))

    def fileno(self) -> int:
        return self.ours.fileno()

    def receive(self) -> list[tuple[Any, ...]]:
        self.ours.recv(4096)
        said, self.said = self.said, []
        return said

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@dataclass
class Reports:
    """Takes the place of the reports of a session."""

    verdicts: Verdicts
    columns: int = 1
    items: Any = field(default_factory=lambda: ITEMS)

    def __post_init__(self) -> None:
        hook = SimpleNamespace(pytest_kvm_column_tests=lambda **_: None)
        config = SimpleNamespace(getoption=lambda _: 0, hook=hook)
        self.session = SimpleNamespace(config=config, shouldfail=False, shouldstop=False)

    def time_limit(self, _: str) -> float:
        return float("inf")

    def receive(self, *_: Any) -> int:
        return 0


@pytest.fixture
def judge(pytestconfig):
    """Run a column, and return the run and what its guests did."""
    verdicts = Verdicts(pytestconfig)

    def run(column, matrix=False):
        log: list[str] = []
        files = BootFiles("6.99", Path("vmlinuz"), Path("modules"))
        boot = Boot(files, Qemu.software(), {}, column.command_line, [column])
        verdicts.tally(column.label)
        done: Any = BootedRun(
            Reports(verdicts), [boot], lambda boot: Guest(boot, log), 1, matrix=matrix
        )
        done.run()
        return done, log

    yield run
    verdicts.log.close()


def labels(run):
    return list(run.reports.verdicts.tallies)


def test_kvm_is_reloaded_once_and_at_the_end(judge):
    run, log = judge(Column("k", MODULES, {}, []))
    hashing = "load kvm.vector_hashing=N"
    assert log == ["boot", "load", "first", "last", hashing, "needs-n"]
    kernel = run.reports.verdicts.tally("k").kernel
    assert kernel.parameters["kvm.vector_hashing"] == "Y"


@pytest.mark.parametrize("value", ["Y", "N"])
def test_parameter_of_the_command_line_is_kept(judge, value):
    _, log = judge(Column("k", MODULES, {"kvm.vector_hashing": value}, []))
    assert log == ["boot", f"load kvm.vector_hashing={value}", *ITEMS]


def test_kvm_that_is_built_in_is_not_reloaded(judge):
    _, log = judge(Column("k", {}, {}, []))
    assert log == ["boot", "load", *ITEMS]


def test_matrix_is_columns_of_the_boot(judge):
    run, log = judge(Column("k", MODULES, {}, []), matrix=True)
    assert labels(run) == ["k", "k vector_hashing=N"]
    assert run.refused == {"k avic=Y": "it reads back N"}
    assert run.reports.columns == 2
    assert log.count("boot") == 1
    assert log[-5:] == ["load kvm.vector_hashing=N", *ITEMS, "load kvm_amd.avic=Y"]


def test_matrix_of_a_kvm_that_is_built_in_is_boots(judge):
    run, log = judge(Column("k", {}, {}, []), matrix=True)
    assert labels(run) == ["k", "k vector_hashing=N"]
    assert [line for line in log if line.startswith("boot")] == [
        "boot",
        "boot kvm.vector_hashing=N",
        "boot kvm_amd.avic=Y",
    ]


def test_column_that_was_asked_for_and_is_none_is_broken(judge):
    run, _ = judge(Column("k", MODULES, {"kvm_amd.avic": "Y"}, []))
    assert run.reports.verdicts.tally("k").broken == "it reads back N"
    assert run.refused == {}
