# SPDX-License-Identifier: GPL-2.0-only
"""The files of the tree: licence, length, and how manuals are cited."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.copy_of_the_suite import ROOT

MAX_LINES = 450
MAX_FUNCTION_LINES = 40
LONGER = {"helpers/kvm/abi.py", "helpers/apic/model.py"}
"""Files that may exceed MAX_LINES: they are read beside the header and the manual they state."""

_SOURCES = {".py", ".c", ".S", ".toml", ".config", ".jinja2", ".js", ".css", ".ini", ".yml"}
# A chapter, section, table or figure, by number. Editions of the manuals renumber them.
_NUMBERED = re.compile(
    r"(?:SDM|APM|api\.rst|vol\. \d)[^\n]{0,20}?[ ,]\d+\.\d+|(?:table|figure) \d+-\d+"
)

_ROOMS = ("helpers", "suites", "tests", ".ci", ".github")
_PATHS = [*ROOT.iterdir(), *(path for room in _ROOMS for path in (ROOT / room).rglob("*"))]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in _PATHS
    if path.is_file() and "__pycache__" not in path.parts
)
SOURCES = [path for path in FILES if Path(path).suffix in _SOURCES]
PYTHON = [path for path in SOURCES if path.endswith(".py")]


@pytest.mark.parametrize("path", SOURCES)
def test_source_names_its_licence(path):
    head = (ROOT / path).read_text().splitlines()[:2]
    assert any("SPDX-License-Identifier: GPL-2.0-only" in line for line in head)


@pytest.mark.parametrize("path", [path for path in PYTHON if path not in LONGER])
def test_file_is_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", PYTHON)
def test_functions_are_short(path):
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    lengths = {each.name: (each.end_lineno or 0) - each.lineno + 1 for each in functions}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", FILES)
def test_manual_is_cited_by_the_name_of_a_section(path):
    try:
        text = (ROOT / path).read_text()
    except UnicodeDecodeError:
        return
    assert _NUMBERED.findall(text) == []
