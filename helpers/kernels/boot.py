"""A kernel booted in QEMU: one process, with a channel to the worker inside and a console."""

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
VIRTIO = ("virtio_pci", "virtio_console")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Processor:
    """What QEMU runs a guest's processors with, and KVM's module for them."""

    name: str
    options: Sequence[str]
    vendor: str

    @classmethod
    def best(cls) -> Processor:
        """This machine's own, where its KVM lets guests have a KVM of their own; else emulated."""
        for vendor in ("kvm_intel", "kvm_amd"):
            nested = Path("/sys/module", vendor, "parameters/nested")
            with contextlib.suppress(OSError):
                if nested.read_text().strip() in ("Y", "1") and os.access("/dev/kvm", os.W_OK):
                    name = f"nested virtualization, {vendor}"
                    return cls(name, ("-accel", "kvm", "-cpu", "host", "-smp", "2"), vendor)
        # One vCPU. Two in a thread each: QEMU 7.2 may go on executing an instruction that the
        # other has patched, and the guest dies of its static keys (int3). Two in one thread: it
        # delivers a nested guest's interrupt twice, or stalls it, once in a thousand tests.
        # No cx16: QEMU 7.2 corrupts flags after cmpxchg16b.
        options = ("-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1")
        return cls("software emulation", options, "kvm_amd")


class Images:
    """The initramfs of each boot of a run; the userland they have in common is made once."""

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
        """What the kernel unpacks; columns' modules are MODULES/column/name."""
        archive = Cpio()
        archive.add(str(SETUP), stat.S_IFREG | 0o644, json.dumps(self._setup).encode())
        archive.add(str(MODULES), stat.S_IFDIR | 0o755)
        for number, (name, content) in enumerate(boot.modules.items()):
            archive.add(f"{MODULES}/{number:02}-{name}", stat.S_IFREG | 0o644, content)
        for number, column in enumerate(boot.columns):
            for name, content, _ in column.modules:
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
                self._command(processor, initramfs),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                pass_fds=(initramfs, self._console),
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        self._unpacker = Unpacker()

    def _command(self, processor: Processor, initramfs: int) -> list[str]:
        # Destroying a VM waits for RCU. Notices tell a slow boot from one that hangs.
        command_line = "console=ttyS0 panic=-1 loglevel=6 rcupdate.rcu_expedited=1 "
        return [
            *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *(*processor.options, "-m", str(MEMORY)),
            *("-kernel", str(self.boot.kernel.vmlinuz), "-initrd", f"/proc/self/fd/{initramfs}"),
            *("-append", command_line + self.boot.command_line),
            *("-serial", f"file:/proc/self/fd/{self._console}"),
            *("-chardev", "stdio,id=worker,signal=off", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=worker,name=worker"),
        ]

    def fileno(self) -> int:
        """The channel's, for select."""
        return self.channel.fileno()

    def send(self, *message: Any) -> None:
        """Tell the worker something; the channel holds far more than there is ever to say."""
        with contextlib.suppress(ConnectionError):  # whoever reads next sees that it died
            self.channel.sendall(pack(*message))

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """What the worker has said. Raises EOFError once QEMU is gone."""
        try:
            received = self.channel.recv(1 << 20)
        except ConnectionError:
            received = b""
        if not received:
            raise EOFError
        return self._unpacker.feed(received)

    def console(self) -> list[str]:
        """The lines on the console so far, and what QEMU itself complained of."""
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


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def require_qemu() -> None:
    """Raise KernelError where there is no QEMU."""
    if not shutil.which(QEMU):
        raise KernelError(
            f"{QEMU} not found: it boots the kernel (apt-get install qemu-system-x86)"
        )
