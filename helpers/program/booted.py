# SPDX-License-Identifier: GPL-2.0-only
"""--program: a booted kernel whose only process is the C program of the suite.

helpers/kernels schedules the tests, makes the columns and the reports, and sends the messages of
helpers/kernels/worker.py. :class:`ProgramGuest` translates them for helpers/program/guest.c.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.cache import cached
from helpers.guest import Mismatch
from helpers.guest.assemble import AssemblyError, built
from helpers.kernels.boot import Guest, add_modules
from helpers.kernels.columns import Boot
from helpers.kernels.frames import Garbage
from helpers.kernels.image import Cpio
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import given_to, settings_of
from helpers.verdicts.kernel import CAPABILITIES, Kernel
from helpers.verdicts.session import VERDICTS

_FS = "\x1f"
_PASSED, _FAILED, _SKIPPED, _XFAILED = range(2, 6)
"""enum verdict of judge.c."""
_OPTIONS = ["-O1", "-static", "-Wall"]
_ERROR = re.compile(r"\berror: ")
_PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Program:
    """The compiled program, and the node ids of its tests in order."""

    binary: bytes
    tests: Sequence[str]

    @classmethod
    def of(cls, source: str) -> Program:
        """Compile the C file ``source``; "" stands for the whole suite. Raises KernelError."""
        path = Path(source) if source else _of_suite()
        if not path.is_file():
            raise KernelError(f"--program={path}: no such file")
        try:
            compiled = built(path, _OPTIONS, "program")
        except AssemblyError as error:
            said = str(error).splitlines()
            wrong = next(filter(_ERROR.search, said), said[0])
            raise KernelError(f"--program={path}: it does not compile: {wrong}") from None
        listed = subprocess.run([compiled, "-l"], capture_output=True, text=True, check=False)
        names = [line for line in listed.stdout.splitlines() if not line.startswith("#")]
        if listed.returncode or not names:
            raise KernelError(f"--program={path}: not made by python -m helpers.program")
        return cls(compiled.read_bytes(), [f"suites/{name}" for name in names])

    def image(self, boot: Boot) -> bytes:
        """Return the initramfs of a boot."""
        archive = Cpio()
        archive.add("/dev/console", stat.S_IFCHR | 0o600, rdev=os.makedev(5, 1))
        archive.add("/init", stat.S_IFREG | 0o755, self.binary)
        add_modules(archive, boot)
        return archive.finish()


def _of_suite() -> Path:
    """Return the program of the whole suite, recorded on the running kernel if it is not cached."""
    key = os.uname().release.encode()
    for directory in ("suites", "helpers"):
        for file in sorted((_PROJECT / directory).rglob("*")):
            if file.suffix in (".py", ".toml", ".c", ".S"):
                key += file.read_bytes()
    return cached("suite", key, "c", _record)


def _record(path: Path) -> None:
    """Record the suite as C, whatever its tests do. Raises KernelError."""
    print("recording the suite on the running kernel, once", file=sys.stderr)
    command = [sys.executable, "-m", "helpers.program", "-o", str(path)]
    done = subprocess.run(command, cwd=_PROJECT, capture_output=True, text=True, check=False)
    if not path.exists():
        said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise KernelError(f"--program: the suite could not be recorded: {said[-1]}")


class ProgramGuest(Guest):
    """A guest that runs the program. ``report`` makes the reports of a test, serialized.

    A column is left after ``maxfail`` failures, as by helpers/kernels/worker.py; 0 means never.
    """

    def __init__(
        self,
        boot: Boot,
        program: Program,
        report: Callable[[str, Kernel, str, Mismatch | None, str], list[dict[str, Any]]],
        maxfail: int = 0,
    ) -> None:
        super().__init__(boot, program.image(boot))
        self._maxfail = maxfail
        self._failures = 0
        self._program = program
        self._report = report
        self._loaded: list[str] = []
        self._lines = b""
        self._errors_said: list[str] = []
        self._capabilities: dict[str, int] = {}
        self._parameters: dict[str, str] = {}
        self._kernel: Kernel | None = None

    def send(self, *message: Any) -> None:
        match message:
            case "column", directory, modules, settings, part, _:
                self._load(directory, modules, settings | settings_of(part))
            case "run", tests:
                self._say(*(f"run {test}" for test in tests))
            case ("end",):
                self._say("end")

    def _load(self, directory: int, modules: Sequence[str], settings: dict[str, str]) -> None:
        self._errors_said.clear()
        self._parameters.clear()
        lines = ["stop", *(f"unload {name}" for name in reversed(self._loaded))]
        lines += [f"load {directory} {name} {given_to(name, settings)}" for name in modules]
        numbers = " ".join(map(str, CAPABILITIES.values()))
        self._say(*lines, f"facts {numbers}")
        self._loaded = list(modules)

    def _say(self, *lines: str) -> None:
        self.write("".join(f"{line}\n" for line in lines).encode())

    def receive(self) -> Iterator[tuple[Any, ...]]:
        *lines, self._lines = (self._lines + self.read()).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            try:
                yield from self._within_maxfail(self._translated(word, rest.split(_FS)))
            except (AssertionError, LookupError, ValueError):
                raise Garbage(f"no line of the program: {line[:80]!r}") from None

    def _within_maxfail(self, messages: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Pass messages on. Leave out those of tests that were sent before the column was left."""
        for message in messages:
            is_left = 0 < self._maxfail <= self._failures
            if message[0] == "column":
                self._failures = 0
            elif is_left and message[0] in ("begin", "ended", "done"):
                continue
            yield message
            if message[0] == "ended":
                self._failures += sum(report["outcome"] == "failed" for report in message[2])
                if 0 < self._maxfail <= self._failures:
                    yield ("done",)

    def _translated(self, word: str, fields: list[str]) -> Iterator[tuple[Any, ...]]:
        match word, fields:
            case "ready", _:
                yield "ready", self._program.tests
            case "done", _:
                yield ("done",)
            case "begin", [test]:
                yield "begin", int(test)
            case "error", [reason]:
                self._errors_said.append(reason)
                if reason.startswith("/dev/kvm"):
                    yield "failed", self._errors_said[0]
            case "parameter", [name, value]:
                self._parameters[name] = value
            case "capability", [number, value]:
                self._capabilities[number] = int(value)
            case "facts", [release, vendor, cpu]:
                yield self._column(release, vendor, cpu)
            case "ended", [test, verdict, text, *mismatch]:
                assert self._kernel
                nodeid = self._program.tests[int(test)]
                error = Mismatch(*mismatch) if mismatch[0] else None
                outcome = {_PASSED: "passed", _SKIPPED: "skipped"}.get(int(verdict), "failed")
                yield "ended", int(test), self._report(nodeid, self._kernel, outcome, error, text)

    def _column(self, release: str, vendor: str, cpu: str) -> tuple[Any, ...]:
        if self._errors_said:
            return "failed", self._errors_said[0]
        found = re.match(r"(\d+)\.(\d+)", release)
        self._kernel = Kernel(
            release=release,
            version=(int(found[1]), int(found[2])) if found else (0, 0),
            vendor=vendor or "unknown",
            cpu=cpu,
            capabilities={name: self._capabilities[str(n)] for name, n in CAPABILITIES.items()},
            parameters=dict(self._parameters),
        )
        return "column", asdict(self._kernel)


def reporter(
    session: pytest.Session,
) -> Callable[[str, Kernel, str, Mismatch | None, str], list[dict[str, Any]]]:
    """Return a function that makes the reports of a test, as pytest serializes them."""
    config = session.config
    items = {item.nodeid: item for item in session.items}

    def report(
        nodeid: str, kernel: Kernel, outcome: str, error: Mismatch | None, text: str
    ) -> list[dict[str, Any]]:
        config.stash[VERDICTS].kernel = kernel
        item = items[nodeid]
        made = []
        for when in ("setup", "call", "teardown"):
            fails = when == "call" and outcome != "passed"
            cause = _error(outcome, error, text) if fails else None
            call = pytest.CallInfo.from_call(partial(_raise, cause), when=when)
            one = config.hook.pytest_runtest_makereport(item=item, call=call)
            if one.failed:
                one.longrepr = str(cause)
            data = config.hook.pytest_report_to_serializable(config=config, report=one)
            made.append(data)
        return made

    return report


def _raise(error: BaseException | None) -> None:
    if error:
        raise error


def _error(outcome: str, error: Mismatch | None, text: str) -> BaseException:
    if outcome == "skipped":
        return pytest.skip.Exception(text)
    return error or AssertionError(text)
