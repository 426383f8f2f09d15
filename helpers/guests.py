# SPDX-License-Identifier: GPL-2.0-only
"""The guest of each architecture."""

from __future__ import annotations

from pathlib import Path

from helpers.arm64 import assemble as arm64
from helpers.guest import assemble as x86
from helpers.spec.architectures import ARM64, X86_64, Architecture

_BUILDERS = {X86_64: x86.build_all, ARM64: arm64.build_all}


def build_guest(architecture: Architecture) -> list[Path]:
    """Return the files of the guest's code; build those that the cache lacks.

    Raises AssemblyError.
    """
    return _BUILDERS[architecture]()
