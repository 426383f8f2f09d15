# SPDX-License-Identifier: GPL-2.0-only
"""A progress bar for work that takes minutes."""

from __future__ import annotations

import shutil
import sys
import time


class Bar:
    """One line on standard error: the share done, the rate, the seconds left.

    Without a terminal, the bar prints nothing. ``size``: the whole work. ``begun``: the part that
    was done before. Both count single items; the bar shows them divided by ``scale``, in ``unit``.
    """

    def __init__(self, name: str, size: int, *, begun: int = 0, unit: str, scale: int) -> None:
        self._name, self._size, self._begun = name, size, begun
        self._unit, self._scale = unit, scale
        self._start = time.monotonic()
        self._shown = 0.0

    def show(self, done: int, more: str = "") -> None:
        """Show that ``done`` items are done, and ``more``, at most ten times a second."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._shown < 0.1:
            return
        self._shown = now
        rate = (done - self._begun) / max(now - self._start, 1e-3)
        left = max(0, self._size - done) / max(rate, 1)
        text = f"{100 * done // self._size:3} % of {self._size // self._scale} {self._unit}, "
        text += f"{rate / self._scale:.1f} {self._unit}/s, {left:.0f} s left  {self._name} {more}"
        self._draw(text)

    def end(self) -> None:
        """Erase the bar."""
        if self._shown:
            self._draw("")

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:{width}}\r", end="", file=sys.stderr, flush=True)
