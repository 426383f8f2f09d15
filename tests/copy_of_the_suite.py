# SPDX-License-Identifier: GPL-2.0-only
"""Copies of the project with other tests in suites/, run in a process of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PRELUDE = '''\
import pytest
from helpers.guest import Mismatch, expect
from helpers.apic import Message
from helpers.spec import CLAUSES, Deviation
from helpers.verdicts import clause
from helpers.verdicts.kernel import running_kernel

EXPECTED = ("-1 EINVAL", "0", "other", "x")

def known(bound="every", applies=True, shows="1", id="made-up"):
    """Mark a test with a deviation: "return value" is `shows`, and one of EXPECTED is expected."""
    kernel = running_kernel()
    major, minor = kernel.version
    given = {}
    if bound == "version" or not applies:
        given = {"before": f"{major + 1}.0" if applies else "1.0", "fixed": "abcdef"}
    if bound == "host":
        given = {"vendor": kernel.vendor if applies else "kvm_other"}
    return pytest.mark.deviation(
        Deviation(
            id,
            "A summary.",
            tuple(("return value", expected, shows) for expected in EXPECTED),
            "no evidence",
            **given,
        )
    )

'''


@dataclass(frozen=True)
class Run:
    """A finished pytest run. ``outcomes`` are the numbers of the last line: ``{"passed": 2}``."""

    exit_code: int
    output: str

    @property
    def outcomes(self) -> dict[str, int]:
        last = self.output.rstrip().splitlines()[-1]
        return {name: int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", last)}

    def lines_with(self, text: str) -> list[str]:
        return [line for line in self.output.splitlines() if text in line]


class Suite:
    """A copy of the project at ``path``, with an empty suites/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(ROOT / "helpers", path / "helpers")
        for name in ("conftest.py", "pytest.ini"):
            shutil.copy(ROOT / name, path / name)
        self.write("suites/__init__.py", "")

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def add(self, tests: str, name: str = "suites/test_it.py") -> None:
        """Write a file of tests, which start with PRELUDE."""
        self.write(name, PRELUDE + tests)

    def prepare(self, statements: str) -> None:
        """Write statements that a run executes before the session starts."""
        self.write("suites/conftest.py", statements)

    def run(self, *arguments: str, **environment: str) -> Run:
        """Run ``pytest suites ARGUMENTS`` with ``environment`` added to this process's."""
        return run_pytest(self.path, "suites", *arguments, **environment)


def run_pytest(directory: Path, *arguments: str, remember: bool = False, **environment: str) -> Run:
    """Run pytest as a user does in ``directory``; ``remember`` the failures, for --lf."""
    forget = [] if remember else ["-p", "no:cacheprovider"]
    forget += ["-p", "no:benchmark"]  # A user has no pytest-benchmark, which leaves a directory.
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *forget, *arguments],
        cwd=directory,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout)
