# SPDX-License-Identifier: GPL-2.0-only
"""Carry a tape in the report of its test, from the process that recorded the test."""

from __future__ import annotations

import pickle
import zlib

import pytest

from helpers.record.tape import Tape

_ATTRIBUTE = "tape"


def attach(report: pytest.TestReport, tape: Tape) -> None:
    """Put a tape into a report, in a form that pytest can send."""
    setattr(report, _ATTRIBUTE, zlib.compress(pickle.dumps(tape), level=1))


def tape_of(report: pytest.TestReport) -> Tape | None:
    """Return the tape of a test; None for the report of another phase, or without --record."""
    packed = getattr(report, _ATTRIBUTE, None)
    if packed is None:
        return None
    tape = pickle.loads(zlib.decompress(packed))
    assert isinstance(tape, Tape)
    return tape
