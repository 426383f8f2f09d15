"""Prove that the suite bites: build broken KVMs, and see which test catches each.

python -m tests.mutants                      all mutants, on Linux 6.12
python -m tests.mutants --kernel=6.1 NAME    one
python -m tests.mutants --list               what there is
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.kernels.packages import KernelError
from helpers.progress import Bar
from tests.mutants.judge import UNMUTATED, Fate, batches, judge, run
from tests.mutants.mutant import Mutant, MutantError, mutants
from tests.mutants.tree import Tree, kernel

_SECONDS = 20  # of a test; a kernel that loses messages makes many wait


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if the unmutated build passes and every mutant is caught as it must be, or argued."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="Build broken KVMs; which test catches each?"
    )
    parser.add_argument("name", nargs="*", help="mutants; all there are for the kernel")
    parser.add_argument("--kernel", default="6.12", help="a packaged kernel: 6.12")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="for make, and guests"
    )
    parser.add_argument(
        "--report", type=Path, help="write the table to this file; of mutants not run now, keep it"
    )
    parser.add_argument("--list", action="store_true", help="show the mutants")
    given = parser.parse_args(arguments)
    try:
        every = mutants()
        if unknown := set(given.name) - {mutant.name for mutant in every}:
            raise MutantError(f"no mutant {', '.join(sorted(unknown))}; --list shows them")
        if given.list:
            for mutant in _chosen(every, given.name):
                print(f"{mutant.area:8} {mutant.name:36} {mutant.breaks}")
            return 0
        return _prove(every, given)
    except (KernelError, MutantError) as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _chosen(every: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    return [mutant for mutant in every if not names or mutant.name in names]


def _prove(every: Sequence[Mutant], given: argparse.Namespace) -> int:
    tree = Tree(kernel(given.kernel))
    every = [mutant for mutant in every if mutant.is_for(tree.name)]
    chosen = _chosen(every, given.name)
    if len(chosen) < len(given.name):
        raise MutantError(f"not all of {', '.join(given.name)} are for Linux {tree.name}")
    cells = read(given.report) if given.report else {}
    places, fates = {}, {}
    bar = Bar("building", len(chosen), unit="mutants", scale=1)
    begun = time.monotonic()
    built = tree.build(UNMUTATED, {}, given.jobs)
    for number, mutant in enumerate(chosen, 1):
        bar.show(number)
        try:
            changed = dict([mutant.apply(tree.sources)])
            places[mutant.name] = tree.build(mutant.name, changed, given.jobs)
        except MutantError as reason:
            fates[mutant.name] = Fate(error=str(reason))
    bar.end()
    _say(f"built in {time.monotonic() - begun:.0f} s")
    options = [f"-n{given.jobs}", f"--timeout={_SECONDS}"]
    begun = time.monotonic()
    plain = run(tree.name, {UNMUTATED: built}, {}, options)[UNMUTATED]
    if plain.error or plain.failures:
        raise MutantError(f"the unmutated build does not pass: {plain}")
    _say(f"unmutated: {plain.run} tests in {time.monotonic() - begun:.0f} s, none failed")
    cells |= {
        mutant.name: fates[mutant.name].says(mutant) for mutant in chosen if mutant.name in fates
    }
    begun = time.monotonic()
    for batch in batches([mutant for mutant in chosen if mutant.name in places]):
        fates |= judge(tree.name, places, batch, options)
        for mutant in batch:
            cells[mutant.name] = fates[mutant.name].says(mutant)
            _say(f"{mutant.name}: {cells[mutant.name]}")
        if given.report:
            given.report.write_text(table(tree.name, every, cells))
    seconds = time.monotonic() - begun
    print(table(tree.name, chosen, cells))
    _say(f"judged in {seconds:.0f} s, {seconds / max(1, len(chosen)):.0f} s a mutant")
    return 0 if all(fates[mutant.name].is_fine(mutant) for mutant in chosen) else 1


def read(report: Path) -> dict[str, str]:
    """The last cells of a report's rows: {mutant: caught by}."""
    lines = report.read_text().splitlines() if report.exists() else []
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    return {cells[1]: cells[-2] for cells in rows if cells[1] != "mutant"}


def table(release: str, listed: Sequence[Mutant], cells: Mapping[str, str]) -> str:
    """A report in Markdown."""
    judged = [mutant for mutant in listed if mutant.name in cells]
    caught = sum(cells[mutant.name].startswith("`") for mutant in judged)
    lines = [
        f"# Mutants of Linux {release}",
        "",
        f"{caught} of {len(judged)} caught: by which test first, and by how many of its clause.",
        "`python -m tests.mutants` makes this table.",
        "",
        "| mutant | breaks | undoes | caught by |",
        "|---|---|---|---|",
        *(
            f"| {each.name} | {each.breaks} | {each.undoes} | {cells[each.name]} |"
            for each in judged
        ),
    ]
    return "\n".join(lines) + "\n"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
