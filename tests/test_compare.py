# SPDX-License-Identifier: GPL-2.0-only
"""--compare: the group of each test, tests that are gone, and files that are no result files."""

from __future__ import annotations

from pathlib import Path
from platform import release

import pytest

from helpers.report.results import NoResults, read
from tests.copy_of_the_suite import Run, Suite, run_pytest
from tests.result_files import (
    TWO_KERNELS,
    WORKERS,
    add_two_files,
    comparison,
    ending,
    record,
    results,
    write,
)

# --- comparing ------------------------------------------------------------------------------------

BECOMES = {
    ("passed", "xfailed: made-up"): "worse",
    ("passed", "skipped"): "worse",
    ("xfailed: made-up", "skipped"): "worse",
    ("skipped", "failed"): "worse",
    ("skipped", "error"): "worse",
    ("passed, without made-up", "failed"): "worse",
    ("failed", "passed"): "better",
    ("error", "skipped"): "better",
    ("skipped", "xfailed: other"): "better",
    ("xfailed: made-up", "passed, without made-up"): "better",
    ("xfailed: made-up", "xfailed: other"): "changed",
    ("passed", "passed, without made-up"): "changed",
    ("failed", "error"): "changed",
    ("passed", "passed"): "",
    ("xfailed: other", "xfailed: other"): "",
    ("failed", "failed"): "",
}
"""(verdict in the file, verdict now): the group of the test, empty if the verdicts are the same."""

BECOMES_IDS = [f"{before} to {after}" for before, after in BECOMES]


@pytest.fixture(scope="module", params=[0, 2], ids="-n{}".format)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a test for each of BECOMES, a new test, and a test that is gone."""
    suite = Suite(tmp_path_factory.mktemp("compared") / "suite")
    was = {f"t{number}": before for number, (before, _) in enumerate(BECOMES)}
    now = {f"t{number}": after for number, (_, after) in enumerate(BECOMES)}
    suite.add(ending(**was, old="passed"))
    write(suite)
    suite.add(ending(**now, young="passed"))
    return suite.run("--compare=a.json", "-n", str(request.param))


@pytest.mark.parametrize("number, becomes", list(enumerate(BECOMES.items())), ids=BECOMES_IDS)
def test_every_test_is_in_its_group(compared, number, becomes):
    (before, after), group = becomes
    said = [line for line in comparison(compared) if f"::test_t{number}:" in line]
    line = f"{group}: suites/test_it.py::test_t{number}: {before} -> {after}"
    assert said == ([line] if group else [])


def test_new_and_gone_tests_are_named(compared):
    assert compared.lines_with("new: suites/test_it.py::test_young: absent -> passed")
    assert compared.lines_with("gone: suites/test_it.py::test_old: passed -> absent")


def test_comparison_is_summed_up_in_its_last_line(compared):
    assert comparison(compared)[-1] == ("6 worse, 4 better, 3 changed, 1 new, 1 gone, 3 the same")


def test_comparison_names_the_file_and_its_kernel(compared):
    assert compared.lines_with(f" compared with a.json (Linux {release()}, ")


@pytest.mark.parametrize(
    "before, after, arguments, exit_code",
    [
        ("passed", "xfailed: made-up", [], 1),
        ("passed", "xfailed: made-up", ["-n2"], 1),
        ("xfailed: made-up", "xfailed: other", [], 0),
        ("xfailed: made-up", "passed", [], 0),
        ("passed", "passed", [], 0),
    ],
    ids=["worse", "worse-n2", "changed", "better", "same"],
)
def test_worse_is_a_failure(suite, before, after, arguments, exit_code):
    record(suite, it={"a": before, "b": "passed"})
    suite.add(ending(a=after, b="passed"))
    assert suite.run("--compare=a.json", *arguments).exit_code == exit_code


def test_worse_does_not_hide_that_nothing_was_judged(suite):
    record(suite, it={"a": "passed"})
    suite.add(ending(a="skipped"))
    run = suite.run("--compare=a.json")
    assert run.lines_with("worse: suites/test_it.py::test_a")
    assert run.exit_code == pytest.ExitCode.NO_TESTS_COLLECTED


def test_no_more_than_fifty_of_a_group_are_named(suite):
    verdicts = {f"t{number}": "passed" for number in range(60)}
    record(suite, it=verdicts)
    suite.add(ending(**dict.fromkeys(verdicts, "skipped")))
    lines = comparison(suite.run("--compare=a.json"))
    assert [line.split()[0] for line in lines[:50]] == ["worse:"] * 50
    assert lines[50:] == [
        "... and 10 more worse",
        "60 worse, 0 better, 0 changed, 0 new, 0 gone, 0 the same",
    ]


def test_file_may_be_compared_with_and_replaced_in_one_run(suite):
    record(suite, it={"a": "passed", "b": "passed"})
    suite.add(ending(a="xfailed: made-up", b="passed"))
    run = write(suite, "--compare=a.json")
    assert run.lines_with("worse: suites/test_it.py::test_a: passed -> xfailed: made-up")
    assert results(suite.path / "a.json")["test_it.py"]["test_a"] == {"": "xfailed: made-up"}


# --- tests that are gone, and tests that did not run ----------------------------------------------

GONE = {
    "whole": (["suites"], ["test_b", "test_d"]),
    "whole-n2": (["suites", "-n2"], ["test_b", "test_d"]),
    "no-argument": (["--verbose"], ["test_b", "test_d"]),
    "file": (["suites/test_it.py"], ["test_b", "test_d"]),
    "other-file": (["suites/test_other.py"], ["test_d"]),
    "ignored": (["suites", "--ignore=suites/test_it.py"], ["test_d"]),
    "node-id": (["suites/test_it.py::test_a"], []),
    "keyword": (["suites", "-k", "test_a"], []),
    "keyword-n2": (["suites", "-k", "test_a", "-n2"], []),
    "deselected": (["suites", "--deselect=suites/test_it.py::test_a"], []),
}
"""Arguments of pytest, and the tests that such a run finds to be gone."""


@pytest.mark.parametrize("arguments, gone", GONE.values(), ids=GONE)
def test_gone_is_what_is_known_to_be(suite, arguments, gone):
    add_two_files(suite)
    was = {"it": {"a": "passed", "b": "passed"}, "other": {"c": "passed"}}
    record(suite, **was, removed={"d": "passed"})
    suite.add(ending(a="passed"))
    run = run_pytest(suite.path, *arguments, "--compare=a.json")
    assert run.exit_code == 0, run.output
    said = [line.split(":")[-2].strip() for line in comparison(run) if line.startswith("gone: ")]
    assert said == gone


def test_tests_of_a_file_that_skips_itself_are_gone(suite):
    add_two_files(suite)
    suite.add("pytest.skip('a precondition is missing', allow_module_level=True)\n")
    for workers in ("0", "2"):
        run = suite.run("--compare=a.json", "-n", workers)
        assert len(run.lines_with("gone: suites/test_it.py::")) == 2


@pytest.mark.parametrize("arguments", [["-x"], ["-x", "-n1"]], ids=["-n0", "-n1"])
def test_tests_that_did_not_run_are_not_gone(suite, arguments):
    verdicts = dict.fromkeys("abcde", "passed") | {"b": "failed"}
    suite.add(ending(**verdicts))
    record(suite, it=verdicts)
    run = suite.run("--compare=a.json", *arguments)
    assert "0 new, 0 gone, 2 the same; 3 did not run" in comparison(run)[-1]


@WORKERS
def test_every_kernel_is_compared(suite, workers):
    suite.prepare(TWO_KERNELS)
    suite.add(ending(a="passed", b="passed"))
    suite.run("--results=kernels")
    run = suite.run("--compare=kernels/6.12.json", "-n", str(workers))
    titles = run.lines_with("compared with kernels/6.12.json (Linux 6.12.99, ")
    assert [title.split()[1] for title in titles] == ["5.10", "6.12"]
    assert run.lines_with("worse: suites/test_it.py::test_b: passed -> failed")
    assert [line[:8] for line in run.lines_with(" the same")] == ["1 worse,", "0 worse,"]
    assert run.exit_code == pytest.ExitCode.TESTS_FAILED


# --- bad input ------------------------------------------------------------------------------------

BAD_FILES = {
    "missing": (None, "No such file or directory"),
    "directory": ("", "Is a directory"),
    "empty": (b"", "not JSON: "),
    "binary": (b"\xff\xfe", "not JSON: "),
    "conflict": (b'{\n<<<<<<< HEAD\n"kernel": {}}', "not JSON: "),
    "list": (b"[]", "JSON, but not written by --results"),
    "another": (b'{"kernel": "6.12", "results": {}}', "JSON, but not written by --results"),
    "flat": (
        b'{"kernel": {"release": "6.12", "vendor": "kvm_amd"}, "results": {"a": "passed"}}',
        "JSON, but not written by --results",
    ),
    "outcome": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {"a": {"b": {"": "fine"}}}}',
        "JSON, but not written by --results",
    ),
    "number": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {"a": {"b": {"": 1}}}}',
        "JSON, but not written by --results",
    ),
    "release": (
        b'{"kernel": {"release": ["6"], "vendor": "x"}, "results": {"a": {"b": {"": "passed"}}}}',
        "JSON, but not written by --results",
    ),
    "escape": (
        b'{"kernel": {"release": "\\u001b[2J", "vendor": "x"}, '
        b'"results": {"a": {"b": {"": "passed"}}}}',
        "JSON, but with unprintable characters",
    ),
    "newline": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {"a": {"b\\n": {"": "passed"}}}}',
        "JSON, but with unprintable characters",
    ),
    "verdict": (
        b'{"kernel": {"release": "6", "vendor": "x"}, '
        b'"results": {"a": {"b": {"": "passed: \\u202e"}}}}',
        "JSON, but with unprintable characters",
    ),
    "deep": (b"[" * 500_000, "not JSON: maximum recursion depth"),
    "html": (b"<!DOCTYPE html><html></html>", "not JSON: Expecting value"),
    "junit": (b"<?xml version='1.0'?><testsuites/>", "not JSON: Expecting value"),
    "ktap": (b"KTAP version 1\n1..0\n", "not JSON: Expecting value"),
    "endless": (Path("/dev/zero"), "more than 64 MiB"),
    "nothing": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {}}',
        "the results of no test",
    ),
}


def bad_file(path: Path, content: bytes | str | Path | None) -> Path:
    """Make a file with ``content``; a directory if that is text, nothing if it is None."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Path):
        path.symlink_to(content)
    elif content is not None:
        path.mkdir()
    return path


@pytest.mark.parametrize("content, why", BAD_FILES.values(), ids=BAD_FILES)
def test_file_that_cannot_be_read_says_why(tmp_path, content, why):
    with pytest.raises(NoResults, match=f"^{why}") as raised:
        read(bad_file(tmp_path / "a.json", content))
    assert "\n" not in str(raised.value)


@WORKERS
@pytest.mark.parametrize("name", ["missing", "conflict", "list"])
def test_file_that_cannot_be_compared_with_is_one_line_before_any_test(suite, workers, name):
    content, why = BAD_FILES[name]
    bad_file(suite.path / "a.json", content)
    suite.add(ending(a="passed"))
    run = suite.run("--compare=a.json", "-n", str(workers))
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in run.output.splitlines() if line]
    assert line.startswith(f"ERROR: --compare=a.json: {why}")
    assert line.endswith("; write such a file with: pytest suites/ --results=FILE.json")
