# SPDX-License-Identifier: GPL-2.0-only
"""``--scale``: measure what messages cost by the number of vCPUs."""

from __future__ import annotations

import pytest

from helpers.verdicts.campaigns import recorded_lines

SCALED = "scaled"
"""The property (record_property) with a line of the table."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --scale."""
    parser.getgroup("races").addoption(
        "--scale",
        action="store_true",
        help="measure what a message costs in VMs of 1 to KVM_CAP_MAX_VCPUS vCPUs "
        "(suites/test_scale.py)",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    for line in recorded_lines(terminalreporter, SCALED, ("passed",)):
        terminalreporter.write_line(line)
