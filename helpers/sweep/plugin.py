"""``--exhaustive``, ``--topology`` and ``--message``: how much of the message space is swept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import pytest

from helpers.apic import Message
from helpers.apic.topologies import topology_of
from helpers.apic.topology import Topology
from helpers.progress import Bar
from helpers.sweep.engine import SmallestCase
from helpers.verdicts.session import REPEAT

T = TypeVar("T")

_MESSAGES = "messages"
_EACH = 1 << 20  # messages of one delivery mode to one topology; a few more with 32-bit IDs


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
        "--topology", metavar="TEXT", help="the one to send --message to: a name or a text"
    )
    group.addoption("--message", metavar="TEXT", help="the one to send to --topology")


def pytest_configure(config: pytest.Config) -> None:
    """Check the options; show how far an exhaustive sweep has come where reports arrive."""
    config.addinivalue_line("markers", "only_with(option): a test that there is with this option")
    _given_case(config)
    if config.option.exhaustive and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Progress(config), "kvm-sweep-progress")


def _given_case(config: pytest.Config) -> tuple[Topology, Message] | None:
    topology, message = config.option.topology, config.option.message
    if topology is None and message is None:
        return None
    if topology is None or message is None:
        raise pytest.UsageError("--topology and --message go together")
    return (
        _parsed("--topology", topology_of, topology),
        _parsed("--message", Message.parse, message),
    )


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as reason:
        raise pytest.UsageError(f"{option}: {reason}") from None


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> list[pytest.Item] | None:
    """A test that is ``only_with`` an option does not exist without it."""
    for mark in getattr(obj, "pytestmark", []):
        if mark.name == "only_with" and not collector.config.getoption(mark.args[0]):
            return []
    return None


@pytest.fixture
def given_case(pytestconfig: pytest.Config) -> tuple[Topology, Message] | None:
    """What --topology and --message say."""
    return _given_case(pytestconfig)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a sweep finds is repeated by its smallest case."""
    if call.excinfo and isinstance(case := call.excinfo.value, SmallestCase):
        alone = item.nodeid.partition("::")[0] + "::test_given_message"
        options = [f"--topology={case.topology}", f"--message={case.message.text}"]
        item.stash[REPEAT] = [alone, *options]
    return (yield)


@pytest.fixture
def swept(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Tell how many messages the test sent."""

    def record(count: int) -> None:
        request.node.user_properties.append((_MESSAGES, count))

    return record


class _Progress:
    """How many messages of an exhaustive sweep have been sent, while it runs and afterwards."""

    def __init__(self, config: pytest.Config) -> None:
        self._kernels = max(1, len(config.option.kernel)) * max(1, len(config.option.kvm_modules))
        self._begun = time.monotonic()
        self._sent = 0
        self._bar: Bar | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Under pytest-xdist only its workers collect."""
        self._expect(ids)

    def _expect(self, ids: Sequence[str]) -> None:
        swept = [id for id in ids if "::test_every_message[" in id]
        total = len(swept) * _EACH * self._kernels
        if total and not self._bar:
            self._bar = Bar("messages", total, unit="million", scale=10**6)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and self._bar:
            for name, value in report.user_properties:
                if name == _MESSAGES and isinstance(value, int):
                    self._sent += value
            self._bar.show(self._sent)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot, which would be drawn into the bar."""
        has_dot = sys.stderr.isatty() and report.when == "call" and report.passed
        return ("passed", "", "PASSED") if has_dot else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._bar:
            self._bar.end()
        seconds = time.monotonic() - self._begun
        rate = self._sent / seconds / 10**6
        terminalreporter.write_line(
            f"swept: {self._sent:,} messages in {seconds:.0f} s, {rate:.2f} million a second"
        )
