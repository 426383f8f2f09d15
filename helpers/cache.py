# SPDX-License-Identifier: GPL-2.0-only
"""The directory of artefacts that are costly to make: kernels, images, the assembled guest.

A disk that was full, or a machine that lost power, leaves files that are empty or cut off. What is
damaged is made or fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

_SUMS = ".sums"


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/kvm-signal-msi``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvm-signal-msi"


# --- files ----------------------------------------------------------------------------------------


def cached(stem: str, key: bytes, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return the path of a file in the cache, which ``make`` writes unless the cache has it.

    ``key`` is all that the content depends on. Raises what ``make`` raises. The file's name has the
    digests of key and content: a file that is damaged is made again.
    """
    name = f"{stem}-{_digest(key)}"
    if path := _found(cache_directory(), name, suffix):
        return path
    own = Path(_directory_of_process().name)
    if path := _found(own, name, suffix):
        return path
    with tempfile.TemporaryDirectory(dir=own) as scratch:
        output = Path(scratch, "output")
        make(output)
        path = output.replace(own / f"{name}-{_digest(output.read_bytes())}.{suffix}")
    # A cache that is full or cannot be written costs each process a second.
    with contextlib.suppress(OSError):
        return _kept(path)
    return path


def _found(directory: Path, name: str, suffix: str) -> Path | None:
    """Return the path of a file that is as it was made. Remove one that is not."""
    with contextlib.suppress(OSError):
        for path in directory.glob(f"{name}-*.{suffix}"):
            if path.stem == f"{name}-{_digest(path.read_bytes())}":
                return path
            path.unlink()
    return None


def _kept(path: Path) -> Path:
    """Move a file to the cache in one step; return its path there. Raises OSError."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        kept = Path(shutil.copy(path, scratch)).replace(directory / path.name)
    path.unlink()
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def _directory_of_process() -> tempfile.TemporaryDirectory[str]:
    """Return a directory that Python removes when this process ends."""
    return tempfile.TemporaryDirectory()


# --- directories ----------------------------------------------------------------------------------


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
