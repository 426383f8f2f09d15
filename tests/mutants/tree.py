# SPDX-License-Identifier: GPL-2.0-only
"""Build the KVM modules of a packaged kernel, with one source file changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from helpers.cache import cache_directory
from helpers.kernels.packages import Archive, KernelError
from tests.mutants.foreign import wrap
from tests.mutants.mutant import FILES, MutantError

UNMUTATED = "unmutated"
"""The name of the build of the unmutated sources."""
MODULES = {"amd": ("kvm.ko", "kvm-amd.ko"), "intel": ("kvm.ko", "kvm-intel.ko")}
"""The modules that a build makes, by processor."""
_KVM = ("arch/x86/kvm", "virt/kvm")
_WITHOUT = {"amd": "CONFIG_KVM_INTEL=n", "intel": "CONFIG_KVM_AMD=n"}
# The options turned off do not change KVM; with them a build takes three times as long.
_SETTINGS = (
    "CONFIG_KVM_WERROR=",
    *("CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES="),
)


def kernel(version: str) -> str:
    """Return the name of a version's newest packaged kernel.

    A kernel whose compiler is installed is preferred. Raises KernelError.
    """
    archive = Archive()
    names = archive.matching(version)
    built_here = (name for name in reversed(names) if shutil.which(archive.compiler(name)))
    return next(built_here, names[-1])


class Tree:
    """The headers of a packaged kernel, completed by the sources of KVM for a processor.

    Raises KernelError without make or strip, or if the packages cannot be fetched.
    """

    def __init__(self, name: str, cpu: str = "amd") -> None:
        self.name = name
        self._modules = MODULES[cpu]
        self._settings = (_WITHOUT[cpu], *_SETTINGS)
        for tool in ("make", "strip"):
            if not shutil.which(tool):
                raise KernelError(f"{tool} not found: building modules needs make and binutils")
        self._unpacked = Archive().fetch_sources(name)
        self._headers = self._unpacked / f"usr/src/linux-headers-{name}"
        self._tree = next(self._unpacked.glob("usr/src/linux-headers-*-common"))
        self._path = os.environ["PATH"]
        if not shutil.which(Archive().compiler(name)):
            self._path = f"{self._fetch_tools() / 'usr/bin'}:{self._path}"
        self._pristine = self._unpacked / "pristine"
        if not self._pristine.exists():
            self._unpack()
        built = name if cpu == "amd" else f"{name}-{cpu}"
        self.built = cache_directory() / "mutants" / built

    def _fetch_tools(self) -> Path:
        """Return the directory of the compiler; have it and the build tools run here."""
        tools = Archive().fetch_tools(self.name)
        wrap([tools / "usr/bin", tools / "usr/libexec", self._unpacked / "usr/lib"], tools)
        return tools

    def _unpack(self) -> None:
        part = self._pristine.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        source = next(self._unpacked.glob("usr/src/*.tar.xz"))
        command = [
            "tar",
            "--strip-components=1",
            "--wildcards",
            "-C",
            str(part),
            "-xf",
            str(source),
        ]
        subprocess.run([*command, *(f"*/{directory}" for directory in _KVM)], check=True)
        for directory in _KVM:
            shutil.copytree(part / directory, self._tree / directory, dirs_exist_ok=True)
        part.rename(self._pristine)

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """The unmutated files that mutants edit: {path: text}."""
        paths = [path for path in FILES if (self._pristine / path).exists()]
        return {path: (self._pristine / path).read_text() for path in paths}

    def build(self, name: str, changed: Mapping[str, str], jobs: int) -> Path:
        """Build the modules with the files of ``changed``, {path: text}; return their directory.

        A build of the same files is reused, even one that fails. Raises MutantError if it does.
        """
        place = self.built / name
        key = hashlib.sha256(
            repr((sorted(changed.items()), self._settings, 2)).encode()
        ).hexdigest()
        stamp = place / "key"
        if stamp.exists() and stamp.read_text() == key:
            if (error := place / "error").exists():
                raise MutantError(error.read_text())
            return place
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._restore_sources(jobs)
        with self._edited(changed):
            try:
                self._make(jobs)
            except MutantError as reason:
                (place / "error").write_text(str(reason))
                stamp.write_text(key)
                raise
            (place / "code").write_text(self._code())
            for module in self._modules:
                source = self._tree / _KVM[0] / module
                subprocess.run(["strip", "-g", "-o", place / module, source], check=True)
        stamp.write_text(key)
        return place

    def _restore_sources(self, jobs: int) -> None:
        """Undo what an interrupted build has left."""
        edited = {
            file: text
            for path, text in self.sources.items()
            if (file := self._tree / path).read_text() != text
        }
        for file, text in edited.items():
            file.write_text(text)
        if edited:
            self._make(jobs)

    @contextmanager
    def _edited(self, changed: Mapping[str, str]) -> Iterator[None]:
        """Edit files; afterwards restore them and the objects, so that none is compiled again."""
        paths = [self._tree / path for path in changed]
        objects = [file for file in self._objects() if file.exists()]
        saved = [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in objects + paths]
        for path, text in changed.items():
            (self._tree / path).write_text(text)
        for module in self._modules:
            (self._tree / _KVM[0] / module).unlink(missing_ok=True)
        try:
            yield
        finally:
            for file, content, modified in saved if changed else ():
                file.write_bytes(content)
                os.utime(file, ns=(modified, modified))

    def _objects(self) -> list[Path]:
        return sorted(file for part in _KVM for file in (self._tree / part).rglob("*.o"))

    def _code(self) -> str:
        """Return a hash of the object files whose bytes depend on the code alone."""
        code = hashlib.sha256()
        for file in self._objects():
            if not file.name.endswith(".mod.o"):
                code.update(file.read_bytes())
        return code.hexdigest()

    def is_unchanged(self, name: str) -> bool:
        """Return whether the compiler made the same code of a build as of the unmutated sources."""
        code, unmutated = (self.built / each / "code" for each in (name, UNMUTATED))
        return code.read_text() == unmutated.read_text()

    def _make(self, jobs: int) -> None:
        command = ["make", "-C", str(self._headers), f"O={self._headers}"]
        command += ["-f", str(self._tree / "Makefile"), f"M={self._tree / _KVM[0]}", f"-j{jobs}"]
        done = subprocess.run(
            [*command, *self._settings, "modules"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": self._path},
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise MutantError(f"the modules do not build: {(errors or ['no message'])[0]}")
