# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons with a structured failure: what was compared, the expected value, the actual value.

The checks of an injection and ``expect()`` raise Mismatch, which a known deviation can explain. No
deviation explains the failure of a plain ``assert``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.apic import show_vectors
from helpers.kvm import recording

__tracebackhide__ = True  # pytest shows a failure at the line of the test


class Mismatch(AssertionError):
    """``subject`` was ``actual`` where the clause requires ``expected``; all three are text.

    ``sent`` names the message in the text of the exception, since a test may send many. A known
    deviation is recognized by ``subject`` and ``actual``.
    """

    def __init__(self, subject: str, expected: str, actual: str, sent: str = "") -> None:
        said = f"{subject}: expected {expected}, got {actual}"
        super().__init__(f"{said}, of {sent}" if sent else said)
        self.subject = subject
        self.expected = expected
        self.actual = actual


def show(value: object) -> str:
    """Return a compared value as text: vectors as a set of hex numbers, all else by str()."""
    if isinstance(value, (set, frozenset)) and all(isinstance(item, int) for item in value):
        return show_vectors(value)
    return str(value)


def expect(subject: str, actual: Any, expected: Any, show: Callable[[Any], str] = show) -> None:
    """Raise Mismatch unless ``actual == expected``. ``show`` turns both values into text."""
    if recording.active:
        texts = show(actual), show(expected)
        recording.active.expected(subject, actual, expected, texts)
        if recording.active.tolerates(subject, texts[1], texts[0]):
            return
    if actual != expected:
        raise Mismatch(subject, show(expected), show(actual))
