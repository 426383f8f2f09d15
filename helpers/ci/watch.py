# SPDX-License-Identifier: GPL-2.0-only
"""Follow a run: which tests it owes on which kernel, which have ended, and why others have not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import pytest

from helpers.ci.ended import Ended, Reports
from helpers.verdicts.session import VERDICTS, Verdicts
from helpers.verdicts.tally import Tally

Plan = dict[str, dict[str, list[str]]]
"""{column: {file: [test]}}. A run over one kernel has the column ""."""


_ENOUGH = "stopping after "
"""The start of pytest's reason for a stop by --maxfail."""


class Missing(NamedTuple):
    """Why a test has no result. ``is_wanted``: an option such as -x left the test out."""

    reason: str
    is_wanted: bool


class Listener(Protocol):
    """An output of a run."""

    def begin(self, watch: Watch) -> None:
        """Take the plan, before the first test."""

    def add_column(self, column: str, files: Mapping[str, Sequence[str]]) -> None:
        """Take the plan of a column that the run did not begin with."""

    def ended(self, ended: Ended) -> None:
        """Take the end of a test."""


class Watch:
    """The plugin that tells listeners of a run.

    ``plan``: the tests that the run owes; empty before the collection
    ``uncollectable``: {file: reason}
    ``stopped``: why the run ended early: an interruption or an internal error
    ``left``: what pytest said when it obeyed --maxfail
    """

    def __init__(self, config: pytest.Config, listeners: Sequence[Listener]) -> None:
        self.config = config
        self.listeners = listeners
        self.plan: Plan = {}
        self.uncollectable: dict[str, str] = {}
        self.stopped = ""
        self.left = ""
        self._items: Mapping[str, pytest.Item] = {}
        self._tests: Sequence[str] = ()
        self._reports = Reports()
        self._missing: set[tuple[str, str]] = set()

    @property
    def verdicts(self) -> Verdicts:
        return self.config.stash[VERDICTS]

    # --- the plan ---------------------------------------------------------------------------------

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            first = (report.longreprtext.strip().splitlines() or ["no reason"])[-1]
            self.uncollectable[report.nodeid] = f"could not be collected: {first}"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._items = {item.nodeid: item for item in session.items}
        self._begin(list(self._items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        """With pytest-xdist, take the tests that the workers collect; all collect the same."""
        if not self.plan:
            self._begin(list(ids))

    def _begin(self, tests: Sequence[str]) -> None:
        self._tests = tests
        if tests or self.uncollectable:
            columns = list(self.verdicts.tallies) or [""]
            self.plan = {column: self._files(column) for column in columns}
            self._missing = {(column, test) for column in columns for test in self._of(column)}
            for listener in self.listeners:
                listener.begin(self)

    def _of(self, column: str) -> Sequence[str]:
        choose = getattr(self.config.hook, "pytest_kvm_column_tests", None)
        chosen = choose(column=column, items=self._items) if choose and column else None
        return self._tests if chosen is None else chosen

    def _files(self, column: str) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for nodeid in self._of(column):
            file, _, test = nodeid.partition("::")
            files.setdefault(file, []).append(test or nodeid)
        return files | {file: [] for file in self.uncollectable if file not in files}

    # --- the tests --------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        ended = self._reports.add(report)
        if ended is None:
            return
        if ended.column not in self.plan:
            self.plan[ended.column] = files = self._files(ended.column)
            self._missing |= {(ended.column, test) for test in self._of(ended.column)}
            for listener in self.listeners:
                listener.add_column(ended.column, files)
        self._missing.discard((ended.column, ended.nodeid))
        for listener in self.listeners:
            listener.ended(ended)

    # --- the end ----------------------------------------------------------------------------------

    def pytest_internalerror(self, excrepr: object) -> None:
        last = (str(excrepr).strip().splitlines() or ["no reason"])[-1]
        self.stopped = f"pytest failed: {last}"

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        said = str(excinfo.value)
        if said.startswith(_ENOUGH):  # as pytest-xdist obeys --maxfail
            self.left = said
        else:
            self.stopped = f"the run was interrupted: {said}" if said else "the run was interrupted"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if reason := str(session.shouldfail or session.shouldstop or ""):
            if reason.startswith(_ENOUGH):
                self.left = reason
            else:
                self.stopped = self.stopped or reason

    @property
    def missing(self) -> dict[tuple[str, str], Missing]:
        """The tests without a result: {(column, node id): reason}."""
        return {key: self._why(*key) for key in sorted(self._missing)}

    def _why(self, column: str, nodeid: str) -> Missing:
        tally = self.verdicts.tallies.get(column, Tally())
        if (column, nodeid) in self._reports.running and self.stopped:
            return Missing(f"{self.stopped}, in this test", False)
        if tally.broken:
            return Missing(f"{column or 'the kernel'} could not be judged: {tally.broken}", False)
        if self.stopped:
            return Missing(f"not run: {self.stopped}", False)
        if tally.left:
            return Missing("not run: --maxfail-each", True)
        if self.left:
            return Missing(f"not run: {self.left}", True)
        return Missing("not run", False)
