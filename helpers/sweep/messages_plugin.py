# SPDX-License-Identifier: GPL-2.0-only
"""``--exhaustive``, ``--topology`` and ``--message``: which messages suites/test_sweep.py sends."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence

import pytest

from helpers.apic import Message
from helpers.apic.topologies import topology_of
from helpers.apic.topology import Topology
from helpers.progress import Bar
from helpers.sweep.smallest import SmallestCase
from helpers.verdicts.session import REPEAT, VERDICTS

# Messages of one delivery mode to one topology. Each of WIDE_DESTINATIONS adds 4,096.
_PER_TEST = 1 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --exhaustive, --topology and --message."""
    group = parser.getgroup("message space")
    group.addoption(
        "--exhaustive",
        action="store_true",
        help="send every message there is, 8,388,608 to each topology of suites/test_sweep.py; "
        "with -n in several processes",
    )
    group.addoption(
        "--topology", metavar="TEXT", help="send --message to this topology: a name or a text"
    )
    group.addoption("--message", metavar="TEXT", help="send this message to --topology")


def pytest_configure(config: pytest.Config) -> None:
    """Check the options. Show the progress of an exhaustive sweep where reports arrive."""
    config.addinivalue_line("markers", "only_with(option): collect the test with this option only")
    _given_case(config)
    if config.option.exhaustive and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Progress(config), "kvm-messages-progress")


def _given_case(config: pytest.Config) -> tuple[Topology, Message] | None:
    topology, message = config.option.topology, config.option.message
    if topology is None and message is None:
        return None
    if topology is None or message is None:
        raise pytest.UsageError("--topology and --message go together")
    option = "--topology"
    try:
        parsed = topology_of(topology)
        option = "--message"
        return parsed, Message.parse(message)
    except ValueError as reason:
        raise pytest.UsageError(f"{option}: {reason}") from None


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> list[pytest.Item] | None:
    """Leave out a test that is ``only_with`` an option that was not given."""
    for mark in getattr(obj, "pytestmark", []):
        if mark.name == "only_with" and not collector.config.getoption(mark.args[0]):
            return []
    return None


@pytest.fixture
def given_case(pytestconfig: pytest.Config) -> tuple[Topology, Message] | None:
    """Return the case of --topology and --message."""
    return _given_case(pytestconfig)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make the command that repeats a failed sweep send its smallest case alone."""
    if call.excinfo and isinstance(case := call.excinfo.value, SmallestCase):
        alone = item.nodeid.partition("::")[0] + "::test_given_message"
        options = [f"--topology={case.topology}", f"--message={case.message.text}"]
        item.stash[REPEAT] = [alone, *options]
    return (yield)


class _Progress:
    """Shows how many messages of an exhaustive sweep were sent: a bar, and a line at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._start = time.monotonic()
        self._sent = 0
        self._bar: Bar | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.pytest_xdist_node_collection_finished([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Expect the messages of these tests. With pytest-xdist, the workers collect the tests."""
        tests = [id for id in ids if "::test_every_message[" in id]
        columns = len(self._config.stash[VERDICTS].tallies)
        total = len(tests) * _PER_TEST * max(1, columns)
        if total and not self._bar:
            self._bar = Bar("messages", total, unit="million", scale=10**6)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and self._bar:
            for name, value in report.user_properties:
                if name == "messages" and isinstance(value, int):
                    self._sent += value
            self._bar.show(self._sent)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Print no dot for a passed test: the dot would land in the bar."""
        has_dot = sys.stderr.isatty() and report.when == "call" and report.passed
        return ("passed", "", "PASSED") if has_dot else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._bar:
            self._bar.end()
        sent, seconds = self._sent, time.monotonic() - self._start
        rate = f"{sent / seconds / 10**6:.2f} million a second"
        terminalreporter.write_line(f"swept: {sent:,} messages in {seconds:.0f} s, {rate}")
