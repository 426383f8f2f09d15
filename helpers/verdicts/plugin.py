"""The pytest plugin that turns outcomes into verdicts; what it does stands in README.md."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.guest.expect import Mismatch
from helpers.guest.machine import journal
from helpers.kvm.ioctl import trace
from helpers.verdicts.clauses import CLAUSES, LEVELS, Clause
from helpers.verdicts.deviations import Deviation
from helpers.verdicts.kernel import Kernel, Untestable, require_testable, running_kernel
from helpers.verdicts.kernel_log import KernelLog

SUITES = Path(__file__).resolve().parents[2] / "suites"


class KernelComplaint(AssertionError):
    """The kernel logged a WARNING, BUG or Oops, or became tainted, while a test ran."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the plugin adds to a test's report; ``report.verdict`` is it as a dict."""

    clause: str
    deviation: str = ""
    backport: bool = False
    note: str = ""
    repeat: str = ""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks and the plugin."""
    config.addinivalue_line("markers", "clause(clause): the clause the test checks")
    config.addinivalue_line("markers", "deviation(deviation): a known deviation the test meets")
    config.pluginmanager.register(Verdicts(config), "kvm-verdicts")


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
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.deviations: Counter[str] = Counter()
        self.backports: Counter[str] = Counter()
        self.judged = 0
        self.clauses: dict[str, str] = {}
        """Which clause a test names, by node id, from its set-up on."""
        self.kernel: Kernel | None = None
        """The kernel under test; of a booted one it is known when its worker is done."""

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
            self.kernel = running_kernel()

    def pytest_report_header(self) -> list[str]:
        if self.kernel is None:
            return []
        lines = [f"kernel under test: {self.kernel}"]
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
        verdict = Verdict(clause.id, repeat=repeat_command(item.nodeid, self.strict))
        if call.when == "call":
            verdict = self._judge(item, call, report, verdict)
        if report.failed:
            report.sections.append(("KVM_SIGNAL_MSI", explain(clause, verdict)))
        vars(report)["verdict"] = asdict(verdict)  # xdist carries a report's attributes over
        return report

    def _judge(
        self,
        item: pytest.Item,
        call: pytest.CallInfo[None],
        report: pytest.TestReport,
        verdict: Verdict,
    ) -> Verdict:
        known = [mark.args[0] for mark in item.iter_markers("deviation")]
        applying = [entry for entry in known if entry.applies(running_kernel())]
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
        for entry in applying:
            if entry.explains(error):
                reason = f"{entry.id}: {entry.summary}"
                if not self.strict:
                    report.outcome = "skipped"
                    report.wasxfail = reason
                return replace(verdict, deviation=entry.id, note=f"known deviation {reason}")
        notes = [
            f"not the known deviation {entry.id}, which shows otherwise"
            if entry in applying
            else f"{entry.id} is known for {entry.condition} only"
            for entry in known
        ]
        return replace(verdict, note="; ".join(notes))

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
                    "its entry in helpers/verdicts/deviations.py"
                )
                return replace(verdict, deviation=entry.id, note=note)
            note = f"{entry.id} ({entry.condition}) did not happen here"
            if entry.fixed:
                note += f": a backport of {entry.fixed}"
            return replace(verdict, deviation=entry.id, backport=True, note=note)
        return verdict

    # --- summing up -------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        verdict = getattr(report, "verdict", None)
        if verdict and report.when == "setup":
            self.clauses[report.nodeid] = verdict["clause"]
        died = str(report.when) == "???"  # xdist's word for a test whose worker died
        if died and report.nodeid in self.clauses:
            verdict = asdict(Verdict(self.clauses[report.nodeid]))
        if verdict is None or (report.when != "call" and report.passed):
            return
        outcome = outcome_of(report)
        self.outcomes[verdict["clause"]][outcome] += 1
        self.judged += outcome != "skipped"
        if outcome == "xfailed" or verdict["backport"]:
            counter = self.backports if verdict["backport"] else self.deviations
            counter[verdict["deviation"]] += 1

    def pytest_testnodedown(self, node: Any) -> None:
        if self.kernel is None and "kernel" in getattr(node, "workeroutput", {}):
            self.kernel = Kernel(**node.workeroutput["kernel"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.log.close()
        if self.is_worker and self.needs_kvm:
            vars(self.config)["workeroutput"]["kernel"] = asdict(running_kernel())
        nothing = self.needs_kvm and not self.is_worker and not self.judged
        if nothing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.needs_kvm:
            return
        write = terminalreporter.write_line
        if not self.judged:
            write("no test was run to a verdict: nothing was judged, and that is not a pass")
            return
        terminalreporter.section(f"clauses, {self.kernel}")
        for level, states in self.levels().items():
            counts = Counter(states.values())
            numbers = "  ".join(f"{counts[state]:3} {state}" for state in CLAUSE_STATES)
            write(f"{level:<14}{numbers}")
        not_run = 0
        for id, entry in sorted(CLAUSES.items()):
            outcomes = self.outcomes.get(id, Counter())
            if why := entry.unchecked or _counted(outcomes):
                if not outcomes["passed"]:
                    write(f"no passing test: {id} ({entry.level}): {why}")
            else:
                not_run += 1
        if not_run:
            write(f"no passing test: {not_run} clauses whose tests were not run")
        for name, counter in (("known deviation", self.deviations), ("backport", self.backports)):
            for id, number in sorted(counter.items()):
                write(f"{name}: {id}, {number} test{'s' * (number != 1)}")

    def clause_states(self) -> dict[str, str]:
        """Every clause's state, one of CLAUSE_STATES."""
        return {id: clause_state(self.outcomes.get(id, Counter())) for id in CLAUSES}

    def levels(self) -> dict[str, dict[str, str]]:
        """The clause states by level."""
        states = self.clause_states()
        return {
            level: {id: states[id] for id, entry in CLAUSES.items() if entry.level == level}
            for level in LEVELS
        }


CLAUSE_STATES = ("holds", "deviates", "broken", "not tested")


def clause_state(outcomes: Counter[str]) -> str:
    """``broken`` by any failure, ``deviates`` by any known deviation, ``holds`` by passes alone."""
    if outcomes["failed"] or outcomes["error"]:
        return "broken"
    if outcomes["xfailed"]:
        return "deviates"
    return "holds" if outcomes["passed"] else "not tested"


def outcome_of(report: pytest.TestReport) -> str:
    """passed, failed, error, skipped or xfailed."""
    if hasattr(report, "wasxfail"):
        return "xfailed"
    if report.failed and report.when != "call":
        return "error"
    return str(report.outcome)


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
    return "\n".join([*parts, f"again: {verdict.repeat}"])


def repeat_command(nodeid: str, strict: bool) -> str:
    """The one command that runs this test again."""
    return f"pytest {shlex.quote(nodeid)}" + (" --strict" if strict else "")


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
