# SPDX-License-Identifier: GPL-2.0-only
"""Decode the last words of a kernel that died."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

DECODE_SECONDS = 60
"""Time limit of decoding. A vmlinux with debug information takes tens of seconds."""
_TIMED_OUT = 124  # the exit code of timeout(1)
_CONSOLE_LINES = 40

_LINE = re.compile(r"\.[chS]:\d")
_DYING = re.compile(r"BUG:|Oops|Kernel panic|general protection fault|stack-protector|RIP:")


def last_words(console: Sequence[str], tree: Path | None = None) -> str:
    """Return the end of a dead kernel's console, from its first oops on.

    Frames have files and lines where ``tree``, the kernel's build tree, has debug information.
    """
    dying = [number for number, line in enumerate(console) if _DYING.search(line)]
    first = dying[0] if dying else len(console)
    text = "\n".join(console[min(first, max(0, len(console) - _CONSOLE_LINES)) :])
    return _decode(text, tree) if tree and dying else text


def _decode(oops: str, tree: Path) -> str:
    """Return the oops as scripts/decode_stacktrace.sh shows it; unchanged where it cannot."""
    # make O=DIR leaves a link to the sources in DIR.
    places = (tree / place / "decode_stacktrace.sh" for place in ("scripts", "source/scripts"))
    decoder = next(filter(Path.exists, places), None)
    vmlinux = tree / "vmlinux"
    if decoder is None or not vmlinux.exists():
        return oops
    # timeout(1) ends the programs that the script starts as well. "auto" makes the script find
    # the sources, the tree is where it looks for modules.
    command = ["timeout", str(DECODE_SECONDS), str(decoder), str(vmlinux), "auto", str(tree)]
    decoded = subprocess.run(command, input=oops, capture_output=True, text=True, check=False)
    if decoded.returncode == _TIMED_OUT:
        return oops
    # Without debug information the script turns "panic+0x107/0x290" into "panic (??:?)".
    return decoded.stdout if _LINE.search(decoded.stdout) else oops
