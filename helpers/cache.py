# SPDX-License-Identifier: GPL-2.0-only
"""The directory of artefacts that are costly to make: kernels, images, the assembled guest."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/kvm-signal-msi``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvm-signal-msi"
