"""The known deviations of deviations.toml: kernels that break a clause, with the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from helpers.spec.table import read


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """A switch of the model that is off in kernels with a deviation.

    ``topology`` and ``message`` are a case that tells, in their text forms: a kernel that answers
    the case as the reference kernel does has the switch on, whatever its version.
    """

    name: str
    topology: str
    message: str


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known deviation.

    ``before`` is the first version without it, ``vendor`` the module of /dev/kvm that has it; with
    neither, every kernel so far has it. ``fixed`` names the commits of the fix. ``shows`` are
    patterns (subject, value) of the mismatch, with ``*`` and ``?`` as wildcards.
    """

    id: str
    summary: str
    shows: tuple[tuple[str, str], ...]
    evidence: str = ""
    before: str = ""
    fixed: str = ""
    vendor: str = ""
    switch: SwitchOff | None = None

    def __post_init__(self) -> None:
        if self.before and self.vendor:
            raise ValueError("before and vendor exclude each other")
        if bool(self.before) != bool(self.fixed):
            raise ValueError("before and fixed go together")
        if not self.before and not self.evidence:
            raise ValueError("evidence is missing")

    @property
    def bound(self) -> Literal["every", "version", "host"]:
        """What decides whether a kernel has the deviation."""
        return "version" if self.before else "host" if self.vendor else "every"

    @property
    def condition(self) -> str:
        """The kernels that have the deviation, in words."""
        match self.bound:
            case "version":
                return f"before Linux {self.before}"
            case "host":
                return f"a /dev/kvm driven by {self.vendor}"
            case "every":
                return "every kernel so far"

    @property
    def fix(self) -> str:
        """Commits and version of the fix; empty if there is none."""
        return f"{self.fixed} ({self.before})" if self.fixed else ""

    def applies(self, version: tuple[int, int], vendor: str) -> bool:
        """Whether a kernel of that (major, minor), driven by that module, has the deviation."""
        if self.before:
            major, minor = map(int, self.before.split("."))
            return version < (major, minor)
        return self.vendor in ("", vendor)

    def explains(self, subject: str, value: str) -> bool:
        """Whether a mismatch of ``subject``, which was ``value``, is the deviation's."""
        return any(
            fnmatchcase(subject, wanted) and fnmatchcase(value, shown)
            for wanted, shown in self.shows
        )


DEVIATIONS = read(Path(__file__).with_name("deviations.toml"), Deviation)
