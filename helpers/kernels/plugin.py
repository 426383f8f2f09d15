"""``--kernel``: the run's tests in a kernel booted in QEMU, reported as if they had run here.

The booted kernel is one of pytest-xdist's workers: results stream as they come, the test that was
running when a kernel died is named, and the rest run on a fresh boot.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from helpers.kernels.boot import require_qemu
from helpers.kernels.packages import KernelError
from helpers.kernels.spec import BootFiles, resolve

_CONSOLE_LINES = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kernel."""
    parser.getgroup("kernels").addoption(
        "--kernel",
        metavar="SPEC",
        help="judge this kernel, booted in QEMU: a version such as 6.12 (Debian's newest package "
        "of it, or one by its full name), a bzImage, or a kernel build tree",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Make the kernel the run's only worker."""
    spec = config.getoption("--kernel")
    if not spec or hasattr(config, "workerinput") or config.option.collectonly:
        return
    try:
        require_qemu()
        kernel = resolve(spec)
    except KernelError as reason:
        raise pytest.UsageError(str(reason)) from None
    console = Path(tempfile.mkdtemp(prefix="kvm-signal-msi-"), "console")
    boot = [sys.executable, "-m", "helpers.kernels.boot"]
    boot += [str(kernel.vmlinuz), str(kernel.modules), str(console)]
    config.option.dist = "each"
    config.option.tx = [f"popen//python={shlex.join(boot)}"]
    config.option.numprocesses = None
    config.pluginmanager.register(BootedKernel(kernel, console), "kvm-booted-kernel")


class BootedKernel:
    """The controller's side of a run in a booted kernel."""

    def __init__(self, kernel: BootFiles, console: Path) -> None:
        self.kernel = kernel
        self.console = console

    def pytest_report_header(self) -> str:
        return f"kernel under test: Linux {self.kernel.release}, booting in QEMU"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionstart(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except (EOFError, OSError) as error:
            last = self.last_words(1) or "it said nothing"
            raise pytest.UsageError(
                f"Linux {self.kernel.release} did not come up in QEMU: {last}"
            ) from error

    def pytest_handlecrashitem(self, report: pytest.TestReport) -> None:
        report.longrepr = f"{report.longrepr}\nthe kernel's last words:\n{self.last_words()}"

    def last_words(self, lines: int = _CONSOLE_LINES) -> str:
        """The console's last lines."""
        try:
            said = self.console.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(said[-lines:])

    def pytest_unconfigure(self) -> None:
        self.console.unlink(missing_ok=True)
        self.console.parent.rmdir()
