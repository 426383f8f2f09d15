# SPDX-License-Identifier: GPL-2.0-only
"""The checkout and the build of a report for KCIDB: given by options, or taken from the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kcidb_io
import pytest

from helpers.ci.kcidb import EXCERPT, Given, Run, Source, path_of
from helpers.ci.kcidb_plugin import _source
from helpers.spec import CLAUSES
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import Tally
from tests.ci_outputs import IT, ended


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel's build tree: a git repository with a tag, and a .config."""
    path = tmp_path / "linux"
    path.mkdir()
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (
        ["init", "-q", "-b", "next"],
        ["commit", "-q", "--allow-empty", "-m", "Linux"],
        ["tag", "-a", "-m", "Linux", "v6.99"],
        ["remote", "add", "origin", "https://git.example/linux.git"],
    ):
        subprocess.run([*git, *command], check=True)
    (path / ".config").write_text("CONFIG_KVM=m\n")
    return path


def report(run: Run) -> dict:
    """Return the report of a run, after the schema accepted it."""
    kcidb_io.schema.LATEST.validate_exactly(run.document())
    return run.document()


def test_checkout_and_build_are_those_of_the_tree(tree):
    tally = Tally("6.99.0", tree=tree)
    run = Run(Given("mine"), "1", 0)
    build = run.add_kernel(tally, _source(tally))
    run.add_summary(tally, build, [])
    written = report(run)
    [checkout], [made] = written["checkouts"], written["builds"]
    assert len(checkout["git_commit_hash"]) == 40
    assert checkout["git_commit_name"] == "v6.99"
    assert checkout["git_repository_branch"] == "next"
    assert checkout["git_repository_url"] == "https://git.example/linux.git"
    assert checkout["id"] == f"mine:{checkout['git_commit_hash']}"
    assert made["config_url"] == (tree / ".config").as_uri()
    assert made["checkout_id"] == checkout["id"]
    assert [test["status"] for test in written["tests"]] == ["MISS"]


def test_tree_without_git_has_the_release(tmp_path):
    tally = Tally("6.99.0", tree=tmp_path)
    run = Run(Given("mine"), "1", 0)
    run.add_kernel(tally, _source(tally))
    [checkout] = report(run)["checkouts"]
    assert checkout["git_commit_name"] == "6.99.0"
    assert "git_commit_hash" not in checkout


def test_known_checkout_is_referred_to():
    run = Run(Given("mine", checkout="maestro:1"), "1", 0)
    run.add_kernel(Tally("6.99.0"), Source())
    written = report(run)
    assert written["checkouts"] == []
    assert [build["checkout_id"] for build in written["builds"]] == ["maestro:1"]


def test_known_build_is_referred_to():
    run = Run(Given("mine", build="maestro:2"), "1", 0)
    build = run.add_kernel(Tally("6.99.0"), Source())
    run.add(ended("", IT, "test_a"), Tally(), build, None)
    written = report(run)
    assert (written["checkouts"], written["builds"]) == ([], [])
    assert [test["build_id"] for test in written["tests"]] == ["maestro:2"]


def test_columns_of_one_build_have_a_summary_each():
    run = Run(Given("mine"), "1", 0)
    for column, outcome in (("6.99 avic=Y", "failed"), ("6.99 avic=N", "passed")):
        tally = Tally(column)
        run.add(ended(column, IT, "test_a", outcome), tally, "mine:b", None)
        run.add_summary(tally, "mine:b", [])
    statuses = [test["status"] for test in report(run)["tests"]]
    assert statuses == ["FAIL", "FAIL", "PASS", "PASS"]


def test_long_log_is_cut_to_what_the_schema_takes():
    run = Run(Given("mine"), "1", 0)
    run.add(ended("", IT, "test_a", "failed", "x\0" * EXCERPT), Tally(), "mine:b", None)
    [test] = report(run)["tests"]
    assert test["log_excerpt"] == "x" * EXCERPT


def test_issue_has_the_summary_and_the_fix():
    run = Run(Given("mine"), "1", 0)
    verdict = Verdict(next(iter(CLAUSES)), deviation="reset-hold-stays")
    end = ended("", IT, "test_a", "xfailed")
    run.add(type(end)(**{**vars(end), "verdict": verdict}), Tally(), "mine:b", None)
    [issue] = report(run)["issues"]
    assert issue["report_url"] == "https://git.kernel.org/linus/647daca25d24"
    assert "AP_RESET_HOLD" in issue["report_subject"]
    assert issue["version"] == 19700101


@pytest.mark.parametrize(
    "nodeid, path",
    [
        ("", "kvm_signal_msi"),
        (IT, "kvm_signal_msi.test_it"),
        (f"{IT}::test_a", "kvm_signal_msi.test_it.test_a"),
        (f"{IT}::TestB::test_a[x=1-y.z]", "kvm_signal_msi.test_it.TestB.test_a.x_1-y_z"),
        (f"{IT}::test_a[a::b]", "kvm_signal_msi.test_it.test_a.a_b"),
        (f"{IT}::test_a[]", "kvm_signal_msi.test_it.test_a"),
    ],
)
def test_path_is_the_place_in_the_tree_of_tests(nodeid, path):
    assert path_of(nodeid) == path
