"""A copy of the suite with other tests in it, run in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PRELUDE = """\
import pytest
from helpers.guest import Mismatch, expect
from helpers.apic import Message
from helpers.spec import CLAUSES, Deviation
from helpers.verdicts import clause
from helpers.verdicts.kernel import running_kernel

def known(bound="every", applies=True, shows="1", id="made-up"):
    '''A deviation: "return value" is `shows`, on kernels bound in some way.'''
    kernel = running_kernel()
    major, minor = kernel.version
    given = {}
    if bound == "version" or not applies:
        given = {"before": f"{major + 1}.0" if applies else "1.0", "fixed": "abcdef"}
    if bound == "host":
        given = {"vendor": kernel.vendor if applies else "kvm_other"}
    return pytest.mark.deviation(
        Deviation(id, "A summary.", (("return value", shows),), "no evidence", **given)
    )

"""


@dataclass(frozen=True)
class Run:
    """How a pytest run ended. ``outcomes`` is its last line: ``{"passed": 2, "failed": 1}``."""

    exit_code: int
    output: str

    @property
    def outcomes(self) -> dict[str, int]:
        last = self.output.rstrip().splitlines()[-1]
        return {name: int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", last)}

    def lines_with(self, text: str) -> list[str]:
        return [line for line in self.output.splitlines() if text in line]


class Suite:
    """The project's files at ``path``, but for the tests."""

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
        """A file of tests, which need not import anything."""
        self.write(name, PRELUDE + tests)

    def prepare(self, statements: str) -> None:
        """Statements that are executed before the run starts."""
        self.write("suites/conftest.py", statements)

    def run(self, *arguments: str, **environment: str) -> Run:
        """``pytest suites ARGUMENTS``; ``environment`` is added to this process's own."""
        return run_pytest(self.path, "suites", *arguments, **environment)


def run_pytest(directory: Path, *arguments: str, remember: bool = False, **environment: str) -> Run:
    """pytest as a user in ``directory`` runs it; ``remember`` the failures, for --lf."""
    forget = [] if remember else ["-p", "no:cacheprovider"]
    forget += ["-p", "no:benchmark"]  # a user does not have it; it leaves a directory
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
