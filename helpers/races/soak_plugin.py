# SPDX-License-Identifier: GPL-2.0-only
"""``--soak`` and ``--seed``: how long races run, and from which seed."""

from __future__ import annotations

import math
import random

import pytest

from helpers.progress import Bar
from helpers.races.soak import Soak
from helpers.verdicts.campaigns import SEEDS_PER_SHARD, minutes_of, recorded_lines, shards
from helpers.verdicts.session import REPEAT, VERDICTS

_DEFAULT_SEED = 1
_SOAKED = "soaked"  # The property (record_property) with the account of a soak, as text.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --soak and --seed."""
    group = parser.getgroup("races")
    group.addoption(
        "--soak",
        metavar="MINUTES",
        help="run races, messages to running guests, and VMs that end under fire in random order "
        "for MINUTES, with -n in as many processes (suites/test_races.py)",
    )
    group.addoption("--seed", metavar="N", help="the seed of races and of the first step of --soak")


def pytest_configure(config: pytest.Config) -> None:
    """Check both options before anything else happens."""
    minutes_of(config, "soak")
    _seed(config)


def _seed(config: pytest.Config) -> int:
    """Return the seed of --seed, else a random one for --soak. Raises UsageError."""
    given = config.option.seed
    if given is None:
        return random.randrange(SEEDS_PER_SHARD) if minutes_of(config, "soak") else _DEFAULT_SEED
    if not (given.isascii() and given.isdecimal() and int(given) < 1 << 31):
        raise pytest.UsageError(f"--seed wants a number below 2^31, not {given!r}")
    return int(given)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a soak in each process of pytest-xdist, with steps of its own."""
    if "soak_shard" not in metafunc.fixturenames:
        return
    minutes = minutes_of(metafunc.config, "soak")
    metafunc.parametrize("soak_shard", shards(metafunc.config, minutes))


@pytest.fixture
def race_seed(pytestconfig: pytest.Config) -> int:
    """The seed of a race."""
    return _seed(pytestconfig)


class Soaking:
    """The soak of one test: the time, the seed, a line of progress, and the account."""

    def __init__(self, node: pytest.Item, seed: int, seconds: float) -> None:
        self._node, self._seed, self._seconds = node, seed, seconds
        self._verdicts = node.config.stash[VERDICTS]
        self._capture = node.config.pluginmanager.getplugin("capturemanager")
        self._bar = Bar("soak", math.ceil(seconds), unit="s", scale=1)

    def run(self, soak: Soak) -> None:
        """Run ``soak``. Report its account, and the command that repeats a step that failed."""
        alone = self._node.nodeid.rpartition("[")[0] + "[0]"

        def show(seed: int, seconds: float) -> None:
            if complaint := self._verdicts.new_complaint(self._node):
                raise complaint
            self._node.stash[REPEAT] = [alone, "--soak=0.1", f"--seed={seed}"]
            with self._capture.global_and_fixture_disabled():
                self._bar.show(int(seconds), f"seed {seed}, {soak.work.progress()}")

        try:
            soak.run(self._seed, self._seconds, show)
        finally:
            with self._capture.global_and_fixture_disabled():
                self._bar.end()
            lines = [f"seed {self._seed}", *soak.work.lines()]
            self._node.user_properties.append((_SOAKED, "; ".join(lines)))


@pytest.fixture
def soaking(request: pytest.FixtureRequest, soak_shard: int) -> Soaking:
    """Return the time and the seed of this soak."""
    seed = _seed(request.config) + soak_shard * SEEDS_PER_SHARD
    return Soaking(request.node, seed, 60 * minutes_of(request.config, "soak"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the account of each soak."""
    for line in recorded_lines(terminalreporter, _SOAKED, ("passed", "failed")):
        terminalreporter.write_line(line)
