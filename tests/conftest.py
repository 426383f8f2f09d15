# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures and hooks of the tests that judge the suite itself."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from tests.copy_of_the_suite import Suite

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """A copy of this project whose suites/ has no tests yet."""
    return Suite(tmp_path / "suite")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report which tests caught which lie of tests/liar.py."""
    tallies = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "caught"
    ]
    if tallies:
        terminalreporter.section("lies")
        for tally in tallies:
            terminalreporter.write_line(tally)
