"""Watching the kernel complain: new WARNING, BUG and Oops lines, and the taint flags."""

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
    """/dev/kmsg from now on. ``readable`` is False where the user may not read it."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._taint = read_taint()
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self.close()

    @property
    def readable(self) -> bool:
        return self._fd >= 0

    def close(self) -> None:
        if self.readable:
            os.close(self._fd)
            self._fd = -1

    def complaints(self) -> list[str]:
        """What the kernel has complained of since the last call."""
        said = [line for line in self._new_lines() if _COMPLAINT.search(line)]
        taint = read_taint()
        if taint != self._taint:
            said.append(f"the kernel's taint flags changed from {self._taint} to {taint}")
            self._taint = taint
        return said

    def _new_lines(self) -> list[str]:
        lines: list[str] = []
        while self.readable:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overrun: the ring moved on, reading goes on with the oldest record
            except OSError:
                self.close()
                break
            if not record:
                break  # no kernel log: /dev/null in its place, as some containers have it
            # "priority,sequence,time,flags;text", then " KEY=value" lines.
            lines.append(record.partition(";")[2].split("\n", 1)[0])
        return lines


def read_taint() -> int:
    """/proc/sys/kernel/tainted; 0 where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        file = os.open(TAINT, os.O_RDONLY)  # a file object costs twice as much, for every test
        try:
            return int(os.pread(file, 64, 0))
        finally:
            os.close(file)
    return 0
