# SPDX-License-Identifier: GPL-2.0-only
"""The known deviations of deviations.toml: kernels that break a clause, with the evidence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from helpers.spec.table import read


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """A switch of the model that is off for kernels with a deviation.

    ``topology`` and ``message`` are a case in the text forms of helpers/apic. A kernel that handles
    the case as the reference kernel does has the fix, whatever the kernel's version.
    """

    name: str
    topology: str
    message: str


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known deviation.

    ``shows`` lists each mismatch that the deviation causes, as (subject, expected, actual). A ``?``
    stands for any one character. ``before`` is the first version without the deviation, ``fixed``
    names the commits of the fix. ``vendor`` is the module that drives /dev/kvm. With neither
    ``before`` nor ``vendor`` every kernel deviates.
    """

    id: str
    summary: str
    shows: tuple[tuple[str, str, str], ...]
    evidence: str = ""
    before: str = ""
    fixed: str = ""
    vendor: str = ""
    switch: SwitchOff | None = None

    def __post_init__(self) -> None:
        if not self.shows:
            raise ValueError("shows is empty")
        if self.before and self.vendor:
            raise ValueError("before and vendor exclude each other")
        if bool(self.before) != bool(self.fixed):
            raise ValueError("before and fixed go together")
        if self.before and not re.fullmatch(r"\d+\.\d+", self.before):
            raise ValueError(f"before: {self.before!r} is not a version such as '6.3'")
        if not self.before and not self.evidence:
            raise ValueError("evidence is missing")

    @property
    def condition(self) -> str:
        """The kernels that have the deviation, in words."""
        if self.before:
            return f"before Linux {self.before}"
        return f"a /dev/kvm driven by {self.vendor}" if self.vendor else "every kernel so far"

    @property
    def fix(self) -> str:
        """Commits and version of the fix; empty if there is none."""
        return f"{self.fixed} ({self.before})" if self.fixed else ""

    def applies(self, version: tuple[int, int], vendor: str) -> bool:
        """Return whether a kernel (major, minor) whose /dev/kvm ``vendor`` drives deviates."""
        if self.before:
            major, minor = map(int, self.before.split("."))
            return version < (major, minor)
        return self.vendor in ("", vendor)

    def explains(self, subject: str, expected: str, actual: str) -> bool:
        """Return whether the deviation is the reason for a mismatch."""
        return any(all(map(_matches, shown, (subject, expected, actual))) for shown in self.shows)


def _matches(pattern: str, text: str) -> bool:
    return len(pattern) == len(text) and all(
        wanted in ("?", char) for wanted, char in zip(pattern, text, strict=True)
    )


DEVIATIONS = read(Path(__file__).with_name("deviations.toml"), Deviation)
