# SPDX-License-Identifier: GPL-2.0-only
"""The kernels of kernels.toml, and the Debian suites that have packages of kernels."""

from __future__ import annotations

import tomllib
from pathlib import Path

_FACTS = tomllib.loads(Path(__file__).with_name("kernels.toml").read_text(encoding="utf-8"))

REFERENCE_KERNELS: tuple[str, ...] = tuple(_FACTS["references"])
DEFAULT_KERNEL: str = _FACTS["default"]
DEBIAN_SUITES: dict[str, list[str]] = _FACTS["debian-suites"]
