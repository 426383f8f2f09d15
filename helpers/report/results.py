"""``--results`` and ``--compare``: verdicts in a file per kernel, to be committed and diffed.

    {"kernel": {"release": "6.12.9", "vendor": "kvm_amd", "parameters": {"kvm_amd.avic": "N"}},
     "results": {"test_flags.py": {"test_undefined_flag_is_rejected": {"[bit1]": "passed"}}}}

The three keys of a verdict make its node id. It has a line of its own, so that a diff shows the
verdicts that differ and nothing else; what varies from run to run, times and paths, is not there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.verdicts.kernel import Kernel
from helpers.verdicts.session import SUITES, VERDICTS
from helpers.verdicts.tally import Tally

PARAMETERS = ("kvm.vector_hashing", "kvm_intel.enable_apicv", "kvm_amd.avic")
"""Module parameters that may change a verdict."""

RANKS = {"passed": 0, "xfailed": 1, "skipped": 2, "failed": 3, "error": 3}
"""From best to worst."""

GROUPS = ("worse", "better", "changed", "new", "gone")
ABSENT = "absent"

_ONE_KERNEL = "a .json file has the results of one kernel (name a directory)"
_SHOWN = 50
_PREFIX = f"{SUITES.name}/"


# --- the file -------------------------------------------------------------------------------------


class NoResults(Exception):
    """A file is not one of results; the message says why, in less than a line."""


@dataclass(frozen=True)
class Results:
    """A file of results. ``kernel`` names it; ``verdicts`` is {node id: str(Result)}."""

    kernel: str
    verdicts: Mapping[str, str]


def serialize(kernel: Kernel, verdicts: Mapping[str, str]) -> str:
    """The text of a file of results."""
    tests: dict[str, dict[str, dict[str, str]]] = {}
    for nodeid, verdict in verdicts.items():
        file, _, test = nodeid.removeprefix(_PREFIX).partition("::")
        name, bracket, parameters = test.partition("[")
        tests.setdefault(file, {}).setdefault(name, {})[bracket + parameters] = verdict
    given = {name: kernel.parameters[name] for name in PARAMETERS if name in kernel.parameters}
    facts = {"release": kernel.release, "vendor": kernel.vendor, "parameters": given}
    # Without indentation: it would be a tenth of the file.
    return json.dumps({"kernel": facts, "results": tests}, indent=0, sort_keys=True) + "\n"


def read(path: Path) -> Results:
    """Read a file of results. Raises NoResults."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise NoResults(error.strerror) from None
    except ValueError as error:
        raise NoResults(f"no JSON: {error}") from None
    try:
        kernel = content["kernel"]
        name = f"Linux {kernel['release']}, {kernel['vendor']}"
        verdicts = dict(_verdicts(content["results"]))
        ranks = [rank(verdict) for verdict in verdicts.values()]
    except (AttributeError, KeyError, TypeError):
        raise NoResults("JSON, but no results of this suite") from None
    if not ranks:
        raise NoResults("results of no test")
    return Results(name, verdicts)


def _verdicts(files: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Iterator[tuple[str, str]]:
    for file, tests in files.items():
        for name, cases in tests.items():
            for parameters, verdict in cases.items():
                yield f"{_PREFIX}{file}::{name}{parameters}", verdict


def rank(verdict: str) -> int:
    """Where in RANKS the outcome of a str(Result) stands. Raises KeyError."""
    return RANKS[re.split("[:,]", verdict, maxsplit=1)[0]]


def replace(path: Path, text: str) -> None:
    """Write a file so that there is the old one or the new one at any time."""
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(text)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


# --- comparing ------------------------------------------------------------------------------------


def compare(was: Mapping[str, str], now: Mapping[str, str], gone: Set[str]) -> dict[str, list[str]]:
    """{group: [line, ...]} of the tests whose verdict is another; ``gone`` are known to be gone."""
    lines: dict[str, list[str]] = {group: [] for group in GROUPS}
    for nodeid in sorted(now.keys() | gone):
        before, after = was.get(nodeid, ABSENT), now.get(nodeid, ABSENT)
        if before != after:
            lines[_group(before, after)].append(f"{nodeid}: {before} -> {after}")
    return lines


def _group(before: str, after: str) -> str:
    if before == ABSENT:
        return "new"
    if after == ABSENT:
        return "gone"
    difference = rank(after) - rank(before)
    return "worse" if difference > 0 else "better" if difference else "changed"


def render(lines: Mapping[str, list[str]], compared: int, not_run: int) -> Iterator[str]:
    """The lines for the terminal: every group's, no more than _SHOWN of one, and their numbers."""
    for group in GROUPS:
        yield from (f"{group}: {line}" for line in lines[group][:_SHOWN])
        if (more := len(lines[group]) - _SHOWN) > 0:
            yield f"... and {more} more {group}"
    numbers = [f"{len(lines[group])} {group}" for group in GROUPS]
    same = compared - sum(len(lines[group]) for group in GROUPS if group != "gone")
    rest = f"; {not_run} did not run" if not_run else ""
    yield ", ".join([*numbers, f"{same} the same"]) + rest


# --- the plugin -----------------------------------------------------------------------------------


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
        help="say what is better or worse than in this file of --results; worse is a failure",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Check the options before anything is fetched, booted or run; register the plugin."""
    option = config.option
    if not (option.results or option.compare) or option.collectonly:
        return
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker(config), "kvm-results-worker")
        return
    if config.getini("strict"):
        raise pytest.UsageError(
            "--results and --compare are not for --strict, where known deviations are failures"
        )
    config.pluginmanager.register(Controller(config), "kvm-results")


class Worker:
    """On one of xdist's workers: says when tests are deselected, which the controller is not told.

    What was said is in ``workeroutput``.
    """

    DESELECTED = "kvm-results-deselected"

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_deselected(self) -> None:
        vars(self.config)["workeroutput"][self.DESELECTED] = True


class Controller:
    """Where all results come in: writes them, and compares them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.results = _results_path(config)
        self.reference = _reference(config)
        self.collected: set[str] = set()
        """The node ids of the tests that judge."""
        self.files: set[str] = set()
        """The files they are in, and those that skip themselves."""
        self.uncollectable: set[str] = set()
        self.is_selection = any("::" in arg for arg in config.args)
        """Whether tests of these files were left out."""
        self.written: list[str] = []
        self.comparisons: list[tuple[str, list[str]]] = []
        """Of each kernel: the title, and the lines."""

    # --- what is run ------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._collect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        self._collect(ids)

    def _collect(self, ids: Iterable[str]) -> None:
        self.collected.update(id for id in ids if id.startswith(_PREFIX))
        self.files.update(_file(id) for id in self.collected)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.uncollectable.add(report.nodeid)
        elif report.skipped:
            self.files.add(report.nodeid)

    def pytest_deselected(self) -> None:
        self.is_selection = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.is_selection |= Worker.DESELECTED in getattr(node, "workeroutput", ())

    def gone(self, nodeids: Set[str]) -> Set[str]:
        """Those of another run's tests that this suite has no more, as far as this run can tell."""
        if self.is_selection:
            return set()
        return {
            nodeid
            for nodeid in nodeids - self.collected
            if (file := _file(nodeid)) in self.files or not (self.config.rootpath / file).exists()
        }

    # --- what came of it --------------------------------------------------------------------------

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        verdicts = self.config.stash[VERDICTS]
        if not verdicts.needs_kvm:
            return
        fine = True
        for tally in verdicts.tallies.values():
            if self.results:
                fine &= self._write(self.results, tally, len(verdicts.tallies))
            if self.reference:
                fine &= self._compare(self.reference, tally)
        if not fine and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, path: Path, tally: Tally, kernels: int) -> bool:
        """Write a kernel's file, unless it would not be a whole one; whether it was written."""
        try:
            if tally.kernel is None:
                raise NoResults("the kernel did not say which it is")
            if not _is_file(path):
                path /= f"{tally.column or tally.kernel.release}.json"
            elif kernels > 1:
                raise NoResults(_ONE_KERNEL)
            self._require_whole(path, tally)
            replace(path, serialize(tally.kernel, _texts(tally)))
        except (NoResults, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.written.append(f"{path} not written: {reason}")
            return False
        self.written.append(f"{path} written: {tally.kernel}")
        return True

    def _require_whole(self, path: Path, tally: Tally) -> None:
        """Raise NoResults where tests are missing that were to be run, or that the file has."""
        if self.uncollectable:
            raise NoResults(f"{', '.join(sorted(self.uncollectable))} could not be collected")
        if not tally.judged:
            raise NoResults("nothing was judged")
        missing = self.collected - tally.results.keys()
        if len(missing) > tally.left:  # the number of tests that --maxfail-each left out
            raise NoResults(f"{len(missing)} of {len(self.collected)} tests came to no verdict")
        try:
            there = read(path).verdicts.keys()
        except NoResults:
            return
        if lost := there - (self.collected - missing) - self.gone(there):
            raise NoResults(f"it has {len(lost)} tests that were not part of this run")

    def _compare(self, reference: Results, tally: Tally) -> bool:
        """Compare a kernel's results; whether none is worse."""
        was, now = reference.verdicts, _texts(tally)
        lines = compare(was, now, self.gone(was.keys()))
        title = f"compared with {self.config.option.compare} ({reference.kernel})"
        not_run = len(self.collected - now.keys())
        text = list(render(lines, len(now), not_run))
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


def _is_file(path: Path) -> bool:
    """Whether --results names a file; else it is a directory."""
    return path.suffix == ".json"


def _results_path(config: pytest.Config) -> Path | None:
    """What --results names, once it can be written to."""
    option = config.option
    if not option.results:
        return None
    path = Path(option.results).expanduser()
    kernels = set(option.kernel)
    if _is_file(path) and len(kernels) > 1:
        raise pytest.UsageError(
            f"--results={path}: {_ONE_KERNEL}, and --kernel names {len(kernels)}"
        )
    directory = path.parent if _is_file(path) else path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--results={path}: {directory}: {error.strerror}") from None
    return path


def _reference(config: pytest.Config) -> Results | None:
    """What --compare names."""
    name = config.option.compare
    if not name:
        return None
    try:
        return read(Path(name).expanduser())
    except NoResults as reason:
        raise pytest.UsageError(
            f"--compare={name}: {reason}; to make it: pytest {_PREFIX} --results={name}"
        ) from None


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _texts(tally: Tally) -> dict[str, str]:
    return {nodeid: str(result) for nodeid, result in tally.results.items()}
