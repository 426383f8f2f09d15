# SPDX-License-Identifier: GPL-2.0-only
"""Build and judge random mutants, a batch being built while another one is judged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from helpers.kernels.boot import PROJECT
from tests.mutants.judge import MutantResult, Order, log, run
from tests.mutants.mutant import MutantError
from tests.mutants.order import that_caught
from tests.mutants.random_edits import Covered, RandomMutant, all_mutants, arguments, drawn
from tests.mutants.tree import UNMUTATED, Tree

ALLOWED = 3.0
"""Percentage of the judged mutants that may live without an argument."""
ROUND_ROBIN = tuple(
    f"suites/test_{file}.py" for file in ("lowest_priority", "matching", "host_ioctls")
)
"""Files whose tests depend on kvm.vector_hashing."""
_QUICK = 3
"""Parameters in a quick run of each test that is near the function."""
_REPORTS = PROJECT / "reports"
_BATCH = 12
_EQUIVALENT = "equivalent (compiler)"
_SURVIVED = "survived"
_SURVIVED_QUICK = "survived a quick run"
_NOT_RUN = "not run"
_ARGUED = "argued: "


@dataclass
class Verdicts:
    """The drawn mutants, {id: verdict}, and the number of changes that do not compile.

    A verdict is _EQUIVALENT, _SURVIVED, or says what caught the mutant.
    """

    sources: Mapping[str, str]
    arguments: Sequence[Covered]
    mutants: list[RandomMutant] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    uncompilable: int = 0

    def argument(self, mutant: RandomMutant) -> str:
        """Return the id of the argument for a mutant; "" if there is none."""
        covering = (each for each in self.arguments if each.has(mutant, self.sources))
        return next((each.argument.id for each in covering), "")

    def cell(self, mutant: RandomMutant) -> str:
        """Return the last cell of a mutant's row."""
        verdict = self.verdicts[mutant.id]
        is_alive = verdict == _NOT_RUN or verdict.startswith(_SURVIVED)
        argument = self.argument(mutant) if is_alive else ""
        return (
            f"{_ARGUED}{argument}" + f" ({verdict})" * (verdict != _SURVIVED)
            if argument
            else verdict
        )

    def judged(self) -> list[RandomMutant]:
        return [mutant for mutant in self.mutants if mutant.id in self.verdicts]

    def count(self) -> dict[str, int]:
        """Return the numbers of mutants by kind of verdict."""
        cells = [self.cell(mutant) for mutant in self.judged()]
        numbers = {
            "drawn": len(cells),
            "equivalent": cells.count(_EQUIVALENT),
            "argued": sum(cell.startswith(_ARGUED) for cell in cells),
            "alive": sum(cell.startswith(_SURVIVED) for cell in cells),
        }
        others = numbers["equivalent"] + numbers["argued"] + numbers["alive"]
        return numbers | {"caught": len(cells) - others}

    def percentage(self) -> float:
        """Return the percentage of judged mutants that live without an argument."""
        numbers = self.count()
        return 100 * numbers["alive"] / max(1, numbers["drawn"] - numbers["equivalent"])

    def summary(self) -> str:
        """Return one line."""
        numbers = self.count()
        return (
            f"{numbers['drawn']} drawn, {numbers['caught']} caught, {numbers['equivalent']} "
            f"equivalent by the compiler, {numbers['argued']} argued, {numbers['alive']} alive: "
            f"{self.percentage():.1f} % of those judged; {self.uncompilable} others did not compile"
        )

    def refuted(self) -> list[str]:
        """Return a line for each argument whose mutant is caught."""
        caught = [m for m in self.judged() if self.verdicts[m.id].startswith("caught")]
        return [
            f"argued.toml: {argument}: {mutant.id} is {self.verdicts[mutant.id]}"
            for mutant in caught
            if (argument := self.argument(mutant))
        ]

    def table(self, release: str, seed: int) -> str:
        """Return the report in Markdown, with a row for each judged mutant."""
        rows = (
            f"| {mutant.id} | {mutant.function}:{mutant.line} "
            f"| {_code(mutant.old)} → {_code(mutant.new)} | {self.cell(mutant)} |"
            for mutant in self.judged()
        )
        lines = [
            f"# Random mutants of Linux {release}",
            "",
            f"Seed {seed}: {self.summary()}.",
            f"`python -m tests.mutants --random={len(self.judged())} --seed={seed}` writes this",
            "table, and `tests/mutants/argued.toml` has the arguments.",
            "",
            "| mutant | place | edit | verdict |",
            "|---|---|---|---|",
            *rows,
        ]
        return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return C code as a cell's text."""
    words = " ".join(text.split()).replace("|", "\\|")
    return f"`{words}`" if words else "nothing"


def read_verdicts(report: Path) -> dict[str, str]:
    """Return {mutant id: verdict} of a report; empty if there is no file."""
    lines = report.read_text().splitlines() if report.exists() else []
    rows = [line.removesuffix(" |").split(" | ") for line in lines if line.startswith("| random-")]
    found = {row[0].removeprefix("| "): row[-1] for row in rows}
    return {id: _verdict_in(cell) for id, cell in found.items()}


def _verdict_in(cell: str) -> str:
    """Return the verdict in the last cell of a row."""
    if not cell.startswith(_ARGUED):
        return cell
    return cell.partition("(")[2].rstrip(")") or _SURVIVED


class Run:
    """A run on one kernel. ``options`` are those of pytest."""

    def __init__(
        self,
        tree: Tree,
        report: Path | None,
        seed: int,
        options: Sequence[str],
        *,
        quick: bool = False,
        again: bool = False,
    ) -> None:
        self.tree = tree
        self.report = report
        self.seed = seed
        self.options = [*options, "--tb=native"]
        self.quick = quick
        self.again = again
        covered = list(arguments(tree.name, tree.sources))
        self.found = Verdicts(tree.sources, covered)
        self.modules: dict[str, Path] = {}

    def draw(self, number: int) -> int:
        """Judge the first ``number`` mutants of the seed that compile; return the exit code."""
        if self.report:
            self.found.verdicts = read_verdicts(self.report)
        return self.judge_all(self._built(drawn(self.tree.sources, self.seed), number))

    def judge_given(self, ids: Sequence[str]) -> int:
        """Judge mutants by their ids; return the exit code. Raises MutantError."""
        every = {mutant.id: mutant for mutant in all_mutants(self.tree.sources)}
        if unknown := [id for id in ids if id not in every]:
            raise MutantError(f"no mutant {', '.join(unknown)} of Linux {self.tree.name}")
        return self.judge_all(self._built([every[id] for id in ids], len(ids)))

    def judge_all(self, built: Iterator[RandomMutant]) -> int:
        """Judge mutants; write the report after each batch."""
        self.modules[UNMUTATED] = self.tree.build(UNMUTATED, {}, jobs=1)
        begun = time.monotonic()
        with ThreadPoolExecutor(max_workers=1) as builder:
            batch = builder.submit(lambda: list(islice(built, _BATCH))).result()
            while batch:
                following = builder.submit(lambda: list(islice(built, _BATCH)))
                self.judge(batch)
                log(f"{time.monotonic() - begun:.0f} s: {self.found.summary()}")
                batch = following.result()
        self._check_catchers()
        self._write()
        print(self.found.summary())
        for line in self.found.refuted():
            print(line)
        return int(self.found.percentage() > ALLOWED or bool(self.found.refuted()))

    def _built(self, order: Sequence[RandomMutant], number: int) -> Iterator[RandomMutant]:
        """Build mutants until ``number`` compile; return those to judge."""
        for mutant in order:
            if len(self.found.mutants) == number:
                return
            is_known = mutant.id in self.found.verdicts
            if not is_known or self._is_due(mutant):
                try:
                    edit = dict([mutant.apply(self.tree.sources)])
                    self.modules[mutant.id] = self.tree.build(mutant.id, edit, jobs=1)
                except MutantError:
                    self.found.uncompilable += 1
                    continue
                if self.tree.is_unchanged(mutant.id):
                    self.found.verdicts[mutant.id] = _EQUIVALENT
                elif not is_known and not self._is_due(mutant):
                    self.found.verdicts[mutant.id] = _NOT_RUN
            self.found.mutants.append(mutant)
            if self._is_due(mutant):
                yield mutant

    def _is_due(self, mutant: RandomMutant) -> bool:
        """Return whether to judge a mutant: it has no verdict yet, or one that may change."""
        verdict = self.found.verdicts.get(mutant.id, _NOT_RUN)
        if verdict == _NOT_RUN:
            return not (self.quick and self.found.argument(mutant))
        if verdict == _SURVIVED_QUICK:
            return self.again or not (self.quick or self.found.argument(mutant))
        return self.again and verdict == _SURVIVED

    def _check_catchers(self) -> None:
        """Run the tests that caught mutants on the unmutated build.

        Forget the verdicts of those that fail, such as a test that depends on the order.
        """
        verdicts = self.found.verdicts
        tests = that_caught("\n".join(verdicts.values()))
        if not tests:
            return
        modules = {UNMUTATED: self.modules[UNMUTATED]}
        order = Order({UNMUTATED: ""}, tests, quick=1)
        found = run(self.tree.name, modules, {}, self.options, order=order)[UNMUTATED]
        if found.error:
            raise MutantError(f"the unmutated build: {found.error}")
        for test in found.failures:
            log(f"{test} fails on the unmutated build: {found.reasons[test]}")
            name = f"`{test.removeprefix('suites/')}`"
            verdicts |= {id: _NOT_RUN for id, verdict in verdicts.items() if name in verdict}

    def judge(self, batch: Sequence[RandomMutant]) -> None:
        """Judge mutants that share a boot."""
        ids = [mutant.id for mutant in batch]
        results = self._run(ids)
        for id in ids:
            # Another mutant of the boot may have caused the error.
            if results[id].error and not results[id].failures and len(ids) > 1:
                results |= self._run([id])
        self.found.verdicts |= {id: verdict_of(results[id]) for id in ids}
        missed = [id for id in ids if self.found.verdicts[id] == _SURVIVED]
        if self.quick:
            self.found.verdicts |= dict.fromkeys(missed, _SURVIVED_QUICK)
        elif missed:
            found = self._run(missed, ROUND_ROBIN, "--kvm-param=vector_hashing=N")
            for id in missed:
                if found[id].failures:
                    verdict = f"{verdict_of(found[id])} with vector_hashing=N"
                    self.found.verdicts[id] = verdict
        for id in ids:
            log(f"{id}: {self.found.verdicts[id]}")
        self._write()

    def _run(
        self, ids: Sequence[str], suites: Sequence[str] = ("suites",), *options: str
    ) -> dict[str, MutantResult]:
        modules = {id: self.modules[id] for id in ids}
        functions = {id: id.split("-")[1] if id != UNMUTATED else "" for id in ids}
        reports = [file.read_text() for file in _REPORTS.glob("*mutants-*.md")]
        caught = that_caught("\n".join([*reports, *self.found.verdicts.values()]))
        order = Order(functions, caught, _QUICK if self.quick else 0)
        options = (*self.options, "--maxfail-each=1", *options)
        return run(self.tree.name, modules, {}, options, suites, order)

    def _write(self) -> None:
        if self.report:
            self.report.write_text(self.found.table(self.tree.name, self.seed))


def verdict_of(result: MutantResult) -> str:
    """Return the verdict on a mutant. Raises MutantError if the mutant was not judged."""
    if result.failures:
        first = min(result.failures, key=result.failures.__getitem__)
        return f"caught by `{first.removeprefix('suites/')}`: {_cell(result.reasons[first])}"
    if result.broken:
        return f"caught: {_cell(result.error)}"
    if result.error:
        raise MutantError(result.error)
    return _SURVIVED


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
