# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin behind ``--results`` and ``--compare``: writes and compares result files.

With pytest-xdist the controller writes and compares; see DeselectionRelay for its workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from helpers.report import results
from helpers.report.results import PREFIX, NoResults
from helpers.verdicts.session import VERDICTS
from helpers.verdicts.tally import Tally

_MANY = re.compile(",|^matrix$")
"""Matches a value of --kvm-param that makes several columns of a kernel."""
_ONE_KERNEL = "a .json file has the results of one kernel; name a directory"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --results and --compare."""
    group = parser.getgroup("results")
    group.addoption(
        "--results",
        metavar="PATH",
        help="write the verdicts to this file (*.json), or to a file for each kernel in this "
        "directory",
    )
    group.addoption(
        "--compare",
        metavar="FILE",
        help="list the tests that are better or worse than in this file of --results; fail if any "
        "test is worse",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Check the options before a kernel is fetched or booted, and register the plugin."""
    option = config.option
    if (option.results is None and option.compare is None) or option.collectonly:
        return
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(DeselectionRelay(config), "kvm-deselection-relay")
        return
    if config.getini("strict"):
        raise pytest.UsageError(
            "--results and --compare record known deviations, which --strict turns into failures: "
            "leave out --strict"
        )
    config.pluginmanager.register(ResultsPlugin(config), "kvm-results")


class DeselectionRelay:
    """Tells the controller of pytest-xdist that a worker deselected tests.

    pytest-xdist reports only the tests that are left. ``workeroutput`` reaches the controller when
    the worker ends.
    """

    KEY = "kvm-deselected"

    def __init__(self, config: Any) -> None:
        self.output: dict[str, object] = config.workeroutput

    def pytest_deselected(self) -> None:
        self.output[self.KEY] = True


class ResultsPlugin:
    """Writes the results of a run, and compares them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.path = _results_path(config)
        self.reference = _reference(config)
        is_selection = any("::" in arg for arg in config.args)
        self.coverage = results.Coverage(config.rootpath, is_selection=is_selection)
        # For the terminal: a line for each file; title and lines of each kernel's comparison.
        self.written: list[str] = []
        self.comparisons: list[tuple[str, list[str]]] = []

    # --- which tests the run covers ---------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.coverage.add(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        self.coverage.add(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.coverage.uncollectable.add(report.nodeid)
        elif report.skipped:
            self.coverage.files.add(report.nodeid)

    def pytest_deselected(self) -> None:
        self.coverage.is_selection = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that died has no workeroutput.
        if DeselectionRelay.KEY in getattr(node, "workeroutput", ()):
            self.coverage.is_selection = True

    # --- the end of the run -----------------------------------------------------------------------

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        verdicts = self.config.stash[VERDICTS]
        if not verdicts.needs_kvm:
            return
        is_good = True
        for tally in verdicts.tallies.values():
            if self.path:
                is_good &= self._write(self.path, tally, len(verdicts.tallies))
            if self.reference:
                is_good &= self._compare(self.reference, tally)
        if not is_good and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, path: Path, tally: Tally, kernels: int) -> bool:
        """Write a kernel's result file if the results are whole. Return whether that was done."""
        try:
            if tally.kernel is None:
                raise NoResults("the kernel did not report its release")
            if not _is_file(path):
                path /= results.file_name(tally.kernel, tally.column)
            elif kernels > 1:
                raise NoResults(_ONE_KERNEL)
            self._require_whole(path, tally)
            results.replace_file(path, results.serialize(tally.kernel, _verdicts_of(tally)))
        except (NoResults, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.written.append(f"{path} not written: {reason}")
            return False
        self.written.append(f"{path} written: {tally.kernel}")
        return True

    def _require_whole(self, path: Path, tally: Tally) -> None:
        """Raise NoResults if a collected test has no verdict, or if the file has other tests."""
        coverage = self.coverage
        if coverage.uncollectable:
            raise NoResults(f"{', '.join(sorted(coverage.uncollectable))} could not be collected")
        if not tally.judged:
            raise NoResults("no test came to a verdict")
        missing = coverage.tests - tally.results.keys()
        if len(missing) > tally.left:  # the tests that --maxfail-each left out
            raise NoResults(
                f"{len(missing)} of {len(coverage.tests)} tests came to no verdict; run them all"
            )
        try:
            recorded = results.read(path).verdicts.keys()
        except NoResults:
            return
        if lost := recorded - (coverage.tests - missing) - coverage.gone(recorded):
            raise NoResults(
                f"the run left out {len(lost)} of the file's tests; "
                f"run all of {PREFIX} or name another file"
            )

    def _compare(self, reference: results.RecordedVerdicts, tally: Tally) -> bool:
        """Compare a kernel's results. Return whether no test is worse."""
        was, now = reference.verdicts, _verdicts_of(tally)
        lines = results.compare(was, now, self.coverage.gone(was.keys()))
        title = f"compared with {self.config.option.compare} ({reference.kernel})"
        not_run = len(self.coverage.tests - now.keys())
        text = list(results.render(lines, len(now), not_run))
        self.comparisons.append((f"{tally.column} {title}".strip(), text))
        return not lines["worse"]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        for title, lines in self.comparisons:
            terminalreporter.section(title)
            for line in lines:
                write(line)
        for line in self.written:
            write(line)
        if not (self.written or self.comparisons):
            write("no kernel was judged: there are no results to write or to compare")


def _verdicts_of(tally: Tally) -> dict[str, str]:
    return {nodeid: str(result) for nodeid, result in tally.results.items()}


# --- the options ----------------------------------------------------------------------------------


def _is_file(path: Path) -> bool:
    """Return whether --results names a file, not a directory."""
    return path.suffix == ".json"


def _results_path(config: pytest.Config) -> Path | None:
    """Return the path of --results, after making its directory. Raise UsageError."""
    option = config.option
    if not option.results:
        return None
    path = Path(option.results).expanduser()
    kernels = set(option.kernel)
    if _is_file(path) and len(kernels) > 1:
        raise pytest.UsageError(
            f"--results={path}: --kernel names {len(kernels)} kernels, and {_ONE_KERNEL}"
        )
    has_columns = len(option.kvm_modules) > 1 or any(map(_MANY.search, option.kvm_param))
    if _is_file(path) and has_columns:
        raise pytest.UsageError(f"--results={path}: each kernel has several columns; {_ONE_KERNEL}")
    directory = path.parent if _is_file(path) else path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"--results={path}: cannot make the directory {directory}: {error.strerror}; "
            "name a directory, or a file that ends in .json"
        ) from None
    return path


def _reference(config: pytest.Config) -> results.RecordedVerdicts | None:
    """Return the content of --compare's file. Raise UsageError."""
    name = config.option.compare
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        raise pytest.UsageError(f"--compare={name} is a directory: name one of its files")
    try:
        return results.read(path)
    except NoResults as reason:
        raise pytest.UsageError(
            f"--compare={name}: {reason}; write such a file with: "
            f"pytest {PREFIX} --results=FILE.json"
        ) from None
