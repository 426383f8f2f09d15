# SPDX-License-Identifier: GPL-2.0-only
"""The architectures whose KVM the suite judges, as facts: what --arch chooses among."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture.

    name       the value of --arch; below suites/, the directory of its tests if there is one
    machines   what uname -m says
    debian     Debian's name
    flavour    how the names of Debian's kernels end
    image      a kernel's image in its build tree
    clauses    how the ids of clauses begin that hold for no other architecture
    """

    name: str
    machines: tuple[str, ...]
    debian: str
    flavour: str
    image: str
    clauses: str = ""

    @property
    def is_running(self) -> bool:
        """Whether this machine is one of this architecture."""
        return platform.machine() in self.machines

    def owes(self, clause: str) -> bool:
        """Return whether a clause, by its id, is one of this architecture."""
        others = (each.clauses for each in ARCHITECTURES.values() if each is not self)
        return clause.startswith(self.clauses) and not any(
            each and clause.startswith(each) for each in others
        )

    def has_tests_in(self, suites: Path, path: Path) -> bool:
        """Return whether a file or directory below ``suites`` is for this architecture."""
        first = path.relative_to(suites).parts[:1]
        own = (suites / self.name).is_dir()
        return first in ((), (self.name,)) if own else not set(first) & ARCHITECTURES.keys()


# arm64's cloud flavour has the drivers of virtual machines, and a third of the size.
X86_64 = Architecture(
    "x86_64", ("x86_64", "AMD64"), "amd64", r"(?!\S*-cloud-)\S*-amd64", "arch/x86/boot/bzImage"
)
ARM64 = Architecture(
    "arm64", ("aarch64", "arm64"), "arm64", r"\S*-cloud-arm64", "arch/arm64/boot/Image", "arm."
)
ARCHITECTURES = {each.name: each for each in (X86_64, ARM64)}


def running() -> Architecture | None:
    """Return this machine's architecture; None if the suite does not judge it."""
    return next((each for each in ARCHITECTURES.values() if each.is_running), None)
