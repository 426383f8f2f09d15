# SPDX-License-Identifier: GPL-2.0-only
"""Make an initramfs with a Python of another architecture, from Debian's and PyPI's packages.

The Python is of the same version as this one, so that this one compiles the modules of both: an
emulator takes 13 seconds to compile pytest.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import py_compile
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers.cache import is_intact, seal
from helpers.kernels.image import packages_in_use, started
from helpers.kernels.packages import Archive, KernelError, writing
from helpers.spec.architectures import Architecture

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON = f"/usr/bin/python{VERSION}"
"""The guest's Python."""
WHEELS = "/usr/local/lib/wheels"
"""The guest's directory of packages with compiled modules, before all others on sys.path."""

# Directories of the standard library that no test needs.
_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data"}
# The wheels of PyPI name the oldest C library that they work with.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1", "linux")


def userland(project: Path, architecture: Architecture) -> bytes:
    """Return an archive of ``project``, the packages in use, Python, and /init.

    Packages that are Python alone are this machine's. Raises KernelError.
    """
    archive = started(project, PYTHON)
    own = list(packages_in_use())
    compiled = {path for path in own if path.is_dir() and any(path.rglob("*.so"))}
    compiled |= {path for path in own if path.suffix == ".so"}
    for path in (*(each for each in own if each not in compiled), project):
        archive.add_path(path)
    packages = Archive.of(architecture)
    with writing(packages.directory):
        python = _compiled(packages.fetch_python(VERSION))
        wheels = _wheels(packages, [path.name.partition(".")[0] for path in sorted(compiled)])
    archive.add_tree(python, _needed(python))
    if not (python / "lib").exists():
        archive.add("/lib", stat.S_IFLNK | 0o777, b"usr/lib")
    archive.add_tree(wheels, (path for path in wheels.rglob("*") if path.is_file()))
    return archive.finish()


def search_path() -> list[str]:
    """Return the directories of packages on the guest's sys.path."""
    own = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    return [WHEELS, *own]


def _needed(root: Path) -> Iterator[Path]:
    """Yield Python, the standard library and the shared libraries below ``root``."""
    libraries = [path for path in sorted(root.glob("**/lib/*")) if path.name.startswith("ld-linux")]
    libraries += sorted(root.glob("**/lib/*-linux-gnu/*.so*"))
    yield root / PYTHON[1:]
    yield from libraries
    for path in sorted(root.glob(f"usr/lib/python{VERSION}/**/*")):
        if not path.is_dir() and _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            yield path


def _compiled(root: Path) -> Path:
    """Compile the modules below ``root``, the guest's /, once."""
    mark = root / ".compiled"
    if not mark.exists():
        compileall.compile_dir(
            root,
            quiet=2,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            workers=len(os.sched_getaffinity(0)),
        )
        mark.touch()
        seal(root)
    return root


# --- wheels ---------------------------------------------------------------------------------------


def _wheels(archive: Archive, modules: Sequence[str]) -> Path:
    """Return a directory with the distributions of ``modules``, in WHEELS. Raises KernelError."""
    names = importlib.metadata.packages_distributions()
    wanted = sorted({name for module in modules for name in names.get(module, ())})
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in wanted]
    key = hashlib.sha256(" ".join([VERSION, *pinned]).encode()).hexdigest()[:16]
    made = archive.directory / f"wheels-{key}"
    if is_intact(made):
        return made
    work = made.with_suffix(f".{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    place = work / WHEELS[1:]
    place.mkdir(parents=True)
    try:
        if pinned:
            _download(pinned, archive.architecture.machines[0], work)
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as content:
                content.extractall(place)
            wheel.unlink()
        _compiled(work)
        if not is_intact(made):
            shutil.rmtree(made, ignore_errors=True)
            work.rename(made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _download(pinned: Sequence[str], machine: str, directory: Path) -> None:
    """Fetch wheels for another machine. Raises KernelError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={VERSION}", f"--dest={directory}"]
    command += [f"--platform={platform}_{machine}" for platform in _PLATFORMS]
    done = subprocess.run([*command, *pinned], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise KernelError(f"pip has no {' or '.join(pinned)} for {machine}: {said[-1]}")
