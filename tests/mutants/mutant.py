# SPDX-License-Identifier: GPL-2.0-only
"""A mutant: an edit of one KVM function that the suite must detect.

The TOML files of this directory have a table for each mutant:

    [flags-not-checked]
    breaks = "undefined flags are accepted"  # the defect, in one sentence
    clause = "msi.flags"                     # the clause whose tests must fail
    function = "kvm_send_userspace_msi"      # the function to edit, in any file of FILES
    old = "(msi->flags & ~KVM_MSI_VALID_DEVID)"
    new = "0"

``function``, ``old`` and ``new`` are those of an Edit.

Optional fields:

* ``older``: another function, old and new, for kernels to which the first edit does not apply.
  ``older.older`` is for kernels to which neither does.
* ``since``, ``until``: the first kernel version with the mutant, and the first one without it.
* ``undoes``: the commit that fixed the defect, as "03d2249ea608 (4.1)".
* ``cpu``: "intel" for a mutant that is judged on an emulated Intel processor, else it is an AMD.
  ``apicv``: false if the processor's APICv is off.
* ``alone``: true if the mutant may corrupt memory or oops; it does not share a boot then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.kernels.edits import Edit
from helpers.kernels.packages import numbers
from helpers.spec import CLAUSES
from helpers.spec.table import read

FILES = (
    *("virt/kvm/irqchip.c", "virt/kvm/kvm_main.c", "arch/x86/kvm/irq_comm.c"),
    *("arch/x86/kvm/irq.c", "arch/x86/kvm/lapic.c", "arch/x86/kvm/x86.c", "arch/x86/kvm/x86.h"),
    *("arch/x86/kvm/smm.c", "arch/x86/kvm/svm/svm.c", "arch/x86/kvm/ioapic.c"),
    *("arch/x86/kvm/hyperv.c", "arch/x86/kvm/emulate.c", "arch/x86/kvm/regs.c"),
    *("arch/x86/kvm/cpuid.c", "arch/x86/kvm/lapic.h", "arch/x86/kvm/vmx/vmx.c"),
    "virt/kvm/eventfd.c",
)
"""Paths in a kernel tree of the files that mutants edit."""


class MutantError(Exception):
    """A mutant that cannot be built or judged; the message is one line."""


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
    cpu: Literal["amd", "intel"] = "amd"
    apicv: bool = True

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
