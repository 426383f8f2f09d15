"""A kernel's modules: finding them by name, in the order they must be loaded."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path


class Modules:
    """The modules of one kernel: all ``*.ko`` below ``directory``, compressed or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {_name(path.name): path for path in sorted(self.directory.rglob("*.ko*"))}

    @cached_property
    def _builtin(self) -> set[str]:
        try:
            listed = (self.directory / "modules.builtin").read_text().split()
        except OSError:
            return set()
        return {_name(Path(line).name) for line in listed}

    def __contains__(self, name: str) -> bool:
        return _name(name) in self._files

    def __getitem__(self, name: str) -> bytes:
        """A module, uncompressed. Raises KeyError."""
        return _read(self._files[_name(name)])

    def closure(self, names: Iterable[str]) -> dict[str, bytes]:
        """``names`` and what they depend on, dependencies first: {name: uncompressed module}.

        Built-in modules need no loading. Raises KeyError for a module the kernel does not have.
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


def _name(file: str) -> str:
    return file.split(".ko", maxsplit=1)[0].replace("-", "_")


def _read(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            tool = shutil.which("zstd") or "zstd"
            return subprocess.run([tool, "-dcq", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def modinfo(module: bytes, key: str) -> list[str]:
    """The values of a key of the .modinfo section, which holds NUL-terminated ``key=value``."""
    found = re.findall(rb"\0" + key.encode() + rb"=([^\0]*)(?=\0)", module)
    return [value.decode() for value in found]


def depends(module: bytes) -> list[str]:
    """The modules that must be loaded before this one."""
    return [
        _name(name) for names in modinfo(module, "depends") for name in names.split(",") if name
    ]


def release(module: bytes) -> str:
    """The kernel a module was built for, as ``uname -r`` has it; empty if it does not say."""
    return next((magic.split()[0] for magic in modinfo(module, "vermagic")), "")


def parameters(module: bytes) -> set[str]:
    """The names of a module's parameters."""
    return {described.partition(":")[0] for described in modinfo(module, "parmtype")}
