# SPDX-License-Identifier: GPL-2.0-only
"""The script for ``git bisect run``, in a kernel tree of one file, with a make that copies it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.kernels.build import TOOLS
from helpers.kernels.emulators.qemu import QEMU
from tests.kernel_files import MAKE_OPTIONS

MAKE = (
    MAKE_OPTIONS
    + """\
state=$(cat virt/kvm/state)
case $argument-$state in
    *-dirty) echo "*** The source tree is not clean, please run 'make mrproper'"; exit 2 ;;
    allnoconfig-intel) mkdir -p $built; grep -v KVM_AMD= $fragment > $built/.config ;;
    allnoconfig-*) mkdir -p $built; cp $fragment $built/.config ;;
    *-broken) printf "%s\\n" "CC kvm.o" "$PWD/kvm.c:1:2: error: no type" "*** Error 1"; exit 2 ;;
    *-slow) sleep 300 & echo $! > $built/process; wait ;;
    *) mkdir -p $built/arch/x86/boot; echo $state > $built/arch/x86/boot/bzImage ;;
esac
"""
)

CONFTEST = """\
def pytest_addoption(parser):
    parser.addoption("--kernel")
"""

TEST = """\
from pathlib import Path
import pytest

def test_it(pytestconfig, capsys):
    state = Path(pytestconfig.option.kernel, "arch/x86/boot/bzImage").read_text().strip()
    if state == "unbootable":
        with capsys.disabled():
            print("\\n6.99 could not be judged: the kernel died")
        pytest.exit("nothing was judged", returncode=4)
    if state == "untested":
        pytest.exit("all were skipped", returncode=5)
    assert state == "good"
"""


class Tree:
    """A kernel tree, whose commits differ in one file, and the tools to bisect the tree."""

    def __init__(self, path: Path, script: Path) -> None:
        self.path = path / "linux"
        self.script = script
        self.cache = path / "cache"
        self.tools = path / "tools"
        self.tools.mkdir()
        for tool in (*TOOLS, QEMU):
            self.tool(tool, MAKE if tool == "make" else "exit 0")
        for tool in ("git", "sh", "cat", "cp", "grep", "mkdir", "sleep"):
            (self.tools / tool).symlink_to(shutil.which(tool) or tool)
        (self.path / "virt/kvm").mkdir(parents=True)
        self.git("init", "-q")

    def tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        person = {
            f"GIT_{who}_{what}": "nobody@nowhere"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        return {
            **person,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "HOME": str(self.cache),
            "PATH": str(self.tools),
            "XDG_CACHE_HOME": str(self.cache),
        }

    def run(self, *command: str | Path, cwd: Path | None = None) -> tuple[int, str]:
        """Run a command; return its exit code and output."""
        done = subprocess.run(
            command,
            cwd=cwd or self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def git(self, *arguments: str) -> str:
        code, output = self.run(self.tools / "git", *arguments)
        assert code == 0, output
        return output.strip()

    def commit(self, state: str) -> str:
        """Commit a state; return the commit's hash."""
        (self.path / "virt/kvm/state").write_text(state)
        self.git("add", ".")
        self.git("commit", "-q", "--allow-empty", "-m", f"KVM: {state}")
        return self.git("rev-parse", "HEAD")

    def step(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str]:
        """Run one step of a bisection."""
        return self.run(sys.executable, self.script, *arguments, cwd=cwd)


@pytest.fixture
def tree(tmp_path, suite):
    suite.write("conftest.py", CONFTEST)
    suite.write("suites/test_it.py", TEST)
    return Tree(tmp_path, suite.path / "helpers/kernels/git_bisect.py")


def test_bisection_names_the_first_bad_commit(tree):
    states = ["good", "good", "good", "broken", "bad", "bad", "broken", "bad"]
    commits = [tree.commit(state) for state in states]
    tree.git("bisect", "start", commits[-1], commits[0])
    _, output = tree.run(
        *(tree.tools / "git", "bisect", "run", sys.executable, tree.script, "suites/test_it.py")
    )
    # The fourth commit cannot be built, so that the fourth or the fifth is the first bad one.
    assert "only 'skip'ped commits left" in output
    first_bad = output.partition("first bad commit could be any of:\n")[2].split()[:2]
    assert sorted(first_bad) == sorted(commits[3:5])


@pytest.mark.parametrize(
    ("state", "code", "says"),
    [
        ("good", 0, "good: 1 passed"),
        ("bad", 1, "bad: 1 failed"),
        ("untested", 125, "(pytest ended with 5); log: "),
        (
            "unbootable",
            125,
            "cannot be judged: 6.99 could not be judged: the kernel died (pytest ended with 4)",
        ),
        ("broken", 125, "cannot be judged: the build failed: kvm.c:1:2: error: no type"),
        ("intel", 125, "cannot be judged: no configuration of this source has KVM_AMD"),
        ("dirty", 128, "error: {tree} holds the output of a build: make mrproper there"),
    ],
)
def test_verdict_and_what_is_said(tree, state, code, says):
    commit = tree.commit(state)
    found, output = tree.step("suites/test_it.py")
    assert found == code, output
    assert output.startswith(f"{commit[:12]} KVM: {state}\n")
    assert says.format(tree=tree.path) in output


@pytest.mark.parametrize("state", ["good", "bad", "untested", "broken"])
def test_log_is_named_and_holds_all(tree, state):
    tree.commit(state)
    _, output = tree.step("suites/test_it.py")
    log = Path(output.rpartition("log: ")[2].strip())
    assert log.is_relative_to(tree.cache / "kvm-signal-msi/builds")
    assert "bzImage" in log.read_text()


def test_arguments_are_pytests(tree, suite):
    suite.write("suites/test_other.py", "def test_other(): assert False")
    tree.commit("good")
    assert tree.step("suites")[0] == 1
    code, output = tree.step("suites/test_it.py::test_it", "-v")
    assert code == 0
    assert "good: 1 passed" in output


def test_build_directory_is_the_trees_own_and_stays(tree):
    tree.commit("good")
    tree.step("suites/test_it.py")
    tree.commit("bad")
    tree.step("suites/test_it.py")
    (image,) = tree.cache.rglob("bzImage")
    assert image.read_text() == "bad\n"
    assert not tree.git("status", "--short", "--ignored")


def test_another_configuration_is_built_beside(tree):
    tree.commit("good")
    tree.step("suites/test_it.py")
    code, output = tree.step("--config=debug", "suites/test_it.py")
    assert code == 0, output
    built = {image.parts[-5]: image.parents[3] for image in tree.cache.rglob("bzImage")}
    assert set(built) == {"minimal", "debug"}
    assert "CONFIG_KASAN=y" in (built["debug"] / ".config").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "error: usage: git bisect run"),
        (["--help"], "error: usage: git bisect run"),
        (["suites/test_it.py::test_that"], "ERROR: not found: "),
        (["suites/test_that.py"], "file or directory not found: suites/test_that.py"),
        (["suites", "-k", "that"], "no tests collected (1 deselected)"),
        (["suites", "--that"], "error: unrecognized arguments: --that"),
        (["suites", "--kernel=6.12"], "error: --kernel is set by this script"),
        (["suites", "--kernel", "6.12"], "error: --kernel is set by this script"),
        (["suites", "--config=large"], "argument --config: invalid choice: 'large'"),
    ],
)
def test_mistake_ends_the_bisection_before_anything_is_built(tree, arguments, says):
    tree.commit("good")
    code, output = tree.step(*arguments)
    assert code == 128
    assert says in output
    assert len(output.splitlines()) == 1
    assert not tree.cache.exists()


@pytest.mark.parametrize("tool", [*TOOLS, QEMU])
def test_missing_tool_ends_the_bisection(tree, tool):
    tree.commit("good")
    (tree.tools / tool).unlink()
    code, output = tree.step("suites/test_it.py")
    assert code == 128
    assert output.startswith(f"error: {tool} not found (on Debian: apt-get install ")


def test_missing_header_ends_the_bisection(tree):
    tree.commit("good")
    tree.tool("gcc", "exit 1")
    code, output = tree.step("suites/test_it.py")
    assert code == 128
    assert output.startswith("error: gelf.h not found (on Debian: apt-get install ")


def test_python_without_pytest_ends_the_bisection(tree):
    tree.commit("good")
    code, output = tree.run(sys.executable, "-S", tree.script, "suites/test_it.py")
    assert code == 128
    assert f"{sys.executable} has no pytest" in output


def test_directory_that_is_no_tree_ends_the_bisection(tree, tmp_path):
    code, output = tree.step("suites/test_it.py", cwd=tmp_path)
    assert code == 128
    assert output == f"error: {tmp_path} is in no git work tree: run this in a kernel tree\n"


def test_tree_that_is_no_kernels_ends_the_bisection(tree):
    tree.git("commit", "-q", "--allow-empty", "-m", "another project")
    (tree.path / "virt/kvm").rmdir()
    code, output = tree.step("suites/test_it.py")
    assert code == 128
    assert output == f"error: {tree.path} is no kernel tree: it has no virt/kvm\n"


def test_error_of_its_own_is_not_the_kernels(tree):
    tree.commit("good")
    tree.cache.write_text("no directory")
    code, output = tree.step("suites/test_it.py")
    assert code == 128
    assert "NotADirectoryError" in output


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_build_leaves_no_process(tree, number):
    tree.commit("slow")
    step = subprocess.Popen(
        [sys.executable, tree.script, "suites/test_it.py"],
        cwd=tree.path,
        env=tree.environment,
        stdout=subprocess.DEVNULL,
    )
    while not (files := [file for file in tree.cache.rglob("process") if file.read_text()]):
        assert step.poll() is None
        time.sleep(0.05)
    step.send_signal(number)
    assert step.wait() == 130
    while not has_ended(int(files[0].read_text())):
        time.sleep(0.05)
