"""What several tests of the suite need: copies of it with other tests in, and the lies' tally."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from tests.copy_of_the_suite import Suite

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """A copy of this suite that has no tests yet."""
    return Suite(tmp_path / "suite")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests saw through which lie."""
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
