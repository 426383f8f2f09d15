# SPDX-License-Identifier: GPL-2.0-only
"""Build the KVM modules of a packaged kernel, with one source file changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from helpers.cache import cache_directory
from helpers.kernels.packages import Archive, KernelError
from tests.mutants.mutant import FILES, MutantError

MODULES = ("kvm.ko", "kvm-amd.ko")
_KVM = ("arch/x86/kvm", "virt/kvm")
# The options turned off do not change KVM; with them a build takes three times as long.
_SETTINGS = (
    *("CONFIG_KVM_INTEL=n", "CONFIG_KVM_WERROR="),
    *("CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES="),
)


def kernel(version: str) -> str:
    """Return the name of the newest packaged kernel of a version whose compiler is installed.

    Raises KernelError.
    """
    archive = Archive()
    missing = []
    for name in reversed(archive.matching(version)):
        compiler = archive.compiler(name)
        if shutil.which(compiler):
            return name
        missing.append(compiler)
    raise KernelError(
        f"{missing[0]} not found: Linux {version} was built with it (apt-get install {missing[0]})"
    )


class Tree:
    """The headers of a packaged kernel, completed by the sources of KVM.

    Raises KernelError without make or strip, or if the packages cannot be fetched.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        for tool in ("make", "strip"):
            if not shutil.which(tool):
                raise KernelError(f"{tool} not found: building modules needs make and binutils")
        self._unpacked = Archive().fetch_sources(name)
        self._headers = self._unpacked / f"usr/src/linux-headers-{name}"
        self._tree = next(self._unpacked.glob("usr/src/linux-headers-*-common"))
        self._pristine = self._unpacked / "pristine"
        if not self._pristine.exists():
            self._unpack()
        self.built = cache_directory() / "mutants" / name

    def _unpack(self) -> None:
        (self._headers / "Makefile").write_text(f"include {self._tree}/Makefile\n")
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

        A build of the same files is reused. Raises MutantError if the compiler fails.
        """
        place = self.built / name
        key = hashlib.sha256(repr((sorted(changed.items()), _SETTINGS)).encode()).hexdigest()
        stamp = place / "key"
        if stamp.exists() and stamp.read_text() == key:
            return place
        for path, text in self.sources.items():
            file = self._tree / path
            wanted = changed.get(path, text)
            if file.read_text() != wanted:
                file.write_text(wanted)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._make(jobs)
        for module in MODULES:
            source = self._tree / _KVM[0] / module
            subprocess.run(["strip", "-g", "-o", place / module, source], check=True)
        stamp.write_text(key)
        return place

    def _make(self, jobs: int) -> None:
        command = ["make", "-C", str(self._headers), f"M={self._tree / _KVM[0]}", f"-j{jobs}"]
        done = subprocess.run(
            [*command, *_SETTINGS, "modules"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise MutantError(f"the modules do not build: {(errors or ['no message'])[0]}")
