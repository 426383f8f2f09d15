# SPDX-License-Identifier: GPL-2.0-only
"""Build Bochs from Debian's source package, with the edits of bochs.toml. Nothing is installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.cache import cache_directory, is_intact, seal
from helpers.kernels.edits import Edit, EditError
from helpers.kernels.packages import Archive, KernelError, writing
from helpers.progress import Bar

TOOLS = ("g++", "gcc", "make")
_DATA = Path(__file__).with_name("bochs.toml")
_FACTS: dict[str, Any] = tomllib.loads(_DATA.read_text(encoding="utf-8"))
VERSION: str = _FACTS["version"]
_PLACE = "emulators"
"""The directory in the cache."""
FILES = ("usr/share/bochs/BIOS-bochs-latest", "usr/share/vgabios/vgabios.bin")
"""The files of the packages that Bochs needs."""


@dataclass(frozen=True)
class Mend:
    """An edit of bochs.toml."""

    file: str
    function: str
    old: str
    new: str
    why: str

    def apply(self, sources: Path) -> None:
        """Edit a file below ``sources``. Raises KernelError."""
        path = sources / self.file
        try:
            _, text = Edit(self.function, self.old, self.new).apply({self.file: path.read_text()})
        except (OSError, EditError) as reason:
            raise KernelError(f"{_DATA.name} does not fit Bochs: {reason}") from None
        path.write_text(text)


def edits() -> Mapping[str, Mend]:
    """Return the edits of bochs.toml, by name."""
    return {name: Mend(**table) for name, table in _FACTS["edits"].items()}


def build() -> Path:
    """Return the directory of ``bochs`` and its BIOSes; build them if need be. Raises KernelError.

    The terminal shows the progress. A build that fails leaves nothing half-made.
    """
    directory = cache_directory() / _PLACE
    key = hashlib.sha256(_DATA.read_bytes()).hexdigest()[:16]
    made = directory / f"bochs-{VERSION}-{key}"
    if is_intact(made):
        return made
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise KernelError(
            f"{' and '.join(missing)} not found: --cpu=intel builds an emulator with them "
            "(on Debian: apt-get install g++ make)"
        )
    archive = Archive(_PLACE, {"debian": [_FACTS["suite"]]}, ("deb", "deb-src"), "leave --cpu out")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "bochs.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_intact(made):
                _build(archive, made)
    return made


def _build(archive: Archive, made: Path) -> None:
    print(f"building Bochs {VERSION}, which takes minutes", file=sys.stderr, flush=True)
    work = made.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        sources, output = work / "sources", work / "output"
        output.mkdir(parents=True)
        unpacked = archive.fetch_packages("bochs-packages", _FACTS["packages"])
        for file in FILES:
            shutil.copy(unpacked / file, output)
        with tarfile.open(archive.fetch_source("bochs", VERSION)) as tar:
            # Python 3.11.4 has filters, and newer versions warn without one.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(sources)
        (tree,) = sources.iterdir()
        for edit in edits().values():
            edit.apply(tree)
        _run([tree / "configure", *_FACTS["configure"]], tree)
        _make(tree)
        _run(["strip", "-o", output / "bochs", "bochs"], tree)
        seal(output)
        shutil.rmtree(made, ignore_errors=True)
        output.rename(made)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make(tree: Path) -> None:
    """Run make, with a progress bar. Raises KernelError."""
    planned = sum(map(_compiles, _run(["make", "-n"], tree).splitlines()))
    bar = Bar("building Bochs", planned, unit="files", scale=1)
    command = ["make", f"-j{len(os.sched_getaffinity(0))}"]
    with subprocess.Popen(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        compiled, said = 0, []
        for line in process.stdout:
            compiled += _compiles(line)
            said.append(line)
            bar.show(compiled)
    bar.end()
    if process.returncode:
        raise KernelError(f"Bochs does not build: {_complaint(said)}")


def _compiles(line: str) -> bool:
    return " -c " in line


def _run(command: Sequence[str | Path], directory: Path) -> str:
    """Return what a command prints. Raises KernelError."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        raise KernelError(f"Bochs does not build: {_complaint(said)}")
    return done.stdout


def _complaint(said: Sequence[str]) -> str:
    """Return the line of a compiler's or a script's output that says what is wrong."""
    errors = [line.strip() for line in said if "error" in line.lower()]
    return (errors or [line.strip() for line in said[-1:]] or ["it says nothing"])[0]
