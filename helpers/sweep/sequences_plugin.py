# SPDX-License-Identifier: GPL-2.0-only
"""``--generate`` and ``--hypothesis-seed``: how many generated sequences run, from which seeds."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import pytest

from helpers.verdicts.campaigns import SEEDS_PER_SHARD, minutes_of, recorded_lines, shards
from helpers.verdicts.session import REPEAT, VERDICTS, KernelComplaint

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
    minutes_of(config, "generate")
    _first_seed(config)


def _first_seed(config: pytest.Config) -> int:
    """Return the first seed: the given one, or a fixed one, or with --generate a random one."""
    given = config.getoption("--hypothesis-seed")
    if given is None:
        return (
            random.randrange(SEEDS_PER_SHARD) if minutes_of(config, "generate") else _DEFAULT_SEED
        )
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
    minutes = minutes_of(metafunc.config, "generate")
    chosen = shards(metafunc.config, minutes) if minutes else [0]
    metafunc.parametrize("shard", chosen)


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
    first = _first_seed(request.config) + shard * SEEDS_PER_SHARD
    return Seeds(request.node, first, 60 * minutes_of(request.config, "generate"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the work of each test that ran generated sequences."""
    for line in recorded_lines(terminalreporter, _GENERATED, ("passed", "failed")):
        terminalreporter.write_line(line)
