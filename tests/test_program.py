# SPDX-License-Identifier: GPL-2.0-only
"""The suite as a C program has the verdicts of pytest, and catches what pytest catches."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.kernels.worker import Worker
from helpers.program.__main__ import main
from helpers.program.booted import ProgramGuest
from helpers.program.prune import defined, paragraphs, pruned
from helpers.program.text import register, statement, string
from helpers.record.forms import form_of, number_of
from helpers.report.results import read
from helpers.spec.kernels import DEFAULT_KERNEL
from helpers.verdicts.session import VERDICTS
from tests.copy_of_the_suite import ROOT, run_pytest
from tests.test_liar import CAUGHT_BY

TESTS = (
    *("suites/test_return_value.py", "suites/test_capability.py", "suites/test_flags.py"),
    *("suites/test_guest.py", "suites/test_message.py::test_vector_is_raised"),
    "suites/test_message.py::test_tmr_is_the_trigger_mode",
    "suites/test_destination.py::test_physical_destination_is_one_lapic",
)
LIES = (
    *("always-1", "always-0", "always-einval", "flags-not-checked", "delivers-to-all"),
    *("never-delivers", "next-vector", "wrong-vcpu", "tmr-wrong"),
)
WARNINGS = ("-Wall", "-Werror")

pytestmark = pytest.mark.timeout(300)


def gcc(*arguments: object) -> None:
    done = subprocess.run(
        ["gcc", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of several tests of suites/, recorded on the running kernel."""
    path = tmp_path_factory.mktemp("program") / "msi_test.c"
    command = [sys.executable, "-m", "helpers.program", "-o", str(path), "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *TESTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert path.exists(), done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def program(source: Path) -> Path:
    """The program, compiled without a warning."""
    gcc("-O1", *WARNINGS, "-o", source.with_suffix(""), source)
    return source.with_suffix("")


def verdicts(ktap: str) -> dict[str, str]:
    """Return {test: verdict} of a program's output."""
    found = re.findall(r"^(ok|not ok) \d+ (.*?)(?: # (SKIP|XFAIL) .*)?$", ktap, re.MULTILINE)
    return {name: directive or result for result, name, directive in found}


def test_verdicts_are_those_of_pytest(program, tmp_path):
    results = tmp_path / "results.json"
    options = ["-q", "-n", "2", f"--results={results}"]
    run_pytest(ROOT, *(test.partition("::")[0] for test in TESTS), *options)
    expected = {
        name.removeprefix("suites/"): verdict.split(":")[0].split(",")[0]
        for name, verdict in read(results).verdicts.items()
    }
    done = run(program, "-j", 8)
    words = {"ok": "passed", "XFAIL": "xfailed", "not ok": "failed", "SKIP": "skipped"}
    got = {name: words[verdict] for name, verdict in verdicts(done.stdout).items()}
    assert got == {name: expected[name] for name in got}
    assert len(got) > 400
    assert done.returncode == 0


def test_output_is_ktap(program):
    lines = run(program, "-j", 8).stdout.splitlines()
    assert lines[0] == "KTAP version 1"
    count = int(lines[1].removeprefix("1.."))
    numbers = [int(line.split()[1]) for line in lines if line.startswith("ok ")]
    assert numbers == list(range(1, count + 1))
    assert lines[-1].startswith("# Totals: pass:")


@pytest.fixture(scope="module")
def lies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of tests/lies.c, to be preloaded."""
    library = tmp_path_factory.mktemp("lies") / "lies.so"
    gcc("-shared", "-fPIC", *WARNINGS, "-o", library, ROOT / "tests/lies.c", "-ldl")
    return library


@pytest.mark.parametrize("lie", LIES)
def test_program_catches_a_lie(program, lies, lie):
    done = run(program, "-j", 8, LD_PRELOAD=str(lies), LIE=lie)
    assert done.returncode == 1
    failed = [name for name, verdict in verdicts(done.stdout).items() if verdict == "not ok"]
    assert any(f"{name}[".startswith(f"{CAUGHT_BY[lie]}[") for name in failed)


def test_one_test_is_run_by_its_name(program):
    name = "test_flags.py::test_undefined_flag_is_rejected[bit5]"
    assert verdicts(run(program, "-t", name).stdout) == {name: "ok"}


def test_unknown_name_is_one_line(program):
    done = run(program, "-t", "test_flags.py::test_nothing")
    assert done.returncode == 1
    assert done.stderr == "test_flags.py::test_nothing: no such test; -l lists them\n"


def test_directory_of_the_program_is_missing(tmp_path, capsys):
    assert main(["-o", f"{tmp_path}/none/msi_test.c", *TESTS]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no such directory\n"


def test_unknown_option_shows_the_usage(program):
    done = run(program, "-x")
    assert done.returncode == 1
    assert "usage:" in done.stderr


def test_list_has_what_is_left_out(program):
    listed = run(program, "-l").stdout.splitlines()
    assert "test_flags.py::test_undefined_flag_is_rejected[bit5]" in listed
    assert any(line.startswith("# left out: test_guest.py::") for line in listed)


def test_booted_kernel_runs_the_program_in_place_of_python(source):
    files = ["suites/test_flags.py", "suites/test_capability.py"]
    options = [f"--kernel={DEFAULT_KERNEL}", "-n", "1", "-q", f"--program={source}"]
    done = run_pytest(ROOT, *files, *options)
    assert re.search(r"\d+ passed", done.output), done.output
    assert done.exit_code == 0
    assert "kvm_amd" in done.output or "kvm_intel" in done.output


def test_column_is_left_after_its_failures():
    guest = object.__new__(ProgramGuest)
    guest._maxfail, guest._failures = 1, 0
    failed = [{"outcome": "failed"}]
    said = [("ended", 0, failed), ("begin", 1), ("ended", 1, failed), ("done",)]
    said += [("column", {}), ("begin", 0)]
    passed_on = [message[0] for message in guest._within_maxfail(iter(said))]
    assert passed_on == ["ended", "done", "column", "begin"]


# --- reproducers ----------------------------------------------------------------------------------

PADDING = "suites/test_padding.py::test_nonzero_padding_is_rejected[byte0-bit0]"


def test_reproducer_of_a_deviation_fails_too(tmp_path):
    junit = tmp_path / "run.xml"
    options = ["--strict", f"--reproducers={tmp_path}", f"--junitxml={junit}"]
    done = run_pytest(ROOT, PADDING, *options)
    assert "the program fails, too: not ok: return value: expected -1 EINVAL, got 1" in done.output
    [path] = tmp_path.glob("*.c")
    text = path.read_text()
    assert PADDING in text
    assert ".pad[0] = 1" in text
    assert f'<property name="reproducer" value="{path}" />' in junit.read_text()


def test_reproducer_of_a_lie_passes(tmp_path):
    test = "suites/test_flags.py::test_undefined_flag_is_rejected[bit5]"
    liar = ["-p", "tests.liar", "--lie=flags-not-checked", f"--caught={tmp_path}/caught.json"]
    done = run_pytest(ROOT, test, *liar, f"--reproducers={tmp_path}")
    assert "the program passes: ok" in done.output


@pytest.mark.parametrize(
    ("test", "expected", "got"),
    [
        ("test_sweep.py::test_one_message_of_each_kind[xapic-flat]", "0x41", "0x40"),
        ("test_generated.py::test_any_sequence_is_answered_as_the_model_says[0]", "0x00", "0x01"),
    ],
    ids=["swept", "generated"],
)
def test_reproducer_is_the_smallest_case_alone(tmp_path, lies, monkeypatch, test, expected, got):
    for name, value in {"LD_PRELOAD": str(lies), "LIE": "next-vector"}.items():
        monkeypatch.setenv(name, value)
    done = run_pytest(ROOT, f"suites/{test}", f"--reproducers={tmp_path}")
    effects = f"effect on vCPU 0: expected IRR SET {{{expected}}}, got IRR SET {{{got}}}"
    assert f"the program fails, too: not ok: {effects}" in done.output
    [path] = tmp_path.glob("*.c")
    assert path.read_text().count("\tsignal_msi(m, ") == 1
    assert run(path.with_suffix("")).returncode == 0


def test_reproducer_is_run_on_the_booted_kernel_that_failed(tmp_path):
    passes = "suites/test_flags.py::test_undefined_flag_is_rejected[bit5]"
    options = [f"--kernel={DEFAULT_KERNEL}", "-n", "1", "--strict", f"--reproducers={tmp_path}"]
    done = run_pytest(ROOT, passes, PADDING, *options)
    assert done.output.count("reproducer on this kernel") == 1
    assert "the program fails, too: not ok: return value: expected -1 EINVAL, got 1" in done.output
    assert len(list(tmp_path.glob("*.c"))) == 1


def test_reproducers_do_not_change_a_verdict(tmp_path):
    done = run_pytest(ROOT, PADDING, f"--reproducers={tmp_path}")
    assert "1 xfailed" in done.output
    assert not list(tmp_path.glob("*.c"))


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_pytest(ROOT, PADDING, f"--reproducers={tmp_path}/file/x")
    assert done.exit_code != 0
    assert "--reproducers=" in done.output


def test_program_without_a_kernel_to_boot_is_refused():
    done = run_pytest(ROOT, PADDING, "--program=x.c")
    assert done.exit_code != 0
    assert "--program are for kernels that are booted" in done.output


def test_guest_keeps_what_the_host_said_before_the_program():
    worker: Any = object.__new__(Worker)
    hook = SimpleNamespace(pytest_kvm_run_program=lambda program: program.decode())
    log = SimpleNamespace(complaints=list)
    worker.config = SimpleNamespace(hook=hook, stash={VERDICTS: SimpleNamespace(log=log)})
    worker.reports = [{"when": "call", "outcome": "failed", "sections": []}]
    worker.received = deque([("run", [5]), ("end",), ("program", b"not ok"), ("run", [6])])
    worker.send = lambda *_: None
    worker._flush = lambda: None
    worker.reproduce(3)
    assert list(worker.received) == [("run", [5]), ("end",), ("run", [6])]
    assert worker.reports[0]["sections"] == [("reproducer on this kernel", "not ok")]


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "form"),
    [(5, "5", "dec"), (5, "0x5", "hex"), (0, "False", "bool"), (3, "HALTED", "mp_state")],
)
def test_form_of_a_text(value, text, form):
    assert form_of(value, text) == form


def test_set_of_vectors_is_a_number_with_their_bits():
    assert number_of({1, 3}) == 0b1010
    assert form_of(0b1010, "{0x01 0x03}") == "vectors"


def test_value_without_a_form():
    assert form_of(5, "6") is None
    assert number_of(None) is None


def test_long_statement_is_broken_behind_a_comma():
    code = "f(" + ", ".join(["argument"] * 20) + ");"
    lines = statement(code).split("\n")
    assert len(lines) > 1
    assert all(len(line.expandtabs(8)) <= 100 for line in lines)
    assert " ".join(line.strip() for line in lines) == code


def test_comma_in_a_string_breaks_no_line():
    text = '"' + "a, " * 40 + '"'
    assert any(text in line for line in statement(f"f(x, {text});").split("\n"))


def test_quotes_are_escaped():
    assert string('a"b\\') == '"a\\"b\\\\"'


def test_word_of_a_wide_register_has_a_name():
    assert register(0x210) == "APIC_IRR + 0x10"
    assert register(0x80) == "APIC_TPR"
    assert register(0x84) == "0x84"


C = """\
/* One. */
static int one(void)
{
	return 1;
}

static int two(void)
{
	return one();
}

static int three;
"""


def test_paragraphs_are_whole_definitions():
    assert [list(defined(each)) for each in paragraphs(C)] == [["one"], ["two"], ["three"]]


def test_unused_definition_is_left_out():
    kept = pruned(C, "int main(void) { return one(); }")
    assert "int one" in kept
    assert "int two" not in kept
    assert "three" not in kept


def test_definition_stays_with_what_it_uses():
    assert "int one" in pruned(C, "two();")
