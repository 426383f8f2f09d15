# SPDX-License-Identifier: GPL-2.0-only
"""Where a recorder of ioctls is installed (helpers/record). Without a recorder nothing is recorded.

The hooks in helpers/kvm and helpers/guest test ``recording.active`` and do nothing else while the
value is None.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from helpers.record.recorder import Recorder
    from helpers.record.tape import Observed

S = TypeVar("S", bound=ctypes.Structure)

active: Recorder | None = None
"""The recorder of the test that runs."""


def hidden() -> contextlib.AbstractContextManager[None]:
    """Record nothing of the block: another step of the tape stands for the calls."""
    return contextlib.nullcontext() if active is None else active.hidden()


def making_machine(resets: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
    """Record the block as the steps that make a machine. ``resets`` returns whether it is reset."""
    return contextlib.nullcontext() if active is None else active.making_machine(resets)


def observing(fd: int) -> contextlib.AbstractContextManager[Observed | None]:
    """Record the block as an injection into the VM ``fd``. Return the step of the tape."""
    return contextlib.nullcontext() if active is None else active.observing(fd)


def restoring(saved: int) -> contextlib.AbstractContextManager[None]:
    """Record the block as the restoring of a state that the recorder knows by this number."""
    return contextlib.nullcontext() if active is None else active.restoring(saved)


def setting_up(fd: int) -> contextlib.AbstractContextManager[None]:
    """Record the block as the steps that set up the vCPU ``fd``."""
    return contextlib.nullcontext() if active is None else active.setting_up(fd)


def watched(struct: type[S]) -> type[S]:
    """Return ``struct``, or a type like it that tells the recorder which fields a test reads."""
    return struct if active is None else active.watched(struct)


def any_outcome() -> None:
    """Note that the last ioctl may be accepted or refused."""
    if active:
        active.any_outcome()


def leave_out(reason: str) -> None:
    """Note that no list of steps stands for the test that runs, and why."""
    if active:
        active.leave_out(reason)
