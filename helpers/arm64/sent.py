# SPDX-License-Identifier: GPL-2.0-only
"""A message that was sent, and what the host sees of its effect: the pending LPIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from helpers.apic.effect import Effect
from helpers.guest.expect import Mismatch
from helpers.guest.injection import Injection
from helpers.its import Message

__tracebackhide__ = True  # pytest shows a failure at the line of the test

Pending = frozenset[tuple[int, int]]
"""LPIs that are pending: (index of the vCPU, INTID)."""


def show(pending: Sequence[tuple[int, int]] | Pending) -> str:
    """Return LPIs as text."""
    lpis = (f"LPI {lpi} on vCPU {vcpu}" for vcpu, lpi in sorted(pending))
    return ", ".join(lpis) or "no LPI"


@dataclass(frozen=True, slots=True)
class Sent(Injection):
    """A message that was sent, with its outcome; ``wrote`` says what.

    ``pending_before`` and ``pending_after`` are None where the pending tables cannot be saved.
    The checks raise Mismatch and return self.
    """

    wrote: Message = field(default_factory=Message)
    pending_before: Pending | None = None
    pending_after: Pending | None = None

    def effects(self) -> list[Effect]:
        """Return nothing: the effect of the message is on LPIs, not on a LAPIC."""
        return []

    def explain(self, most: int = 8) -> str:  # noqa: ARG002 - a message has one target
        lines = [str(self.wrote), f"  returned {self.returned}"]
        if self.pending_before is not None and self.pending_after is not None:
            lines.append(f"  pending before: {show(self.pending_before)}")
            lines.append(f"  pending after: {show(self.pending_after)}")
        return "\n".join(lines)

    def _expect(self, holds: bool, subject: str, expected: object, actual: object) -> Sent:
        if not holds:
            raise Mismatch(subject, str(expected), str(actual), sent=str(self.wrote))
        return self

    def _expect_return(self, holds: bool, expected: str) -> Sent:
        return self._expect(holds, "return value", expected, self.returned)

    def refused(self) -> Sent:
        """Check that the return value is -1, with any errno."""
        return self._expect_return(self.result < 0, "-1")

    def pends(self, *lpis: tuple[int, int]) -> Sent:
        """Check that these LPIs became pending, and that no other LPI changed."""
        if self.pending_before is None or self.pending_after is None:
            return self
        wanted = self.pending_before | set(lpis)
        holds = self.pending_after == wanted
        return self._expect(holds, "pending", show(wanted), show(self.pending_after))

    def reached_nobody(self) -> Sent:
        """Check that no LPI changed."""
        return self.pends()
