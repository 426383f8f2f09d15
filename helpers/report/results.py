# SPDX-License-Identifier: GPL-2.0-only
"""Result files: the verdicts of one kernel, to be committed, diffed and compared.

    {"kernel": {"release": "6.12.9", "vendor": "kvm_amd", "processor": "AMD EPYC 9654",
                "parameters": {"kvm_amd.avic": "N"}},
     "results": {"test_flags.py": {"test_undefined_flag_is_rejected": {"[bit1]": "passed"}}}}

A kernel of another architecture than x86-64 has an "architecture", too.

File, function and parameters make the node id of a test. Each verdict has a line of its own, so
that a diff shows the verdicts that differ and nothing else. Times, paths and whatever else varies
from run to run are left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from helpers.spec.architectures import X86_64
from helpers.spec.parameters import PARAMETERS
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.session import SUITES

RANKS = {"passed": 0, "xfailed": 1, "skipped": 2, "failed": 3, "timeout": 3, "error": 3}
"""Outcomes, from best to worst."""

GROUPS = ("worse", "better", "changed", "new", "gone")
ABSENT = "absent"
MAX_BYTES = 64 << 20
"""The size of a file, which is 300 KB."""
MAX_LINES = 50
"""Tests named per group of a comparison."""

PREFIX = f"{SUITES.name}/"


# --- the file -------------------------------------------------------------------------------------


class NoResults(Exception):
    """Raised for a file that is no result file, or cannot be written. The message is one line."""


@dataclass(frozen=True)
class RecordedVerdicts:
    """The content of a result file: the kernel's name, and verdicts by node id (str(Result))."""

    kernel: str
    verdicts: Mapping[str, str]


def file_name(kernel: Kernel, column: str) -> str:
    """Return the name of a kernel's file, which names arm64, or an Intel processor.

    ``column`` is the label of a booted kernel; empty for the running kernel.
    """
    booted, space, settings = column.partition(" ")
    processor = "-intel" * (kernel.vendor == "kvm_intel")
    if kernel.architecture != X86_64.name:
        processor = f"-{kernel.architecture}"
    stem = f"{booted.removesuffix(processor)}{processor}{space}{settings}"
    return f"{stem if column else kernel.release}.json"


def serialize(kernel: Kernel, verdicts: Mapping[str, str]) -> str:
    """Return the text of a result file."""
    tests: dict[str, dict[str, dict[str, str]]] = {}
    for nodeid, verdict in verdicts.items():
        file, _, test = nodeid.removeprefix(PREFIX).partition("::")
        name, bracket, parameters = test.partition("[")
        tests.setdefault(file, {}).setdefault(name, {})[bracket + parameters] = verdict
    given = {name: kernel.parameters[name] for name in PARAMETERS if name in kernel.parameters}
    # A file without an architecture is older than --arch, and of x86-64.
    names = {} if kernel.architecture == X86_64.name else {"architecture": kernel.architecture}
    facts = {
        **names,
        **{"release": kernel.release, "vendor": kernel.vendor, "processor": kernel.cpu},
        "parameters": given,
    }
    # Indentation would be a tenth of the file.
    return json.dumps({"kernel": facts, "results": tests}, indent=0, sort_keys=True) + "\n"


def read(path: Path) -> RecordedVerdicts:
    """Return the content of a result file. Raise NoResults if the file is none."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise NoResults(f"more than {MAX_BYTES >> 20} MiB")
        content = json.loads(text.decode())
    except OSError as error:
        raise NoResults(error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise NoResults(f"not JSON: {error}") from None
    try:
        kernel = content["kernel"]
        name = f"Linux {kernel['release']}, {kernel['vendor']}"
        verdicts = {
            f"{PREFIX}{file}::{name}{parameters}": verdict
            for file, tests in content["results"].items()
            for name, cases in tests.items()
            for parameters, verdict in cases.items()
        }
        ranks = [rank(verdict) for verdict in verdicts.values()]
        texts = [kernel["release"], kernel["vendor"], *verdicts, *verdicts.values()]
        # The terminal gets these, and obeys control characters.
        if not all(map(str.isprintable, texts)):
            raise NoResults("JSON, but with unprintable characters")
    except (AttributeError, KeyError, TypeError):
        raise NoResults("JSON, but not written by --results") from None
    if not ranks:
        raise NoResults("the results of no test")
    return RecordedVerdicts(name, verdicts)


def rank(verdict: str) -> int:
    """Return the rank of a verdict's outcome. Raise KeyError for an unknown outcome."""
    return RANKS[re.split("[:,]", verdict, maxsplit=1)[0]]


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step: at any time the file has either its old or its new content."""
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(text)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


# --- which tests a run covers ---------------------------------------------------------------------


@dataclass
class Coverage:
    """The tests and files of suites/ that a run collected.

    ``tests`` are node ids. ``files`` are the files of these tests, and files that skip themselves.
    ``uncollectable`` are files that could not be collected. ``is_selection`` is True if the command
    line left out tests of ``files``.
    """

    root: Path
    tests: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    uncollectable: set[str] = field(default_factory=set)
    is_selection: bool = False

    def add(self, nodeids: Iterable[str]) -> None:
        """Add collected tests. Tests outside of suites/ judge no kernel and are ignored."""
        collected = {nodeid for nodeid in nodeids if nodeid.startswith(PREFIX)}
        self.tests |= collected
        self.files.update(map(_file, collected))

    def gone(self, nodeids: Set[str]) -> Set[str]:
        """Return the tests of another run that are no longer in the suite.

        A test that is not collected is gone if its file was collected as a whole, or if the file
        does not exist.
        """
        if self.is_selection:
            return set()
        return {
            nodeid
            for nodeid in nodeids - self.tests
            if (file := _file(nodeid)) in self.files or not (self.root / file).exists()
        }


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


# --- comparing ------------------------------------------------------------------------------------


def compare(was: Mapping[str, str], now: Mapping[str, str], gone: Set[str]) -> dict[str, list[str]]:
    """Return a line for each test whose verdict differs, by group. Not run is not gone."""
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
    """Yield a comparison for the terminal: MAX_LINES lines of each group, then the numbers."""
    for group in GROUPS:
        yield from (f"{group}: {line}" for line in lines[group][:MAX_LINES])
        if (more := len(lines[group]) - MAX_LINES) > 0:
            yield f"... and {more} more {group}"
    numbers = [f"{len(lines[group])} {group}" for group in GROUPS]
    same = compared - sum(len(lines[group]) for group in GROUPS if group != "gone")
    rest = f"; {not_run} did not run" if not_run else ""
    yield ", ".join([*numbers, f"{same} the same"]) + rest
