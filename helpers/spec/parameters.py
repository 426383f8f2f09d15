# SPDX-License-Identifier: GPL-2.0-only
"""The module parameters of parameters.toml, which change how KVM delivers a message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helpers.spec.table import read


@dataclass(frozen=True, slots=True)
class Parameter:
    """A switch of a module. ``id`` is MODULE.NAME, ``changes`` what depends on the switch."""

    id: str
    changes: str


PARAMETERS = read(Path(__file__).with_name("parameters.toml"), Parameter)
