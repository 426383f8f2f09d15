# SPDX-License-Identifier: GPL-2.0-only
"""Build probe.S and the C libraries of helpers/.

The cache directory keeps the output, by content of the source.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from helpers.cache import cached
from helpers.guest import layout

PROBE = Path(__file__).with_name("probe.S")
_HELPERS = Path(__file__).parents[1]
SOURCES = [_HELPERS / name for name in ("guest/sender.c", "races/race.c", "races/traffic.c")]


class AssemblyError(RuntimeError):
    """The guest cannot be built. The message names the tool or the source to mend."""


@cache
def probe() -> bytes:
    """Return the machine code of the probe, for ``layout.PROBE``. Raises AssemblyError."""
    return _probe().read_bytes()


def _probe() -> Path:
    link = f"--oformat=binary,-Ttext={layout.PROBE:#x},-e,_start,--build-id=none"
    options = ["-nostdlib", "-static", f"-Wl,{link}"]
    options += [f"-D{name}={value:#x}" for name, value in sorted(layout.defines().items())]
    path = built(PROBE, options, "bin")
    if layout.PROBE + path.stat().st_size > layout.PROBE_LIMIT:
        raise AssemblyError(f"{PROBE.name} is too large: its machine code exceeds PROBE_LIMIT")
    return path


@cache
def library(source: Path) -> Path:
    """Return the path of the shared library made of a C file. Raises AssemblyError."""
    return built(source, ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-pthread"], "so")


def build_all() -> list[Path]:
    """Return what gcc makes for a booted guest, which has no gcc. Raises AssemblyError."""
    return [_probe(), *map(library, SOURCES)]


def built(source: Path, options: list[str], suffix: str) -> Path:
    """Return the path of the output of gcc, which runs unless the cache has the output."""

    def make(output: Path) -> None:
        require_tools(("gcc", "ld"), "the guest is assembled with gcc and binutils", "gcc binutils")
        run_tool(["gcc", *options, str(source), "-o", str(output)], source)

    return cached(source.stem, source.read_bytes() + " ".join(options).encode(), suffix, make)


def require_tools(tools: Sequence[str], purpose: str, packages: str) -> None:
    """Raise AssemblyError if a tool is missing; name the packages of Debian that have them all."""
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        raise AssemblyError(
            f"{' and '.join(missing)} not found: {purpose} (on Debian: apt-get install {packages})"
        )


def run_tool(command: Sequence[str], source: Path, text: str | None = None) -> None:
    """Run a tool that builds ``source``, with ``text`` as input. Raises AssemblyError."""
    # gcc quotes a file that is not text.
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, errors="backslashreplace", check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise AssemblyError(f"{command[0]} could not build {source.name}: {said}")
