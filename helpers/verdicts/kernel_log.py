# SPDX-License-Identifier: GPL-2.0-only
"""Find complaints of the kernel: new WARNING, BUG and Oops lines, and changed taint flags."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

TAINT = Path("/proc/sys/kernel/tainted")
CLEAR_WARN_ONCE = Path("/sys/kernel/debug/clear_warn_once")

_TAINT_WARN = 1 << 9  # W, a WARNING: Documentation/admin-guide/tainted-kernels.rst

COMPLAINTS = (
    *("WARNING:", "BUG:", "kernel BUG at", "Oops", "general protection fault", "Unable to handle"),
    *("RCU .*stall", "rcu_[a-z_]+ (self-)?detected", "soft lockup", "hung task"),
    *("blocked for more than", "KASAN", "UBSAN", "KCSAN", "lockdep"),
    *("possible (recursive|circular) locking", "Call Trace:"),
)
"""What the text of a complaint has: regular expressions of Python and of POSIX, extended."""

_COMPLAINT = re.compile("|".join(COMPLAINTS))

# "WARNING: CPU: 0 PID: 42 at FILE:LINE FUNCTION+OFFSET/SIZE [MODULE]", since 6.19 "WARNING:
# FILE:LINE at FUNCTION+OFFSET/SIZE [MODULE], CPU#0: COMM/PID". gcc appends ".isra.0" to a function.
_WARNING_IN = re.compile(r"WARNING: .*?\b(\w+)(?:\.\w+)*\+0x[0-9a-f]+/0x[0-9a-f]+")
_TRACE = "Call Trace:"
_RECENT = 400


def normalized(complaints: Sequence[str]) -> str:
    """Return complaints as known deviations name them: ``WARNING in kvm_apic_accept_events``.

    The call trace is part of a complaint. A complaint that is no WARNING stays as logged.
    """
    lines = [line for line in complaints if line.strip() != _TRACE] or complaints
    found = [(line, _WARNING_IN.search(line)) for line in lines]
    return ", ".join(dict.fromkeys(f"WARNING in {at[1]}" if at else line for line, at in found))


class KernelLog:
    """The kernel log from now on, and the kernel's taint flags.

    ``readable`` is False where the user may not read the log.

    A WARN_ON_ONCE logs once per boot, or once per load of its module. Each complaint re-arms all of
    them, so that the next test that raises a WARNING shows it. ``muted`` is True where a WARNING
    was logged and debugfs does not let this user re-arm: a silent kernel then proves nothing.
    ``recent`` are the last lines that were read, for a log of a failed test.
    """

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self.recent: deque[str] = deque(maxlen=_RECENT)
        # Open for the whole run: opening the file takes several times as long as reading.
        self._taint_fd = _open(TAINT)
        self._taint = self._read_taint()
        self._rearm_fd = _open(CLEAR_WARN_ONCE, os.O_WRONLY)
        self._fd = _open(path)
        try:
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._stop_reading()
        if self._taint & _TAINT_WARN:
            self._rearm()

    @property
    def readable(self) -> bool:
        return self._fd >= 0

    @property
    def muted(self) -> bool:
        return bool(self._taint & _TAINT_WARN) and self._rearm_fd < 0

    def close(self) -> None:
        self._stop_reading()
        for fd in (self._taint_fd, self._rearm_fd):
            if fd >= 0:
                os.close(fd)
        self._taint_fd = self._rearm_fd = -1

    def _stop_reading(self) -> None:
        if self.readable:
            os.close(self._fd)
            self._fd = -1

    def complaints(self) -> list[str]:
        """Return the complaints since the last call, oldest first."""
        found = [line for line in self._new_lines() if _COMPLAINT.search(line)]
        taint = self._read_taint()
        explained = _TAINT_WARN if any("WARNING:" in line for line in found) else 0
        if new := taint & ~self._taint & ~explained:
            found.append(f"new taint flags of the kernel: {new}")
        self._taint = taint
        if found:
            self._rearm()
        return found

    def _rearm(self) -> None:
        """Have each WARN_ON_ONCE of the kernel log again (admin-guide/clearing-warn-once.rst)."""
        if self._rearm_fd >= 0:
            os.write(self._rearm_fd, b"1")

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
        self.recent += lines
        return lines

    def _read_taint(self) -> int:
        """Return the taint flags; 0 where the flags cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(self._taint_fd, 64, 0))
        return 0


def _open(path: str | Path, access: int = os.O_RDONLY) -> int:
    """Return a file descriptor, or -1."""
    with contextlib.suppress(OSError):
        return os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
    return -1
