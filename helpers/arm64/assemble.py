# SPDX-License-Identifier: GPL-2.0-only
"""Assemble stub.S. The cache directory keeps the output, by content of the source."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from helpers.arm64 import layout
from helpers.cache import cached
from helpers.guest.assemble import require_tools, run_tool

STUB = Path(__file__).with_name("stub.S")
TOOLS = ("as", "objcopy")


@cache
def stub() -> bytes:
    """Return the machine code of the guest, for ``layout.CODE``. Raises AssemblyError."""
    return build().read_bytes()


def build_all() -> list[Path]:
    """Return what is assembled for a booted guest, which has no assembler. Raises AssemblyError."""
    return [build()]


def build() -> Path:
    """Return the path of the machine code, assembled unless the cache has it."""
    source = "".join(f".set {name}, {value}\n" for name, value in sorted(layout.defines().items()))
    source += STUB.read_text(encoding="utf-8")

    def make(output: Path) -> None:
        assembler, objcopy = _tools()
        built = output.with_suffix(".o")
        run_tool([assembler, "-o", str(built), "-"], STUB, source)
        run_tool([objcopy, "-O", "binary", "-j", ".text", str(built), str(output)], STUB)

    return cached(STUB.stem, source.encode(), "bin", make)


def _tools() -> list[str]:
    """Return the names of assembler and objcopy for arm64. Raises AssemblyError."""
    prefix = "" if platform.machine() == "aarch64" else "aarch64-linux-gnu-"
    tools = [prefix + tool for tool in TOOLS]
    package = "binutils-aarch64-linux-gnu" if prefix else "binutils"
    require_tools(tools, "the arm64 guest is assembled with binutils", package)
    return tools
