# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--exit-codes=kselftest``: 0 passed, 1 failed, 4 cannot run here.

Source: tools/testing/selftests/kselftest.h, KSFT_PASS, KSFT_FAIL and KSFT_SKIP. pytest's own 4 is a
wrong command line, which kselftest would take for a skipped test.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from helpers.verdicts.session import CANNOT_RUN, VERDICTS

PASS, FAIL, SKIP = 0, 1, 4


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --exit-codes."""
    parser.getgroup("kernel CI").addoption(
        "--exit-codes",
        choices=["pytest", "kselftest"],
        default="pytest",
        help="kselftest: 0 for a good run, 4 if this machine cannot run the tests or skips all of "
        "them, 1 for all else; default: pytest's own exit codes",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    """Replace the exit code, after all other plugins."""
    if config.option.exit_codes == "pytest" or hasattr(config, "workerinput"):
        return (yield)
    try:
        code = yield
    except pytest.UsageError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return SKIP if CANNOT_RUN in config.stash else FAIL
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        tallies = config.stash[VERDICTS].tallies.values()
        return SKIP if any(tally.results for tally in tallies) else FAIL
    return PASS if code == pytest.ExitCode.OK else FAIL
