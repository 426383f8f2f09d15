# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--kcidb``: writes a report for KCIDB when the run ends."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import pytest

from helpers.ci.ended import Ended
from helpers.ci.kcidb import Given, Run, Source
from helpers.ci.logs_plugin import LOGS
from helpers.ci.watch import Watch
from helpers.report.results import replace_file
from helpers.verdicts.session import VERDICTS
from helpers.verdicts.tally import Tally

_ORIGIN = "[a-z0-9_]+"
_ORIGIN_HERE = "kvm_signal_msi"
_OUTPUTS = ("htmlpath", "xmlpath", "ktap", "results")
"""The options of files that a run writes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kcidb and the options for its ids."""
    group = parser.getgroup("kernel CI")
    group.addoption(
        "--kcidb",
        metavar="FILE",
        help="write a report for KCIDB, schema 5.3, to this file when the run ends",
    )
    group.addoption(
        "--kcidb-origin",
        metavar="NAME",
        default=_ORIGIN_HERE,
        help=f"the CI system that submits the report; default: {_ORIGIN_HERE}",
    )
    group.addoption(
        "--kcidb-checkout",
        metavar="ID",
        default="",
        help="the id of the tested checkout in KCIDB; default: made from git in --kernel=TREE, or "
        "from the kernel's release",
    )
    group.addoption(
        "--kcidb-build",
        metavar="ID",
        default="",
        help="the id of the tested build in KCIDB; default: made from the kernel's release",
    )
    group.addoption(
        "--kcidb-url",
        metavar="URL",
        default="",
        help="where this directory's files will be found; default: file:///",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    """Check the options, and write the report after all else."""
    option = config.option
    if not option.kcidb or option.collectonly or hasattr(config, "workerinput"):
        if option.kcidb is None:
            _refuse_ids(config)
        return (yield)
    path = _path(option.kcidb)
    plugin = KcidbPlugin(config, _given(config))
    config.pluginmanager.register(plugin.watch, "kvm-kcidb-watch")
    config.pluginmanager.register(plugin, "kvm-kcidb")
    problem = ""
    try:
        code = yield
    finally:
        if plugin.watch.plan:
            problem = plugin.write(path)
    if problem:
        print(problem, file=sys.stderr)
        return code or pytest.ExitCode.INTERNAL_ERROR
    return code


def _refuse_ids(config: pytest.Config) -> None:
    """Raise UsageError for an option that no report would have."""
    for name in ("origin", "checkout", "build", "url"):
        if getattr(config.option, f"kcidb_{name}") not in ("", _ORIGIN_HERE):
            raise pytest.UsageError(f"--kcidb-{name} is for a report: add --kcidb=FILE")


def _path(text: str) -> Path:
    """Return the file's path. Raises UsageError if the file cannot be written."""
    path = Path(text).expanduser()
    problem = ""
    if path.exists() and not path.is_file():
        problem = "it is no file"
    elif not path.parent.is_dir():
        problem = f"no directory {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        problem = f"{path.parent} is not writable"
    if problem:
        raise pytest.UsageError(f"--kcidb={path} cannot be written: {problem}")
    return path


def _given(config: pytest.Config) -> Given:
    """Return what the options say. Raises UsageError."""
    option = config.option
    if not re.fullmatch(_ORIGIN, option.kcidb_origin):
        raise pytest.UsageError(
            f"--kcidb-origin={option.kcidb_origin}: a name is of a-z, 0-9 and _"
        )
    for name in ("checkout", "build"):
        id = getattr(option, f"kcidb_{name}")
        if id and not re.fullmatch(rf"{_ORIGIN}:.*", id):
            raise pytest.UsageError(f"--kcidb-{name}={id}: an id is ORIGIN:NAME")
        if id and len(option.kernel) > 1:
            raise pytest.UsageError(f"--kcidb-{name} is for a run over one kernel")
    if option.kcidb_url and not re.match(r"[a-z][a-z0-9+.-]*://", option.kcidb_url):
        raise pytest.UsageError(f"--kcidb-url={option.kcidb_url}: no URL")
    ids = option.kcidb_origin, option.kcidb_checkout, option.kcidb_build
    return Given(*ids, url=option.kcidb_url)


class KcidbPlugin:
    """Listens to a run, and writes the report."""

    def __init__(self, config: pytest.Config, given: Given) -> None:
        self.config = config
        self.watch = Watch(config, [self])
        self.run = Run(given, uuid.uuid4().hex, time.time())
        self.ends: list[Ended] = []

    def begin(self, watch: Watch) -> None:
        pass

    def add_column(self, column: str, files: Mapping[str, Sequence[str]]) -> None:
        pass

    def ended(self, ended: Ended) -> None:
        self.ends.append(ended)

    def write(self, path: Path) -> str:
        """Write the report. Return why it was not written; empty if it was."""
        verdicts = self.config.stash[VERDICTS]
        tallies = {column: verdicts.tally(column) for column in self.watch.plan}
        builds = {
            column: self.run.add_kernel(tally, _source(tally)) for column, tally in tallies.items()
        }
        logs = self.config.stash[LOGS]
        for each in self.ends:
            log = logs.get((each.column, each.nodeid))
            self.run.add(each, tallies[each.column], builds[each.column], log)
        for (column, nodeid), why in self.watch.missing.items():
            self.run.add_missing(tallies[column], builds[column], nodeid, why.reason)
        for column, tally in tallies.items():
            self.run.add_summary(tally, builds[column], self._outputs())
        try:
            replace_file(path, json.dumps(self.run.document(), indent=1) + "\n")
        except OSError as error:
            return f"{path} not written: {error.strerror}"
        return ""

    def _outputs(self) -> list[Path]:
        named = (getattr(self.config.option, name, None) for name in _OUTPUTS)
        paths = (Path(name).expanduser() for name in named if name and name != "-")
        return [path for path in paths if path.is_file()]


def _source(tally: Tally) -> Source:
    """Return what a kernel's tree says; without a tree, where the running kernel's config is."""
    if tally.tree is None:
        config = Path(f"/boot/config-{platform.release()}")
        return Source(config=config if not tally.column and config.is_file() else None)
    config = tally.tree / ".config"
    url = _git(tally.tree, "remote", "get-url", "origin")
    return Source(
        commit=_git(tally.tree, "rev-parse", "HEAD"),
        describe=_git(tally.tree, "describe", "--always", "--dirty"),
        branch=_git(tally.tree, "branch", "--show-current"),
        url=url if url.startswith("https://") else "",
        config=config if config.is_file() else None,
    )


def _git(tree: Path, *arguments: str) -> str:
    """Return what git says of a tree; empty where there is no git."""
    # A directory inside of another repository is not that repository's tree.
    if not (tree / ".git").exists():
        return ""
    command = ["git", "-C", str(tree), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
