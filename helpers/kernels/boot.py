# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel in an emulator: one process, with a channel to the worker inside and a console."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.cache import cache_directory
from helpers.guests import build_guest
from helpers.kernels import foreign
from helpers.kernels.columns import Boot
from helpers.kernels.emulators.interface import MemoryFiles, path_of
from helpers.kernels.frames import Unpacker, pack
from helpers.kernels.image import Cpio, userland
from helpers.kernels.init import MODULES, SETUP
from helpers.kvm.closing import Closing
from helpers.spec.architectures import X86_64, Architecture

PROJECT = Path(__file__).resolve().parents[2]

# fmt: off
COMMAND_LINE = (
    "loglevel=6",                # notices tell a slow boot from one that hangs
    "oops=panic",                # an oops may leave a lock held: a test that hangs is found late
    "panic=-1",                  # a panic reboots at once, and that ends the emulator
    "rcupdate.rcu_expedited=1",  # destroying a VM waits for RCU
)
# fmt: on

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Images:
    """The initramfs of each boot of a run. All share one userland, made once.

    ``argv``, ``environ`` and ``worker`` are the worker's command line, environment variables and
    ``config.workerinput``. ``architecture`` is that of the kernels.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        worker: Mapping[str, object],
        architecture: Architecture = X86_64,
    ) -> None:
        # The guest has no compiler.
        self._assembled = {path.name: path.read_bytes() for path in build_guest(architecture)}
        search_path = list(filter(os.path.isdir, sys.path))
        if architecture is X86_64:
            self._userland = userland(PROJECT)
        else:
            self._userland = foreign.userland(PROJECT, architecture)
            search_path = foreign.search_path()
        self._setup = {
            "argv": list(argv),
            "worker": dict(worker),
            "cwd": os.getcwd(),
            "environ": {
                **environ,
                "HOME": "/tmp",
                "PATH": os.environ.get("PATH", ""),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join([str(PROJECT), *search_path]),
                "XDG_CACHE_HOME": str(cache_directory().parent),
            },
        }

    def of(self, boot: Boot, files: Sequence[str] = ()) -> bytes:
        """Return the initramfs of a boot whose worker collects tests of ``files``, or all.

        MODULES/NN-NAME are the modules to load before pytest starts, in order of NN, and
        MODULES/N/NAME are those of the columns whose ``Boot.directory`` is N.
        """
        archive = Cpio()
        setup = json.dumps(self._setup | {"files": list(files)})
        archive.add(str(SETUP), stat.S_IFREG | 0o644, setup.encode())
        for name, content in self._assembled.items():
            archive.add(str(cache_directory() / name), stat.S_IFREG | 0o755, content)
        add_modules(archive, boot)
        return archive.finish() + self._userland


def add_modules(archive: Cpio, boot: Boot) -> None:
    """Add the modules of a boot and those of its columns; see Images.of()."""
    archive.add(str(MODULES), stat.S_IFDIR | 0o755)
    for number, (name, content) in enumerate(boot.modules.items()):
        archive.add(f"{MODULES}/{number:02}-{name}", stat.S_IFREG | 0o644, content)
    sets = {boot.directory(column): column.modules for column in boot.columns}
    for number, modules in sets.items():
        for name, content in modules.items():
            archive.add(f"{MODULES}/{number}/{name}", stat.S_IFREG | 0o644, content)


class Guest(Closing):
    """A running emulator. It dies with this process."""

    def __init__(self, boot: Boot, image: bytes) -> None:
        self.boot = boot
        self._console = os.memfd_create("console")
        self._errors = os.memfd_create("errors")
        emulator = boot.emulator
        self.channel, theirs = emulator.channel()
        # The report has what the kernel says.
        console = f"console={emulator.console}"
        line = " ".join((console, *COMMAND_LINE, *emulator.command_line, boot.command_line))
        with MemoryFiles() as files:
            self._process = subprocess.Popen(
                emulator.command(boot.kernel, line, image, path_of(self._console), files),
                stdin=theirs,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(*files.descriptors, self._console),
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,  # Ctrl-C is for this process to handle
            )
        os.close(theirs)
        self._unpacker = Unpacker()

    def fileno(self) -> int:
        """Return the channel's file descriptor, for select."""
        return self.channel

    def send(self, *message: Any) -> None:
        """Send a message to the worker. The channel holds more than a run ever sends."""
        self.write(pack(*message))

    def write(self, message: bytes) -> None:
        """Write to the channel."""
        content = memoryview(message)
        with contextlib.suppress(OSError):  # receive() raises EOFError for a dead guest
            while content:
                content = content[os.write(self.channel, content) :]

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """Return the messages that the worker has sent. Raises EOFError for a dead guest."""
        return self._unpacker.feed(self.read())

    def read(self) -> bytes:
        """Read from the channel. Raises EOFError for a dead guest."""
        try:
            received = os.read(self.channel, 1 << 20)
        except OSError:
            received = b""
        if not received:
            raise EOFError
        return received

    def console(self) -> list[str]:
        """Return the emulator's own messages and the lines on the console so far."""
        said = b"".join(
            os.pread(file, os.fstat(file).st_size, 0) for file in (self._errors, self._console)
        )
        return [line.rstrip() for line in said.decode(errors="replace").splitlines()]

    def close(self) -> None:
        if self.channel < 0:
            return
        self._process.kill()
        self._process.wait()
        os.close(self.channel)
        self.channel = -1
        os.close(self._console)
        os.close(self._errors)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM, for the creation of what must be closed again."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _die_with_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def slots(wanted: int | None, boots: Sequence[Boot]) -> int:
    """Return how many guests can run at a time: ``wanted`` or one per core, as memory allows."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    largest = max(boot.emulator.memory for boot in boots)
    return max(1, min(wanted or len(os.sched_getaffinity(0)), available // largest))
