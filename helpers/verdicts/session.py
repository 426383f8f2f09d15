"""One session's verdicts: judge each test where it runs, count the results where they arrive."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from helpers.apic.explain import command
from helpers.guest import Mismatch, journal
from helpers.kvm.ioctl import trace
from helpers.spec import Clause, Deviation
from helpers.verdicts.kernel import Untestable, require_testable, running_kernel, topology_before
from helpers.verdicts.kernel_log import KernelLog
from helpers.verdicts.reports import Verdict, column_of, outcome_of, put_verdict, verdict_of
from helpers.verdicts.tally import Result, Tally

VERDICTS = pytest.StashKey["Verdicts"]()
"""The key of the session's verdicts in ``config.stash``."""

REPEAT = pytest.StashKey[list[str]]()
"""Of an item: what repeats it, where that is not its node id."""

SUITES = Path(__file__).resolve().parents[2] / "suites"


class KernelComplaint(AssertionError):
    """The kernel logged a WARNING, BUG or Oops, or became tainted, while a test ran."""


def judges_suites(config: pytest.Config) -> bool:
    """Whether this run's arguments cover suites/, so that a KVM is needed."""
    paths = [Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args]
    return any(
        path.resolve().is_relative_to(SUITES) or SUITES.is_relative_to(path.resolve())
        for path in paths
    )


class Verdicts:
    """One run's verdicts: on xdist's controller it sums up, on its workers it judges."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.strict = bool(config.getini("strict"))
        self.log = KernelLog()
        self.is_worker = hasattr(config, "workerinput")
        self.tallies: dict[str, Tally] = {}
        """By column; one, named "", where one kernel is judged."""
        self.clauses: dict[str, str] = {}
        """Which clause a test names, by node id, from its set-up on."""
        self.kernel_options: Sequence[str] = ()
        """What the command line must say to have the kernel under test booted."""

    # --- before -----------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        option = self.config.option
        self.needs_kvm = judges_suites(self.config) and not option.collectonly
        if self.needs_kvm and not self.is_worker and not option.kernel:
            try:
                require_testable()
            except Untestable as reason:
                raise pytest.UsageError(str(reason)) from None
            self.tally("").kernel = running_kernel()

    def pytest_report_header(self) -> list[str]:
        if "" not in self.tallies:
            return []
        lines = [f"kernel under test: {self.tallies[''].kernel}"]
        if not self.log.readable:
            lines.append("the kernel log cannot be read: only the taint flags are watched")
        return lines

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if not item.path.is_relative_to(SUITES):
                continue
            marks = list(item.iter_markers("clause"))
            if len(marks) != 1:
                raise pytest.UsageError(f"{item.nodeid} names {len(marks)} clauses, not one")

    # --- judging ----------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        journal.clear()
        trace.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None]:
        try:
            return (yield)
        finally:
            self._raise_complaints()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None]:
        try:
            return (yield)
        finally:
            self._raise_complaints()

    def _raise_complaints(self) -> None:
        if said := self.log.complaints():
            raise KernelComplaint("while the test ran the kernel said:\n" + "\n".join(said))

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
            verdict = self._judge(item, call, report, verdict)
        if report.failed:
            report.sections.append(("KVM_SIGNAL_MSI", explain(clause, verdict)))
        put_verdict(report, verdict)
        return report

    def _verdict(self, item: pytest.Item, clause: Clause, kernel_options: Sequence[str]) -> Verdict:
        options = [*kernel_options, *(["--strict"] if self.strict else [])]
        what = item.stash.get(REPEAT, [item.nodeid])
        return Verdict(clause.id, repeat=shlex.join(["pytest", *what, *options]))

    def add_verdict(
        self, item: pytest.Item, report: pytest.TestReport, kernel_options: Sequence[str]
    ) -> None:
        """Say which clause a report is about that did not come from a test: its kernel died."""
        if clause := clause_of(item):
            put_verdict(report, self._verdict(item, clause, kernel_options))

    def _judge(
        self,
        item: pytest.Item,
        call: pytest.CallInfo[None],
        report: pytest.TestReport,
        verdict: Verdict,
    ) -> Verdict:
        known = _known_to(item)
        applying = _applying(known)
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, Mismatch):
            return self._judge_mismatch(error, known, applying, report, verdict)
        if error is None:
            return self._judge_pass(applying, report, verdict)
        return verdict

    def _judge_mismatch(
        self,
        error: Mismatch,
        known: list[Deviation],
        applying: list[Deviation],
        report: pytest.TestReport,
        verdict: Verdict,
    ) -> Verdict:
        if entry := _explaining(applying, error):
            reason = f"{entry.id}: {entry.summary}"
            if not self.strict:
                report.outcome = "skipped"
                report.wasxfail = reason
            return verdict._replace(deviation=entry.id, note=f"known deviation {reason}")
        notes = [
            f"not the known deviation {entry.id}, which shows otherwise"
            if entry in applying
            else f"{entry.id} is known for {entry.condition} only"
            for entry in known
        ]
        return verdict._replace(note="; ".join(notes))

    def _judge_pass(
        self,
        applying: list[Deviation],
        report: pytest.TestReport,
        verdict: Verdict,
    ) -> Verdict:
        for entry in applying:
            if entry.bound == "host":
                report.outcome = "failed"
                report.longrepr = note = (
                    f"the known deviation {entry.id} ({entry.condition}) did not happen: correct "
                    "its entry in helpers/spec/deviations.toml"
                )
                return verdict._replace(deviation=entry.id, note=note)
            note = f"{entry.id} ({entry.condition}) did not happen here"
            if entry.fix:
                note += f": a backport of {entry.fix}"
            return verdict._replace(deviation=entry.id, backport=True, note=note)
        return verdict

    # --- summing up -------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        verdict = verdict_of(report)
        if verdict and report.when == "setup":
            self.clauses[report.nodeid] = verdict.clause
        died = str(report.when) == "???"  # xdist's word for a test whose worker died
        if died and report.nodeid in self.clauses:
            verdict = Verdict(self.clauses[report.nodeid])
        if verdict is None or (report.when != "call" and report.passed):
            return
        outcome = outcome_of(report)
        shows = outcome == "xfailed" or verdict.backport
        result = Result(outcome, verdict.deviation if shows else "", verdict.backport)
        self.tally(column_of(report)).count(report.nodeid, verdict.clause, result)

    def tally(self, column: str) -> Tally:
        """The tally of a kernel."""
        return self.tallies.setdefault(column, Tally(column))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.log.close()
        nothing = self.needs_kvm and not self.is_worker and not self.judged
        if nothing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    @property
    def judged(self) -> bool:
        """Whether every kernel's tests came to a verdict."""
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
            write("no test was run to a verdict: nothing was judged, and that is not a pass")


class ExpectedInOneLine:
    """Tells a known deviation without the source around it.

    pytest parses the file anew for each, which in an emulator takes longer than most tests.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self.verdicts = verdicts

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        failure = call.excinfo
        if call.when == "call" and failure and self._is_expected(item, failure.value):
            call.excinfo = _in_one_line(item, failure)
        try:
            return (yield)
        finally:
            call.excinfo = failure

    def _is_expected(self, item: pytest.Item, error: BaseException) -> bool:
        return (
            not self.verdicts.strict
            and isinstance(error, Mismatch)
            and _explaining(_applying(_known_to(item)), error) is not None
        )


def _in_one_line(
    item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]
) -> pytest.ExceptionInfo[BaseException]:
    path, first, _ = item.location
    frames = traceback.walk_tb(failure.tb)
    lines = [line for frame, line in frames if frame.f_code.co_filename == str(item.path)]
    place = f"{path}:{[(first or 0) + 1, *lines][-1]}"
    told = pytest.fail.Exception(f"{place}: {failure.value}", pytrace=False)
    return pytest.ExceptionInfo.from_exception(told.with_traceback(failure.tb))


def _known_to(item: pytest.Item) -> list[Deviation]:
    return [mark.args[0] for mark in item.iter_markers("deviation")]


def _applying(known: Sequence[Deviation]) -> list[Deviation]:
    kernel = running_kernel()
    return [entry for entry in known if entry.applies(kernel.version, kernel.vendor)]


def _explaining(applying: Sequence[Deviation], error: Mismatch) -> Deviation | None:
    return next((entry for entry in applying if entry.explains(error.subject, error.actual)), None)


def clause_of(item: pytest.Item) -> Clause | None:
    """The clause a test names; None for tests that judge no kernel."""
    mark = item.get_closest_marker("clause")
    return mark.args[0] if mark else None


def explain(clause: Clause, verdict: Verdict) -> str:
    """What a failure is about, for the terminal: clause, messages, the command to repeat it."""
    parts = [f"clause {clause.id} ({clause.level}; {clause.source})\n  {clause.text}"]
    if verdict.note:
        parts.append(verdict.note)
    parts += [injection.explain() for injection in list(journal)[-4:]]
    if journal and (topology := topology_before(journal[-1])):
        msi = journal[-1].msi
        message = journal[-1].message
        explained = command(topology, message, msi.flags, msi.devid, bytes(msi.pad))
        parts.append(f"what the model says of the last message: {explained}")
    return "\n".join([*parts, f"again: {verdict.repeat}"])
