"""Kernel mutants: what they are made of, and what is said of them. Judging them takes an hour."""

from __future__ import annotations

import re

import pytest

from tests.copy_of_the_suite import ROOT
from tests.mutants import __main__ as program
from tests.mutants.judge import Fate, batches
from tests.mutants.mutant import Edit, Mutant, MutantError, mutants

REPORTS = ROOT / "reports"

SOURCES = {
    "virt/kvm/irqchip.c": """\
int other(struct kvm *kvm);
int other(struct kvm *kvm)
{
	return 0;
}

static inline bool
checked(struct kvm *kvm,
	int flags)
{
	/* nothing } { */
	if (!kvm ||
		flags)
		return 0;

	return kvm_flags(flags);
}
""",
    "virt/kvm/kvm_main.c": "int __weak other(struct kvm *kvm)\n{\n\treturn -1;\n}\n",
}


def mutant(**given) -> Mutant:
    made = {"name": "it", "area": "entry", "breaks": "all", "clause": "msi.flags"}
    return Mutant(**{**made, "edit": Edit("checked", "!kvm || flags", "0"), **given})


def test_edit_changes_its_place_only():
    file, text = Edit("checked", "!kvm||flags", "false").apply(SOURCES)
    assert file == "virt/kvm/irqchip.c"
    assert text == SOURCES[file].replace("!kvm ||\n\t\tflags", "false")


@pytest.mark.parametrize(
    "function, old, reason",
    [
        ("absent", "flags", "there is no absent"),
        ("checked", "return 1;", "checked has 0 times: return 1;"),
        ("checked", "flags", "checked has 3 times: flags"),
        ("checked", "return -1;", "checked has 0 times: return -1;"),
        ("checked", "lags)", "checked has 0 times"),
    ],
)
def test_edit_that_does_not_fit_is_an_error(function, old, reason):
    with pytest.raises(MutantError, match=re.escape(reason)):
        Edit(function, old, "").apply(SOURCES)


@pytest.mark.parametrize("old, file", [("0", "irqchip.c"), ("-1", "kvm_main.c")])
def test_function_of_two_files_is_the_one_with_the_text(old, file):
    assert Edit("other", f"return {old};", "").apply(SOURCES)[0] == f"virt/kvm/{file}"


def test_older_kernels_have_their_own_edit():
    newer, older = Edit("newer", "0", "1"), Edit("checked", "return 0;", "return 1;")
    assert mutant(edit=newer, older=older).apply(SOURCES) == older.apply(SOURCES)
    with pytest.raises(MutantError, match="there is no newer"):
        mutant(edit=newer).apply(SOURCES)


@pytest.mark.parametrize(
    "bounds, kernels",
    [
        ({}, "6.1 6.3 6.12"),
        ({"since": "6.3"}, "6.3 6.12"),
        ({"until": "6.3"}, "6.1"),
        ({"since": "6.3", "until": "6.12"}, "6.3"),
    ],
)
def test_kernels_a_mutant_is_for(bounds, kernels):
    names = {"6.1": "6.1.0-56-amd64", "6.3": "6.3.1-amd64", "6.12": "6.12.9+deb13-amd64"}
    found = [version for version, name in names.items() if mutant(**bounds).is_for(name)]
    assert " ".join(found) == kernels


def test_every_mutant_is_whole():
    every = mutants()
    assert len({each.name for each in every}) == len(every)
    for each in every:
        assert re.fullmatch(r"([0-9a-f]{12} \(\d+(\.\d+)+\))?", each.undoes), each.name
        assert each.edit.old != each.edit.new
        assert "|" not in each.breaks


@pytest.mark.parametrize(
    "text, reason",
    [
        ('breaks = "it"', "'function'"),
        ('function = "f"\nold = "1"\nnew = "2"\nbreaks = "it"\nclause = "no.clause"', "no clause"),
        ('function = "f"\nold = "1"\nnew = "2"\nbreak = "it"\nclause = "msi.flags"', "'break'"),
    ],
)
def test_table_that_is_not_whole_is_named(tmp_path, text, reason):
    (tmp_path / "1-entry.toml").write_text(f"[it]\n{text}\n")
    with pytest.raises(MutantError, match=rf"1-entry.toml, it: .*{reason}"):
        mutants(tmp_path)


TEST, OTHER = "suites/test_flags.py::test_it", "suites/test_abi.py::test_it"


@pytest.mark.parametrize(
    "fate, given, cell, is_fine",
    [
        (Fate(), {}, "SURVIVED", False),
        (Fate(), {"argued": "nobody can tell"}, "argued", True),
        (Fate(error="it does not load"), {"argued": "so"}, "ERROR: it does not load", False),
        (Fate({TEST: 7, OTHER: 3}, run=9), {}, "`test_abi.py::test_it` (2 of 9)", True),
        (
            Fate({TEST: 7}, 9, is_whole=True),
            {},
            "`test_flags.py::test_it`, none of msi.flags",
            False,
        ),
    ],
)
def test_what_became_of_a_mutant(fate, given, cell, is_fine):
    assert (fate.says(mutant(**given)), fate.is_fine(mutant(**given))) == (cell, is_fine)


def test_those_that_damage_memory_are_alone():
    chosen = [mutant(name=str(n), alone=n in (1, 2)) for n in range(15)]
    sizes = [len(batch) for batch in batches(chosen)]
    assert sizes == [12, 1, 1, 1]
    assert [batch[0].name for batch in batches(chosen)[-2:]] == ["1", "2"]


def test_unknown_mutant_is_one_line(capsys):
    assert program.main(["no-such-mutant"]) == 2
    said = capsys.readouterr().err
    assert said == "error: no mutant no-such-mutant; --list shows them\n"


def test_list(capsys):
    assert program.main(["--list", "flags-not-checked"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said == "entry flags-not-checked undefined flags are accepted"


@pytest.mark.parametrize("report", sorted(REPORTS.glob("mutants-*.md")), ids=lambda path: path.stem)
def test_reports_have_every_mutant_and_none_that_survived(report):
    release = report.read_text().split()[4]
    cells = program.read(report)
    assert cells.keys() == {each.name for each in mutants() if each.is_for(release)}
    wrong = re.compile("SURVIVED|ERROR|none of")
    assert {name: cell for name, cell in cells.items() if wrong.search(cell)} == {}


def test_readme_has_the_report():
    rows = program.read(REPORTS / "mutants-6.12.md")
    assert program.read(ROOT / "README.md").items() >= rows.items()
