# SPDX-License-Identifier: GPL-2.0-only
"""The known deviations of deviations.toml: kernels that break a clause, with the evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from helpers.spec.table import read

KERNEL_LOG = "kernel log"
"""The subject of a mismatch that the log of the kernel shows."""
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """A switch of the model that is off for kernels with a deviation.

    ``topology`` and ``message`` are a case in the text forms of helpers/apic. A kernel that handles
    the case as the reference kernel does has the fix, whatever the kernel's version. Without a case
    (no single message shows the switch) the kernel's version decides.
    """

    name: str
    topology: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known deviation.

    ``shows`` lists each mismatch that the deviation causes, as (subject, expected, actual). A ``?``
    stands for any one character. ``since`` is the first version with the deviation; empty for a
    deviation as old as the code. ``before`` is the first version without the deviation, ``fixed``
    names the commits of the fix. ``vendor`` is the module that drives /dev/kvm. ``parameter`` is
    the setting of KVM's modules that has the deviation, such as kvm_intel.enable_apicv=Y. A kernel
    deviates if all given fields apply.
    """

    id: str
    summary: str
    shows: tuple[tuple[str, str, str], ...]
    evidence: str = ""
    since: str = ""
    before: str = ""
    fixed: str = ""
    vendor: str = ""
    parameter: str = ""
    switch: SwitchOff | None = None

    def __post_init__(self) -> None:
        if not self.shows:
            raise ValueError("shows is empty")
        if self.vendor and self.parameter:
            raise ValueError("vendor and parameter exclude each other")
        if bool(self.before) != bool(self.fixed):
            raise ValueError("before and fixed go together")
        for name, version in (("since", self.since), ("before", self.before)):
            if version and not re.fullmatch(r"\d+\.\d+", version):
                raise ValueError(f"{name}: {version!r} is not a version such as '6.3'")
        if self.since and self.before and _numbers(self.since) >= _numbers(self.before):
            raise ValueError(f"since {self.since} is not below before {self.before}")
        if not self.before and not self.evidence:
            raise ValueError("evidence is missing")

    @property
    def condition(self) -> str:
        """The kernels that have the deviation, in words."""
        versions = ""
        if self.since and self.before:
            versions = f"Linux {self.since} and newer, before {self.before}"
        elif self.before:
            versions = f"before Linux {self.before}"
        elif self.since:
            versions = f"Linux {self.since} and newer"
        host = self.parameter or (f"a /dev/kvm driven by {self.vendor}" if self.vendor else "")
        return ", ".join(filter(None, (versions, host))) or "every kernel so far"

    @property
    def is_of_host(self) -> bool:
        """Whether the host decides about the deviation, and the version of the kernel does not."""
        return bool(self.vendor or self.parameter) and not (self.since or self.before)

    @property
    def fix(self) -> str:
        """Commits and version of the fix; empty if there is none."""
        return f"{self.fixed} ({self.before})" if self.fixed else ""

    def applies(
        self, version: tuple[int, int], vendor: str, parameters: Mapping[str, str] = NO_PARAMETERS
    ) -> bool:
        """Return whether a kernel (major, minor) whose /dev/kvm ``vendor`` drives deviates.

        ``parameters`` are those of KVM's modules: {"kvm_intel.enable_apicv": "Y"}.
        """
        name, _, value = self.parameter.partition("=")
        if name and parameters.get(name) != value:
            return False
        if self.since and version < _numbers(self.since):
            return False
        if self.before and version >= _numbers(self.before):
            return False
        return self.vendor in ("", vendor)

    @property
    def is_logged(self) -> bool:
        """Whether the kernel's log shows the deviation."""
        return any(subject == KERNEL_LOG for subject, _, _ in self.shows)

    def concerns(self, subject: str, expected: str) -> bool:
        """Return whether the deviation is the reason for a mismatch of this value."""
        return any(all(map(_matches, shown[:2], (subject, expected))) for shown in self.shows)

    def explains(self, subject: str, expected: str, actual: str) -> bool:
        """Return whether the deviation is the reason for a mismatch."""
        return any(all(map(_matches, shown, (subject, expected, actual))) for shown in self.shows)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _matches(pattern: str, text: str) -> bool:
    return len(pattern) == len(text) and all(
        wanted in ("?", char) for wanted, char in zip(pattern, text, strict=True)
    )


DEVIATIONS = read(Path(__file__).with_name("deviations.toml"), Deviation)
