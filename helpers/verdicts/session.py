# SPDX-License-Identifier: GPL-2.0-only
"""One session's verdicts: judge each test where the test runs, count where the report arrives."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from helpers.apic.explain import command
from helpers.guest import Mismatch, journal
from helpers.kvm.ioctl import trace
from helpers.spec import DEVIATIONS, KERNEL_LOG, Clause, Deviation
from helpers.spec.kernels import DEFAULT_KERNEL
from helpers.verdicts import timeouts
from helpers.verdicts.judge import explanation, judge
from helpers.verdicts.kernel import (
    Kernel,
    Untestable,
    require_testable,
    running_kernel,
    topology_before,
)
from helpers.verdicts.kernel_log import KernelLog, normalized
from helpers.verdicts.reports import (
    Verdict,
    column_of,
    outcome_of,
    put_verdict,
    skip_reason_of,
    verdict_of,
)
from helpers.verdicts.tally import Result, Tally

VERDICTS = pytest.StashKey["Verdicts"]()
"""The key of the session's verdicts in ``config.stash``."""

CANNOT_RUN = pytest.StashKey[str]()
"""The key of the reason why this machine cannot run the tests in ``config.stash``."""

REPEAT = pytest.StashKey[list[str]]()
"""The key of the arguments that repeat a test in ``item.stash``; absent: the node id repeats it."""

SUITES = Path(__file__).resolve().parents[2] / "suites"

_EXPLAINED_MESSAGES = 4  # More would hide the failure.


class KernelComplaint(Mismatch):
    """The kernel logged a WARNING, BUG or Oops, or became tainted, while a test ran."""

    def __init__(self, complaints: Sequence[str]) -> None:
        super().__init__(KERNEL_LOG, "no complaint", normalized(complaints))
        self.add_note("\n".join(["the kernel logged during the test:", *complaints]))


def judges_suites(config: pytest.Config) -> bool:
    """Return whether the run's arguments cover suites/, so that the run needs a KVM."""
    directory = config.invocation_params.dir
    paths = [(directory / arg.split("::")[0]).resolve() for arg in config.args]
    return any(path.is_relative_to(SUITES) or SUITES.is_relative_to(path) for path in paths)


def clause_of(item: pytest.Item) -> Clause | None:
    """Return the clause that a test names; None for a test that judges no kernel."""
    mark = item.get_closest_marker("clause")
    return mark.args[0] if mark else None


def deviations_of(item: pytest.Item) -> list[Deviation]:
    """Return the deviations that a test names."""
    return [mark.args[0] for mark in item.iter_markers("deviation")]


def needs_of(item: pytest.Item) -> dict[str, str]:
    """Return the module parameters that a test needs: {MODULE.NAME: value}."""
    return dict(mark.args for mark in item.iter_markers("needs_parameter"))


def is_parallel(item: pytest.Item) -> bool:
    """Return whether the vCPUs of a test run in threads."""
    return item.get_closest_marker("parallel") is not None


class Verdicts:
    """One session's verdicts.

    The process that runs a test judges the test; the process that reports the tests counts the
    verdicts. Without pytest-xdist and --kernel, both are one process.

    ``strict``: known deviations are failures (--strict)
    ``needs_kvm``: the session judges a kernel; set when the session starts
    ``is_worker``: a process that runs tests for another process
    ``shares_kernel``: other processes of pytest-xdist test the same kernel at the same time
    ``log``: the log of the running kernel
    ``kernel_options``: the command line options that boot the kernel under test
    ``kernel``: the kernel that the next reports are of; None for the running kernel
    ``reloaded_with``: the settings with which KVM was reloaded for the tests that need them
    ``why_unmet``: returns why KVM is not reloaded with another value of a parameter
    ``tallies``: the tally of each column; one, named "", where one kernel is judged
    ``has_added``: columns were added to those that the run began with
    ``clauses``: {node id: clause id} of each test whose set-up is reported
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.strict = bool(config.getini("strict"))
        self.needs_kvm = False
        self.is_worker = hasattr(config, "workerinput")
        self.shares_kernel = getattr(config, "workerinput", {}).get("workercount", 1) > 1
        self.log = KernelLog()
        self.kernel_options: Sequence[str] = ()
        self.kernel: Kernel | None = None
        self.reloaded_with = ""
        self.why_unmet: Callable[[str], str] = _never_reloaded
        self.tallies: dict[str, Tally] = {}
        self.has_added = False
        self.clauses: dict[str, str] = {}

    # --- before the tests -------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        option = self.config.option
        self.needs_kvm = judges_suites(self.config) and not option.collectonly
        if self.needs_kvm and not self.is_worker and not option.kernel:
            try:
                require_testable()
            except Untestable as reason:
                self.config.stash[CANNOT_RUN] = str(reason)
                raise pytest.UsageError(str(reason)) from None
            self.tally("").kernel = running_kernel()

    def pytest_report_header(self) -> list[str]:
        if "" not in self.tallies:
            return []
        lines = [f"kernel under test: {self.tallies[''].kernel}"]
        if not self.log.readable:
            lines.append("the kernel log cannot be read: the suite watches the taint flags alone")
        return lines

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = list(item.iter_markers("clause"))
            if len(marks) != 1 and item.path.is_relative_to(SUITES):
                raise pytest.UsageError(f"{item.nodeid} names {len(marks)} clauses, not one")

    # --- judging ----------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        journal.clear()
        trace.clear()
        self.log.recent.clear()
        for name, value in needs_of(item).items():
            found = running_kernel().parameters.get(name)
            if found is None:
                skip(f"the kernel has no parameter {name}")
            if found != value:
                skip(f"{name}={found}, not {value}: {self.why_unmet(name)}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        also: list[str] = []
        try:
            return (yield)
        except BaseException as error:
            # No deviation explains two reasons to fail.
            also = [f"the test raised {type(error).__name__}: {error}"]
            raise
        finally:
            if complaint := self.new_complaint(item, also):
                raise complaint

    pytest_runtest_teardown = pytest_runtest_call

    def new_complaint(self, item: pytest.Item, also: Sequence[str] = ()) -> KernelComplaint | None:
        """Return what the kernel has logged since the last call, and ``also``, while ``item`` ran.

        Return None if the kernel has logged nothing, or a test of another process is the cause.
        """
        if complaints := self.log.complaints():
            complaint = KernelComplaint([*complaints, *also])
            if not self._is_of_another_process(item, complaint):
                return complaint
        return None

    def _is_of_another_process(self, item: pytest.Item, complaint: KernelComplaint) -> bool:
        """Return whether a test in another process may have raised a known WARNING."""
        others = [entry for entry in DEVIATIONS.values() if entry not in deviations_of(item)]
        return self.shares_kernel and bool(explanation(others, running_kernel(), complaint))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        clause = clause_of(item)
        if clause is None:
            return report
        verdict = Verdict(clause.id)
        if call.when == "call" or not report.passed:
            verdict = self._verdict(item, clause, self.kernel_options)
        if call.when == "call":
            outcome, deviation, backport, note = judge(
                deviations_of(item),
                self.kernel or running_kernel(),
                call.excinfo and call.excinfo.value,
                self.log.muted,
            )
            if outcome == "failed":
                report.outcome, report.longrepr = "failed", note
            elif outcome == "xfailed" and not self.strict:
                report.outcome, report.wasxfail = "skipped", note
            if self.reloaded_with:
                note = f"judged with {self.reloaded_with}\n{note}".strip()
            verdict = verdict._replace(deviation=deviation, backport=backport, note=note)
        if call.excinfo and (seconds := timeouts.seconds_of(call.excinfo.value)):
            verdict = _timed_out(item, call.excinfo.value, report, verdict, seconds)
        if report.failed:
            report.sections.append(("KVM_SIGNAL_MSI", explain(clause, verdict)))
        put_verdict(report, verdict)
        return report

    def _verdict(self, item: pytest.Item, clause: Clause, kernel_options: Sequence[str]) -> Verdict:
        options = [*kernel_options, *(["--strict"] if self.strict else [])]
        tests = item.stash.get(REPEAT, [item.nodeid])
        return Verdict(clause.id, repeat=shlex.join(["pytest", *tests, *options]))

    def add_verdict(
        self,
        item: pytest.Item,
        report: pytest.TestReport,
        kernel_options: Sequence[str],
        timeout: float = 0.0,
    ) -> None:
        """Attach a verdict to a report that no test made, because the kernel died or hangs.

        ``timeout`` are the seconds after which the host ended a kernel that hangs.
        """
        if clause := clause_of(item):
            verdict = self._verdict(item, clause, kernel_options)
            put_verdict(report, verdict._replace(timeout=timeout))

    # --- counting ---------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        verdict = verdict_of(report)
        if verdict and report.when == "setup":
            self.clauses[report.nodeid] = verdict.clause
        died = str(report.when) == "???"  # pytest-xdist's report of a test whose worker died
        if died and report.nodeid in self.clauses:
            verdict = Verdict(self.clauses[report.nodeid])
        if verdict is None or (report.when != "call" and report.passed):
            return
        outcome = outcome_of(report)
        shows = outcome == "xfailed" or verdict.backport
        deviation = verdict.deviation if shows else ""
        result = Result(outcome, deviation, verdict.backport, skip_reason_of(report))
        self.tally(column_of(report)).count(report.nodeid, verdict.clause, result)

    def tally(self, column: str) -> Tally:
        """Return the tally of a column."""
        return self.tallies.setdefault(column, Tally(column))

    def insert(self, column: str, after: str) -> None:
        """Add the tally of a column behind another column's."""
        tallies = list(self.tallies.values())
        place = list(self.tallies).index(after)
        tallies.insert(place + 1, Tally(column, tree=tallies[place].tree))
        self.tallies = {tally.column: tally for tally in tallies}
        self.has_added = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.log.close()
        nothing = self.needs_kvm and not self.is_worker and not self.judged
        if nothing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    @property
    def judged(self) -> bool:
        """Whether the tests of each kernel came to a verdict."""
        return bool(self.tallies) and all(tally.judged for tally in self.tallies.values())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.needs_kvm:
            return
        write = terminalreporter.write_line
        for tally in self.tallies.values():
            if tally.judged:
                name = f"{tally.column}: " if len(self.tallies) > 1 else ""
                terminalreporter.section(f"clauses, {name}{tally.kernel}")
                for line in tally.summary():
                    write(line)
        for column, tally in self.tallies.items():
            if tally.broken:
                write(f"{column} could not be judged: {tally.broken}", red=True)
            if tally.left:
                write(f"{column} left after --maxfail-each, {tally.left} tests not run", red=True)
        if not self.judged:
            write("no test came to a verdict: the run judged no kernel, and is not a pass")


def _never_reloaded(_: str) -> str:
    return f"pytest --kernel={DEFAULT_KERNEL} reloads KVM for this test"


def skip(reason: str) -> NoReturn:
    """Skip the running test. The report names the test's place, as pytest's marks do."""
    raise pytest.skip.Exception(reason, _use_item_location=True)


def _timed_out(
    item: pytest.Item,
    error: BaseException,
    report: pytest.TestReport,
    verdict: Verdict,
    seconds: float,
) -> Verdict:
    """Return the verdict on a test that its time limit ended; add the vCPUs to the report."""
    fixtures = item.funcargs.values() if isinstance(item, pytest.Function) else ()
    if vcpus := timeouts.describe_vcpus(error, fixtures):
        report.sections.append(("vCPUs at the timeout", vcpus))
    if crash := getattr(report.longrepr, "reprcrash", None):
        crash.message = timeouts.text(seconds)
    return verdict._replace(timeout=seconds)


def explain(clause: Clause, verdict: Verdict) -> str:
    """Return the text of a failure: clause, note, last messages, command that repeats the test."""
    parts = [f"clause {clause.id} ({clause.level}; {clause.source})\n  {clause.text}"]
    if verdict.note:
        parts.append(verdict.note)
    parts += [injection.explain() for injection in list(journal)[-_EXPLAINED_MESSAGES:]]
    if journal and (topology := topology_before(journal[-1])):
        msi, message = journal[-1].msi, journal[-1].message
        explaining = command(topology, message, msi.flags, msi.devid, bytes(msi.pad))
        parts.append(f"the model's prediction for the last message: {explaining}")
    return "\n".join([*parts, f"to repeat the test: {verdict.repeat}"])
