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

from tests.mutants.mutant import Mutant

UNMUTATED = "unmutated"
_BATCH = 12  # mutants; one that kills the kernel costs its batch another boot


@dataclass
class Fate:
    """What became of a mutant: its failed tests in the order they ran, with their clauses.

    ``left`` tests were not run after so many had failed. ``error``: why it was not judged.
    """

    failures: dict[str, str] = field(default_factory=dict)
    run: int = 0
    left: int = 0
    error: str = ""

    def says(self, mutant: Mutant) -> str:
        """A cell of the table."""
        if self.error:
            return f"ERROR: {self.error}"
        if not self.failures:
            return "argued" if mutant.argued else "SURVIVED"
        first, number = next(iter(self.failures)), len(self.failures)
        more = "+" if self.left else ""
        missed = "" if mutant.clause in self.failures.values() else f", none of {mutant.clause}"
        return f"`{first.removeprefix('suites/')}` ({number}{more}{missed})"

    def is_fine(self, mutant: Mutant) -> bool:
        """Whether it was caught, by the clause that must, or argued."""
        if self.error or not self.failures:
            return bool(mutant.argued) and not self.error
        return mutant.clause in self.failures.values()


def batches(chosen: Sequence[Mutant]) -> list[list[Mutant]]:
    """Which mutants are judged on one boot."""
    together = [mutant for mutant in chosen if not mutant.alone]
    made = [together[first : first + _BATCH] for first in range(0, len(together), _BATCH)]
    return made + [[mutant] for mutant in chosen if mutant.alone]


def judge(
    kernel: str, modules: Mapping[str, Path], clauses: Mapping[str, str], options: Sequence[str]
) -> dict[str, Fate]:
    """{name: what became of it}, of {name: its modules} and {name: its clause}."""
    with tempfile.TemporaryDirectory() as directory:
        job, record = Path(directory, "job"), Path(directory, "record")
        job.write_text(json.dumps({"clauses": dict(clauses), "record": str(record)}))
        record.touch()
        command = [sys.executable, "-m", "tests.mutants.record", str(job), "suites"]
        command += [f"--kernel={kernel}", "-q", "-p", "no:cacheprovider", *options]
        command += [f"--kvm-modules={place}" for place in modules.values()]
        environ = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environ, cwd=_PROJECT
        )
        fates = {name: Fate(error="no verdict") for name in modules}
        for line in map(json.loads, record.read_text().splitlines()):
            fate = fates[line["mutant"] or next(iter(modules))]
            if "test" in line:
                fate.failures.setdefault(line["test"], line["clause"])
            else:
                fate.run, fate.left, fate.error = line["run"], line["left"], line["broken"]
                if not fate.error and not fate.run:
                    fate.error = "no test was run"
    if all(fate.error == "no verdict" for fate in fates.values()):
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        for fate in fates.values():
            fate.error = words[-1]
    return fates


_PROJECT = Path(__file__).resolve().parents[2]
