"""Running the suite on mutants, many on one boot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.kernels.boot import PROJECT
from tests.mutants.mutant import Mutant

UNMUTATED = "unmutated"
_BATCH = 12  # mutants; one that kills the kernel costs its batch another boot


@dataclass
class Fate:
    """What became of a mutant: {failed test: its place in the suite}, of ``run`` tests.

    ``is_whole``: all tests were run until one failed, since none of the mutant's clause did.
    ``error``: why it was not judged.
    """

    failures: dict[str, int] = field(default_factory=dict)
    run: int = 0
    is_whole: bool = False
    error: str = ""

    def says(self, mutant: Mutant) -> str:
        """A cell of the table."""
        if self.error:
            return f"ERROR: {self.error}"
        if not self.failures:
            return "argued" if mutant.argued else "SURVIVED"
        first = min(self.failures, key=self.failures.__getitem__).removeprefix("suites/")
        if self.is_whole:
            return f"`{first}`, none of {mutant.clause}"
        return f"`{first}` ({len(self.failures)} of {self.run})"

    def is_fine(self, mutant: Mutant) -> bool:
        """Whether the clause that must has caught it, or it is argued."""
        if self.error:
            return False
        return not self.is_whole if self.failures else bool(mutant.argued)


def batches(chosen: Sequence[Mutant]) -> list[list[Mutant]]:
    """Which mutants are judged on one boot."""
    together = [mutant for mutant in chosen if not mutant.alone]
    made = [together[first : first + _BATCH] for first in range(0, len(together), _BATCH)]
    return made + [[mutant] for mutant in chosen if mutant.alone]


def judge(
    kernel: str, places: Mapping[str, Path], batch: Sequence[Mutant], options: Sequence[str]
) -> dict[str, Fate]:
    """{name: what became of it}; ``places`` are where the modules of each are.

    First by the tests of its clause; if none fails, by all others, until one does.
    """
    clauses = {mutant.name: mutant.clause for mutant in batch}
    # A kernel that dies costs a boot for every test.
    soon = ["--maxfail-each=1"] if any(mutant.alone for mutant in batch) else []
    fates = run(kernel, {name: places[name] for name in clauses}, clauses, [*options, *soon])
    for name in clauses:
        if fates[name].error and len(batch) > 1:  # what was before it on this boot may be to blame
            fates |= run(kernel, {name: places[name]}, clauses, options)
    missed = {n: places[n] for n, fate in fates.items() if not (fate.failures or fate.error)}
    if missed:
        fates |= run(kernel, missed, {}, [*options, "--maxfail-each=1"])
    return fates


def run(
    kernel: str, places: Mapping[str, Path], clauses: Mapping[str, str], options: Sequence[str]
) -> dict[str, Fate]:
    """One run of the suite: {name: what became of it}."""
    with tempfile.TemporaryDirectory() as directory:
        job, record = Path(directory, "job"), Path(directory, "record")
        job.write_text(json.dumps({"clauses": dict(clauses), "record": str(record)}))
        record.touch()
        command = [sys.executable, "-m", "tests.mutants.record", str(job), "suites"]
        command += [f"--kernel={kernel}", "-q", "-p", "no:cacheprovider", *options]
        command += [f"--kvm-modules={place}" for place in places.values()]
        environ = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environ, cwd=PROJECT
        )
        lines = [json.loads(line) for line in record.read_text().splitlines()]
    words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    fates = {name: Fate(is_whole=name not in clauses, error=words[-1]) for name in places}
    for line in lines:
        fate = fates[line["mutant"]]
        if "test" in line:
            fate.failures[line["test"]] = line["place"]
        else:
            fate.run, fate.error = line["run"], line["broken"] or ("" if line["run"] else "no test")
    return fates
