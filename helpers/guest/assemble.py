"""Assembling probe.S, once per content: the result is cached under XDG_CACHE_HOME."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from helpers.guest import layout

SOURCE = Path(__file__).with_name("probe.S")


class AssemblyError(RuntimeError):
    """The guest cannot be assembled; one line says what to mend."""


def cache_directory() -> Path:
    """Where what is costly to make is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvm-signal-msi"


@cache
def probe() -> bytes:
    """The probe's machine code, to be loaded at ``layout.PROBE``. Raises AssemblyError."""
    options = [f"-D{name}={value:#x}" for name, value in sorted(layout.defines().items())]
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + " ".join(options).encode()).hexdigest()[:16]
    cached = cache_directory() / f"probe-{key}.bin"
    try:
        return cached.read_bytes()
    except OSError:
        pass
    code = _assemble(options)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            file.write(code)
        os.replace(file.name, cached)
    except OSError:
        pass  # a read-only home costs a second a run, nothing else
    return code


def _assemble(options: list[str]) -> bytes:
    missing = [tool for tool in ("gcc", "ld") if not shutil.which(tool)]
    if missing:
        raise AssemblyError(
            f"{' and '.join(missing)} not found: the guest is assembled with gcc and binutils "
            "(on Debian: apt-get install gcc binutils)"
        )
    with tempfile.TemporaryDirectory() as name:
        built = Path(name)
        _run(["gcc", "-c", *options, str(SOURCE), "-o", str(built / "probe.o")])
        link = ["ld", "--oformat=binary", f"-Ttext={layout.PROBE:#x}", "-e", "_start"]
        _run([*link, str(built / "probe.o"), "-o", str(built / "probe.bin")])
        code = (built / "probe.bin").read_bytes()
    if layout.PROBE + len(code) > layout.PROBE_LIMIT:
        raise AssemblyError(f"probe.S assembles to {len(code)} bytes: too large for its place")
    return code


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise AssemblyError(f"{command[0]} could not build {SOURCE.name}: {said}")
