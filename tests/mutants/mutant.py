"""What a mutant is: an edit of one function of KVM, and why the suite must notice.

In the files of this directory, a table for each:

    [flags-not-checked]
    breaks = "undefined flags are accepted"
    clause = "msi.flags"                 # whose test must fail
    function = "kvm_send_userspace_msi"  # where, whichever file that is in
    old = "(msi->flags & ~KVM_MSI_VALID_DEVID)"
    new = "0"

``old`` stands there once, however it is spaced. ``older`` is another {function, old, new}, for
kernels where there is no such function or text. ``since`` and ``until`` bound the kernels that the
mutant is for: 6.3 is in ``since = "6.3"``, and not in ``until = "6.3"``. ``undoes`` names the
commit whose work is undone; ``alone = true`` keeps one that damages memory off others' boots;
``argued`` says why no user of the ioctl can tell.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.kernels.packages import numbers
from helpers.spec import CLAUSES

FILES = (
    *("virt/kvm/irqchip.c", "virt/kvm/kvm_main.c", "arch/x86/kvm/irq_comm.c"),
    *("arch/x86/kvm/irq.c", "arch/x86/kvm/lapic.c", "arch/x86/kvm/x86.c", "arch/x86/kvm/x86.h"),
    *("arch/x86/kvm/smm.c", "arch/x86/kvm/svm/svm.c"),
)
"""Where the functions are, in a kernel tree."""


class MutantError(Exception):
    """A mutant that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Edit:
    """In ``function``, ``new`` for ``old``."""

    function: str
    old: str
    new: str

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """The file to change and its new text. Raises MutantError."""
        defined = [
            (file, body)
            for file, text in sources.items()
            for body in _definition(self.function).finditer(text)
        ]
        found = [
            (file, place.span())
            for file, body in defined
            for place in _spaced(self.old).finditer(sources[file], *body.span())
        ]
        if not defined:
            raise MutantError(f"there is no {self.function}")
        if len(found) != 1:
            raise MutantError(f"{self.function} has {len(found)} times: {self.old}")
        file, (start, end) = found[0]
        return file, sources[file][:start] + self.new + sources[file][end:]


@dataclass(frozen=True)
class Mutant:
    """An entry; the fields are as above."""

    name: str
    area: str
    breaks: str
    clause: str
    edit: Edit
    older: Edit | None = None
    since: str = ""
    until: str = ""
    undoes: str = ""
    argued: str = ""
    alone: bool = False

    def is_for(self, kernel: str) -> bool:
        """Whether it is for a kernel of this name, such as 6.12.107+deb13-amd64."""
        version = numbers(kernel)
        return not (
            (self.since and version < numbers(self.since))
            or (self.until and version >= numbers(self.until))
        )

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """The file to change and its new text, of {file: text}. Raises MutantError."""
        try:
            return self.edit.apply(sources)
        except MutantError:
            if self.older is None:
                raise
            return self.older.apply(sources)


def mutants(directory: Path = Path(__file__).parent) -> list[Mutant]:
    """All there are, in the order of their files. Raises MutantError."""
    return [
        _mutant(file.stem, name, dict(table))
        for file in sorted(directory.glob("*.toml"))
        for name, table in tomllib.loads(file.read_text()).items()
    ]


def _mutant(area: str, name: str, table: dict[str, Any]) -> Mutant:
    try:
        edit = Edit(*(table.pop(key) for key in ("function", "old", "new")))
        older = Edit(**{**vars(edit), **table.pop("older")}) if "older" in table else None
        made = Mutant(name, area.partition("-")[2], edit=edit, older=older, **table)
    except (KeyError, TypeError) as error:
        raise MutantError(f"{area}.toml, {name}: {error}") from None
    if made.clause not in CLAUSES:
        raise MutantError(f"{area}.toml, {name}: there is no clause {made.clause}")
    return made


def _definition(function: str) -> re.Pattern[str]:
    """A function from its first line to the brace that ends it."""
    return re.compile(rf"^(?:[a-z][^\n;#]*)?\b{function}\([^;{{]*\)\s*\{{.*?^\}}", re.M | re.S)


def _spaced(text: str) -> re.Pattern[str]:
    tokens = re.findall(r"\w+|[^\w\s]", text)
    words = [rf"\b{token}\b" if token.isidentifier() else re.escape(token) for token in tokens]
    return re.compile(r"\s*".join(words))
