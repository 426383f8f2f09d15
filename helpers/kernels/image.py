# SPDX-License-Identifier: GPL-2.0-only
"""Make an initramfs of this suite and the Python that runs it, at the paths they have here."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.cache import cache_directory

# Directories of the standard library and of the project that no test needs.
_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data"}
_LEFT_OUT |= {".git", ".tox", ".mypy_cache", ".ruff_cache", "reports", "tests"}
# Below the standard library, packages of another Python. Packages in use are added by name.
_LEFT_OUT |= {"site-packages", "dist-packages"}
# Packages that tests import while they run. Collecting the tests does not import these.
_IMPORTED_LATE = ("hypothesis",)


class Cpio:
    """A cpio archive in "newc" format.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add(
        self, path: str, mode: int, content: bytes = b"", *, mtime: int = 0, rdev: int = 0
    ) -> None:
        """Add a file, directory, link or device node, and its parents. A path is added once."""
        name = path.strip("/")
        if not name or name in self._names:
            return
        self.add(os.path.dirname(name), stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._put(name, mode, content, mtime, rdev)

    def _put(self, name: str, mode: int, content: bytes, mtime: int, rdev: int) -> None:
        major, minor = os.major(rdev), os.minor(rdev)
        encoded = name.encode() + b"\0"
        numbers = (0, mode, 0, 0, 1, mtime, len(content), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        for part in (header + encoded, content):
            self._parts += (part, bytes(-len(part) % 4))

    def add_path(self, path: Path) -> None:
        """Add a file, link or directory of this machine at the same path, and a link's target."""
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            self.add(str(path), info.st_mode, os.readlink(path).encode())
            self.add_path(path.parent / os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            if (path / "pyvenv.cfg").exists():
                return  # a virtual environment in the project: packages in use are added by name
            if path.resolve() == cache_directory().resolve():
                return  # kernels and packages, which a CI keeps in the project
            self.add(str(path), info.st_mode)
            for child in sorted(path.iterdir()):
                if child.name not in _LEFT_OUT and child.suffix not in (".a", ".o"):
                    self.add_path(child)
        elif stat.S_ISREG(info.st_mode):
            mtime = int(info.st_mtime)
            self.add(os.path.normpath(path), info.st_mode, path.read_bytes(), mtime=mtime)

    def add_tree(self, root: Path, files: Iterable[Path]) -> None:
        """Add files and links below ``root``, which is / in the archive."""
        for path in files:
            info, place = path.lstat(), str(path.relative_to(root))
            is_link = stat.S_ISLNK(info.st_mode)
            content = os.readlink(path).encode() if is_link else path.read_bytes()
            self.add(place, info.st_mode, content, mtime=int(info.st_mtime))

    def finish(self) -> bytes:
        """Return the archive."""
        self._put("TRAILER!!!", 0, b"", 0, 0)
        return b"".join(self._parts)


def userland(project: Path) -> bytes:
    """Return an archive of ``project``, this Python, the packages in use, and /init."""
    archive = started(project, sys.executable)
    packages = list(packages_in_use())
    extensions = [file for package in packages for file in package.rglob("*.so")]
    for path in (*_python(), *packages, *_libraries(extensions), project):
        archive.add_path(path)
    return archive.finish()


def started(project: Path, python: str) -> Cpio:
    """Return an archive with /init, which the guest's ``python`` runs."""
    archive = Cpio()
    archive.add("/dev/console", stat.S_IFCHR | 0o600, rdev=os.makedev(5, 1))
    archive.add("/tmp", stat.S_IFDIR | 0o1777)
    archive.add(os.getcwd(), stat.S_IFDIR | 0o755)
    init = f"#!{python} -S\nimport sys\nsys.path.insert(0, {str(project)!r})\n"
    init += "from helpers.kernels.init import main\nmain()\n"
    archive.add("/init", stat.S_IFREG | 0o755, init.encode())
    return archive


def _python() -> Iterator[Path]:
    paths = sysconfig.get_paths()
    yield from {Path(paths["stdlib"]), Path(paths["platstdlib"])}
    yield Path(sys.executable)
    if (config := Path(sys.prefix, "pyvenv.cfg")).exists():
        yield config
    extensions = Path(sysconfig.get_config_var("DESTSHARED") or paths["platstdlib"])
    yield from _libraries([Path(sys.executable).resolve(), *sorted(extensions.glob("*.so"))])


def packages_in_use() -> Iterator[Path]:
    """Yield the packages that this process has imported, and the metadata of all packages."""
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    names = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    for name in sorted(names):
        module = sys.modules.get(name)
        yield from map(Path, getattr(module, "__path__", ()))
        if file := getattr(module, "__file__", None):
            yield Path(file)
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            place = Path(str(distribution.locate_file(file)))
            # Some distributions list files that do not exist.
            if file.parts[0].endswith((".dist-info", ".egg-info")) and place.exists():
                yield place


def _libraries(binaries: Iterable[Path]) -> Iterator[Path]:
    """Yield the shared libraries that ``binaries`` load, and the dynamic loader."""
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    words = {word for line in listed.splitlines() for word in line.split()}
    yield from (Path(word) for word in sorted(words) if word.startswith("/") and word[-1] != ":")
