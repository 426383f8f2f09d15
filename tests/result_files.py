# SPDX-License-Identifier: GPL-2.0-only
"""Result files for tests to look at: suites with chosen verdicts, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.copy_of_the_suite import Run, Suite

WORKERS = pytest.mark.parametrize("workers", [0, 2], ids="-n{}".format)

BODIES = {
    "passed": "def test_{}():\n    pass",
    "passed, without made-up": "@known(bound='version')\ndef test_{}():\n    pass",
    "xfailed: made-up": "@known()\ndef test_{}():\n    expect('return value', '1', 'other')",
    "xfailed: other": "@known(id='other')\ndef test_{}():\n    expect('return value', '1', 'x')",
    "skipped": "def test_{}():\n    pytest.skip('a precondition is missing')",
    "failed": "def test_{}():\n    assert False",
    "error": "def test_{}(no_such_fixture):\n    pass",
}
"""The code of a test for each verdict."""


def ending(**verdicts: str) -> str:
    """Return tests with these names and verdicts."""
    bodies = (BODIES[verdict].format(name) for name, verdict in verdicts.items())
    return "".join(f'@clause("msi.flags")\n{body}\n\n' for body in bodies)


EVERY = dict(zip("abcdefg", BODIES, strict=True))
"""A name for every verdict."""


def record(suite: Suite, **files: dict[str, str]) -> None:
    """Write an a.json. ``it={"a": "passed"}`` is the verdict of test_it.py::test_a."""
    tests = {
        f"test_{file}.py": {f"test_{name}": {"": verdict} for name, verdict in verdicts.items()}
        for file, verdicts in files.items()
    }
    kernel = {"release": "6.12.9", "vendor": "kvm_amd", "parameters": {}}
    (suite.path / "a.json").write_text(json.dumps({"kernel": kernel, "results": tests}))


def results(file: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return the ``results`` of a result file."""
    return json.loads(file.read_text())["results"]


def write(suite: Suite, *arguments: str) -> Run:
    """Run the suite and require that a.json is written."""
    run = suite.run("--results=a.json", *arguments)
    assert run.lines_with("a.json written: Linux "), run.output
    return run


def comparison(run: Run) -> list[str]:
    """Return the lines of a comparison, without the title."""
    lines = run.output.splitlines()
    [start] = [number for number, line in enumerate(lines) if "compared with " in line]
    [end] = [number for number, line in enumerate(lines) if " the same" in line]
    return lines[start + 1 : end + 1]


TWO_KERNELS = """
from copy import copy
from dataclasses import replace
import pytest
from helpers.verdicts.kernel import running_kernel
from helpers.verdicts.session import VERDICTS, Verdicts

count = Verdicts.pytest_runtest_logreport

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    verdicts = session.config.stash[VERDICTS]
    verdicts.tallies.clear()
    for column in ("5.10", "6.12"):
        verdicts.tally(column).kernel = replace(running_kernel(), release=column + ".99")

def count_twice(self, report):
    for column in self.tallies:
        of_column = copy(report)
        of_column.kvm_column = column
        if column == "5.10" and "test_b" in report.nodeid and report.when == "call":
            of_column.outcome = "failed"
        count(self, of_column)

Verdicts.pytest_runtest_logreport = count_twice
"""
"""A conftest.py for a run on 5.10 and 6.12. test_b fails on 5.10 and passes on 6.12."""


def add_two_files(suite: Suite) -> Suite:
    """Add test_it.py with test_a and test_b, test_other.py with test_c, and their a.json."""
    suite.add(ending(a="passed", b="passed"))
    suite.add(ending(c="passed"), name="suites/test_other.py")
    record(suite, it={"a": "passed", "b": "passed"}, other={"c": "passed"})
    return suite
