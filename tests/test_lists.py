# SPDX-License-Identifier: GPL-2.0-only
"""--tests and --list: lists of tests, one id a line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.copy_of_the_suite import ROOT, Suite, run_pytest
from tests.result_files import WORKERS, ending

IT = "suites/test_it.py"


@pytest.fixture
def three(suite: Suite) -> Suite:
    """A suite of test_a and test_b, with two cases each, and test_c."""
    each = '@pytest.mark.parametrize("value", ["x", "y z"])\n'
    suite.add(f"""
@clause("msi.flags")
{each}def test_a(value): pass

@clause("msi.flags")
{each}def test_b(value): pass
""")
    suite.add(ending(c="passed"), "suites/test_other.py")
    return suite


def piped(suite: Suite, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest with standard input, and with standard output apart from standard error."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=suite.path,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def ran(output: str) -> list[str]:
    """Return the tests that a verbose run names, in order."""
    return [line.partition(" PASSED")[0] for line in output.splitlines() if " PASSED" in line]


def test_list_is_printed_alone(three):
    done = piped(three, "--list", "suites", "-k", "not test_b")
    listed = [f"{IT}::test_a[x]", f"{IT}::test_a[y z]", "suites/test_other.py::test_c"]
    assert (done.stdout.splitlines(), done.returncode) == (listed, 0)
    assert "<Function" not in done.stderr


def test_listed_tests_run_in_the_order_of_the_list(three):
    listed = piped(three, "--list").stdout.splitlines()
    assert len(listed) == 5
    done = piped(three, "--tests=-", "-v", text="\n".join(reversed(listed)))
    assert ran(done.stdout) == listed[::-1]


@WORKERS
def test_comments_and_ids_without_parameters(three, workers):
    three.write(
        "list", f"# a comment\n\n  {IT}::test_b  # both\n{IT}::test_a[y z] # one\n{IT}::test_b[x]\n"
    )
    run = three.run("--tests=list", "-v", f"-n{workers}")
    assert run.exit_code == 0, run.output
    assert run.outcomes["passed"] == 3
    if not workers:
        assert ran(run.output) == [f"{IT}::test_b[x]", f"{IT}::test_b[y z]", f"{IT}::test_a[y z]"]


def test_file_and_standard_input_are_the_same_with_workers(three):
    done = piped(three, "--tests=-", "-n2", text=f"{IT}\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b"suites/test_it.py::test_z\n",
            "no such test among those collected: suites/test_it.py::t",
        ),
        (b"\n# nothing\n", "--tests=list names no test"),
        (b"\xff\xfe", "--tests=list cannot be read: not text"),
        (None, "--tests=list cannot be read: No such file or directory"),
    ],
    ids=["unknown", "empty", "binary", "absent"],
)
def test_useless_list_is_one_clear_line(three, content, message):
    if content is not None:
        (three.path / "list").write_bytes(content)
    run = three.run("--tests=list", "-q")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    [line] = run.lines_with("ERROR: ")
    assert message in line


def test_no_id_of_the_suite_looks_like_a_comment():
    run = run_pytest(ROOT, "suites", "--collect-only", "-q")
    ids = run.lines_with("suites/")
    assert len(ids) > 2000
    assert not [id for id in ids if " #" in id or id != id.strip()]
