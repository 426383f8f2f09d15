"""pytest inside a booted kernel: runs the tests it is told to, and reports them to the host.

``-p helpers.kernels.worker``. The command line is the host's own, so that the same tests are
collected; which of them run, and in which order, the host says. What is said:

    host:  ("column", n, {module: parameters}, options)
                             load that column's modules
           ("run", [node id, ...])
                             run these tests, after those before
           ("end",)              no more tests of this column
    guest: ("ready", [node id, ...])
           ("column", n, kernel) loaded; what the kernel is, as a dict
           ("begin", node id)    a test begins
           ("ended", node id, [report, ...])
           ("done",)             all tests of the column have run and cleaned up
           ("failed", reason)    nothing can be judged
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
_ALLOCATIONS = 100_000  # between collections of garbage: there is memory enough, and no time


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Make this what plugins know as a worker of xdist: it writes no report and no cache."""
    given = json.loads(SETUP.read_text())["worker"]
    vars(early_config).update(workerinput=given, workeroutput={})
    early_config.pluginmanager.set_blocked("terminalreporter")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Take back what is for the host to do."""
    config.option.numprocesses, config.option.dist, config.option.tx = None, "no", []
    config.pluginmanager.register(Worker(config), "kvm-kernels-worker")


class Failed(Exception):
    """Nothing can be judged; the message is one line."""


class Worker:
    """One session's worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.port = _open_port()
        self.unpacker = Unpacker()
        self.unsent = b""
        self.messages: deque[tuple[Any, ...]] = deque()
        self.loaded: list[str] = []
        self.reports: list[dict[str, Any]] = []

    def say(self, *message: Any) -> None:
        """Send with the next message, or before waiting for one: each time costs a VM exit."""
        self.unsent += pack(*message)

    def send(self, *message: Any) -> None:
        self.say(*message)
        self._flush()

    def _flush(self) -> None:
        content, self.unsent = memoryview(self.unsent), b""
        while content:
            content = content[os.write(self.port, content) :]

    def receive(self) -> tuple[Any, ...]:
        self._flush()
        while not self.messages:
            self.messages.extend(self.unpacker.feed(os.read(self.port, 1 << 16)))
        return self.messages.popleft()

    # --- the session ------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        collected = list(items)
        yield
        items[:] = collected  # selecting and ordering are the host's

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.collect()
        gc.freeze()
        gc.set_threshold(_ALLOCATIONS)
        items = {item.nodeid: item for item in session.items}
        self.send("ready", list(items))
        while True:
            message = self.receive()
            assert message[0] == "column", message
            try:
                self.send("column", message[1], asdict(self.load(*message[1:])))
            except Failed as reason:
                self.send("failed", str(reason))
                return True
            self.run_column(items)
            self.send("done")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.send("failed", f"pytest in the guest failed:\n{excrepr}")

    # --- modules ----------------------------------------------------------------------------------

    def load(self, column: int, parameters: dict[str, str], options: list[str]) -> Kernel:
        """Replace the loaded KVM by a column's. Raises Failed."""
        running_kernel.cache_clear()
        gc.collect()
        for name in reversed(self.loaded):
            try:
                insmod.unload(name)
            except OSError as error:
                raise Failed(f"the module {name} before it cannot be unloaded: {error}") from None
        self.loaded = []
        for name, settings in parameters.items():
            module = Path(MODULES, str(column), name).read_bytes()
            if insmod.loaded(name):
                raise Failed(f"another {name} is loaded already")
            try:
                insmod.load(module, settings)
            except OSError as error:
                raise Failed(f"{name} cannot be loaded: {error.strerror}") from None
            self.loaded.append(name)
            if not insmod.is_loaded_from(name, module):
                raise Failed(f"the loaded {name} is not the one that was asked for")
        try:
            require_testable()
        except Untestable as reason:
            raise Failed(str(reason)) from None
        verdicts = self.config.stash[VERDICTS]
        verdicts.kernel_options = options
        verdicts.log.complaints()  # modules of one's own taint the kernel
        return running_kernel()

    # --- tests ------------------------------------------------------------------------------------

    def run_column(self, items: dict[str, pytest.Item]) -> None:
        """Run tests until the host says that there are no more."""
        queue: deque[str] = deque()
        is_complete = False
        while queue or not is_complete:
            while len(queue) < 2 and not is_complete:  # the next test decides what is torn down
                kind, *arguments = self.receive()
                if kind == "end":
                    is_complete = True
                else:
                    queue.extend(arguments[0])
            if queue:
                item = items[queue.popleft()]
                self.run(item, items[queue[0]] if queue else None)

    def run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        self.reports = []
        self.send("begin", item.nodeid)
        self.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        self.say("ended", item.nodeid, self.reports)
        item.user_properties.clear()  # an item runs once for every column
        item._report_sections.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.reports.append(data)


def _open_port() -> int:
    for port in sorted(_PORTS.iterdir()):
        if (port / "name").read_text().strip() == "worker":
            return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
    raise OSError("no virtio port named worker")
