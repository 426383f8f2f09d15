# SPDX-License-Identifier: GPL-2.0-only
"""The forms in which a failure shows a number: the same in Python and in the C of helpers/program.

A failure's text is more than cosmetics: a known deviation is recognized by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from helpers.apic.lapic import bits, show_vectors
from helpers.apic.topology import show_mp_state

FORMS: dict[str, Callable[[int], str]] = {
    "dec": str,
    "hex": hex,
    "bool": lambda value: str(bool(value)),
    "vectors": lambda value: show_vectors(bits(value)),
    "mp_state": show_mp_state,
}
"""By name, how a number becomes text. ``vectors``: bit N of the number stands for vector N."""


def form_of(value: int, text: str) -> str | None:
    """Return the name of the form in which ``value`` is ``text``; None if there is none."""
    return next((name for name, show in FORMS.items() if _shows(show, value, text)), None)


def _shows(show: Callable[[int], str], value: int, text: str) -> bool:
    try:
        return show(value) == text
    except ValueError:
        return False


def mask_of(vectors: Iterable[int]) -> int:
    """Return the number that has the bits of ``vectors``."""
    return sum(1 << vector for vector in vectors)


def number_of(value: object) -> int | None:
    """Return the number that stands for an expected value; None if no number does."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (set, frozenset)) and all(isinstance(item, int) for item in value):
        return mask_of(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value, 16)
    return None
