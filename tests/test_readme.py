# SPDX-License-Identifier: GPL-2.0-only
"""README.md and CONTRIBUTING.md: commands, paths and examples exist in the tree."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib

import pytest

from helpers.apic.__main__ import main as apic
from tests.copy_of_the_suite import ROOT

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

# A directory of the tree, and what follows up to the end of the path.
_PATH = re.compile(r"\b(?:suites|helpers|reports|tests)/[\w./*-]*\w")


def commands(text: str) -> list[str]:
    """Return the indented lines that start a program, without comments."""
    return re.findall(r"^    ((?:pytest|python|tox|git) .*?)(?:  +#.*)?$", text, re.MULTILINE)


def blocks(text: str, containing: str) -> list[str]:
    """Return the indented blocks with a given text, without the indentation."""
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found if containing in block]


def test_readme_is_short():
    assert len(README.splitlines()) <= 190
    assert len(README.encode()) <= 11_300


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["readme", "contributing"])
def test_named_paths_exist(text):
    missing = {path for path in _PATH.findall(text) if not any(ROOT.glob(path))}
    assert missing <= {"reports/report.html", "suites/test_x.py"}


def test_explain_command_of_the_readme_runs(capsys):
    [command] = [line for line in commands(README) if "helpers.apic" in line]
    assert apic(shlex.split(command)[3:]) == 0
    assert "[dest.flat]" in capsys.readouterr().out


def test_examples_of_contributing_are_in_the_tree():
    files = [*ROOT.glob("helpers/spec/*.toml"), *ROOT.glob("tests/mutants/*.toml")]
    entries = {id: entry for file in files for id, entry in tomllib.loads(file.read_text()).items()}
    examples = tomllib.loads("".join(blocks(CONTRIBUTING, " = ")))
    assert len(examples) == 4
    for id, example in examples.items():
        assert example.items() <= entries[id].items()
    [test] = blocks(CONTRIBUTING, "def test_")
    assert any(test in file.read_text() for file in ROOT.glob("suites/*.py"))


def test_environments_of_tox_exist():
    tox = (ROOT / "tox.ini").read_text()
    named = re.findall(r"\btox -e (\w+)", README + CONTRIBUTING)
    assert set(named) <= set(re.findall(r"^\[testenv:(\w+)\]", tox, re.MULTILINE))
