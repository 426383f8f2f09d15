# SPDX-License-Identifier: GPL-2.0-only
"""``--tests`` runs the tests of a list, in its order; ``--list`` prints such a list."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.ci.outputs import Output, to_stderr

_COMMENT = re.compile(r"(?:^|\s)#.*")
_GIVEN = "kvm-tests"
"""The key of the list in ``workerinput``: a worker has neither the file nor standard input."""
_SHOWN = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --tests and --list."""
    group = parser.getgroup("kernel CI")
    group.addoption(
        "--tests",
        metavar="FILE",
        help="run the tests of this list alone, in its order: an id a line, as --list prints them; "
        "an id without parameters stands for all of them; # begins a comment; - is standard input",
    )
    group.addoption(
        "--list",
        action="store_true",
        help="print the ids of the selected tests, one a line, for --tests, and run no test",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    """Read the list, and open standard output for --list."""
    option = config.option
    given = getattr(config, "workerinput", {})
    if option.tests and not _is_booted(config):
        tests = given[_GIVEN] if given else read(option.tests, config)
        config.pluginmanager.register(Selection(option.tests, tests), "kvm-tests")
    if not option.list or given:
        return (yield)
    option.collectonly = True
    with Output("--list", "-") as output, to_stderr("-"):
        config.pluginmanager.register(Listing(output), "kvm-list")
        return (yield)


def _is_booted(config: pytest.Config) -> bool:
    """Return whether this is the pytest of a booted kernel, which runs what the host selects."""
    return config.pluginmanager.hasplugin("helpers.kernels.worker")


def read(path: str, config: pytest.Config) -> list[str]:
    """Return the ids of a list. Raises UsageError."""
    try:
        text = _stdin(config) if path == "-" else Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise pytest.UsageError(f"--tests={path} cannot be read: {reason}") from None
    lines = (_COMMENT.sub("", line).strip() for line in text.splitlines())
    ids = list(dict.fromkeys(line for line in lines if line))
    if not ids:
        raise pytest.UsageError(f"--tests={path} names no test")
    return ids


def _stdin(config: pytest.Config) -> str:
    """Read standard input, in whose place pytest's capturing puts an empty one."""
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture(in_=True)
    try:
        return sys.stdin.read()
    finally:
        capture.resume_global_capture()
        capture.suspend_global_capture()


class Selection:
    """The plugin that selects and orders the tests of a list."""

    def __init__(self, path: str, tests: Sequence[str]) -> None:
        self.path = path
        self.tests = list(tests)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_GIVEN] = self.tests

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Select before other plugins, such as the one of --random-order, change the order."""
        places = {test: place for place, test in enumerate(self.tests)}
        selected: list[tuple[int, pytest.Item]] = []
        found: set[str] = set()
        for item in items:
            names = [name for name in _names(item.nodeid) if name in places]
            if names:
                found.update(names)
                selected.append((min(places[name] for name in names), item))
        if unknown := [test for test in self.tests if test not in found]:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise pytest.UsageError(
                f"--tests={self.path}: no such test among those collected: "
                f"{', '.join(unknown[:_SHOWN])}{more}; --list prints them"
            )
        kept = {item for _, item in selected}
        if others := [item for item in items if item not in kept]:
            config.hook.pytest_deselected(items=others)
        items[:] = [item for _, item in sorted(selected, key=lambda each: each[0])]


def _names(nodeid: str) -> list[str]:
    """Return the ids that stand for a test: its own, its function's, its class's, its file's."""
    function = nodeid.partition("[")[0]
    parts = function.split("::")
    return [nodeid, *("::".join(parts[:size]) for size in range(len(parts), 0, -1))]


class Listing:
    """The plugin that prints the ids."""

    def __init__(self, output: Output) -> None:
        self.output = output

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None]:
        """Print the list in place of pytest's tree."""
        self.output.write("".join(f"{item.nodeid}\n" for item in session.items))
        session.config.option.collectonly = False
        yield
        session.config.option.collectonly = True
