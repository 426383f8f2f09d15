# SPDX-License-Identifier: GPL-2.0-only
"""What options that run a test for MINUTES share: the option, the shards, the line of work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest

from helpers.verdicts.reports import column_of

SEEDS_PER_SHARD = 1_000_000
"""Distance between the first seeds of two shards."""


def minutes_of(config: pytest.Config, option: str) -> float:
    """Return the minutes of an option such as "soak"; 0 without the option. Raises UsageError."""
    given = config.getoption(option)
    if given is None:
        return 0
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0
    if not 0 < minutes < math.inf:
        raise pytest.UsageError(f"--{option} wants minutes, a number above 0, not {given!r}")
    return minutes


def shards(config: pytest.Config, minutes: float) -> list[object]:
    """Return a parameter for each process of pytest-xdist: a test that takes some minutes."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    marks = pytest.mark.timeout(60 * minutes + 120)
    return [pytest.param(number, marks=marks) for number in range(workers)]


def recorded_lines(
    terminalreporter: pytest.TerminalReporter, name: str, outcomes: Sequence[str]
) -> Iterator[str]:
    """Yield the property ``name`` (record_property) of each test that ended so, as a line.

    A test of a booted kernel names the column.
    """
    for outcome in outcomes:
        for report in terminalreporter.getreports(outcome):
            for key, text in report.user_properties:
                if key == name and report.when == "call":
                    on = f" on {column_of(report)}" if column_of(report) else ""
                    yield from (f"{name}{on}: {line}" for line in str(text).split("; "))
