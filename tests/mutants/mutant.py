# SPDX-License-Identifier: GPL-2.0-only
"""A mutant: an edit of one KVM function that the suite must detect.

The TOML files of this directory have a table for each mutant:

    [flags-not-checked]
    breaks = "undefined flags are accepted"  # the defect, in one sentence
    clause = "msi.flags"                     # the clause whose tests must fail
    function = "kvm_send_userspace_msi"      # the function to edit, in any file of FILES
    old = "(msi->flags & ~KVM_MSI_VALID_DEVID)"
    new = "0"

``old`` occurs exactly once in ``function``; white space between tokens does not matter. Without
``new``, ``old`` is deleted. A function that has other names in other kernels is "one|other".

Optional fields:

* ``older``: another function, old and new, for kernels to which the first edit does not apply.
  ``older.older`` is for kernels to which neither does.
* ``since``, ``until``: the first kernel version with the mutant, and the first one without it.
* ``undoes``: the commit that fixed the defect, as "03d2249ea608 (4.1)".
* ``alone``: true if the mutant may corrupt memory or oops; it does not share a boot then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.kernels.packages import numbers
from helpers.spec import CLAUSES
from helpers.spec.table import read

FILES = (
    *("virt/kvm/irqchip.c", "virt/kvm/kvm_main.c", "arch/x86/kvm/irq_comm.c"),
    *("arch/x86/kvm/irq.c", "arch/x86/kvm/lapic.c", "arch/x86/kvm/x86.c", "arch/x86/kvm/x86.h"),
    *("arch/x86/kvm/smm.c", "arch/x86/kvm/svm/svm.c", "arch/x86/kvm/ioapic.c"),
    *("arch/x86/kvm/hyperv.c", "arch/x86/kvm/emulate.c", "arch/x86/kvm/regs.c"),
    *("arch/x86/kvm/cpuid.c", "arch/x86/kvm/lapic.h"),
)
"""Paths in a kernel tree of the files that mutants edit."""


class MutantError(Exception):
    """A mutant that cannot be applied, built or judged; the message is one line."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``old`` by ``new`` in ``function``, or else do what ``older`` says."""

    function: str
    old: str
    new: str = ""
    older: Edit | None = None

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """Return the path of the edited file and its new text; ``sources`` is {path: text}.

        Raises MutantError unless ``old`` occurs exactly once, here or in ``older``.
        """
        try:
            file, start, end = self.place(sources)
        except MutantError:
            if self.older is None:
                raise
            return self.older.apply(sources)
        return file, sources[file][:start] + self.new + sources[file][end:]

    def place(self, sources: Mapping[str, str]) -> tuple[str, int, int]:
        """Return the path of the file, and the start and end of ``old``. Raises MutantError."""
        found = definitions(self.function, sources)
        places = [
            (file, *place.span())
            for file, definition in found
            for place in _token_pattern(self.old).finditer(sources[file], *definition.span())
        ]
        if not found:
            raise MutantError(f"no function {self.function}")
        if len(places) != 1:
            raise MutantError(f"{len(places)} places in {self.function}, not 1: {self.old}")
        return places[0]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A table of the TOML files; the module's docstring describes the fields."""

    id: str
    breaks: str
    clause: str
    function: str
    old: str
    new: str = ""
    older: Edit | None = None
    since: str = ""
    until: str = ""
    undoes: str = ""
    alone: bool = False

    def __post_init__(self) -> None:
        if self.clause not in CLAUSES:
            raise ValueError(f"no clause {self.clause}")

    def is_for(self, kernel: str) -> bool:
        """Return whether the kernel's version is in range; a name is "6.12.107+deb13-amd64"."""
        return is_in_range(kernel, self.since, self.until)

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """Apply the edit, or else the one for older kernels. See Edit.apply()."""
        return Edit(self.function, self.old, self.new, self.older).apply(sources)


def mutants(directory: Path = Path(__file__).parent) -> list[Mutant]:
    """Return all mutants in the order of the files. Raises SpecError."""
    files = sorted(directory.glob("[0-9]*.toml"))
    return [mutant for file in files for mutant in read(file, Mutant).values()]


def is_in_range(kernel: str, since: str, until: str) -> bool:
    """Return whether a kernel's version is at least ``since`` and below ``until``, where given."""
    version = numbers(kernel)
    return not ((since and version < numbers(since)) or (until and version >= numbers(until)))


def definitions(function: str, sources: Mapping[str, str]) -> list[tuple[str, re.Match[str]]]:
    """Return the path and text of each definition of a function; ``sources`` is {path: text}."""
    pattern = _definition_pattern(function)
    return [(file, match) for file, text in sources.items() for match in pattern.finditer(text)]


def _definition_pattern(function: str) -> re.Pattern[str]:
    """Return a pattern of a definition, from its first line to the closing brace."""
    return re.compile(rf"^(?:[a-z][^\n;#]*)?\b(?:{function})\([^;{{]*\)\s*\{{.*?^\}}", re.M | re.S)


def _token_pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of the same tokens with any white space between them."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    words = [rf"\b{token}\b" if token.isidentifier() else re.escape(token) for token in tokens]
    return re.compile(r"\s*".join(words))
