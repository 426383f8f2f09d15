# SPDX-License-Identifier: GPL-2.0-only
"""Find a kernel's modules by name, in the order they must be loaded."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from helpers.kernels.packages import KernelError

_MODULE = re.compile(r"(.+)\.ko(\.xz|\.gz|\.zst)?")


class Modules:
    """The modules of one kernel: all ``*.ko`` below ``directory``, compressed or not.

    A build tree's own modules hide copies that were installed below the tree, in a lib/modules.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, list[Path]] = {}
        for path in sorted(directory.rglob("*.ko*")):
            if found := _MODULE.fullmatch(path.name):
                self._files.setdefault(_name(found[1]), []).append(path)
        listed = directory / "modules.builtin"
        lines = listed.read_text().split() if listed.exists() else []
        self._builtin = {_name(Path(line).stem) for line in lines}

    def builtin_parameters(self, name: str) -> set[str] | None:
        """Return the names of a built-in module's parameters; None if they are not listed."""
        listed = self.directory / "modules.builtin.modinfo"
        if not listed.exists():
            return None
        return parameters(b"\0" + listed.read_bytes(), f"{name}.")

    def files(self, name: str) -> Sequence[Path]:
        """Return the files of a module; more than one if the directory is ambiguous."""
        files = self._files.get(_name(name), [])
        own = [file for file in files if "/lib/modules/" not in f"/{self._relative(file)}"]
        return own or files

    def _relative(self, file: Path) -> Path:
        return file.relative_to(self.directory)

    def __getitem__(self, name: str) -> bytes:
        """Return a module, uncompressed. Raises KeyError, or KernelError if there are several."""
        files = self.files(name)
        if not files:
            raise KeyError(name)
        if len(files) > 1:
            listed = ", ".join(str(self._relative(file)) for file in files)
            raise KernelError(f"{self.directory} has several modules {name}: {listed}")
        return _read(files[0])

    def closure(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return ``names`` and their dependencies, dependencies first: {name: uncompressed module}.

        Built-in modules are left out. Raises KeyError for a module that the kernel does not have.
        """
        loaded: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in loaded or name in self._builtin:
                return
            content = self[name]
            for dependency in depends(content):
                add(dependency)
            loaded[name] = content

        for name in names:
            add(_name(name))
        return loaded


def _name(stem: str) -> str:
    """Return a module's name as /sys/module has it."""
    return stem.replace("-", "_")


def _read(path: Path) -> bytes:
    """Return a module, uncompressed. Raises KernelError."""
    try:
        if path.suffix == ".zst":
            return subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
        decompress = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
        return decompress(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError, zlib.error, subprocess.SubprocessError) as error:
        raise KernelError(f"{path} cannot be read: {error}") from None


def modinfo(module: bytes, key: str) -> list[str]:
    """Return the values of a key of the .modinfo section: ``key=value`` that end with a NUL."""
    found = re.findall(rb"\0" + key.encode() + rb"=([^\0]*)(?=\0)", module)
    return [value.decode(errors="replace") for value in found]


def depends(module: bytes) -> list[str]:
    """Return the names of the modules that must be loaded before this one."""
    listed = ",".join(modinfo(module, "depends")).split(",")
    return [_name(name) for name in listed if name]


def vermagic(module: bytes) -> str:
    """Return the release and settings of the kernel a module is built for; empty if unknown."""
    return next((magic.strip() for magic in modinfo(module, "vermagic")), "")


def parameters(module: bytes, prefix: str = "") -> set[str]:
    """Return the names of a module's parameters. Lists of built-in modules prefix their keys."""
    return {described.partition(":")[0] for described in modinfo(module, f"{prefix}parmtype")}
