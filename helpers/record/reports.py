# SPDX-License-Identifier: GPL-2.0-only
"""Carry a tape in the report of its test, from the process that recorded the test."""

from __future__ import annotations

import pickle
import zlib

import pytest

from helpers.record.tape import Tape
from helpers.verdicts.reports import Carried

_TAPE = Carried[bytes]("tape")


def attach(report: pytest.TestReport, tape: Tape) -> None:
    """Put a tape into a report, in a form that pytest can send."""
    _TAPE.put(report, zlib.compress(pickle.dumps(tape), level=1))


def tape_of(report: pytest.TestReport) -> Tape | None:
    """Return the tape of a test; None for the report of another phase, or without --record."""
    packed = _TAPE.get(report)
    if packed is None:
        return None
    tape = pickle.loads(zlib.decompress(packed))
    assert isinstance(tape, Tape)
    return tape
