# SPDX-License-Identifier: GPL-2.0-only
"""A kernel log that a test can write to."""

from __future__ import annotations

import os

from helpers.verdicts.kernel_log import KernelLog


class Kmsg(KernelLog):
    """A pipe that behaves as /dev/kmsg: a read returns one record, or fails with EAGAIN."""

    def __init__(self) -> None:
        super().__init__(os.devnull)
        reader, self._writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        os.dup2(reader, self._fd, inheritable=False)
        os.close(reader)

    def say(self, text: str, properties: str = "") -> None:
        """Log ``text`` in the format of the kernel."""
        os.write(self._writer, f"4,1234,5678901,-;{text}\n{properties}".encode())

    def close(self) -> None:
        super().close()
        os.close(self._writer)
