# SPDX-License-Identifier: GPL-2.0-only
"""pytest in a booted kernel: run the tests that the host sends, and send it their reports.

Loaded by ``-p helpers.kernels.worker``. The command line is the host's, so that host and guest
collect the same tests. The host decides which of them run, and in which order. A test is known by
its number among those that the guest has collected. Messages:

    host:  "column", n, modules, settings, part, options
                                                 load the modules (names) of directory n, with the
                                                 settings of the column and of the part
           "run", [test, ...]                    run these tests, after those sent before
           "end"                                 no more tests of this part follow
           "program", executable                 the C program of a failed test; b"": there is none
    guest: "ready", [node id, ...]               these are the collected tests
           "column", kernel                      the column is loaded: a Kernel as a dict
           "begin", test                         a test begins
           "reproduce", test, [report, ...]      asks for the C program of a failed test
           "ended", test, [report, ...]          a test has ended: reports as pytest serializes them
           "done"                                the tests of the part have run and cleaned up,
                                                 all of them or until --maxfail-each failed
           "unlike", reason                      the modules did not take the settings
           "failed", reason                      the column cannot be tested
"""

from __future__ import annotations

import gc
import json
import os
import sys
import termios
import tty
from collections import deque
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import create_terminal_writer

from helpers.kernels import insmod
from helpers.kernels.frames import Unpacker, pack
from helpers.kernels.init import MODULES, SETUP
from helpers.kernels.parameters import given_to, reads_as, settings_of
from helpers.verdicts.kernel import Kernel, Untestable, require_testable, running_kernel
from helpers.verdicts.session import VERDICTS

_PORTS = Path("/sys/class/virtio-ports")
_ALLOCATIONS = 100_000
"""Allocations between collections of garbage. The guest has more memory than time."""


class Unlike(Exception):
    """The loaded modules do not have the parameters that --kvm-param asks for."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Look like a worker of pytest-xdist to plugins, which then write no report and no cache."""
    given = _setup()["worker"]
    vars(early_config).update(workerinput=given, workeroutput={})
    early_config.pluginmanager.set_blocked("terminalreporter")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Ignore -n, and register the worker."""
    config.option.numprocesses, config.option.dist, config.option.tx = None, "no", []
    # pytest-timeout shows the stacks of threads before it ends a test.
    console = create_terminal_writer(config, sys.__stderr__)
    config.get_terminal_writer = lambda: console  # type: ignore[method-assign]
    config.pluginmanager.register(Worker(config), "kvm-kernels-worker")


class Worker:
    """The plugin that runs a session's tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.port = _open_channel()
        self.files = set(_setup()["files"])
        self.unpacker = Unpacker()
        self.unsent = b""
        self.received: deque[tuple[Any, ...]] = deque()
        self.loaded: list[str] = []
        self.column: tuple[int, dict[str, str]] | None = None
        self.part = self.problem = ""
        self.reports: list[dict[str, Any]] = []

    # --- messages ---------------------------------------------------------------------------------

    def send(self, *message: Any) -> None:
        self.unsent += pack(*message)
        self._flush()

    def _flush(self) -> None:
        content, self.unsent = memoryview(self.unsent), b""
        while content:
            content = content[os.write(self.port, content) :]
        if os.isatty(self.port):
            termios.tcdrain(self.port)  # a kernel that dies now takes a serial line's buffer along

    def receive(self) -> tuple[Any, ...]:
        """Return the next message of the host; wait for it."""
        self._flush()
        while not self.received:
            self.received.extend(self.unpacker.feed(os.read(self.port, 1 << 16)))
        return self.received.popleft()

    # --- the session ------------------------------------------------------------------------------

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out files whose tests run on another boot: collecting takes time."""
        is_left_out = self.files and collection_path.is_file()
        return True if is_left_out and str(collection_path) not in self.files else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """Undo what plugins select and order: the host has done so already."""
        collected = list(items)
        yield
        items[:] = collected

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run one part after the other, until the host kills the guest or one fails."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_ALLOCATIONS)
        self.send("ready", [item.nodeid for item in session.items])
        while True:
            message = self.receive()
            while message[0] != "column":  # sent before the host knew that this column was left
                message = self.receive()
            try:
                self.send("column", asdict(self.load(*message[1:])))
            except Unlike as reason:
                self.send("unlike", str(reason))
                continue
            except Untestable as reason:
                self.send("failed", str(reason))
                return True
            self.run_column(session.items)
            self.send("done")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.send("failed", f"pytest in the guest failed:\n{excrepr}")

    # --- modules ----------------------------------------------------------------------------------

    def load(
        self,
        directory: int,
        modules: list[str],
        settings: dict[str, str],
        part: str,
        options: list[str],
    ) -> Kernel:
        """Replace the KVM of the last part by this part's. Raises Unlike and Untestable.

        A KVM that cannot be unloaded stays for the other parts of its column: their tests are
        skipped with the reason.
        """
        verdicts = self.config.stash[VERDICTS]
        verdicts.kernel_options, verdicts.reloaded_with = options, part
        verdicts.why_unmet = self.why_unmet
        running_kernel.cache_clear()
        gc.collect()
        column = directory, settings
        self.part, self.problem = part, self.unload()
        if self.problem and not (self.loaded == modules and self.column == column):
            raise Untestable(f"the last column's {self.problem}")
        self.column = column
        if not self.problem:
            for name in modules:
                self.insert(Path(MODULES, str(directory), name), settings | settings_of(part))
        require_testable()
        verdicts.log.complaints()  # modules without Debian's signature taint the kernel
        kernel = running_kernel()
        for name, value in settings.items():
            found = kernel.parameters.get(name)
            if found is None or not reads_as(found, value):
                raise Unlike(f"{name}={value} reads back {found or 'nothing'}")
        return kernel

    def unload(self) -> str:
        """Unload what is loaded. Return why a module cannot be unloaded; empty if all were."""
        while self.loaded:
            try:
                insmod.unload(self.loaded[-1])
            except OSError as error:
                return f"{self.loaded[-1]} cannot be unloaded: {error.strerror}"
            self.loaded.pop()
        return ""

    def insert(self, file: Path, settings: dict[str, str]) -> None:
        """Load a module with those of the settings that are its own. Raises Untestable."""
        name, module = file.name, file.read_bytes()
        if Path("/sys/module", name).exists():
            raise Untestable(f"another {name} is loaded already")
        given = given_to(name, settings)
        try:
            insmod.load(module, given)
        except OSError as error:
            what = f"{name} with {given}" if given else name
            raise Untestable(f"{what} cannot be loaded: {error.strerror}") from None
        self.loaded.append(name)
        if not insmod.is_loaded_from(name, module):
            raise Untestable(f"the loaded {name} is not the one that was asked for")

    def why_unmet(self, name: str) -> str:
        """Return why KVM was not reloaded for a test that needs another value of a parameter."""
        if self.problem or self.part:
            return self.problem or "a reload did not change it"
        if name.partition(".")[0] in self.loaded:
            return "--kvm-param sets it"
        return "KVM is built into the kernel; set it by --kvm-param"

    # --- tests ------------------------------------------------------------------------------------

    def run_column(self, items: list[pytest.Item]) -> None:
        """Run the tests of a part until the host says that no more follow.

        A test runs once the next one is known, which decides what fixtures are torn down.
        """
        queue: deque[int | None] = deque()  # None follows the last test
        maxfail = self.config.getoption("maxfail_each")
        failures = 0
        while True:
            while len(queue) < 2 and None not in queue:
                kind, *tests = self.receive()
                queue.extend([None] if kind == "end" else tests[0])
            test = queue.popleft()
            if test is None:
                return
            item, following = items[test], queue[0]
            self.reports = []
            self.send("begin", test)
            self.config.hook.pytest_runtest_protocol(
                item=item, nextitem=None if following is None else items[following]
            )
            if self.config.option.reproducers:
                self.reproduce(test)
            # Sent together with the next message: each write costs a VM exit.
            self.unsent += pack("ended", test, self.reports)
            # An item runs once in each column.
            item.user_properties.clear()
            item._report_sections.clear()
            failures += sum(report["outcome"] == "failed" for report in self.reports)
            if 0 < maxfail <= failures:
                item.session._setupstate.teardown_exact(None)
                _forget_failure()
                return

    def reproduce(self, test: int) -> None:
        """Run the C program of a test that has failed, and add the outcome to its report."""
        for report in self.reports:
            if report["when"] != "call" or report["outcome"] != "failed":
                continue
            self.send("reproduce", test, self.reports)
            earlier = []
            while (message := self.receive())[0] != "program":
                earlier.append(message)
            self.received.extendleft(reversed(earlier))
            if program := message[1]:
                said = self.config.hook.pytest_kvm_run_program(program=program)
                self.config.stash[VERDICTS].log.complaints()  # the next test is not to blame
                report["sections"].append(("reproducer on this kernel", said))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.append(data)


def _setup() -> dict[str, Any]:
    """Return what the host gives to the guest; see boot.Images."""
    setup: dict[str, Any] = json.loads(SETUP.read_text())
    return setup


def _forget_failure() -> None:
    """Drop the traceback that pytest keeps until the next test: its frames may hold open VMs."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)


def _open_channel() -> int:
    """Return QEMU's virtio port, or Bochs's serial line."""
    for port in sorted(_PORTS.glob("*")):
        if (port / "name").read_text().strip() == "worker":
            return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
    line = os.open("/dev/ttyS1", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    tty.setraw(line)
    return line
