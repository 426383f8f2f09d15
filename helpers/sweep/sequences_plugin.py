# SPDX-License-Identifier: GPL-2.0-only
"""``--generate`` and ``--hypothesis-seed``: how many generated sequences run, from which seeds."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator

import pytest

from helpers.verdicts.reports import column_of
from helpers.verdicts.session import REPEAT, VERDICTS, KernelComplaint

_SEEDS_PER_SHARD = 1_000_000  # Distance between the first seeds of two shards.
_DEFAULT_SEED = 7  # Its sequences reach most of the states that the model knows.
_GENERATED = "generated"  # The property (record_property) with the work of a test, as text.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --generate."""
    parser.getgroup("generated sequences").addoption(
        "--generate",
        metavar="MINUTES",
        help="run generated sequences for MINUTES, with -n in as many processes; "
        "--hypothesis-seed=N starts with seed N, and without --generate runs seed N alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check both options before anything else happens."""
    _minutes(config)
    _first_seed(config)


def _minutes(config: pytest.Config) -> float:
    """Return the minutes of --generate, 0 without the option. Raises UsageError."""
    given = config.option.generate
    if given is None:
        return 0
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0
    if not 0 < minutes < math.inf:
        raise pytest.UsageError(f"--generate wants minutes, a number above 0, not {given!r}")
    return minutes


def _first_seed(config: pytest.Config) -> int:
    """Return the first seed: the given one, or a fixed one, or with --generate a random one."""
    given = config.getoption("--hypothesis-seed")
    if given is None:
        return random.randrange(_SEEDS_PER_SHARD) if _minutes(config) else _DEFAULT_SEED
    try:
        return int(given)
    except ValueError:
        raise pytest.UsageError(f"--hypothesis-seed wants a number, not {given!r}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Split a test that takes seeds into shards: with --generate one per xdist process, else one.

    Each shard is a test with seeds of its own.
    """
    if "shard" not in metafunc.fixturenames:
        return
    minutes = _minutes(metafunc.config)
    workers = getattr(metafunc.config, "workerinput", {}).get("workercount", 1)
    marks = [pytest.mark.timeout(60 * minutes + 120)] if minutes else []
    number = workers if minutes else 1
    metafunc.parametrize("shard", [pytest.param(n, marks=marks) for n in range(number)])


class Seeds:
    """The seeds of one test: one seed, or one after another for some seconds."""

    def __init__(self, node: pytest.Item, first: int, seconds: float) -> None:
        self._node, self._seconds = node, seconds
        self._verdicts = node.config.stash[VERDICTS]
        self._first = self._last = first

    def __iter__(self) -> Iterator[int]:
        """Yield seeds. The command that repeats a failure runs the last yielded seed alone."""
        end = time.monotonic() + self._seconds
        alone = self._node.nodeid.rpartition("[")[0] + "[0]"
        for seed in itertools.count(self._first):
            self._last = seed
            self._node.stash[REPEAT] = [alone, f"--hypothesis-seed={seed}"]
            yield seed
            if time.monotonic() >= end:
                return

    def complaint(self) -> KernelComplaint | None:
        """Return what the kernel has logged during the test since the last call."""
        return self._verdicts.new_complaint(self._node)

    def is_muted(self) -> bool:
        """Return whether the kernel may not repeat a WARNING that it has logged."""
        return self._verdicts.log.muted

    def record(self, steps: int, messages: int) -> None:
        """Report the work of the test, for the end of the run."""
        seeds = f"{self._first}" if self._first == self._last else f"{self._first} to {self._last}"
        work = f"{steps:,} steps, {messages:,} messages, seed {seeds}"
        self._node.user_properties.append((_GENERATED, work))


@pytest.fixture
def seeds(request: pytest.FixtureRequest, shard: int) -> Seeds:
    """Return the seeds of this test."""
    first = _first_seed(request.config) + shard * _SEEDS_PER_SHARD
    return Seeds(request.node, first, 60 * _minutes(request.config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the work of each test that ran generated sequences."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, work in report.user_properties:
                if name == _GENERATED and report.when == "call":
                    on = f" on {column_of(report)}" if column_of(report) else ""
                    terminalreporter.write_line(f"generated{on}: {work}")
