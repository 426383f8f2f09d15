# SPDX-License-Identifier: GPL-2.0-only
"""The guest's /init: mount file systems, load modules, run pytest with worker.py, power off.

Runs before site-packages are on sys.path: only the standard library and this project are there.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from helpers.kernels import insmod

MODULES = Path("/modules")
SETUP = Path("/setup.json")
_POWER_OFF = 0x4321FEDC  # RB_POWER_OFF
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run as process 1: start the worker, reap its orphans, power off when the worker exits."""
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        os.makedirs(where, exist_ok=True)
        _libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)
    # For helpers/verdicts/kernel_log.py. A kernel may lack debugfs.
    _libc.mount(b"debugfs", b"/sys/kernel/debug", b"debugfs", 0, None)
    for module in sorted(MODULES.iterdir()):
        if module.is_file():
            insmod.load(module.read_bytes())
    worker = os.fork()
    if worker == 0:
        setup = json.loads(SETUP.read_text())
        os.setsid()
        os.chdir(setup["cwd"])
        os.execve(sys.executable, [sys.executable, *setup["argv"]], setup["environ"])
    while os.wait()[0] != worker:
        pass
    _libc.reboot(_POWER_OFF)
