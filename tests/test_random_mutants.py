# SPDX-License-Identifier: GPL-2.0-only
"""Test the operators, the drawing and the verdicts of random mutants, without building a kernel."""

from __future__ import annotations

import re

import pytest

from helpers.kernels.edits import Edit
from helpers.spec.table import SpecError
from tests.copy_of_the_suite import ROOT
from tests.mutants import random_run
from tests.mutants.judge import MutantResult
from tests.mutants.mutant import MutantError
from tests.mutants.operators import changes
from tests.mutants.order import by_defects_per_second, files_for, rounds, that_caught
from tests.mutants.random_edits import FUNCTIONS, Argument, all_mutants, arguments, drawn
from tests.mutants.random_run import Verdicts, read_verdicts, verdict_of

# --- operators ------------------------------------------------------------------------------------


def edits(body, operator=""):
    """Return "old -> new" of the changes of a function with this body."""
    text = f"static int f(struct kvm *kvm)\n{{\n{body}\n}}"
    return {
        f"{text[each.start : each.end]} -> {each.new}"
        for each in changes(text)
        if operator in ("", each.operator)
    }


@pytest.mark.parametrize(
    "operator, body, expected",
    [
        ("relational", "x = a < b;", {"< -> <=", "< -> >="}),
        ("relational", "x = a->b == (c);", {"== -> !="}),
        ("logical", "x = a && b || c;", {"&& -> ||", "|| -> &&"}),
        ("negation", "x = !a;", {"! -> "}),
        ("arithmetic", "x += a[1] - b;", {"+= -> -=", "- -> +"}),
        ("arithmetic", "++x;", {"++ -> --"}),
        ("arithmetic", "x = -1 + *p;", {"+ -> -"}),
        ("arithmetic", "x = (u32 *)p + sizeof(struct kvm *);", {"+ -> -"}),
        ("bitwise", "x = (a >> 1) & ~b;", {"& -> |", "~ -> "}),
        ("bitwise", "x = (u64)&a; f(&b);", set()),
        ("shift", "x <<= 1; y = a << b;", {"<< -> >>"}),
        ("constant", "x = 7;", {"7 -> 8", "7 -> 6", "7 -> 0"}),
        ("constant", "x = 0;", {"0 -> 1", "0 -> (-1)"}),
        ("constant", "x = 0xffU;", {"0xffU -> (0xffU + 1)", "0xffU -> (0xffU - 1)", "0xffU -> 0"}),
        ("constant", "x = NULL; y = MASK(GFP_KERNEL);", set()),
        ("jump", "break;", {"break; -> ;", "break; -> continue;"}),
        ("return", "return;", set()),
        ("return", "if (a)\n\treturn;\nx();", {"return; -> ;"}),
        ("return", "return true;", {"true -> false"}),
        ("return", "return a;", {"a -> 0", "a -> 1", "a -> -1", "a -> !(a)"}),
        ("condition", "while (a) x();", {"a -> 0", "a -> !(a)"}),
        ("condition", "if (a) x();", {"a -> 0", "a -> 1", "a -> !(a)"}),
        ("condition", "for_each(i, kvm)\n\tif (a)\n\t\tx();", {"a -> 0", "a -> 1", "a -> !(a)"}),
        ("argument", "f(a, g(b, c), 0);", {"a -> 0", "b -> 0", "c -> 0", "g(b, c) -> 0"}),
        ("argument", "call(op)(a);", {"op -> 0", "a -> 0"}),
        ("argument", "x = (struct a *)b; f();", set()),
        ("statement", "int x = 1, y;\nx = y;", {"x = y; -> ;"}),
        ("statement", "u32 *p = q;\nstruct a b;", set()),
        ("statement", "switch (a) {\ncase A:\n\tx();\ndefault:\n\tgoto out;\n}", {"x(); -> ;"}),
        ("statement", "out:\n\tx(a,\n\t  b);", {"x(a,\n\t  b); -> ;\n"}),
        ("", "trace_x(a == 1);\npr_warn(\"a\" + 1);\nWARN_ON(!a);", set()),
        ("", "/* a == 1 */\n#if A == 1\n#endif\n// 1\n", set()),
    ],
)  # fmt: skip
def test_changes_of_an_operator(operator, body, expected):
    assert edits(body, operator) == expected


def test_change_keeps_the_lines():
    text = "int f(void)\n{\n\tif (a &&\n\t    b)\n\t\treturn g(c,\n\t\t\t d);\n\treturn 0;\n}"
    for each in changes(text):
        changed = text[: each.start] + each.new + text[each.end :]
        assert changed.count("\n") == text.count("\n")
        assert changed != text


# --- the mutants of a kernel ----------------------------------------------------------------------

SOURCES = {
    "virt/kvm/irqchip.c": """\
int kvm_set_msi(struct kvm *kvm, int level)
{
	if (!level)
		return -1;

	return deliver(kvm, 1) + deliver(kvm, 1);
}
""",
    "arch/x86/kvm/lapic.c": "int other(void)\n{\n\treturn 1;\n}\n",
}


def test_functions_are_listed_once():
    assert len(set(FUNCTIONS)) == len(FUNCTIONS)


def test_mutants_differ_and_have_stable_ids():
    every = all_mutants(SOURCES)
    assert {each.function for each in every} == {"kvm_set_msi"}
    assert len({each.apply(SOURCES) for each in every}) == len(every)
    assert "random-kvm_set_msi-3-negation-" in " ".join(each.id for each in every)
    moved = {file: f"\n#define A\n{text}" for file, text in SOURCES.items()}
    assert [each.id for each in all_mutants(moved)] == [each.id for each in every]


def test_seed_repeats_the_order():
    first, again, other = drawn(SOURCES, 1), drawn(SOURCES, 1), drawn(SOURCES, 2)
    assert first == again
    assert first != other
    assert sorted(each.id for each in first) == sorted(each.id for each in other)


# --- arguments ------------------------------------------------------------------------------------


def mutant(operator, old, new):
    return next(
        each
        for each in all_mutants(SOURCES)
        if (each.operator, each.old, each.new) == (operator, old, new)
    )


@pytest.mark.parametrize(
    "fields, covers",
    [
        ({"old": "!level", "new": "level"}, True),
        ({"old": "if (!level)", "new": "if (level)"}, True),
        ({"old": "!level", "new": "0"}, False),
        ({"old": "if (!level) return -1;"}, True),
        ({"old": "return -1;"}, False),
        ({"old": "absent", "older": Edit("kvm_set_msi", "if (!level)"), "new": "if (level)"}, True),
    ],
)
def test_argument_covers_its_edit_or_the_inside_of_a_text(fields, covers):
    argument = Argument(id="it", function="kvm_set_msi", why="it", **fields)
    covered = argument.covers(SOURCES)
    assert covered.has(mutant("negation", "!", ""), SOURCES) == covers


def test_argument_that_does_not_apply_is_an_error(tmp_path):
    file = tmp_path / "argued.toml"
    file.write_text('[it]\nfunction = "kvm_set_msi"\nold = "absent"\nwhy = "it"\nuntil = "6.2"\n')
    with pytest.raises(SpecError, match=re.escape("argued.toml: it: 0 places in kvm_set_msi")):
        list(arguments("6.1.0-amd64", SOURCES, file))
    assert list(arguments("6.12.1-amd64", SOURCES, file)) == []


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result, verdict",
    [
        (MutantResult(), "survived"),
        (
            MutantResult(
                {"suites/a.py::b[c]": 7, "suites/d.py::e": 3},
                reasons={"suites/a.py::b[c]": "x", "suites/d.py::e": "it | died"},
            ),
            "caught by `d.py::e`: it / died",
        ),
        (MutantResult(error="it\ndied | so", broken=True), "caught: it died / so"),
    ],
)
def test_verdict_of_a_result(result, verdict):
    assert verdict_of(result) == verdict


def test_result_without_a_verdict_is_an_error():
    with pytest.raises(MutantError, match="no pytest"):
        verdict_of(MutantResult(error="no pytest"))


@pytest.fixture
def verdicts():
    """Verdicts on ten mutants: 2 equivalent, 1 argued, 1 alive, 6 caught."""
    argument = Argument(id="why", function="kvm_set_msi", old="!level", new="level", why="it")
    argued = mutant("negation", "!", "")
    others = [each for each in all_mutants(SOURCES) if each != argued]
    given = ["survived", "equivalent (compiler)", "equivalent (compiler)"] + ["caught by `a`"] * 6
    made = Verdicts(SOURCES, [argument.covers(SOURCES)], [argued, *others[:9]])
    ids = [each.id for each in made.mutants]
    made.verdicts = dict(zip(ids, ["survived", *given], strict=True))
    made.uncompilable = 4
    return made


def test_numbers(verdicts):
    assert verdicts.summary() == (
        "10 drawn, 6 caught, 2 equivalent by the compiler, 1 argued, 1 alive: "
        "12.5 % of those judged; 4 others did not compile"
    )
    assert verdicts.refuted() == []


def test_caught_mutant_refutes_its_argument(verdicts):
    argued = verdicts.mutants[0].id
    verdicts.verdicts[argued] = "caught by `a`"
    assert verdicts.refuted() == [f"argued.toml: why: {argued} is caught by `a`"]


def test_table_is_read_back(verdicts, tmp_path):
    report = tmp_path / "report.md"
    report.write_text(verdicts.table("6.12", seed=1))
    assert read_verdicts(report) == verdicts.verdicts
    assert report.read_text().count("| argued: why |") == 1
    assert read_verdicts(tmp_path / "absent") == {}


@pytest.mark.parametrize("verdict", [random_run._SURVIVED_QUICK, random_run._NOT_RUN])
def test_argued_mutant_that_a_quick_run_spared_is_read_back(verdicts, tmp_path, verdict):
    verdicts.verdicts[verdicts.mutants[0].id] = verdict
    report = tmp_path / "report.md"
    report.write_text(verdicts.table("6.12", seed=1))
    assert f"| argued: why ({verdict}) |" in report.read_text()
    assert read_verdicts(report) == verdicts.verdicts
    assert verdicts.count()["argued"] == 1


# --- order ----------------------------------------------------------------------------------------


def ids(file, *functions):
    return [f"suites/test_{file}.py::test_{name}" for name in functions]


TESTS = [
    *ids("abi", "a[1]", "a[2]", "a[3]", "b"),
    *ids("sweep", "d"),
    *ids("mp_state", "c[1]", "c[2]"),
]


def test_order_has_all_tests_once():
    ordered = by_defects_per_second(TESTS, "kvm_arch_vcpu_ioctl_set_mpstate", ids("abi", "a[2]"))
    assert sorted(ordered) == sorted(TESTS)
    assert ordered[:3] == [*ids("mp_state", "c[1]", "c[2]"), *ids("abi", "a[2]")]
    assert ordered[-1] == ids("sweep", "d")[0]


def test_quick_run_has_the_tests_near_the_function_and_those_that_caught():
    ordered = by_defects_per_second(TESTS, "process_mpstate", ids("abi", "a[2]"), quick=1)
    assert ordered == [*ids("mp_state", "c[1]"), *ids("abi", "a[2]")]


def test_tests_that_caught_are_read_from_reports():
    text = "| a | `test_abi.py::test_a[x-1]` (2 of 3) |\n| caught by `test_abi.py::test_b`: `no` |"
    assert that_caught(text) == ids("abi", "a[x-1]", "b")


def test_every_function_has_tests_near():
    assert [function for function in FUNCTIONS if not files_for(function)] == []


def test_near_files_exist():
    files = {file for function in FUNCTIONS for file in files_for(function)}
    assert {file for file in files if not (ROOT / f"suites/test_{file}.py").exists()} == set()


def test_rounds_are_a_permutation():
    for number in (1, 2, 3, 17):
        assert sorted(rounds(number)) == list(range(number))
    assert (rounds(9)[0], rounds(9)[8]) == (0, 1)
