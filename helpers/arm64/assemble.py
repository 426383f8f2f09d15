# SPDX-License-Identifier: GPL-2.0-only
"""Assemble stub.S. The cache directory keeps the output, by content of the source."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from helpers.arm64 import layout
from helpers.cache import cache_directory
from helpers.guest.assemble import AssemblyError

STUB = Path(__file__).with_name("stub.S")
TOOLS = ("as", "objcopy")


@cache
def stub() -> bytes:
    """Return the machine code of the guest, for ``layout.CODE``. Raises AssemblyError."""
    return build().read_bytes()


def build_all() -> None:
    """Fill the cache, for a guest without an assembler. Raises AssemblyError."""
    stub()


def build() -> Path:
    """Return the path of the machine code, assembled unless the cache has it."""
    source = "".join(f".set {name}, {value}\n" for name, value in sorted(layout.defines().items()))
    source += STUB.read_text(encoding="utf-8")
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    cached = cache_directory() / f"{STUB.stem}-{key}.bin"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        assembler, objcopy = _tools()
        with tempfile.TemporaryDirectory(dir=cached.parent) as directory:
            built, binary = Path(directory, "stub.o"), Path(directory, "stub.bin")
            _run([assembler, "-o", str(built), "-"], source)
            _run([objcopy, "-O", "binary", "-j", ".text", str(built), str(binary)])
            binary.replace(cached)
    return cached


def _tools() -> list[str]:
    """Return the names of assembler and objcopy for arm64. Raises AssemblyError."""
    prefix = "" if platform.machine() == "aarch64" else "aarch64-linux-gnu-"
    tools = [prefix + tool for tool in TOOLS]
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        package = "binutils-aarch64-linux-gnu" if prefix else "binutils"
        raise AssemblyError(
            f"{' and '.join(missing)} not found: the arm64 guest is assembled with binutils "
            f"(on Debian: apt-get install {package})"
        )
    return tools


def _run(command: list[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssemblyError(f"{command[0]} could not build {STUB.name}: {done.stderr.strip()}")
