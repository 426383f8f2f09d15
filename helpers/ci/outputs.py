# SPDX-License-Identifier: GPL-2.0-only
"""Where an output goes: a file, or standard output, which pytest then leaves alone."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from helpers.kvm.closing import Closing


class Output(Closing):
    """The file of an option, or standard output for ``-``. Each text is written at once.

    ``problem`` is why the output is incomplete, such as a full disk; empty for a whole output.
    Raises UsageError for a file that cannot be written.
    """

    def __init__(self, option: str, path: str) -> None:
        self.path = path
        self.problem = ""
        try:
            # Descriptor 1 itself is redirected while pytest captures the output of tests.
            self._fd = os.dup(1) if path == "-" else _open(path)
        except OSError as error:
            raise pytest.UsageError(
                f"{option}={path} cannot be written: {error.strerror}"
            ) from None

    def write(self, text: str) -> None:
        """Write text. A failure is remembered, and ends the output."""
        content = memoryview(text.encode(errors="backslashreplace"))
        try:
            while content and not self.problem:
                content = content[os.write(self._fd, content) :]
        except OSError as error:
            self.problem = f"{self.path} is not complete: {error.strerror}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return os.open(Path(path).expanduser(), flags, 0o666)


def to_stderr(path: str) -> contextlib.AbstractContextManager[object]:
    """Make pytest's terminal standard error if ``path`` is standard output."""
    return contextlib.redirect_stdout(sys.stderr) if path == "-" else contextlib.nullcontext()
