# SPDX-License-Identifier: GPL-2.0-only
"""Boot a kernel in QEMU: one process, with a channel to the worker inside and a console."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.cache import cache_directory
from helpers.guest.assemble import build_all
from helpers.kernels.columns import Boot
from helpers.kernels.frames import Unpacker, pack
from helpers.kernels.image import Cpio, userland
from helpers.kernels.init import MODULES, SETUP
from helpers.kernels.packages import KernelError
from helpers.kvm.closing import Closing

PROJECT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
MEMORY = 1536  # MiB

# fmt: off
COMMAND_LINE = (
    "console=ttyS0",             # what the kernel says reaches the report
    "loglevel=6",                # notices tell a slow boot from one that hangs
    "oops=panic",                # an oops may leave a lock held: a test that hangs is found late
    "panic=-1",                  # a panic reboots at once, and -no-reboot ends QEMU
    "rcupdate.rcu_expedited=1",  # destroying a VM waits for RCU
)
# fmt: on

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Processor:
    """QEMU's ``options`` for a guest's processors. ``vendor`` is the KVM module for them."""

    name: str
    options: Sequence[str]
    vendor: str

    @classmethod
    def best(cls) -> Processor:
        """Return this machine's processor where KVM nests, else an emulated one with SVM."""
        for vendor in ("kvm_intel", "kvm_amd"):
            nested = Path("/sys/module", vendor, "parameters/nested")
            with contextlib.suppress(OSError):
                if nested.read_text().strip() in ("Y", "1") and os.access("/dev/kvm", os.W_OK):
                    name = f"nested virtualization, {vendor}"
                    return cls(name, ("-accel", "kvm", "-cpu", "host", "-smp", "2"), vendor)
        # One vCPU. With two in a thread each, QEMU 7.2 may go on executing an instruction that the
        # other vCPU has patched, and the guest dies of its static keys (int3). With two in one
        # thread, it delivers a nested guest's interrupt twice, or stalls it, once in 1000 tests.
        # No cx16: QEMU 7.2 corrupts flags after cmpxchg16b.
        options = ("-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1")
        return cls("software emulation", options, "kvm_amd")


class Images:
    """The initramfs of each boot of a run. All share one userland, made once.

    ``argv``, ``environ`` and ``worker`` are the worker's command line, environment variables and
    ``config.workerinput``.
    """

    def __init__(
        self, argv: Sequence[str], environ: Mapping[str, str], worker: Mapping[str, object]
    ) -> None:
        build_all()  # the guest has no compiler
        assembled = [file for file in cache_directory().iterdir() if file.is_file()]
        self._userland = userland(PROJECT, assembled)
        self._setup = {
            "argv": list(argv),
            "worker": dict(worker),
            "cwd": os.getcwd(),
            "environ": {
                **environ,
                "HOME": "/tmp",
                "PATH": os.environ.get("PATH", ""),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(os.path.isdir, sys.path)]),
                "XDG_CACHE_HOME": str(cache_directory().parent),
            },
        }

    def of(self, boot: Boot) -> bytes:
        """Return the initramfs of a boot.

        MODULES/NN-NAME are the modules to load before pytest starts, in order of NN, and
        MODULES/N/NAME are those of the columns whose ``Boot.directory`` is N.
        """
        archive = Cpio()
        archive.add(str(SETUP), stat.S_IFREG | 0o644, json.dumps(self._setup).encode())
        archive.add(str(MODULES), stat.S_IFDIR | 0o755)
        for number, (name, content) in enumerate(boot.modules.items()):
            archive.add(f"{MODULES}/{number:02}-{name}", stat.S_IFREG | 0o644, content)
        sets = {boot.directory(column): column.modules for column in boot.columns}
        for number, modules in sets.items():
            for name, content in modules.items():
                archive.add(f"{MODULES}/{number}/{name}", stat.S_IFREG | 0o644, content)
        return archive.finish() + self._userland


class Guest(Closing):
    """A running QEMU. It dies with this process."""

    def __init__(self, boot: Boot, image: bytes, processor: Processor) -> None:
        self.boot = boot
        self._console = os.memfd_create("console")
        self._errors = os.memfd_create("errors")
        self.channel, theirs = socket.socketpair()
        initramfs = os.memfd_create("initramfs")
        with open(initramfs, "wb") as file, theirs:
            file.write(image)
            file.flush()
            self._process = subprocess.Popen(
                qemu(boot, processor, initramfs, self._console),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                pass_fds=(initramfs, self._console),
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,  # Ctrl-C is for this process to handle
            )
        self._unpacker = Unpacker()

    def fileno(self) -> int:
        """Return the channel's file descriptor, for select."""
        return self.channel.fileno()

    def send(self, *message: Any) -> None:
        """Send a message to the worker. The channel holds more than a run ever sends."""
        with contextlib.suppress(ConnectionError):  # receive() raises EOFError for a dead guest
            self.channel.sendall(pack(*message))

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """Return the messages that the worker has sent. Raises EOFError once QEMU is gone."""
        try:
            received = self.channel.recv(1 << 20)
        except ConnectionError:
            received = b""
        if not received:
            raise EOFError
        return self._unpacker.feed(received)

    def console(self) -> list[str]:
        """Return QEMU's own messages and the lines on the console so far."""
        said = b"".join(
            os.pread(file, os.fstat(file).st_size, 0) for file in (self._errors, self._console)
        )
        return [line.rstrip() for line in said.decode(errors="replace").splitlines()]

    def close(self) -> None:
        if self.channel.fileno() < 0:
            return
        self._process.kill()
        self._process.wait()
        self.channel.close()
        os.close(self._console)
        os.close(self._errors)


def qemu(boot: Boot, processor: Processor, initramfs: int, console: int) -> list[str]:
    """Return QEMU's command line; ``initramfs`` and ``console`` are file descriptors."""
    # fmt: off
    return [
        QEMU,
        "-nodefaults", "-no-user-config",                    # the same machine everywhere
        "-display", "none",
        "-no-reboot",                                        # a dead kernel is a dead QEMU
        *processor.options,
        "-m", str(MEMORY),
        "-kernel", str(boot.kernel.vmlinuz),
        "-initrd", f"/proc/self/fd/{initramfs}",             # in memory: nothing to clean up
        "-append", " ".join((*COMMAND_LINE, boot.command_line)),
        "-serial", f"file:/proc/self/fd/{console}",          # a file keeps what a dead kernel said
        "-device", "virtio-serial-pci",                      # far faster than a serial line
        "-chardev", "stdio,id=worker,signal=off",            # the channel is stdin and stdout
        "-device", "virtserialport,chardev=worker,name=worker",
    ]
    # fmt: on


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


def require_qemu() -> None:
    """Raise KernelError where QEMU is not installed."""
    if not shutil.which(QEMU):
        raise KernelError(
            f"{QEMU} not found: it boots the kernel (apt-get install qemu-system-x86)"
        )


def slots(wanted: int | None) -> int:
    """Return how many guests can run at a time: ``wanted`` or one per core, as memory allows."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(1, min(wanted or len(os.sched_getaffinity(0)), available // MEMORY))
