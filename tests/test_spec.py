# SPDX-License-Identifier: GPL-2.0-only
"""The loader of TOML tables names file, entry and field of each error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from helpers.spec import Deviation
from helpers.spec.table import SpecError, read
from tests.copy_of_the_suite import ROOT


@dataclass(frozen=True)
class Detail:
    name: str


@dataclass(frozen=True)
class Entry:
    id: str
    text: str
    level: Literal["high", "low"] = "low"
    pairs: tuple[tuple[str, str], ...] = ()
    detail: Detail | None = None
    is_new: bool = False
    number: int = 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "table.toml"


def test_tables_become_entries(file):
    file.write_text("""
[a]
text = "A."
["b.c"]
text = "B."
level = "high"
pairs = [["x", "y"], ["z", "*"]]
detail = { name = "n" }
is_new = true
number = 3
""")
    assert read(file, Entry) == {
        "a": Entry("a", "A."),
        "b.c": Entry("b.c", "B.", "high", (("x", "y"), ("z", "*")), Detail("n"), True, 3),
    }


ERRORS = {
    "unknown-field": ("text = 'A.'\nlvel = 'low'", "table.toml: a: no field 'lvel'"),
    "id-as-field": ("text = 'A.'\nid = 'b'", "table.toml: a: no field 'id'"),
    "missing-field": ("level = 'low'", "table.toml: a: text is missing"),
    "number-for-text": ("text = 5", "table.toml: a: text: 5 is not of type str"),
    "empty-text": ("text = ''", "table.toml: a: text: empty"),
    "number-for-bool": ("text = 'A.'\nis_new = 1", "table.toml: a: is_new: 1 is not of type bool"),
    "bool-for-number": (
        "text = 'A.'\nnumber = true",
        "table.toml: a: number: True is not of type int",
    ),
    "other-literal": (
        "text = 'A.'\nlevel = 'mid'",
        "table.toml: a: level: 'mid' is none of high low",
    ),
    "text-for-list": ("text = 'A.'\npairs = 'x'", "table.toml: a: pairs: 'x' is not a list"),
    "text-for-pair": ("text = 'A.'\npairs = ['x']", "table.toml: a: pairs: 'x' is not a list"),
    "short-pair": (
        "text = 'A.'\npairs = [['x', 'y'], ['z']]",
        "table.toml: a: pairs: ['z'] does not have 2 items",
    ),
    "long-pair": (
        "text = 'A.'\npairs = [['x', 'y', 'z']]",
        "table.toml: a: pairs: ['x', 'y', 'z'] does not have 2 items",
    ),
    "number-in-pair": (
        "text = 'A.'\npairs = [['x', 1]]",
        "table.toml: a: pairs: 1 is not of type str",
    ),
    "text-for-table": ("text = 'A.'\ndetail = 'n'", "table.toml: a: detail: not a table"),
    "unknown-field-in-table": (
        "text = 'A.'\ndetail = { nme = 'n' }",
        "table.toml: a: detail: no field 'nme'",
    ),
    "missing-field-in-table": (
        "text = 'A.'\ndetail = {}",
        "table.toml: a: detail: name is missing",
    ),
}


@pytest.mark.parametrize("fields, message", ERRORS.values(), ids=ERRORS)
def test_error_names_file_entry_and_field(file, fields, message):
    file.write_text(f"[a]\n{fields}\n")
    with pytest.raises(SpecError) as raised:
        read(file, Entry)
    assert str(raised.value) == message


FILES = {
    "no-toml": ("[a", "table.toml: Expected ']' at the end of a table declaration"),
    "duplicate-table": (
        "[a]\ntext = 'A.'\n[a]\ntext = 'B.'\n",
        "table.toml: Cannot declare ('a',) twice (at line 3",
    ),
    "duplicate-field": ("[a]\ntext = 'A.'\ntext = 'B.'\n", "table.toml: Cannot overwrite a value"),
    "value-for-table": ("a = 1\n", "table.toml: a: not a table"),
}


@pytest.mark.parametrize("content, message", FILES.values(), ids=FILES)
def test_error_of_a_file_names_the_file(file, content, message):
    file.write_text(content)
    with pytest.raises(SpecError) as raised:
        read(file, Entry)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_missing_file_is_an_error(file):
    with pytest.raises(SpecError, match=r"^table\.toml: .*No such file"):
        read(file, Entry)


SHOWS = "summary = 'S.'\nshows = [['return value', '1', '0']]\n"
DEVIATIONS = {
    "before-without-fixed": (SHOWS + "before = '6.3'", "before and fixed go together"),
    "fixed-without-before": (SHOWS + "fixed = 'abc'", "before and fixed go together"),
    "vendor-and-parameter": (
        SHOWS + "vendor = 'kvm_pvm'\nparameter = 'kvm_intel.enable_apicv=Y'\nevidence = 'e'",
        "vendor and parameter exclude each other",
    ),
    "since-is-before": (
        SHOWS + "since = '6.10'\nbefore = '6.10'\nfixed = 'abc'",
        "since 6.10 is not below before 6.10",
    ),
    "since-after-before": (
        SHOWS + "since = '6.10'\nbefore = '6.9'\nfixed = 'abc'",
        "since 6.10 is not below before 6.9",
    ),
    "no-first-version": (
        SHOWS + "since = '6'\nevidence = 'e'",
        "since: '6' is not a version such as '6.3'",
    ),
    "no-evidence-of-a-first-version": (SHOWS + "since = '6.17'", "evidence is missing"),
    "no-version": (
        SHOWS + "before = 'v6.3'\nfixed = 'abc'",
        "before: 'v6.3' is not a version such as '6.3'",
    ),
    "no-evidence": (SHOWS, "evidence is missing"),
    "no-evidence-of-a-vendor": (SHOWS + "vendor = 'kvm_pvm'", "evidence is missing"),
    "shows-nothing": ("summary = 'S.'\nshows = []\nevidence = 'e'", "shows is empty"),
}


@pytest.mark.parametrize("fields, message", DEVIATIONS.values(), ids=DEVIATIONS)
def test_deviation_whose_fields_contradict_is_an_error(file, fields, message):
    file.write_text(f"[a]\n{fields}\n")
    with pytest.raises(SpecError) as raised:
        read(file, Deviation)
    assert str(raised.value) == f"table.toml: a: {message}"


def test_spec_imports_nothing_else_of_the_project():
    statement = "import sys, helpers.spec; print(*(n for n in sys.modules if 'helpers' in n))"
    done = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert "helpers.spec.table" in names
    assert all(name == "helpers" or name.startswith("helpers.spec") for name in names)
