# SPDX-License-Identifier: GPL-2.0-only
"""Build probe.S and the C libraries of helpers/.

The cache directory keeps the output, by content of the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from helpers.cache import cache_directory
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
    """Return all that a guest without a compiler needs in its cache. Raises AssemblyError."""
    return [_probe(), *map(library, SOURCES)]


def built(source: Path, options: list[str], suffix: str) -> Path:
    """Return the path of the output of gcc, which runs unless the cache has the output."""

    def make(output: Path) -> None:
        require_tools(("gcc", "ld"), "the guest is assembled with gcc and binutils", "gcc binutils")
        run_tool(["gcc", *options, str(source), "-o", str(output)], source)

    return cached(source.stem, source.read_bytes() + " ".join(options).encode(), suffix, make)


def cached(stem: str, key: bytes, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return the path of a file in the cache, which ``make`` writes unless the cache has it.

    ``key`` is all that the content depends on. Raises what ``make`` raises. The file's name has the
    digests of key and content: a file that is damaged is made again.
    """
    name = f"{stem}-{_digest(key)}"
    if path := _found(cache_directory(), name, suffix):
        return path
    own = Path(_directory_of_process().name)
    if path := _found(own, name, suffix):
        return path
    with tempfile.TemporaryDirectory(dir=own) as scratch:
        output = Path(scratch, "output")
        make(output)
        path = output.replace(own / f"{name}-{_digest(output.read_bytes())}.{suffix}")
    # A cache that is full or cannot be written costs each process a second.
    with contextlib.suppress(OSError):
        return _kept(path)
    return path


def _found(directory: Path, name: str, suffix: str) -> Path | None:
    """Return the path of a file that is as it was made. Remove one that is not."""
    with contextlib.suppress(OSError):
        for path in directory.glob(f"{name}-*.{suffix}"):
            if path.stem == f"{name}-{_digest(path.read_bytes())}":
                return path
            path.unlink()
    return None


def _kept(path: Path) -> Path:
    """Move a file to the cache in one step; return its path there. Raises OSError."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        kept = Path(shutil.copy(path, scratch)).replace(directory / path.name)
    path.unlink()
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


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


@cache
def _directory_of_process() -> tempfile.TemporaryDirectory[str]:
    """Return a directory that Python removes when this process ends."""
    return tempfile.TemporaryDirectory()
