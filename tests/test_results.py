"""--results and --compare: what is written, when it is not, and what has become of each test."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from platform import release

import pytest

from helpers.report.results import NoResults, read
from tests.copy_of_the_suite import Run, Suite, run_pytest

WORKERS = pytest.mark.parametrize("workers", [0, 2], ids="-n{}".format)

BODIES = {
    "passed": "def test_{}():\n    pass",
    "passed, without made-up": "@known(bound='version')\ndef test_{}():\n    pass",
    "xfailed: made-up": "@known()\ndef test_{}():\n    expect('return value', '1', 'other')",
    "xfailed: other": "@known(id='other')\ndef test_{}():\n    expect('return value', '1', 'x')",
    "skipped": "def test_{}():\n    pytest.skip('a precondition is missing')",
    "failed": "def test_{}():\n    assert False",
    "error": "def test_{}(no_such_fixture):\n    pass",
}
"""A test that ends with this verdict."""


def ending(**verdicts: str) -> str:
    """Tests of these names with these verdicts."""
    bodies = (BODIES[verdict].format(name) for name, verdict in verdicts.items())
    return "".join(f'@clause("msi.flags")\n{body}\n\n' for body in bodies)


EVERY = dict(zip("abcdefg", BODIES, strict=True))
"""A name for every verdict."""


def record(suite: Suite, **files: dict[str, str]) -> None:
    """Make an a.json: ``record(suite, it={"a": "passed"})``, of test_it.py and its test_a."""
    tests = {
        f"test_{file}.py": {f"test_{name}": {"": verdict} for name, verdict in verdicts.items()}
        for file, verdicts in files.items()
    }
    kernel = {"release": "6.12.9", "vendor": "kvm_amd", "parameters": {}}
    (suite.path / "a.json").write_text(json.dumps({"kernel": kernel, "results": tests}))


def results(file: Path) -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(file.read_text())["results"]


def write(suite: Suite, *arguments: str) -> Run:
    """Write a.json, which must succeed."""
    run = suite.run("--results=a.json", *arguments)
    assert run.lines_with("a.json written: Linux "), run.output
    return run


def comparison(run: Run) -> list[str]:
    """The lines of a comparison, but for its title."""
    lines = run.output.splitlines()
    [start] = [number for number, line in enumerate(lines) if "compared with " in line]
    [end] = [number for number, line in enumerate(lines) if " the same" in line]
    return lines[start + 1 : end + 1]


# --- the file -------------------------------------------------------------------------------------


@WORKERS
def test_file_has_the_kernel_and_every_verdict(suite, workers):
    suite.add(ending(**EVERY))
    write(suite, "-n", str(workers))
    written = json.loads((suite.path / "a.json").read_text())
    assert written["kernel"]["release"] == release()
    assert set(written["kernel"]) == {"release", "vendor", "parameters"}
    expected = {f"test_{name}": {"": verdict} for name, verdict in EVERY.items()}
    assert written["results"] == {"test_it.py": expected}


def test_file_that_is_read_has_the_node_ids(suite):
    suite.add("""
class TestGroup:
    @clause("msi.flags")
    @pytest.mark.parametrize("value", ["a::b", "[c]", ""])
    def test_it(self, value):
        pass
""")
    write(suite)
    ids = {f"suites/test_it.py::TestGroup::test_it[{value}]" for value in ("a::b", "[c]", "")}
    assert set(read(suite.path / "a.json").verdicts) == ids


def test_file_is_the_same_for_every_run(suite):
    suite.add(ending(**EVERY), name="suites/test_one.py")
    suite.add(ending(**dict(reversed(EVERY.items()))), name="suites/test_two.py")
    texts = set()
    for arguments in ([], ["-n", "2"], ["--random-order"]):
        write(suite, *arguments)
        texts.add((suite.path / "a.json").read_text())
    assert len(texts) == 1


def test_other_verdict_is_one_other_line(suite):
    texts = []
    for verdict in ("passed", "skipped"):
        suite.add(ending(**EVERY | {"d": verdict}))
        write(suite)
        texts.append((suite.path / "a.json").read_text().splitlines())
    changed = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
    assert changed == ['- "": "passed"', '+ "": "skipped"']


def test_nothing_but_the_file_is_left(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=new/directory/a.json")
    assert run.lines_with("new/directory/a.json written")
    assert [file.name for file in (suite.path / "new/directory").iterdir()] == ["a.json"]


def test_directory_gets_a_file_named_after_the_kernel(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=kernels")
    assert run.exit_code == 0
    assert [file.name for file in (suite.path / "kernels").iterdir()] == [f"{release()}.json"]


# --- not written ----------------------------------------------------------------------------------

CUT_SHORT = {
    "first-failure": ("def test_b():\n    assert False\n", ["-x"], "1 of 3 tests"),
    "first-failure-n1": ("def test_b():\n    assert False\n", ["-x", "-n1"], "1 of 3 tests"),
    "interrupt": ("def test_b():\n    raise KeyboardInterrupt\n", [], "2 of 3 tests"),
    "dead-worker": (
        "def test_b():\n    import os\n    os._exit(1)\n",
        ["-n1", "--max-worker-restart=0"],
        "1 of 3 tests",
    ),
    "broken-file": (
        "def test_b():\n    pass\nassert False\n",
        ["--continue-on-collection-errors"],
        "suites/test_it.py could not be collected",
    ),
    "broken-file-n2": (
        "def test_b():\n    pass\nassert False\n",
        ["--continue-on-collection-errors", "-n2"],
        "suites/test_it.py could not be collected",
    ),
    "nothing-judged": (
        "def test_b():\n    pass\npytest.skip('', allow_module_level=True)\n",
        [],
        "nothing was judged",
    ),
}


@pytest.mark.parametrize("test, arguments, why", CUT_SHORT.values(), ids=CUT_SHORT)
def test_run_that_was_cut_short_leaves_the_file_alone(suite, test, arguments, why):
    (suite.path / "a.json").write_text("untouched")
    around = [ending(**{name: "passed"}) for name in "ac"]
    suite.add(f'{around[0]}@clause("msi.flags")\n{test}\n{around[1]}')
    run = suite.run("--results=a.json", *arguments)
    [line] = run.lines_with("a.json not written: ")
    assert why in line
    assert run.exit_code != 0
    assert (suite.path / "a.json").read_text() == "untouched"


def test_worker_that_died_is_no_reason_when_another_goes_on(suite):
    suite.add(ending(a="passed", c="passed"))
    dies = '@clause("msi.flags")\ndef test_b():\n    import os\n    os._exit(1)\n'
    suite.add(dies, name="suites/test_b.py")
    write(suite, "-n1")
    assert results(suite.path / "a.json")["test_b.py"] == {"test_b": {"": "error"}}


SELECTIONS = {
    "keyword": ["-k", "test_a"],
    "keyword-n2": ["-k", "test_a", "-n2"],
    "node-id": ["suites/test_it.py::test_a"],
    "file": ["suites/test_it.py"],
    "ignored": ["--ignore=suites/test_other.py"],
}


@pytest.fixture
def two_files(suite: Suite) -> Suite:
    """A suite of test_it.py with test_a and test_b, test_other.py with test_c; their a.json."""
    suite.add(ending(a="passed", b="passed"))
    suite.add(ending(c="passed"), name="suites/test_other.py")
    record(suite, it={"a": "passed", "b": "passed"}, other={"c": "passed"})
    return suite


def run_selection(suite: Suite, selection: list[str], *arguments: str) -> Run:
    directories = [] if selection[0].startswith("suites") else ["suites"]
    return run_pytest(suite.path, *directories, *selection, *arguments)


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_part_of_the_suite_does_not_replace_the_whole(two_files, selection):
    before = (two_files.path / "a.json").read_text()
    run = run_selection(two_files, selection, "--results=a.json")
    assert run.lines_with("tests that were not part of this run")
    assert run.exit_code == 1
    assert (two_files.path / "a.json").read_text() == before


def test_part_of_the_suite_may_have_a_file_of_its_own(two_files):
    for _ in range(2):
        run = run_selection(two_files, ["-k", "test_a"], "--results=part.json")
        assert run.exit_code == 0, run.output
    assert results(two_files.path / "part.json") == {"test_it.py": {"test_a": {"": "passed"}}}


def test_tests_that_are_no_more_do_not_stay(two_files):
    two_files.add(ending(a="passed"))
    (two_files.path / "suites/test_other.py").unlink()
    write(two_files)
    assert results(two_files.path / "a.json") == {"test_it.py": {"test_a": {"": "passed"}}}


def test_file_that_cannot_be_written_is_a_failure(suite):
    suite.add(ending(a="passed"))
    (suite.path / "a.json").mkdir()
    run = suite.run("--results=a.json")
    assert run.lines_with("a.json not written: Is a directory")
    assert run.exit_code == 1
    assert not list(suite.path.glob(".a.json*"))


# --- several kernels ------------------------------------------------------------------------------

TWO_KERNELS = """
from copy import copy
from dataclasses import replace
import pytest
from helpers.verdicts.kernel import running_kernel
from helpers.verdicts.session import VERDICTS, Verdicts

count = Verdicts.pytest_runtest_logreport

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    verdicts = session.config.stash[VERDICTS]
    verdicts.tallies.clear()
    for column in ("5.10", "6.12"):
        verdicts.tally(column).kernel = replace(running_kernel(), release=column + ".99")

def count_twice(self, report):
    for column in self.tallies:
        of_column = copy(report)
        of_column.kvm_column = column
        if column == "5.10" and "test_b" in report.nodeid and report.when == "call":
            of_column.outcome = "failed"
        count(self, of_column)

Verdicts.pytest_runtest_logreport = count_twice
"""
"""A run of 5.10, on which test_b fails, and 6.12, on which it passes."""


@pytest.fixture
def two_kernels(suite: Suite) -> Suite:
    suite.prepare(TWO_KERNELS)
    suite.add(ending(a="passed", b="passed"))
    return suite


@WORKERS
def test_every_kernel_has_a_file(two_kernels, workers):
    run = two_kernels.run("--results=kernels", "-n", str(workers))
    assert len(run.lines_with(".json written: Linux ")) == 2
    for column, verdict in (("5.10", "failed"), ("6.12", "passed")):
        file = two_kernels.path / f"kernels/{column}.json"
        assert read(file).kernel.startswith(f"Linux {column}.99, ")
        assert results(file)["test_it.py"]["test_b"] == {"": verdict}


@WORKERS
def test_every_kernel_is_compared(two_kernels, workers):
    two_kernels.run("--results=kernels")
    run = two_kernels.run("--compare=kernels/6.12.json", "-n", str(workers))
    titles = run.lines_with("compared with kernels/6.12.json (Linux 6.12.99, ")
    assert [title.split()[1] for title in titles] == ["5.10", "6.12"]
    assert run.lines_with("worse: suites/test_it.py::test_b: passed -> failed")
    assert [line[:8] for line in run.lines_with(" the same")] == ["1 worse,", "0 worse,"]
    assert run.exit_code == pytest.ExitCode.TESTS_FAILED


def test_file_for_several_kernels_is_refused_before_they_are_booted(suite):
    suite.prepare("""
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.kernel = ["5.10", "6.12"]
""")
    suite.add(ending(a="passed"))
    run = suite.run("--results=a.json")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output == (
        "ERROR: --results=a.json: a .json file has the results of one kernel (name a directory), "
        "and --kernel names 2\n\n"
    )


def test_file_for_kernels_that_turn_out_to_be_several_is_not_written(two_kernels):
    run = two_kernels.run("--results=a.json")
    assert len(run.lines_with("a.json not written: a .json file has the results of one")) == 2
    assert run.exit_code == 1
    assert not (two_kernels.path / "a.json").exists()


def test_kernel_that_did_not_say_which_it_is_has_no_file(suite):
    suite.prepare("""
import pytest
from helpers.verdicts.session import VERDICTS

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    session.config.stash[VERDICTS].tally("").kernel = None
""")
    suite.add(ending(a="passed"))
    run = suite.run("--results=kernels")
    assert run.lines_with("kernels not written: the kernel did not say which it is")
    assert run.exit_code == 1


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
"""(verdict in the file, verdict now): what has become of it."""

BECOMES_IDS = [f"{before} to {after}" for before, after in BECOMES]


@pytest.fixture(scope="module", params=[0, 2], ids="-n{}".format)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a test for each of BECOMES, and one that is new, without one that is gone."""
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


# --- what is gone, and what was not run -----------------------------------------------------------

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
"""pytest's arguments, and which tests are known to be gone then."""


@pytest.mark.parametrize("arguments, gone", GONE.values(), ids=GONE)
def test_gone_is_what_is_known_to_be(two_files, arguments, gone):
    was = {"it": {"a": "passed", "b": "passed"}, "other": {"c": "passed"}}
    record(two_files, **was, removed={"d": "passed"})
    two_files.add(ending(a="passed"))
    run = run_pytest(two_files.path, *arguments, "--compare=a.json")
    assert run.exit_code == 0, run.output
    said = [line.split(":")[-2].strip() for line in comparison(run) if line.startswith("gone: ")]
    assert said == gone


def test_tests_of_a_file_that_skips_itself_are_gone(two_files):
    two_files.add("pytest.skip('a precondition is missing', allow_module_level=True)\n")
    for workers in ("0", "2"):
        run = two_files.run("--compare=a.json", "-n", workers)
        assert len(run.lines_with("gone: suites/test_it.py::")) == 2


@pytest.mark.parametrize("arguments", [["-x"], ["-x", "-n1"]], ids=["-n0", "-n1"])
def test_tests_that_did_not_run_are_not_gone(suite, arguments):
    verdicts = dict.fromkeys("abcde", "passed") | {"b": "failed"}
    suite.add(ending(**verdicts))
    record(suite, it=verdicts)
    run = suite.run("--compare=a.json", *arguments)
    assert "0 new, 0 gone, 2 the same; 3 did not run" in comparison(run)[-1]


# --- bad input ------------------------------------------------------------------------------------

BAD_FILES = {
    "missing": (None, "No such file or directory"),
    "directory": ("", "Is a directory"),
    "empty": (b"", "no JSON: "),
    "binary": (b"\xff\xfe", "no JSON: "),
    "conflict": (b'{\n<<<<<<< HEAD\n"kernel": {}}', "no JSON: "),
    "list": (b"[]", "JSON, but no results of this suite"),
    "another": (b'{"kernel": "6.12", "results": {}}', "JSON, but no results of this suite"),
    "flat": (
        b'{"kernel": {"release": "6.12", "vendor": "kvm_amd"}, "results": {"a": "passed"}}',
        "JSON, but no results of this suite",
    ),
    "outcome": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {"a": {"b": {"": "fine"}}}}',
        "JSON, but no results of this suite",
    ),
    "number": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {"a": {"b": {"": 1}}}}',
        "JSON, but no results of this suite",
    ),
    "nothing": (
        b'{"kernel": {"release": "6", "vendor": "x"}, "results": {}}',
        "results of no test",
    ),
}


def bad_file(path: Path, content: bytes | str | None) -> Path:
    """A file of this content; a directory if it is text, nothing if it is None."""
    if isinstance(content, bytes):
        path.write_bytes(content)
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
    assert line.endswith("; to make it: pytest suites/ --results=a.json")


OPTIONS = pytest.mark.parametrize("option", ["--results=b.json", "--compare=a.json"])


@OPTIONS
def test_strict_run_has_no_results(suite, option):
    suite.add(ending(a="passed"))
    record(suite, it={"a": "passed"})
    run = suite.run(option, "--strict")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == (
        "ERROR: --results and --compare are not for --strict, where known deviations are failures"
    )


def test_directory_that_cannot_be_made_is_said_before_any_test(suite):
    suite.add(ending(a="passed"))
    run = suite.run("--results=pytest.ini")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == "ERROR: --results=pytest.ini: pytest.ini: File exists"


@OPTIONS
def test_run_that_judges_no_kernel_says_so(suite, option):
    suite.add(ending(a="passed"))
    record(suite, it={"a": "passed"})
    suite.write("tests/test_helper.py", "def test_helper():\n    pass\n")
    run = run_pytest(suite.path, "tests", option)
    assert run.lines_with("no kernel was judged: there are no results to write or to compare")
    assert run.exit_code == 0
    assert not (suite.path / "b.json").exists()


@OPTIONS
def test_collecting_is_no_run(suite, option):
    suite.add(ending(a="passed"))
    run = suite.run(option, "--collect-only", "-q")
    assert (run.exit_code, (suite.path / "b.json").exists()) == (0, False)
