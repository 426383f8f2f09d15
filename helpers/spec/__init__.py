# SPDX-License-Identifier: GPL-2.0-only
"""Facts as data: clauses, known deviations and supported kernels, each in a TOML file."""

from helpers.spec.clauses import CLAUSES, LEVELS, Clause, Level
from helpers.spec.deviations import DEVIATIONS, KERNEL_LOG, Deviation, SwitchOff

__all__ = [
    "CLAUSES",
    "DEVIATIONS",
    "KERNEL_LOG",
    "LEVELS",
    "Clause",
    "Deviation",
    "Level",
    "SwitchOff",
]
