#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A step of ``git bisect run`` in a kernel tree: build the commit, boot it, run tests on it.

    git bisect start BAD GOOD
    git bisect run .../helpers/kernels/git_bisect.py [--config=debug] TEST ... [PYTEST OPTION ...]

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

import argparse
import signal
import subprocess
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from helpers.kernels.boot import PROJECT
from helpers.kernels.build import (
    CONFIGS,
    TOOLS,
    NotBuilt,
    build,
    check_tools,
    check_tree,
    complaints,
    directory_of,
    lines_of,
    run,
    timed,
)
from helpers.kernels.emulators.qemu import QEMU
from helpers.kernels.packages import KernelError

GOOD, BAD, SKIP, STOP, INTERRUPTED = 0, 1, 125, 128, 130

PYTEST = (sys.executable, "-m", "pytest")


class Skip(Exception):
    """This commit cannot be judged."""


def main(arguments: Sequence[str]) -> int:
    """Run one step of the bisection, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return step(arguments)
    except (Skip, NotBuilt) as reason:
        print(f"  cannot be judged: {reason}", flush=True)
        return SKIP
    except KernelError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return STOP
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        # Python's own exit code would be 1, and blame the commit for a defect of this script.
        traceback.print_exc()
        return STOP


def step(given: Sequence[str]) -> int:
    """Return GOOD or BAD. Raises Skip and KernelError."""
    config, arguments = config_of(given)
    check_arguments(arguments)
    check_tools((*TOOLS, QEMU))
    tree, commit, subject = checked_out()
    print(f"{commit} {subject}", flush=True)
    log = directory_of(tree) / f"{commit}.log"
    with timed("building"):
        built = build(tree, config, f"-g{commit}", log)
    with timed("judging"):
        code = run([*PYTEST, *arguments, f"--kernel={built}"], PROJECT, log)
    output = log.read_text(errors="replace")
    if code not in (GOOD, BAD):
        raise Skip(f"{complaints(output)[-1]} (pytest ended with {code}); log: {log}")
    print(f"  {'bad' if code else 'good'}: {lines_of(output)[-1]}; log: {log}", flush=True)
    return code


# --- requirements ---------------------------------------------------------------------------------


def config_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the value of --config, and the other arguments. Raises KernelError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", choices=CONFIGS, default="minimal")
    try:
        found, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as reason:
        raise KernelError(str(reason)) from None
    return found.config, others


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise KernelError unless pytest finds tests by these arguments."""
    if not arguments or {"-h", "--help"} & set(arguments):
        raise KernelError(
            f"usage: git bisect run {sys.argv[0]} [--config=debug] TEST ... [PYTEST OPTION ...]"
        )
    if any(argument.split("=")[0] == "--kernel" for argument in arguments):
        raise KernelError("--kernel is set by this script: leave it out")
    if not find_spec("pytest"):
        raise KernelError(
            f"{sys.executable} has no pytest: activate the environment that has pytest, or run "
            "this script with that environment's Python"
        )
    command = [*PYTEST, *arguments, "--collect-only", "-q"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(
            f"pytest {' '.join(arguments)}: {complaints(done.stdout + done.stderr)[-1]}"
        )


def checked_out() -> tuple[Path, str, str]:
    """Return the kernel tree of the working directory, its commit and the commit's subject."""
    try:
        tree = Path(_git("rev-parse", "--show-toplevel"))
        commit = _git("rev-parse", "--short=12", "HEAD")
        subject = _git("log", "-1", "--no-show-signature", "--format=%s")
    except (OSError, subprocess.CalledProcessError):
        raise KernelError(
            f"{Path.cwd()} is in no git work tree: run this in a kernel tree"
        ) from None
    check_tree(tree)
    return tree, commit, subject


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
