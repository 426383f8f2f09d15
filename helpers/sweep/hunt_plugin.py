"""``--generate``: how long generated topologies are hunted through, and by which seeds."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator

import pytest

from helpers.verdicts.reports import column_of
from helpers.verdicts.session import REPEAT

_SPREAD = 1_000_000
"""How far apart the seeds of a hunt's workers begin."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --generate."""
    parser.getgroup("generated topologies").addoption(
        "--generate",
        metavar="MINUTES",
        help="hunt for so long through generated topologies, with -n in as many processes; "
        "--hypothesis-seed=N begins with that seed, and without --generate it runs N alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check both options before anything else happens."""
    _minutes(config)
    _first_seed(config)


def _minutes(config: pytest.Config) -> float:
    """0 where nothing is hunted."""
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
    given = config.getoption("--hypothesis-seed")
    if given is None:
        return random.randrange(_SPREAD) if _minutes(config) else 0
    try:
        return int(given)
    except ValueError:
        raise pytest.UsageError(f"--hypothesis-seed wants a number, not {given!r}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that hunts is one test, and in a hunt one for every process of pytest-xdist."""
    if "hunter" not in metafunc.fixturenames:
        return
    minutes = _minutes(metafunc.config)
    workers = getattr(metafunc.config, "workerinput", {}).get("workercount", 1)
    marks = [pytest.mark.timeout(60 * minutes + 120)] if minutes else []
    hunters = [pytest.param(n, marks=marks, id=str(n)) for n in range(workers if minutes else 1)]
    metafunc.parametrize("hunter", hunters)


class Hunt:
    """The seeds of one test: one, or as many as there is time for."""

    def __init__(self, node: pytest.Item, first: int, seconds: float) -> None:
        self.node = node
        self.first = self.last = first
        self.seconds = seconds

    def __iter__(self) -> Iterator[int]:
        """What fails is repeated by the seed that was given out last, alone."""
        end = time.monotonic() + self.seconds
        alone = self.node.nodeid.rpartition("[")[0] + "[0]"
        for seed in itertools.count(self.first):
            self.last = seed
            self.node.stash[REPEAT] = [alone, f"--hypothesis-seed={seed}"]
            yield seed
            if time.monotonic() >= end:
                return

    def record(self, steps: int, messages: int) -> None:
        """Report what was done, for the end of the run."""
        seeds = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        done = f"{steps:,} steps, {messages:,} messages, seed {seeds}"
        self.node.user_properties.append(("generated", done))


@pytest.fixture
def hunt(request: pytest.FixtureRequest, hunter: int) -> Hunt:
    """The seeds for this test."""
    config = request.config
    first = _first_seed(config) + hunter * _SPREAD
    return Hunt(request.node, first, 60 * _minutes(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was generated."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, done in report.user_properties:
                if name == "generated" and report.when == "call":
                    on = f" on {column_of(report)}" if column_of(report) else ""
                    terminalreporter.write_line(f"generated{on}: {done}")
