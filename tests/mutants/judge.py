# SPDX-License-Identifier: GPL-2.0-only
"""Run the suite on mutants, many mutants per boot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.kernels.boot import PROJECT
from tests.mutants.mutant import Mutant

# Mutants per boot. A mutant that kills the kernel costs the others of its batch a new boot.
BATCH = 12


@dataclass
class MutantResult:
    """The result of a run on one mutant.

    ``failures`` maps the id of each failed test to its position in the suite, and ``tests`` is the
    number of tests run: the clause's, or the whole suite's up to the first failure where
    ``whole_suite`` is set. ``reasons`` has a line for each failed test. A mutant that was not
    judged has an ``error``; ``broken`` if the kernel is the cause, which did not load or died
    between tests.
    """

    failures: dict[str, int] = field(default_factory=dict)
    tests: int = 0
    whole_suite: bool = False
    reasons: dict[str, str] = field(default_factory=dict)
    error: str = ""
    broken: bool = False

    @property
    def caught(self) -> bool:
        """Whether a test of the mutant's clause failed."""
        return bool(self.failures) and not self.whole_suite and not self.error

    def cell(self, clause: str) -> str:
        """Return the last cell of the mutant's row; ``clause`` is the mutant's."""
        if self.error:
            return f"ERROR: {self.error}"
        if not self.failures:
            return "SURVIVED"
        first = min(self.failures, key=self.failures.__getitem__).removeprefix("suites/")
        if self.whole_suite:
            return f"`{first}`, none of {clause}"
        return f"`{first}` ({len(self.failures)} of {self.tests})"


def batches(chosen: Sequence[Mutant]) -> list[list[Mutant]]:
    """Split mutants into those that share a boot; see ``Mutant.alone`` and ``Mutant.apicv``."""
    shared = []
    for apicv in (True, False):
        together = [each for each in chosen if not each.alone and each.apicv == apicv]
        shared += [together[first : first + BATCH] for first in range(0, len(together), BATCH)]
    return shared + [[mutant] for mutant in chosen if mutant.alone]


def judge(
    kernel: str,
    modules: Mapping[str, Path],
    batch: Sequence[Mutant],
    options: Sequence[str],
    program: Path | None = None,
) -> dict[str, MutantResult]:
    """Return {mutant id: MutantResult}; ``modules`` has the directory of each mutant's modules.

    The tests of a mutant's clause run first, as C if there is a ``program``. If none of them fails,
    they run in Python, and then the whole suite until the first failure.
    """
    clauses = {mutant.id: mutant.clause for mutant in batch}
    caught = {}
    if program:
        by_program = [*options, f"--program={program}"]
        results = run(kernel, {id: modules[id] for id in clauses}, clauses, by_program)
        caught = {id: found for id, found in results.items() if found.failures and not found.error}
        clauses = {id: clause for id, clause in clauses.items() if id not in caught}
    if not clauses:
        return caught
    # A kernel that dies in every test would cost a boot per test.
    leave = ["--maxfail-each=1"] if any(mutant.alone for mutant in batch) else []
    results = run(kernel, {id: modules[id] for id in clauses}, clauses, [*options, *leave])
    for id in clauses:
        # Another mutant of the boot may have caused the error.
        if results[id].error and len(batch) > 1:
            results |= run(kernel, {id: modules[id]}, clauses, options)
    missed = [id for id, found in results.items() if not (found.failures or found.error)]
    if missed:
        once = [*options, "--maxfail-each=1"]
        results |= run(kernel, {id: modules[id] for id in missed}, {}, once)
    return caught | results


@dataclass(frozen=True)
class Order:
    """The order of the tests of mutants in ``functions``, {mutant id: function}; see order.py."""

    functions: Mapping[str, str] = field(default_factory=dict)
    caught: Sequence[str] = ()
    quick: int = 0


def run(
    kernel: str,
    modules: Mapping[str, Path],
    clauses: Mapping[str, str],
    options: Sequence[str],
    suites: Sequence[str] = ("suites",),
    order: Order | None = None,
) -> dict[str, MutantResult]:
    """Run ``suites`` once and return {mutant id: MutantResult}.

    A mutant in ``clauses`` gets the tests of its clause, any other the whole suite.
    """
    with tempfile.TemporaryDirectory() as directory:
        job, record = Path(directory, "job"), Path(directory, "record")
        given = {"clauses": dict(clauses), **asdict(order or Order())}
        job.write_text(json.dumps(given | {"record": str(record)}))
        record.touch()
        command = [sys.executable, "-m", "tests.mutants.record", str(job), *suites]
        command += [f"--kernel={kernel}", "-q", "-p", "no:cacheprovider", *options]
        command += [f"--kvm-modules={place}" for place in modules.values()]
        environ = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environ, cwd=PROJECT
        )
        lines = [json.loads(line) for line in record.read_text().splitlines()]
    said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    results = {id: MutantResult(whole_suite=id not in clauses, error=said[-1]) for id in modules}
    for line in lines:
        found = results[line["mutant"]]
        if "test" in line:
            found.failures[line["test"]] = line["position"]
            found.reasons[line["test"]] = line["reason"]
        else:
            found.tests = line["tests"]
            found.broken = bool(line["broken"])
            found.error = line["broken"] or ("" if found.tests else "no test ran")
    return results


def log(line: str) -> None:
    """Write a line on the progress of a run."""
    print(line, file=sys.stderr, flush=True)
