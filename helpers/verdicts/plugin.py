# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin that turns outcomes into verdicts.

pytest warns of a plugin that is imported before pytest registers it. The worker in a guest imports
from session.py, which is not a plugin.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator

import pytest

from helpers.kvm import MissingPart
from helpers.verdicts.judge import explanation
from helpers.verdicts.kernel import running_kernel
from helpers.verdicts.reports import outcome_of
from helpers.verdicts.session import VERDICTS, Verdicts, deviations_of, judges_suites, skip


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks and the session's verdicts."""
    config.addinivalue_line("markers", "clause(clause): the clause that the test checks")
    config.addinivalue_line("markers", "parallel: the vCPUs of the test run in threads")
    config.addinivalue_line("markers", "deviation(deviation): a known deviation from the clause")
    config.addinivalue_line(
        "markers",
        "needs_parameter(name, value): the module parameter, such as kvm.vector_hashing, that the "
        "test needs; a booted kernel is reloaded for the test",
    )
    config.stash[VERDICTS] = verdicts = Verdicts(config)
    config.pluginmanager.register(verdicts, "kvm-verdicts")
    config.pluginmanager.register(MissingParts(), "kvm-missing-parts")
    if not verdicts.strict:
        config.pluginmanager.register(ExpectedInOneLine(), "kvm-expected-in-one-line")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Tell a test that timed out from other failures: T and TIMED OUT."""
    return ("failed", "T", "TIMED OUT") if outcome_of(report) == "timeout" else None


_MOST_WORKERS = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the workers of ``-n auto`` on the running kernel: two per processor, up to eight.

    A worker is idle for half of the time, while KVM waits for RCU before a VM is gone. None leaves
    the number to pytest-xdist.
    """
    if not judges_suites(config) or "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    processors = len(os.sched_getaffinity(0))
    return max(processors, min(2 * processors, _MOST_WORKERS))


class MissingParts:
    """Skip a test that asks for a part of KVM that the kernel lacks."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        try:
            return (yield)
        except MissingPart as missing:
            skip(str(missing))

    pytest_runtest_call = pytest_runtest_setup


class ExpectedInOneLine:
    """Report a known deviation as one line, without a traceback.

    pytest parses the source file for each traceback. In an emulator the parsing takes longer than
    most tests.
    """

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        failure = call.excinfo
        if call.when == "call" and failure and _is_expected(item, failure.value):
            call.excinfo = _in_one_line(item, failure)
        try:
            return (yield)
        finally:
            call.excinfo = failure


def _is_expected(item: pytest.Item, error: BaseException) -> bool:
    known = deviations_of(item)
    kernel = item.config.stash[VERDICTS].kernel
    return bool(known) and explanation(known, kernel or running_kernel(), error) is not None


def _in_one_line(
    item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]
) -> pytest.ExceptionInfo[BaseException]:
    path, first, _ = item.location
    frames = traceback.walk_tb(failure.tb)
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(item.path)]
    place = f"{path}:{[(first or 0) + 1, *lines][-1]}"
    error = pytest.fail.Exception(f"{place}: {failure.value}", pytrace=False)
    return pytest.ExceptionInfo.from_exception(error.with_traceback(failure.tb))
