# SPDX-License-Identifier: GPL-2.0-only
"""Build probe.S and the C libraries of helpers/.

The cache directory keeps the output, by content of the source.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
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
    link = f"--oformat=binary,-Ttext={layout.PROBE:#x},-e,_start,--build-id=none"
    options = ["-nostdlib", "-static", f"-Wl,{link}"]
    options += [f"-D{name}={value:#x}" for name, value in sorted(layout.defines().items())]
    code = built(PROBE, options, "bin").read_bytes()
    if layout.PROBE + len(code) > layout.PROBE_LIMIT:
        raise AssemblyError(f"{PROBE.name} is too large: its machine code exceeds PROBE_LIMIT")
    return code


@cache
def library(source: Path) -> Path:
    """Return the path of the shared library made of a C file. Raises AssemblyError."""
    return built(source, ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-pthread"], "so")


def build_all() -> None:
    """Fill the cache, for a guest without a compiler. Raises AssemblyError."""
    probe()
    for source in SOURCES:
        library(source)


def built(source: Path, options: list[str], suffix: str) -> Path:
    """Return the path of the output of gcc, which runs unless the cache has the output."""
    key = hashlib.sha256(source.read_bytes() + " ".join(options).encode()).hexdigest()[:16]
    cached = cache_directory() / f"{source.stem}-{key}.{suffix}"
    if cached.exists():
        return cached
    missing = [tool for tool in ("gcc", "ld") if not shutil.which(tool)]
    if missing:
        raise AssemblyError(
            f"{' and '.join(missing)} not found: the guest is assembled with gcc and binutils "
            "(on Debian: apt-get install gcc binutils)"
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=cached.parent)
    except OSError:
        # The cache cannot be written: build once per process, which takes a second.
        cached = Path(_directory_of_process().name, cached.name)
        scratch = tempfile.TemporaryDirectory(dir=cached.parent)
    with scratch as directory:
        output = Path(directory, "output")
        command = ["gcc", *options, str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise AssemblyError(f"gcc could not build {source.name}: {said}")
        return output.replace(cached)


@cache
def _directory_of_process() -> tempfile.TemporaryDirectory[str]:
    """Return a directory that Python removes when this process ends."""
    return tempfile.TemporaryDirectory()
