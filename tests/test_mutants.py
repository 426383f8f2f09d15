# SPDX-License-Identifier: GPL-2.0-only
"""Test the kernel mutants' tables, edits and results, without building a kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from helpers.kernels.edits import Edit, EditError
from helpers.spec.kernels import DEFAULT_KERNEL
from helpers.spec.table import SpecError, read
from tests.copy_of_the_suite import ROOT
from tests.mutants import __main__ as program
from tests.mutants.foreign import wrap
from tests.mutants.judge import MutantResult, Order, batches
from tests.mutants.mutant import Mutant, mutants

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
    fields = {"id": "it", "breaks": "all", "clause": "msi.flags"}
    return Mutant(**{**fields, "function": "checked", "old": "!kvm || flags", **given})


def test_edit_changes_its_place_only():
    file, text = Edit("checked", "!kvm||flags", "false").apply(SOURCES)
    assert file == "virt/kvm/irqchip.c"
    assert text == SOURCES[file].replace("!kvm ||\n\t\tflags", "false")


@pytest.mark.parametrize(
    "function, old, reason",
    [
        ("absent", "flags", "no function absent"),
        ("checked", "return 1;", "0 places in checked, not 1: return 1;"),
        ("checked", "flags", "3 places in checked, not 1: flags"),
        ("checked", "return -1;", "0 places in checked, not 1: return -1;"),
        ("checked", "lags)", "0 places in checked, not 1: lags)"),
    ],
)
def test_edit_that_does_not_fit_is_an_error(function, old, reason):
    with pytest.raises(EditError, match=re.escape(reason)):
        Edit(function, old, "").apply(SOURCES)


@pytest.mark.parametrize("old, file", [("0", "irqchip.c"), ("-1", "kvm_main.c")])
def test_function_of_two_files_is_the_one_with_the_text(old, file):
    assert Edit("other", f"return {old};", "").apply(SOURCES)[0] == f"virt/kvm/{file}"


def test_older_kernels_have_their_own_edit():
    older = Edit("checked", "return 0;", "return 1;")
    assert mutant(function="newer", older=older).apply(SOURCES) == older.apply(SOURCES)
    oldest = Edit("newest", "1", older=Edit("newer", "1", older=older))
    assert oldest.apply(SOURCES) == older.apply(SOURCES)
    with pytest.raises(EditError, match="no function newer"):
        mutant(function="newer").apply(SOURCES)


def test_function_may_have_another_name_in_other_kernels():
    edit = Edit("renamed|checked", "!kvm||flags", "false")
    assert edit.apply(SOURCES) == Edit("checked", "!kvm||flags", "false").apply(SOURCES)


def test_edit_without_new_text_deletes():
    _, text = mutant(old="!kvm ||").apply(SOURCES)
    assert "if (\n\t\tflags)" in text


@pytest.mark.parametrize(
    "bounds, kernels",
    [
        ({}, "6.1 6.3 6.12"),
        ({"since": "6.3"}, "6.3 6.12"),
        ({"until": "6.3"}, "6.1"),
        ({"since": "6.3", "until": "6.12"}, "6.3"),
    ],
)
def test_since_and_until_bound_the_kernels(bounds, kernels):
    names = {"6.1": "6.1.0-56-amd64", "6.3": "6.3.1-amd64", "6.12": "6.12.9+deb13-amd64"}
    found = [version for version, name in names.items() if mutant(**bounds).is_for(name)]
    assert " ".join(found) == kernels


def test_every_mutant_is_well_formed():
    every = mutants()
    assert len({each.id for each in every}) == len(every)
    for each in every:
        assert re.fullmatch(r"([0-9a-f]{12} \(\d+(\.\d+)+\))?", each.undoes), each.id
        assert each.old != each.new
        assert "|" not in each.breaks


@pytest.mark.parametrize(
    "text, reason",
    [
        ('clause = "msi.flags"', "function is missing"),
        ('function = "f"\nold = "1"\nclause = "no.clause"', "no clause no.clause"),
        ('function = "f"\nold = "1"\nclause = "msi.flags"\nnote = "2"', "no field 'note'"),
    ],
)
def test_error_names_file_mutant_and_field(tmp_path, text, reason):
    (tmp_path / "1-entry.toml").write_text(f'[it]\nbreaks = "all"\n{text}\n')
    with pytest.raises(SpecError, match=f"1-entry.toml: it: {reason}"):
        mutants(tmp_path)


TEST, OTHER = "suites/test_flags.py::test_it", "suites/test_abi.py::test_it"


@pytest.mark.parametrize(
    "result, cell, caught",
    [
        (MutantResult(), "SURVIVED", False),
        (MutantResult(error="no test ran"), "ERROR: no test ran", False),
        (MutantResult({TEST: 7, OTHER: 3}, tests=9), "`test_abi.py::test_it` (2 of 9)", True),
        (
            MutantResult({TEST: 7}, tests=9, whole_suite=True),
            "`test_flags.py::test_it`, none of msi.flags",
            False,
        ),
    ],
)
def test_result_is_a_cell_of_the_table(result, cell, caught):
    assert (result.cell("msi.flags"), result.caught) == (cell, caught)


def test_mutants_that_damage_memory_have_their_own_boot():
    chosen = [mutant(id=str(n), alone=n in (1, 2)) for n in range(15)]
    sizes = [len(batch) for batch in batches(chosen)]
    assert sizes == [12, 1, 1, 1]
    assert [batch[0].id for batch in batches(chosen)[-2:]] == ["1", "2"]


@pytest.mark.skipif(
    not Path("/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").exists(),
    reason="the loader of this machine is not where Debian has it",
)
def test_program_runs_with_the_loader_of_another_release(tmp_path):
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/x86_64-linux-gnu").symlink_to("/lib/x86_64-linux-gnu")
    program = Path(shutil.copy("/bin/echo", tmp_path / "usr/echo"))
    (tmp_path / "usr/script").write_text("#!/bin/sh\n")
    for _ in range(2):  # the second time, nothing is left to do
        wrap([tmp_path / "usr"], tmp_path)
    assert program.read_bytes().startswith(b"#!/bin/sh")
    assert {file.name for file in tmp_path.glob("usr/*")} == {"echo", "echo.elf", "lib", "script"}
    done = subprocess.run([program, "one", "t w o"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("one t w o\n", "")


def test_record_is_a_run_of_pytest(tmp_path):
    job = tmp_path / "job"
    job.write_text(
        json.dumps({"clauses": {}, "record": str(tmp_path / "record"), **asdict(Order())})
    )
    command = [sys.executable, "-m", "tests.mutants.record", str(job), "suites/test_flags.py"]
    done = subprocess.run(
        [*command, "--collect-only", "-q"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_unknown_mutant_is_one_line(capsys):
    assert program.main(["no-such-mutant"]) == 2
    said = capsys.readouterr().err
    assert said == "error: no mutant no-such-mutant; --list shows all\n"


def test_list(capsys):
    assert program.main(["--list", "flags-not-checked"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said == "flags-not-checked msi.flags undefined flags are accepted"


EACH_REPORT = pytest.mark.parametrize(
    "report", sorted(REPORTS.glob("mutants-*.md")), ids=lambda path: path.stem
)


@EACH_REPORT
def test_reports_have_no_mutant_that_survived_and_none_that_is_gone(report):
    release = report.read_text().split()[4]
    cells = program.read(report)
    assert cells.keys() <= {each.id for each in mutants() if each.is_for(release)}
    wrong = re.compile("SURVIVED|ERROR|none of")
    assert {name: cell for name, cell in cells.items() if wrong.search(cell)} == {}


def test_every_mutant_is_judged_on_the_default_kernel():
    report = REPORTS / f"mutants-{DEFAULT_KERNEL}.md"
    release = report.read_text().split()[4]
    every = [each for each in mutants() if each.is_for(release)]
    assert program.read(report).keys() == {each.id for each in every if each.cpu == "amd"}


def test_race_mutants_break_clauses_of_races():
    found = read(ROOT / "tests/mutants/races.toml", Mutant)
    assert len(found) >= 8
    assert {mutant.clause for mutant in found.values()} == {
        *("race.settled", "race.once", "race.teardown")
    }
