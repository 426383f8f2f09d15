# SPDX-License-Identifier: GPL-2.0-only
"""Record a test: each ioctl, each write to guest memory, and each value that the kernel owes."""

from helpers.record.recorder import Recorder
from helpers.record.tape import Tape

__all__ = ["Recorder", "Tape"]
