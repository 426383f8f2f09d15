# SPDX-License-Identifier: GPL-2.0-only
"""Each file of suites/ starts with the clauses that its tests name, in the order of the tests."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.copy_of_the_suite import ROOT

FILES = sorted((ROOT / "suites").rglob("test_*.py"))


def _name_of(file: Path) -> str:
    return str(file.relative_to(ROOT / "suites").with_suffix(""))


def clauses_stated(tree: ast.Module) -> list[str]:
    """Return the ids or globs of the docstring's paragraph "Clauses: ..."."""
    paragraph = re.search(r"^Clauses: ([^.](?:.|\n)*?)\.$", ast.get_docstring(tree) or "", re.M)
    return re.split(r",\s+", paragraph[1]) if paragraph else []


def clauses_named(tree: ast.Module) -> list[str]:
    """Return the ids given to ``@clause``, in the order of the tests."""
    return [
        mark.args[0].value
        for test in tree.body
        if isinstance(test, ast.FunctionDef)
        for mark in test.decorator_list
        if isinstance(mark, ast.Call)
        and isinstance(mark.func, ast.Name)
        and mark.func.id == "clause"
        and isinstance(mark.args[0], ast.Constant)
    ]


@pytest.mark.parametrize("file", FILES, ids=_name_of)
def test_file_starts_with_its_clauses(file: Path) -> None:
    tree = ast.parse(file.read_text())
    stated, named = clauses_stated(tree), clauses_named(tree)
    matching = [next((glob for glob in stated if fnmatchcase(id, glob)), id) for id in named]
    assert list(dict.fromkeys(matching)) == stated
