"""README.md and CONTRIBUTING.md: commands, paths and examples exist in the tree."""

from __future__ import annotations

import re
import shlex
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


def tables(text: str) -> dict[str, dict]:
    """Return the TOML tables among the indented blocks."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return tomllib.loads("\n".join(block for block in blocks if block.startswith("    [")))


def test_readme_is_short():
    assert len(README.splitlines()) <= 170
    assert len(README.encode()) <= 10_000


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["readme", "contributing"])
def test_named_paths_exist(text):
    named = {path for path in _PATH.findall(text) if not path.startswith("suites/test_x")}
    assert named
    assert {path for path in named if not any(ROOT.glob(path))} == {"reports/report.html"} & named


def test_explain_command_of_the_readme_runs(capsys):
    [command] = [line for line in commands(README) if "helpers.apic" in line]
    assert apic(shlex.split(command)[3:]) == 0
    assert "[dest.flat]" in capsys.readouterr().out


def test_examples_of_contributing_are_in_the_tree():
    files = [*ROOT.glob("helpers/spec/*.toml"), *ROOT.glob("tests/mutants/*.toml")]
    entries = {id: entry for file in files for id, entry in tomllib.loads(file.read_text()).items()}
    examples = tables(CONTRIBUTING)
    assert len(examples) == 3
    for id, example in examples.items():
        assert example.items() <= entries[id].items()
    suites = "".join(file.read_text() for file in ROOT.glob("suites/*.py"))
    [test] = re.findall(r"^    (def test_.*)$", CONTRIBUTING, re.MULTILINE)
    assert test in suites


def test_environments_of_tox_exist():
    tox = (ROOT / "tox.ini").read_text()
    named = re.findall(r"\btox -e (\w+)", README + CONTRIBUTING)
    assert set(named) <= set(re.findall(r"^\[testenv:(\w+)\]", tox, re.MULTILINE))
