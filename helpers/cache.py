# SPDX-License-Identifier: GPL-2.0-only
"""The directory of artefacts that are costly to make: kernels, images, the assembled guest.

A disk that was full, or a machine that lost power, leaves files that are empty or cut off. What is
damaged is made or fetched again.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

_SUMS = ".sums"


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/kvm-signal-msi``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvm-signal-msi"


def seal(directory: Path) -> None:
    """Write the checksums of the files below a directory that is complete."""
    (directory / _SUMS).unlink(missing_ok=True)
    files = sorted(
        path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )
    lines = [f"{_sum(path)} {path.relative_to(directory)}\n" for path in files]
    (directory / _SUMS).write_text(f"{''.join(lines)}{len(lines)} files\n")


def is_intact(directory: Path) -> bool:
    """Return whether each file below a directory is as it was sealed.

    A directory without checksums is older than they are, and is taken as it is.
    """
    if not (directory / _SUMS).exists():
        return directory.is_dir()
    try:
        *lines, last = (directory / _SUMS).read_text().splitlines()
        return last == f"{len(lines)} files" and all(
            _sum(directory / path) == checksum
            for checksum, _, path in (line.partition(" ") for line in lines)
        )
    except (OSError, ValueError):
        return False


def _sum(path: Path) -> str:
    """Return a checksum that is quick: a kernel has 400 MB of modules."""
    return f"{zlib.crc32(path.read_bytes()):08x}"
