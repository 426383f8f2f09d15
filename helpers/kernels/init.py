"""The guest's /init: loads the modules in /modules, then becomes the worker of an xdist run.

The kernel runs it, from an initramfs, with the Python it finds there and no site-packages.
"""

import ctypes
import os
import sys

INIT_MODULE, POWER_OFF = 175, 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, where: str) -> None:
    """Mount a file system that has no device."""
    os.makedirs(where, exist_ok=True)
    libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)


def load(path: str) -> None:
    """Load a module; a failure is told on the console."""
    with open(path, "rb") as file:
        content = file.read()
    if libc.syscall(INIT_MODULE, content, ctypes.c_ulong(len(content)), b""):
        print(f"init: {path}: {os.strerror(ctypes.get_errno())}", flush=True)


def gateway() -> int:
    """The port that is the worker's stdin and stdout."""
    ports = "/sys/class/virtio-ports"
    for port in os.listdir(ports):
        with open(f"{ports}/{port}/name") as file:
            if file.read().strip() == "gateway":
                return os.open(f"/dev/{port}", os.O_RDWR)
    raise SystemExit("init: no port named gateway")


def work() -> None:
    """Become the worker."""
    with open("/environment") as file:
        environment = dict(line.split("=", 1) for line in file.read().splitlines())
    port = gateway()
    os.dup2(port, 0)
    os.dup2(port, 1)
    os.setsid()
    os.chdir(environment["PWD"])
    command = [sys.executable, "-u", "-c", environment.pop("BOOTSTRAP")]
    os.execve(sys.executable, command, environment)


for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
    mount(kind, where)
for module in sorted(os.listdir("/modules")):
    load(f"/modules/{module}")
if not os.path.exists("/dev/kvm"):
    raise SystemExit("init: this kernel has no /dev/kvm")
worker = os.fork()
if worker == 0:
    work()
while os.wait()[0] != worker:
    pass
libc.reboot(POWER_OFF)
