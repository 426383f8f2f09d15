#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A step of ``git bisect run`` in a kernel tree: build the commit, boot it, run tests on it.

    git bisect start BAD GOOD
    git bisect run .../helpers/kernels/git_bisect.py TEST ... [PYTEST OPTION ...]

TEST is a path in this project, or a test's id. The exit code is 0 if the tests passed, 1 if one
failed, 125 if this commit cannot be judged. 128 and more end the bisection: no commit can be
judged.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - a traceback exits with 1, which means bad
        sys.stderr.write("error: Python 3.11 or newer must run this\n")
        sys.exit(128)
    # Python puts the script's directory there, which is none to import from.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import hashlib
import re
import shlex
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from helpers.cache import cache_directory
from helpers.kernels.boot import PROJECT
from helpers.kernels.emulators.qemu import QEMU

GOOD, BAD, SKIP, STOP, INTERRUPTED = 0, 1, 125, 128, 130

FRAGMENT = Path(__file__).with_suffix(".config")
PYTEST = (sys.executable, "-m", "pytest")
TOOLS = ("gcc", "ld", "make", "flex", "bison", "bc", QEMU)
_PACKAGES = "gcc make flex bison bc libelf-dev qemu-system-x86"
_GRACE = 10  # seconds that an interrupted make or pytest has to clean up
_COMPLAINT = re.compile(r"\berror: |\bERROR\b|\*\*\* |undefined reference|could not be judged")


class Skip(Exception):
    """This commit cannot be judged."""


class Stop(Exception):
    """No commit can be judged. The message is one line and says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Run one step of the bisection, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return step(arguments)
    except Skip as reason:
        print(f"  cannot be judged: {reason}", flush=True)
        return SKIP
    except Stop as reason:
        print(f"error: {reason}", file=sys.stderr)
        return STOP
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        # Python's own exit code would be 1, and blame the commit for a defect of this script.
        traceback.print_exc()
        return STOP


def step(arguments: Sequence[str]) -> int:
    """Return GOOD or BAD. Raises Skip and Stop."""
    check_arguments(arguments)
    check_tools()
    tree, commit, subject = checked_out()
    print(f"{commit} {subject}", flush=True)
    key = hashlib.sha256(str(tree).encode()).hexdigest()[:8]
    directory = cache_directory() / "git-bisect" / f"{tree.name}-{key}"
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{commit}.log"
    log.unlink(missing_ok=True)
    with timed("building"):
        build(tree, directory / "build", commit, log)
    with timed("judging"):
        code = run([*PYTEST, *arguments, f"--kernel={directory / 'build'}"], PROJECT, log)
    output = log.read_text(errors="replace")
    if code not in (GOOD, BAD):
        raise Skip(f"{complaints(output)[-1]} (pytest ended with {code}); log: {log}")
    print(f"  {'bad' if code else 'good'}: {_lines(output)[-1]}; log: {log}", flush=True)
    return code


# --- requirements ---------------------------------------------------------------------------------


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise Stop unless pytest finds tests by these arguments."""
    if not arguments or {"-h", "--help"} & set(arguments):
        raise Stop(f"usage: git bisect run {sys.argv[0]} TEST ... [PYTEST OPTION ...]")
    if any(argument.split("=")[0] == "--kernel" for argument in arguments):
        raise Stop("--kernel is set by this script: leave it out")
    if not find_spec("pytest"):
        raise Stop(
            f"{sys.executable} has no pytest: activate the environment that has pytest, or run "
            "this script with that environment's Python"
        )
    command = [*PYTEST, *arguments, "--collect-only", "-q"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Stop(f"pytest {' '.join(arguments)}: {complaints(done.stdout + done.stderr)[-1]}")


def check_tools() -> None:
    """Raise Stop unless the tools to build and boot a kernel are installed."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    include = ["gcc", "-E", "-include", "gelf.h", "-x", "c", os.devnull]
    if not missing and subprocess.run(include, capture_output=True, check=False).returncode:
        missing = ["gelf.h"]
    if missing:
        raise Stop(f"{', '.join(missing)} not found (on Debian: apt-get install {_PACKAGES})")


def checked_out() -> tuple[Path, str, str]:
    """Return the kernel tree of the working directory, its commit and the commit's subject."""
    try:
        tree = Path(_git("rev-parse", "--show-toplevel"))
        commit = _git("rev-parse", "--short=12", "HEAD")
        subject = _git("log", "-1", "--no-show-signature", "--format=%s")
    except (OSError, subprocess.CalledProcessError):
        raise Stop(f"{Path.cwd()} is in no git work tree: run this in a kernel tree") from None
    if not (tree / "virt/kvm").is_dir():
        raise Stop(f"{tree} is no kernel tree: it has no virt/kvm")
    return tree, commit, subject


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --- building -------------------------------------------------------------------------------------


def build(tree: Path, directory: Path, commit: str, log: Path) -> None:
    """Build a bzImage without modules in ``directory``. Raises Skip and Stop."""
    make = ["make", "ARCH=x86_64", f"O={directory}", f"LOCALVERSION=-g{commit}"]
    _run_make([*make, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"], tree, log)
    if missing := unset((directory / ".config").read_text()):
        raise Skip(f"no configuration of this commit has {', '.join(missing)}")
    _run_make([*make, f"-j{len(os.sched_getaffinity(0))}", "bzImage"], tree, log)


def _run_make(make: Sequence[str], tree: Path, log: Path) -> None:
    if run(make, tree, log) == 0:
        return
    said = log.read_text(errors="replace")
    if "source tree is not clean" in said:
        raise Stop(
            f"{tree} holds the output of a build: make mrproper there, or bisect in a new "
            "work tree (git worktree add --detach ../bisect)"
        )
    wrong = complaints(said)[0].replace(f"{tree}/", "")
    raise Skip(f"the build failed: {wrong}; log: {log}")


def unset(config: str) -> list[str]:
    """Return the options that git_bisect.config demands and a .config lacks."""
    demanded = FRAGMENT.read_text().partition("\n# Where they exist")[0]
    names = re.findall(r"^CONFIG_\w+=y$", demanded, re.MULTILINE)
    return [name[len("CONFIG_") : -len("=y")] for name in names if name not in config]


# --- running --------------------------------------------------------------------------------------


def run(command: Sequence[str], directory: Path, log: Path) -> int:
    """Run a command, append its output to ``log``, return its exit code. Ctrl-C ends it too."""
    with log.open("a") as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, for _end()
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process group, and kill the processes that remain."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def timed(doing: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    print(f"  {doing} ...", end="", flush=True)
    begun = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - begun:.0f} s", flush=True)


def complaints(output: str) -> list[str]:
    """Return the lines that tell what failed; the last line if none does."""
    lines = _lines(output) or ["no output"]
    return list(filter(_COMPLAINT.search, lines)) or lines[-1:]


def _lines(output: str) -> list[str]:
    return [line.strip("= ") for line in output.splitlines() if line.strip("= ")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
