# SPDX-License-Identifier: GPL-2.0-only
"""``--clause`` runs the tests of some clauses, ``--clauses`` lists the clauses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from fnmatch import fnmatchcase

import pytest

from helpers.spec import CLAUSES, Clause
from helpers.spec.architectures import ARCHITECTURES
from helpers.verdicts.session import clause_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --clause and --clauses."""
    group = parser.getgroup("clauses")
    group.addoption(
        "--clause",
        metavar="GLOB",
        action="append",
        default=[],
        help="run the tests of this clause only: msi.flags, or the pattern 'msi.*'; repeat the "
        "option for several clauses",
    )
    group.addoption(
        "--clauses",
        action="store_true",
        help="list the clauses with level, number of collected tests and source, and run no test",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Check the patterns, and make --clauses a kind of --collect-only, before other plugins."""
    for pattern in config.option.clause:
        found, arch = matching([pattern]), config.option.arch
        if not found:
            raise pytest.UsageError(
                f"--clause={pattern}: no clause matches; 'pytest suites/ --clauses' lists all"
            )
        if not any(map(ARCHITECTURES[arch].owes, found)):
            raise pytest.UsageError(f"--clause={pattern}: no clause of {arch} matches; see --arch")
    if config.option.clauses:
        config.option.collectonly = True
    return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of other clauses."""
    if not config.option.clause:
        return
    wanted = matching(config.option.clause)
    selected = {item for item in items if (clause := clause_of(item)) and clause.id in wanted}
    if others := [item for item in items if item not in selected]:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item in selected]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> Generator[None]:
    """Keep --clauses from listing the tests, as pytest does for --collect-only."""
    option = session.config.option
    listed = option.collectonly
    option.collectonly = listed and not option.clauses
    yield
    option.collectonly = listed


def pytest_report_collectionfinish(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> list[str] | None:
    """List the clauses for --clauses."""
    if not config.option.clauses:
        return None
    tests = Counter(clause.id for item in items if (clause := clause_of(item)))
    owes = ARCHITECTURES[config.option.arch].owes
    chosen = matching(config.option.clause or ["*"])
    clauses = {id: clause for id, clause in chosen.items() if owes(id)}
    wide = max(map(len, clauses))
    lines = [f"{'clause':{wide}}  {'level':13}  tests  source"]
    for id, clause in clauses.items():
        lines.append(f"{id:{wide}}  {clause.level:13}  {tests[id]:5}  {clause.source}")
    return lines


def matching(patterns: Sequence[str]) -> dict[str, Clause]:
    """Return the clauses that match any of ``patterns``."""
    return {
        id: clause
        for id, clause in CLAUSES.items()
        if any(fnmatchcase(id, pattern) for pattern in patterns)
    }
