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

    def closure(self, names: Iterable[str]) -> dict[str, bytes]:
        """``names`` and what they depend on, dependencies first: {name: uncompressed module}.

        Built-in modules need no loading. Raises KeyError for a module the kernel does not have.
        """
        loaded: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in loaded or name in self._builtin:
                return
            content = _read(self._files[name])
            for dependency in _depends(content):
                add(dependency)
            loaded[name] = content

        for name in names:
            add(_name(name))
        return loaded


def _name(file: str) -> str:
    return file.split(".ko", maxsplit=1)[0].replace("-", "_")


def _read(path: Path) -> bytes:
    """The module, uncompressed."""
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            tool = shutil.which("zstd") or "zstd"
            return subprocess.run([tool, "-dcq", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def _depends(module: bytes) -> list[str]:
    """What modinfo calls depends: a NUL-terminated string of the module's .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode() if found else ""
    return [_name(name) for name in names.split(",") if name]
