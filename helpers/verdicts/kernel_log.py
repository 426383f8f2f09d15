# SPDX-License-Identifier: GPL-2.0-only
"""Find complaints of the kernel: new WARNING, BUG and Oops lines, and changed taint flags."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

TAINT = Path("/proc/sys/kernel/tainted")

_COMPLAINT = re.compile(
    r"WARNING:|BUG:|kernel BUG at|Oops|general protection fault|Unable to handle|"
    r"RCU .*stall|rcu_\w+ (self-)?detected|soft lockup|hung task|blocked for more than|"
    r"KASAN|UBSAN|KCSAN|lockdep|possible (recursive|circular) locking|Call Trace:"
)


class KernelLog:
    """The kernel log from now on, and the kernel's taint flags.

    ``readable`` is False where the user may not read the log.
    """

    def __init__(self, path: str = "/dev/kmsg") -> None:
        # Open for the whole run: opening the file takes several times as long as reading.
        self._taint_fd = _open(TAINT)
        self._taint = self._read_taint()
        self._fd = _open(path)
        try:
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._stop_reading()

    @property
    def readable(self) -> bool:
        return self._fd >= 0

    def close(self) -> None:
        self._stop_reading()
        if self._taint_fd >= 0:
            os.close(self._taint_fd)
            self._taint_fd = -1

    def _stop_reading(self) -> None:
        if self.readable:
            os.close(self._fd)
            self._fd = -1

    def complaints(self) -> list[str]:
        """Return the complaints since the last call, oldest first."""
        found = [line for line in self._new_lines() if _COMPLAINT.search(line)]
        taint = self._read_taint()
        if taint != self._taint:
            found.append(f"the kernel's taint flags changed from {self._taint} to {taint}")
            self._taint = taint
        return found

    def _new_lines(self) -> list[str]:
        lines: list[str] = []
        while self.readable:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # Overrun: the next read returns the oldest record that is left.
            except OSError:
                self._stop_reading()
                break
            if not record:
                break  # Some containers have /dev/null in place of the kernel log.
            # A record is "priority,sequence,time,flags;text", then lines of " KEY=value".
            lines.append(record.partition(";")[2].split("\n", 1)[0])
        return lines

    def _read_taint(self) -> int:
        """Return the taint flags; 0 where the flags cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(self._taint_fd, 64, 0))
        return 0


def _open(path: str | Path) -> int:
    """Return a file descriptor, or -1."""
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return -1
