# SPDX-License-Identifier: GPL-2.0-only
"""Build kernel mutants, run the suite on each, and tell which test catches it.

python -m tests.mutants                      all mutants, on Linux 6.12
python -m tests.mutants --kernel=6.1 MUTANT  one mutant, on Linux 6.1
python -m tests.mutants --list               all mutants, with the clause that each breaks
python -m tests.mutants --random=300 --seed=1 --report=FILE
                                             300 mutants made by the classic operators

The exit code is 0 if the unmutated build passes and every mutant is caught by a test of its clause,
1 if a mutant is not, and 2 on errors. Of random mutants, 3 % may live besides those argued.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.kernels.edits import EditError
from helpers.kernels.packages import KernelError
from helpers.progress import Bar
from helpers.spec.kernels import DEFAULT_KERNEL
from helpers.spec.table import SpecError
from tests.mutants.judge import MutantResult, batches, judge, log, run
from tests.mutants.mutant import Mutant, MutantError, mutants
from tests.mutants.random_run import Run
from tests.mutants.tree import MODULES, UNMUTATED, Tree, kernel

# Seconds per test. On a kernel that loses messages, many tests wait until the timeout.
_TIMEOUT = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.random or any(id.startswith("random-") for id in given.mutant):
            return _judge_random(given)
        every = mutants()
        if unknown := set(given.mutant) - {mutant.id for mutant in every}:
            raise MutantError(f"no mutant {', '.join(sorted(unknown))}; --list shows all")
        if given.list:
            for mutant in _chosen(every, given.mutant):
                print(f"{mutant.id:36} {mutant.clause:24} {mutant.breaks}")
            return 0
        return _judge_all(every, given)
    except (KernelError, MutantError, SpecError) as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mutant", nargs="*", help="mutants to judge; default: all for the kernel")
    parser.add_argument(
        "--kernel", default=DEFAULT_KERNEL, help=f"packaged kernel; default: {DEFAULT_KERNEL}"
    )
    parser.add_argument("--cpu", choices=MODULES, default="amd", help="emulated; default: amd")
    parser.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="judge by this program of python -m helpers.program first, by Python what it lets "
        "through",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="make jobs, and guests at a time; default: one per processor",
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="file for the table; rows of mutants that do not run now are kept",
    )
    parser.add_argument(
        "--new", action="store_true", help="judge only mutants that have no row in the report"
    )
    _add_random(parser)
    parser.add_argument("--list", action="store_true", help="list the mutants and exit")
    return parser


def _add_random(parser: argparse.ArgumentParser) -> None:
    """Add the options of mutants that a seed chooses."""
    parser.add_argument(
        "--random", type=int, metavar="NUM", help="judge NUM mutants that a seed chooses"
    )
    parser.add_argument("--seed", type=int, default=1, help="the seed of --random; default: 1")
    parser.add_argument(
        "--again", action="store_true", help="judge the survivors in the report of --random again"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run few parameters of each test on random mutants"
    )


def _judge_random(given: argparse.Namespace) -> int:
    options = ["-n1", f"--timeout={_TIMEOUT}"]
    tree = Tree(kernel(given.kernel))
    run = Run(tree, given.report, given.seed, options, quick=given.quick, again=given.again)
    return run.judge_given(given.mutant) if given.mutant else run.draw(given.random)


def _chosen(every: Sequence[Mutant], ids: Sequence[str]) -> list[Mutant]:
    return [mutant for mutant in every if not ids or mutant.id in ids]


def _judge_all(every: Sequence[Mutant], given: argparse.Namespace) -> int:
    """Build and judge the chosen mutants, print the table, and return the exit code."""
    tree = Tree(kernel(given.kernel), given.cpu)
    every = [each for each in every if each.is_for(tree.name) and each.cpu == given.cpu]
    chosen = _chosen(every, given.mutant)
    if len(chosen) < len(given.mutant):
        raise MutantError(f"not all of {', '.join(given.mutant)} apply to Linux {tree.name}")
    cells = read(given.report) if given.report else {}
    if given.new:
        chosen = [mutant for mutant in chosen if mutant.id not in cells]
    modules, results = _build(tree, chosen, given.jobs)
    options = [f"-n{given.jobs}", f"--timeout={_TIMEOUT}", f"--cpu={given.cpu}"]
    _judge_unmutated(tree.name, modules, [*options, *_apicv(given.cpu, True)])
    cells |= {m.id: results[m.id].cell(m.clause) for m in chosen if m.id in results}
    title = tree.name + " on an emulated Intel processor" * (given.cpu == "intel")
    begun = time.monotonic()
    for batch in batches([mutant for mutant in chosen if mutant.id in modules]):
        given_to = [*options, *_apicv(given.cpu, batch[0].apicv)]
        results |= judge(tree.name, modules, batch, given_to, given.program)
        for mutant in batch:
            cells[mutant.id] = results[mutant.id].cell(mutant.clause)
            log(f"{mutant.id}: {cells[mutant.id]}")
        if given.report:
            given.report.write_text(table(title, every, cells))
    seconds = time.monotonic() - begun
    print(table(title, chosen, cells))
    log(f"judged in {seconds:.0f} s, {seconds / max(1, len(chosen)):.0f} s per mutant")
    return 0 if all(result.caught for result in results.values()) else 1


def _apicv(cpu: str, is_on: bool) -> list[str]:
    """Return the option of pytest that sets APICv, on a processor that has APICv."""
    return [f"--kvm-param=enable_apicv={is_on:d}"] if cpu == "intel" else []


def _build(
    tree: Tree, chosen: Sequence[Mutant], jobs: int
) -> tuple[dict[str, Path], dict[str, MutantResult]]:
    """Build the unmutated modules and those of each mutant.

    Return {mutant id: directory of modules} and, for builds that fail, {mutant id: MutantResult}.
    Raises MutantError if the unmutated modules do not build.
    """
    modules, errors = {}, {}
    bar = Bar("building", len(chosen), unit="mutants", scale=1)
    begun = time.monotonic()
    modules[UNMUTATED] = tree.build(UNMUTATED, {}, jobs)
    for number, mutant in enumerate(chosen, 1):
        bar.show(number)
        try:
            modules[mutant.id] = tree.build(mutant.id, dict([mutant.apply(tree.sources)]), jobs)
        except (EditError, MutantError) as reason:
            errors[mutant.id] = MutantResult(error=str(reason))
    bar.end()
    log(f"built in {time.monotonic() - begun:.0f} s")
    return modules, errors


def _judge_unmutated(kernel: str, modules: Mapping[str, Path], options: Sequence[str]) -> None:
    """Raise MutantError unless the suite passes on the unmutated modules."""
    begun = time.monotonic()
    found = run(kernel, {UNMUTATED: modules[UNMUTATED]}, {}, options)[UNMUTATED]
    if found.error or found.failures:
        reason = found.error or f"{', '.join(found.failures)} failed"
        raise MutantError(f"the unmutated build does not pass: {reason}")
    log(f"unmutated: {found.tests} tests in {time.monotonic() - begun:.0f} s, none failed")


def read(report: Path) -> dict[str, str]:
    """Return {mutant id: last cell of the row} of a report; empty if there is no file."""
    lines = report.read_text().splitlines() if report.exists() else []
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    return {cells[1]: cells[-2] for cells in rows if cells[1] != "mutant"}


def table(release: str, listed: Sequence[Mutant], cells: Mapping[str, str]) -> str:
    """Return the report in Markdown, with a row for each mutant in ``cells``."""
    judged = [mutant for mutant in listed if mutant.id in cells]
    caught = sum(cells[mutant.id].startswith("`") for mutant in judged)
    lines = [
        f"# Mutants of Linux {release}",
        "",
        f"{caught} of {len(judged)} mutants are caught. The last column is the first test that",
        "fails, with the number of failures among the tests of the mutant's clause.",
        "`python -m tests.mutants` writes this table.",
        "",
        "| mutant | defect | undoes | caught by |",
        "|---|---|---|---|",
        *(f"| {each.id} | {each.breaks} | {each.undoes} | {cells[each.id]} |" for each in judged),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
