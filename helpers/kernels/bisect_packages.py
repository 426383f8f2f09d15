# SPDX-License-Identifier: GPL-2.0-only
"""Bisect over packaged kernels: find the neighbours between which a test's verdict changes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from helpers.kernels.packages import Archive, KernelError, numbers
from helpers.spec.architectures import X86_64, Architecture

_VERDICTS = {0: "passes", 1: "fails"}
_SUMMARY = re.compile(r"^=*\s*\d+ (failed|passed|xfailed).* in [\d.]+s", re.MULTILINE)


def bisect(
    first: str, last: str, arguments: Sequence[str], architecture: Architecture = X86_64
) -> None:
    """Print each step and the two neighbours. ``arguments`` are pytest's. Raises KernelError."""
    archive = Archive.of(architecture)
    if architecture is not X86_64:
        arguments = [f"--arch={architecture.name}", *arguments]
    kernels = between(archive.kernels(), archive.newest(first), archive.newest(last))
    print(f"{len(kernels)} kernels from {kernels[0]} to {kernels[-1]}", flush=True)
    old, new, was, now = search(kernels, lambda kernel: _verdict(kernel, arguments))
    print(f"\nthe verdict changes between\n  {old:24} {was}\n  {new:24} {now}")


def between(kernels: Sequence[str], first: str, last: str) -> list[str]:
    """Return the kernels between two, in either order: one per upstream release, oldest first."""
    first, last = sorted((first, last), key=numbers)
    if first == last:
        raise KernelError(f"both kernels are {first}: there is nothing to bisect")
    within = [name for name in kernels if numbers(first) <= numbers(name) <= numbers(last)]
    chosen = {_upstream(name): name for name in within}
    # Of several packages of the first and last releases, take those that were asked for.
    chosen.update({_upstream(name): name for name in (first, last)})
    return sorted(chosen.values(), key=numbers)


def _upstream(name: str) -> str:
    """Return the upstream release in a kernel's name. Debian's older names have an ABI number."""
    found = re.match(r"\d+\.\d+\.0-\d+|\d+\.\d+\.\d+", name)
    return found[0] if found else name


def search(kernels: Sequence[str], verdict: Callable[[str], str]) -> tuple[str, str, str, str]:
    """Return two neighbours and their verdicts, which differ: (older, newer, older's, newer's)."""
    was, now = verdict(kernels[0]), verdict(kernels[-1])
    if was == now:
        raise KernelError(f"the test {was} on both {kernels[0]} and {kernels[-1]}")
    low, high = 0, len(kernels) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = verdict(kernels[middle])
        if found == was:
            low = middle
        else:
            high, now = middle, found
    return kernels[low], kernels[high], was, now


def _verdict(kernel: str, arguments: Sequence[str]) -> str:
    """Run pytest on a kernel; print and return the verdict."""
    command = [sys.executable, "-m", "pytest", f"--kernel={kernel}", "-q", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    # Python's own failures exit with 1 as well, but without pytest's summary.
    if done.returncode not in _VERDICTS or not _SUMMARY.search(done.stdout):
        raise KernelError(f"{kernel} came to no verdict:\n{done.stdout[-2000:]}")
    verdict = _VERDICTS[done.returncode]
    print(f"{kernel:24} {verdict}", flush=True)
    return verdict
