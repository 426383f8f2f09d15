# SPDX-License-Identifier: GPL-2.0-only
"""The outputs for a kernel's CI, for tests to look at: KTAP and KCIDB, checked by their rules."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kcidb_io

from helpers.ci.ended import Ended
from helpers.verdicts.reports import Verdict
from tests import kunit

OUTCOMES = """
import time

@clause("msi.flags")
def test_passes(): pass

@clause("msi.flags")
def test_fails(): expect("return value", "1", "0")

@clause("msi.flags")
def test_skips(): pytest.skip("no SMM # here")

@clause("msi.flags")
@known()
def test_deviates(): expect("return value", "1", "x")

@clause("msi.flags")
@pytest.mark.timeout(1)
def test_hangs(machine):
    while True: machine[1].vcpu.run()

@clause("msi.flags")
def test_errs(no_such_fixture): pass

@clause("msi.flags")
@known(bound="version")
def test_is_backported(): pass

@clause("msi.flags")
@pytest.mark.parametrize("value", ["a b", "c#d"])
def test_value(value): pass
"""
STATUSES = {
    "test_passes": "SUCCESS",
    "test_fails": "FAILURE",
    "test_skips": "SKIPPED",
    "test_deviates": "SUCCESS",
    "test_hangs": "FAILURE",
    "test_errs": "FAILURE",
    "test_is_backported": "SUCCESS",
    "test_value[a b]": "SUCCESS",
    "test_value[c%23d]": "SUCCESS",
}
"""What the kernel's parser makes of OUTCOMES."""


IT, OTHER = "suites/test_it.py", "suites/test_other.py"


def ended(column: str, file: str, test: str, outcome: str = "passed", *lines: str) -> Ended:
    """Return the end of a test."""
    return Ended(f"{file}::{test}", column, outcome, "", lines, Verdict(""), [], 0, 0)


@dataclass
class _Level:
    """A level of a document that is being read: the results so far, and the plan."""

    results: dict[str, Any] = field(default_factory=dict)
    plan: int | None = None
    has_failed: bool = False


def check_ktap(text: str) -> dict[str, Any]:
    """Require what ktap.rst demands. Return {test: status}, with subtests {test: statuses}.

    Plans hold, numbers are successive, the parent of a failure fails. The kernel's own parser, if
    the cache has it, must see the same.
    """
    levels: list[_Level] = []
    for line in text.splitlines():
        depth, rest = divmod(len(line) - len(line.lstrip()), 2)
        assert not rest, line
        words = line.strip()
        if words == "KTAP version 1":
            assert depth == len(levels), line
            levels.append(_Level())
        elif plan := re.fullmatch(r"1\.\.(\d+)(?: # SKIP .+)?", words):
            levels[-1].plan = int(plan[1])
        elif not words.startswith("#"):
            below = levels.pop() if depth == len(levels) - 2 else None
            assert depth == len(levels) - 1, line
            _take(levels[-1], below, words)
    [top] = levels
    assert top.plan in (None, len(top.results))
    if top.results and kunit.is_here():
        parsed = kunit.parse(text)
        assert (parsed.errors, parsed.statuses) == (0, top.results)
    return top.results


def _take(level: _Level, below: _Level | None, words: str) -> None:
    """Add a result line to ``level``. ``below`` holds its subtests."""
    result = re.fullmatch(r"(ok|not ok) (\d+) ([^#]*[^# ])(?: # (\S.*))?", words)
    assert result, words
    is_ok, name, directive = result[1] == "ok", result[3], result[4] or ""
    assert name not in level.results, words
    assert int(result[2]) == len(level.results) + 1, words
    assert not (is_ok and directive.startswith(("TIMEOUT", "ERROR"))), words
    status = "SKIPPED" if directive.startswith("SKIP") else "SUCCESS" if is_ok else "FAILURE"
    if below:
        assert below.plan == len(below.results), words
        assert not (below.has_failed and is_ok), words
    level.has_failed |= not is_ok
    level.results[name] = below.results if below else status


def kcidb_of(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a report for KCIDB, after its schema accepted it."""
    content = json.loads(file.read_text())
    kcidb_io.schema.LATEST.validate_exactly(content)
    ids = {kind: [each["id"] for each in content[kind]] for kind in content if kind != "version"}
    assert all(len(set(each)) == len(each) for each in ids.values())
    assert {test["build_id"] for test in content["tests"]} <= set(ids["builds"])
    assert {each["issue_id"] for each in content["incidents"]} == set(ids["issues"])
    assert {each["test_id"] for each in content["incidents"]} <= set(ids["tests"])
    return content


def statuses(content: dict[str, list[dict[str, Any]]], column: str = "") -> dict[str, str]:
    """Return {test: status} of a column, without files; "" is the summary."""
    return {
        test["misc"].get("nodeid", "").partition("::")[2]: test["status"]
        for test in content["tests"]
        if test["misc"].get("column", "") == column
    }
