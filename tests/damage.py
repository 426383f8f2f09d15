# SPDX-License-Identifier: GPL-2.0-only
"""What a full disk, a loss of power or a failing disk makes of a file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut_off(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def overwritten(file: Path) -> None:
    """Write garbage of the same size."""
    file.write_bytes(random.Random(20).randbytes(file.stat().st_size))


DAMAGES: list[Callable[[Path], None]] = [emptied, cut_off, overwritten]
