# SPDX-License-Identifier: GPL-2.0-only
"""The plugin that ends a run on SIGTERM as on Ctrl-C: with its summary, reports and results.

Python's default ends the process at once, so that a run under timeout(1) would report nothing.
"""

from __future__ import annotations

import signal
from types import FrameType

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Handle SIGTERM, but not in a worker of pytest-xdist: the controller ends its workers."""
    if hasattr(config, "workerinput"):
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)

    def restore() -> None:
        signal.signal(signal.SIGTERM, previous)

    config.add_cleanup(restore)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # timeout(1) sends the signal to the process, and then to its process group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("SIGTERM")
