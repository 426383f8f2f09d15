# SPDX-License-Identifier: GPL-2.0-only
"""pytest in a booted kernel: run the tests that the host sends, and send it their reports.

Loaded by ``-p helpers.kernels.worker``. The command line is the host's, so that host and guest
collect the same tests. The host decides which of them run, and in which order. Messages:

    host:  "column", n, parameters, options      load the modules of column n: {name: parameters}
           "run", [node id, ...]                 run these tests, after those sent before
           "end"                                 no more tests of this column follow
    guest: "ready", [node id, ...]               these are the collected tests
           "column", kernel                      the column is loaded: a Kernel as a dict
           "begin", node id                      a test begins
           "ended", node id, [report, ...]       a test has ended: reports as pytest serializes them
           "done"                                all tests of the column have run and cleaned up
           "failed", reason                      the column cannot be tested
"""

from __future__ import annotations

import gc
import json
import os
from collections import deque
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.kernels import insmod
from helpers.kernels.frames import Unpacker, pack
from helpers.kernels.init import MODULES, SETUP
from helpers.verdicts.kernel import Kernel, Untestable, require_testable, running_kernel
from helpers.verdicts.session import VERDICTS

_PORTS = Path("/sys/class/virtio-ports")
_ALLOCATIONS = 100_000
"""Allocations between collections of garbage. The guest has more memory than time."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Look like a worker of pytest-xdist to plugins, which then write no report and no cache."""
    given = json.loads(SETUP.read_text())["worker"]
    vars(early_config).update(workerinput=given, workeroutput={})
    early_config.pluginmanager.set_blocked("terminalreporter")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Ignore -n, and register the worker."""
    config.option.numprocesses, config.option.dist, config.option.tx = None, "no", []
    config.pluginmanager.register(Worker(config), "kvm-kernels-worker")


class Worker:
    """The plugin that runs a session's tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.port = _open_port()
        self.unpacker = Unpacker()
        self.unsent = b""
        self.received: deque[tuple[Any, ...]] = deque()
        self.loaded: list[str] = []
        self.reports: list[dict[str, Any]] = []

    # --- messages ---------------------------------------------------------------------------------

    def send(self, *message: Any) -> None:
        self.unsent += pack(*message)
        self._flush()

    def _flush(self) -> None:
        content, self.unsent = memoryview(self.unsent), b""
        while content:
            content = content[os.write(self.port, content) :]

    def receive(self) -> tuple[Any, ...]:
        """Return the next message of the host; wait for it."""
        self._flush()
        while not self.received:
            self.received.extend(self.unpacker.feed(os.read(self.port, 1 << 16)))
        return self.received.popleft()

    # --- the session ------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """Undo what plugins select and order: the host has done so already."""
        collected = list(items)
        yield
        items[:] = collected

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run one column after the other, until the host kills the guest or one fails."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_ALLOCATIONS)
        items = {item.nodeid: item for item in session.items}
        self.send("ready", list(items))
        while True:
            message = self.receive()
            assert message[0] == "column", message
            try:
                self.send("column", asdict(self.load(*message[1:])))
            except Untestable as reason:
                self.send("failed", str(reason))
                return True
            self.run_column(items)
            self.send("done")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.send("failed", f"pytest in the guest failed:\n{excrepr}")

    # --- modules ----------------------------------------------------------------------------------

    def load(self, column: int, parameters: dict[str, str], options: list[str]) -> Kernel:
        """Replace the KVM of the last column by this column's. Raises Untestable."""
        running_kernel.cache_clear()
        gc.collect()
        while self.loaded:
            name = self.loaded.pop()
            try:
                insmod.unload(name)
            except OSError as error:
                reason = f"the last column's {name} cannot be unloaded: {error}"
                raise Untestable(reason) from None
        for name, settings in parameters.items():
            module = Path(MODULES, str(column), name).read_bytes()
            if Path("/sys/module", name).exists():
                raise Untestable(f"another {name} is loaded already")
            try:
                insmod.load(module, settings)
            except OSError as error:
                raise Untestable(f"{name} cannot be loaded: {error.strerror}") from None
            self.loaded.append(name)
            if not insmod.is_loaded_from(name, module):
                raise Untestable(f"the loaded {name} is not the one that was asked for")
        require_testable()
        verdicts = self.config.stash[VERDICTS]
        verdicts.kernel_options = options
        verdicts.log.complaints()  # modules without Debian's signature taint the kernel
        return running_kernel()

    # --- tests ------------------------------------------------------------------------------------

    def run_column(self, items: dict[str, pytest.Item]) -> None:
        """Run tests until the host says that no more follow.

        A test runs once the next one is known, which decides what fixtures are torn down.
        """
        queue: deque[pytest.Item | None] = deque()  # None follows the last test
        while True:
            while len(queue) < 2 and None not in queue:
                kind, *tests = self.receive()
                queue.extend([None] if kind == "end" else (items[test] for test in tests[0]))
            item = queue.popleft()
            if item is None:
                return
            self.reports = []
            self.send("begin", item.nodeid)
            self.config.hook.pytest_runtest_protocol(item=item, nextitem=queue[0])
            # Sent together with the next message: each write costs a VM exit.
            self.unsent += pack("ended", item.nodeid, self.reports)
            # An item runs once per column.
            item.user_properties.clear()
            item._report_sections.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.append(data)


def _open_port() -> int:
    for port in sorted(_PORTS.iterdir()):
        if (port / "name").read_text().strip() == "worker":
            return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
    raise OSError("no virtio port named worker")
