# SPDX-License-Identifier: GPL-2.0-only
"""Build a kernel that a guest can boot from a source tree, outside the tree."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from helpers.cache import cache_directory
from helpers.kernels.packages import KernelError

_DIRECTORY = Path(__file__).parent / "configs"
CONFIGS = {
    name: [_DIRECTORY / f"{each}.config" for each in fragments]
    for name, fragments in {"minimal": ("minimal",), "debug": ("minimal", "debug")}.items()
}
"""The values of --config, and the files that make up the configuration."""

SLOWNESS = {"minimal": 1, "debug": 3}
"""See BootFiles."""

TOOLS = ("gcc", "ld", "make", "flex", "bison", "bc")
_PACKAGES = "gcc make flex bison bc libelf-dev qemu-system-x86"
_GRACE = 10  # seconds that an interrupted make or pytest has to clean up
_COMPLAINT = re.compile(r"\berror: |\bERROR\b|\*\*\* |undefined reference|could not be judged")


class NotBuilt(KernelError):
    """This source does not build, or lacks an option that the guest needs."""


def built(tree: Path, config: str) -> Path:
    """Return the directory of the kernel that is built from ``tree``. Raises KernelError.

    The terminal shows what is being done. A tree that has not changed takes make seconds.
    """
    check_tree(tree)
    check_tools()
    log = directory_of(tree) / f"{config}.log"
    with timed(f"building {tree} ({config}; log: {log})", sys.stderr):
        return build(tree, config, f"-{config}", log)


def check_tree(tree: Path) -> None:
    """Raise KernelError for a directory that is no kernel tree."""
    if not (tree / "virt/kvm").is_dir():
        raise KernelError(f"{tree} is no kernel tree: it has no virt/kvm")


def check_tools(tools: Sequence[str] = TOOLS) -> None:
    """Raise KernelError unless these tools, and the headers to build a kernel, are installed."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    include = ["gcc", "-E", "-include", "gelf.h", "-x", "c", os.devnull]
    if not missing and subprocess.run(include, capture_output=True, check=False).returncode:
        missing = ["gelf.h"]
    if missing:
        raise KernelError(
            f"{', '.join(missing)} not found (on Debian: apt-get install {_PACKAGES})"
        )


def directory_of(tree: Path) -> Path:
    """Return the directory, made, of what is built from a tree."""
    key = hashlib.sha256(str(tree).encode()).hexdigest()[:8]
    directory = cache_directory() / "builds" / f"{tree.name}-{key}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def build(tree: Path, config: str, version: str, log: Path) -> Path:
    """Build a bzImage without modules, and return its build directory. Raises KernelError.

    ``version`` ends the kernel's release.
    """
    directory, fragments = directory_of(tree) / config, CONFIGS[config]
    with open(directory.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log.unlink(missing_ok=True)
        whole = directory.with_suffix(".config")
        whole.write_text("".join(fragment.read_text() for fragment in fragments))
        make = ["make", "ARCH=x86_64", f"O={directory}", f"LOCALVERSION={version}"]
        _run_make([*make, f"KCONFIG_ALLCONFIG={whole}", "allnoconfig"], tree, log)
        if missing := unset((directory / ".config").read_text(), fragments):
            raise NotBuilt(f"no configuration of this source has {', '.join(missing)}")
        _run_make([*make, f"-j{len(os.sched_getaffinity(0))}", "bzImage"], tree, log)
    return directory


def _run_make(make: Sequence[str], tree: Path, log: Path) -> None:
    if run(make, tree, log) == 0:
        return
    said = log.read_text(errors="replace")
    if "source tree is not clean" in said:
        raise KernelError(
            f"{tree} holds the output of a build: make mrproper there, or use a new work tree "
            "(git worktree add --detach ../bisect)"
        )
    wrong = complaints(said)[0].replace(f"{tree}/", "")
    raise NotBuilt(f"the build failed: {wrong}; log: {log}")


def unset(config: str, fragments: Sequence[Path]) -> list[str]:
    """Return the options that ``fragments`` demand and a .config lacks."""
    demanded = [each.read_text().partition("\n# Where they exist")[0] for each in fragments]
    names = re.findall(r"^CONFIG_\w+=y$", "\n".join(demanded), re.MULTILINE)
    return [name[len("CONFIG_") : -len("=y")] for name in names if name not in config]


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
def timed(doing: str, stream: TextIO = sys.stdout) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    print(f"  {doing} ...", end="", file=stream, flush=True)
    begun = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - begun:.0f} s", file=stream, flush=True)


def complaints(output: str) -> list[str]:
    """Return the lines that tell what failed; the last line if none does."""
    lines = lines_of(output) or ["no output"]
    return list(filter(_COMPLAINT.search, lines)) or lines[-1:]


def lines_of(output: str) -> list[str]:
    """Return the lines that have text, without the equals signs around pytest's headings."""
    return [line.strip("= ") for line in output.splitlines() if line.strip("= ")]
