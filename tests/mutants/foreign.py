# SPDX-License-Identifier: GPL-2.0-only
"""Run the programs of another Debian release, whose C library this machine does not have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"
_TRIPLET = "x86_64-linux-gnu"
_HEADERS = 4096  # bytes of an ELF file that hold the path of its interpreter
_WRAPPER = """\
#!/bin/sh
exec {loader} --library-path {libraries} --argv0 "$0" {program} "$@"
"""


def wrap(directories: Iterable[Path], root: Path) -> None:
    """Make the programs below ``directories`` run with the loader and libraries below ``root``.

    Each program becomes a script, which passes its own path as argv[0]: the compiler finds its
    parts by that path. The program itself is kept under its name with ``.elf`` appended.
    """
    # Up to Debian 12, the C library is below lib; other libraries are below usr/lib.
    loader = next(root.glob(f"**/{_TRIPLET}/ld-linux-x86-64.so.2"))
    libraries = f"{loader.parent}:{root / 'usr/lib' / _TRIPLET}"
    for program in _programs(directories):
        renamed = program.rename(f"{program}.elf")
        script = _WRAPPER.format(loader=loader, libraries=libraries, program=renamed)
        program.write_text(script)
        program.chmod(0o755)


def _programs(directories: Iterable[Path]) -> list[Path]:
    files = (file for directory in directories for file in directory.rglob("*"))
    return [file for file in files if file.suffix != ".elf" and _is_program(file)]


def _is_program(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as opened:
        headers = opened.read(_HEADERS)
    return headers.startswith(b"\x7fELF") and _INTERPRETER in headers
