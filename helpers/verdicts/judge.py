# SPDX-License-Identifier: GPL-2.0-only
"""Decide what the outcome of a test means, from the deviations that the test names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from helpers.guest import Mismatch
from helpers.spec import Deviation
from helpers.verdicts.kernel import Kernel


class Judgement(NamedTuple):
    """The meaning of an outcome.

    ``outcome`` replaces pytest's outcome; empty where pytest's outcome stands. ``deviation`` is the
    id of the deviation that the kernel shows. With ``backport`` the kernel does not show the
    deviation, although the kernel's version has the deviation. ``note`` is for the reader.
    """

    outcome: Literal["", "failed", "xfailed"] = ""
    deviation: str = ""
    backport: bool = False
    note: str = ""


def judge(
    known: Sequence[Deviation], kernel: Kernel, error: BaseException | None, muted: bool = False
) -> Judgement:
    """Judge a test that names the deviations ``known`` and ended with ``error``.

    ``muted``: a WARNING of the kernel may have been logged before, and stays silent since.
    """
    if error is None:
        return _judge_pass([entry for entry in known if not (muted and entry.is_logged)], kernel)
    if not isinstance(error, Mismatch):
        return Judgement()
    if shown := explanation(known, kernel, error):
        return Judgement("xfailed", shown.id, note=f"known deviation {shown.id}: {shown.summary}")
    notes = [
        f"the known deviation {entry.id} does not explain this mismatch"
        if _applies(entry, kernel)
        else f"the known deviation {entry.id} ({entry.condition}) does not apply to this kernel"
        for entry in known
    ]
    return Judgement(note="\n".join(notes))


def explanation(
    known: Sequence[Deviation], kernel: Kernel, error: BaseException
) -> Deviation | None:
    """Return the deviation that is the reason for ``error``; None without such a deviation."""
    if not isinstance(error, Mismatch):
        return None
    mismatch = error.subject, error.expected, error.actual
    applying = (entry for entry in known if _applies(entry, kernel))
    return next((entry for entry in applying if entry.explains(*mismatch)), None)


def _judge_pass(known: Sequence[Deviation], kernel: Kernel) -> Judgement:
    entry = next((entry for entry in known if _applies(entry, kernel)), None)
    if entry is None:
        return Judgement()
    note = f"the known deviation {entry.id} ({entry.condition}) did not occur"
    if entry.is_of_host:
        note += ": correct the entry in helpers/spec/deviations.toml"
        return Judgement("failed", entry.id, note=note)
    if entry.fix:
        note += f": the kernel has a backport of {entry.fix}"
    return Judgement("", entry.id, backport=True, note=note)


def _applies(entry: Deviation, kernel: Kernel) -> bool:
    return entry.applies(kernel.version, kernel.vendor, kernel.parameters)
