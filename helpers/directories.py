# SPDX-License-Identifier: GPL-2.0-only
"""The directory that an option names for the files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest


def made_directory(option: str, given: str) -> Path:
    """Return the directory ``given`` to an option, made if it is missing. Raises UsageError."""
    path = Path(given).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"{option}={path} cannot be made: {error.strerror}") from None
    return path
