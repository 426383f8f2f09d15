# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--reproducers`` and ``--program``: tests as C programs."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.directories import made_directory
from helpers.kernels.boot import Guest
from helpers.kernels.columns import Boot
from helpers.kernels.packages import KernelError
from helpers.program.booted import Program, ProgramGuest, reporter
from helpers.program.source import Case, reproducer
from helpers.program.statements import NotInC
from helpers.program.text import c_identifier
from helpers.record.reports import tape_of
from helpers.record.tape import Tape
from helpers.spec import CLAUSES
from helpers.verdicts.reports import REPRODUCER, column_of, verdict_of
from helpers.verdicts.session import VERDICTS

_SECONDS = 60
_COMPILE = ("gcc", "-O2", "-Wall", "-Werror", "-o")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --reproducers and --program."""
    group = parser.getgroup("C programs")
    group.addoption(
        "--program",
        metavar="FILE",
        nargs="?",
        const="",
        help="run the tests in booted kernels as the C program FILE of python -m helpers.program; "
        "without FILE the whole suite is recorded on the running kernel first",
    )
    group.addoption(
        "--reproducers",
        metavar="DIR",
        help="write a C program into DIR for each failed test, compile it, and run it on the "
        "kernel that failed",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Record the tests, in the workers and guests, too."""
    directory: str | None = config.option.reproducers
    if directory is None or hasattr(config, "workerinput"):
        return
    made = made_directory("--reproducers", directory)
    config.pluginmanager.register(Reproducers(config, made))


def pytest_kvm_launcher(session: pytest.Session) -> Callable[[Boot], Guest] | None:
    """Boot the C program with --program. Deselect the tests that have no C."""
    source = session.config.option.program
    if source is None:
        return None
    program = Program.of(source)
    known = set(program.tests)
    left_out = [item for item in session.items if item.nodeid not in known]
    session.items[:] = [item for item in session.items if item.nodeid in known]
    session.config.hook.pytest_deselected(items=left_out)
    if not session.items:
        raise KernelError("--program has none of the chosen tests")
    report = reporter(session)
    maxfail = session.config.option.maxfail_each
    return lambda boot: ProgramGuest(boot, program, report, maxfail)


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of the C program of a failed test: its ``path``, and ``program`` if compiled."""

    note: str
    path: str = ""
    program: Path | None = None


class Reproducers:
    """Writes the programs, and runs them if the tests run on this machine's kernel."""

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self.written: list[str] = []
        self._made: dict[tuple[str, str], _Made] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and (made := self._make(report)):
            note = made.note
            if made.program and not self.config.option.kernel:
                note += f": {outcome_of(made.program.resolve())}"
                self.config.stash[VERDICTS].log.complaints()  # the next test is not to blame
            report.sections.append(("reproducer", note))

    def pytest_kvm_program(self, report: pytest.TestReport) -> bytes | None:
        """Return the program of a failed test for the guest in which the test failed."""
        made = self._make(report)
        return made.program.read_bytes() if made and made.program else None

    def _make(self, report: pytest.TestReport) -> _Made | None:
        """Write and compile the program of a failed test, once; None for one without a tape."""
        tape = tape_of(report)
        if tape is None:
            return None
        key = report.nodeid, column_of(report)
        if key not in self._made:
            self._made[key] = self._reproduce(report, tape)
        if self._made[key].path:
            REPRODUCER.put(report, self._made[key].path)
        return self._made[key]

    def _reproduce(self, report: pytest.TestReport, tape: Tape) -> _Made:
        names = c_identifier(report.nodeid), re.sub(r"\W+", "_", column_of(report))
        path = self.directory / f"{'-'.join(filter(None, names))}.c"
        try:
            text = reproducer(Case(report.nodeid, tape), _about(report, tape, path))
        except NotInC as missing:
            return _Made(f"no C program: {missing}")
        try:
            path.write_text(text)
        except OSError as error:
            return _Made(f"{path} cannot be written: {error.strerror}")
        self.written.append(str(path))
        program = path.with_suffix("")
        try:
            built = subprocess.run(
                [*_COMPILE, program, path], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return _Made(f"{path}: not compiled, gcc: {error.strerror}", str(path))
        if built.returncode:
            return _Made(f"{path}: gcc fails:\n{built.stderr}", str(path))
        return _Made(str(path), str(path), program)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for path in self.written:
            terminalreporter.write_line(f"reproducer: {path}")


def outcome_of(program: Path) -> str:
    """Run a reproducer. Return the outcome in words."""
    try:
        done = subprocess.run(
            [program], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"the program does not end within {_SECONDS} s"
    how = {0: "passes", 1: "fails, too"}.get(done.returncode, f"exits {done.returncode}")
    return f"the program {how}: {(done.stdout + done.stderr).strip()}"


def pytest_kvm_run_program(program: bytes) -> str:
    """Run a reproducer in a guest."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "reproducer")
        path.write_bytes(program)
        path.chmod(0o755)
        return outcome_of(path)


def _about(report: pytest.TestReport, tape: Tape, path: Path) -> str:
    """Return the head comment of a reproducer: the test, its clause, and the failure."""
    clause = CLAUSES[tape.clause]
    verdict = verdict_of(report)
    repeat = verdict.repeat if verdict else ""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [
        report.nodeid,
        "",
        f"Clause {clause.id} ({clause.level}; {clause.source}):",
        *_wrapped(clause.text),
        "",
        *_wrapped(str(getattr(crash, "message", "")).splitlines()[0] if crash else ""),
        "",
        f"Made while this test failed: {repeat or shlex.join(['pytest', report.nodeid])}",
        f"  gcc -O2 -o test {path.name} && ./test",
        "Exit code: 0 if the kernel behaves as the clause requires, 1 if not, 4 without /dev/kvm.",
    ]
    return "\n".join(line.replace("*/", "* /") for line in lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 94)
