"""Booting a kernel in QEMU as an execnet gateway: QEMU's stdin and stdout are the worker's.

    python -m helpers.kernels.boot VMLINUZ MODULES CONSOLE -u -c BOOTSTRAP

stands where execnet expects a Python. The process becomes QEMU, so that killing one kills the
other; the guest's /init (init.py) runs BOOTSTRAP in the same Python, at the same paths.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path

from helpers.guest.assemble import cache_directory, probe
from helpers.kernels.image import Cpio, userland
from helpers.kernels.modules import Modules
from helpers.kernels.packages import KernelError

PROJECT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
MODULES = ("virtio_pci", "virtio_console", "kvm_amd")

_PR_SET_PDEATHSIG = 1


def command(vmlinuz: Path, initramfs: Path, console: Path) -> list[str]:
    """The QEMU command line: software emulation of an AMD processor with SVM."""
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-accel", "tcg,thread=multi", "-smp", "2", "-m", "3G"),
        # Without cx16: QEMU 7.2 corrupts flags after cmpxchg16b.
        *("-cpu", "max,-cx16"),
        *("-kernel", str(vmlinuz), "-initrd", str(initramfs)),
        # Destroying a VM waits for RCU.
        *("-append", "console=ttyS0 panic=-1 loglevel=5 rcupdate.rcu_expedited=1"),
        *("-serial", f"file:{console}"),
        *("-chardev", "stdio,id=gateway,signal=off", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=gateway,name=gateway"),
    ]


def initramfs(modules: Modules, bootstrap: str) -> bytes:
    """The archive the kernel boots into; ``bootstrap`` is the line execnet would run."""
    archive = Cpio()
    try:
        closure = modules.closure(MODULES)
    except KeyError as missing:
        raise KernelError(f"no module {missing} below {modules.directory}") from None
    for number, (name, content) in enumerate(closure.items()):
        archive.add(f"/modules/{number:02}-{name}", stat.S_IFREG | 0o644, content)
    environment = {
        "BOOTSTRAP": bootstrap,
        "HOME": "/tmp",
        "PATH": os.environ["PATH"],
        "PWD": os.getcwd(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(cache_directory().parent),
    }
    lines = "".join(f"{name}={value}\n" for name, value in environment.items())
    archive.add("/environment", stat.S_IFREG | 0o644, lines.encode())
    assembled = [file for file in cache_directory().iterdir() if file.is_file()]
    return archive.finish() + userland(PROJECT, assembled)


def main(vmlinuz: str, modules: str, console: str, bootstrap: str) -> None:
    """Become a QEMU that runs ``bootstrap``."""
    probe()  # the guest has no compiler
    with tempfile.NamedTemporaryFile(prefix="kvm-signal-msi-", delete=False) as image:
        image.write(initramfs(Modules(Path(modules)), bootstrap))
    # QEMU opens it by this name; nobody else does.
    descriptor = os.open(image.name, os.O_RDONLY)
    os.unlink(image.name)
    os.set_inheritable(descriptor, True)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    argv = command(Path(vmlinuz), Path(f"/proc/self/fd/{descriptor}"), Path(console))
    os.execvp(argv[0], argv)


def require_qemu() -> None:
    """Raise KernelError where there is no QEMU."""
    if not shutil.which(QEMU):
        raise KernelError(
            f"{QEMU} not found: it boots the kernel (apt-get install qemu-system-x86)"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], bootstrap=sys.argv[-1])
