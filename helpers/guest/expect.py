"""The one way a test compares: a mismatch knows what was compared, expected and seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.apic import show_vectors

__tracebackhide__ = True  # a failure is shown where the test asked


class Mismatch(AssertionError):
    """``subject`` was ``actual`` where the clause wants ``expected``; all three as shown to people.

    ``sent`` is the message it is about, where there is one: a test may send many. Known deviations
    are recognized by subject and actual (helpers/verdicts/deviations.py).
    """

    def __init__(self, subject: str, expected: str, actual: str, sent: str = "") -> None:
        said = f"{subject}: expected {expected}, got {actual}"
        super().__init__(f"{said}, of {sent}" if sent else said)
        self.subject = subject
        self.expected = expected
        self.actual = actual


def show(value: object) -> str:
    """How a compared value is shown: vectors as a set of hex numbers, ints in decimal."""
    if isinstance(value, (set, frozenset)) and all(isinstance(item, int) for item in value):
        return show_vectors(value)
    return str(value)


def expect(subject: str, actual: Any, expected: Any, show: Callable[[Any], str] = show) -> None:
    """Raise :class:`Mismatch` unless ``actual == expected``."""
    if actual != expected:
        raise Mismatch(subject, show(expected), show(actual))
