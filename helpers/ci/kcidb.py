# SPDX-License-Identifier: GPL-2.0-only
"""Describe a run in KCIDB's schema: checkouts, builds, tests, known issues and their incidents.

Source: kcidb-io, kcidb_io/schema/v05_03.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.ci.ended import Ended
from helpers.spec import CLAUSES, DEVIATIONS, Deviation
from helpers.spec.architectures import X86_64
from helpers.verdicts.tally import Tally
from helpers.verdicts.timeouts import text as timeout_text

VERSION = {"major": 5, "minor": 3}
SUITE = "kvm_signal_msi"
EXCERPT = 16384
"""The most characters that the schema takes as the excerpt of a log."""
STATUSES = {
    "passed": "PASS",
    "failed": "FAIL",
    "timeout": "FAIL",
    "xfailed": "FAIL",  # with an incident of the known issue
    "error": "ERROR",
    "skipped": "SKIP",
}
_PRIORITY = ("FAIL", "ERROR", "MISS", "PASS", "DONE", "SKIP")
_LINUS = "https://git.kernel.org/linus/"

Json = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a kernel's build tree says of itself. Unknown facts are empty."""

    commit: str = ""
    describe: str = ""
    branch: str = ""
    url: str = ""
    config: Path | None = None


@dataclass(frozen=True)
class Given:
    """What the options say. An empty ``checkout`` or ``build`` is made from the kernel."""

    origin: str
    checkout: str = ""
    build: str = ""
    url: str = ""

    def url_of(self, path: Path) -> str:
        """Return where readers find a file: below --kcidb-url, or on this machine."""
        path = path.resolve()
        if not self.url:
            return path.as_uri()
        here = Path.cwd()
        below = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
        return f"{self.url.rstrip('/')}/{below}"

    def resource(self, path: Path) -> Json:
        """Return a file as a resource of the schema."""
        return {"name": path.name, "url": self.url_of(path)}


class Run:
    """The objects of one run. ``run_id`` makes its ids unique among the runs of the origin."""

    def __init__(self, given: Given, run_id: str, start: float) -> None:
        self.given = given
        self.run_id = run_id
        self.start = start
        self.checkouts: dict[str, Json] = {}
        self.builds: dict[str, Json] = {}
        self.tests: list[Json] = []
        self.issues: dict[str, Json] = {}
        self.incidents: list[Json] = []

    def document(self) -> Json:
        """Return the whole report."""
        return {
            "version": VERSION,
            "checkouts": list(self.checkouts.values()),
            "builds": list(self.builds.values()),
            "tests": self.tests,
            "issues": list(self.issues.values()),
            "incidents": self.incidents,
        }

    # --- what was tested --------------------------------------------------------------------------

    def add_kernel(self, tally: Tally, source: Source) -> str:
        """Add the checkout and the build of a kernel. Return the id of the build."""
        if self.given.build:
            return self.given.build
        release = tally.kernel.release if tally.kernel else tally.column or "unknown"
        checkout = self.given.checkout or self._id(source.commit or release)
        if not self.given.checkout:
            self.checkouts[checkout] = _known(
                id=checkout,
                origin=self.given.origin,
                git_commit_hash=source.commit,
                git_commit_name=source.describe or release,
                git_repository_branch=source.branch,
                git_repository_url=source.url,
                comment=f"Linux {release}",
                valid=True,
            )
        build = self._id(f"build-{release}-{source.commit}".removesuffix("-"))
        config = source.config
        self.builds[build] = _known(
            id=build,
            checkout_id=checkout,
            origin=self.given.origin,
            architecture=tally.kernel.architecture if tally.kernel else X86_64.name,
            comment=f"Linux {release}",
            config_name=config.name if config else "",
            config_url=config.resolve().as_uri() if config else "",
            status="PASS",
        )
        return build

    def _id(self, text: str) -> str:
        return f"{self.given.origin}:{text}"

    # --- tests ------------------------------------------------------------------------------------

    def add(self, ended: Ended, tally: Tally, build: str, log: Path | None) -> None:
        """Add a test that has ended, and the known issue that it shows or does not show."""
        verdict = ended.verdict
        outcome = timeout_text(verdict.timeout) if verdict.timeout else ended.outcome
        misc = {"outcome": outcome, "clause": verdict.clause, "deviation": verdict.deviation}
        misc |= {"repeat": verdict.repeat, "reproducer": ended.reproducer}
        if clause := CLAUSES.get(verdict.clause):
            misc |= {"level": clause.level, "source": clause.source}
        test = self._test(tally, build, ended.nodeid, STATUSES[ended.outcome], misc)
        excerpt = "\n".join(ended.explanation) or ended.reason
        test |= _known(
            comment=f"{ended.nodeid}: {outcome}",
            start_time=_time(ended.start),
            duration=round(ended.duration, 6),
            log_excerpt=_text(excerpt)[:EXCERPT],
            log_url=self.given.url_of(log) if log else "",
        )
        if verdict.deviation and (ended.outcome == "xfailed" or verdict.backport):
            self._add_incident(verdict.deviation, test["id"], present=not verdict.backport)

    def add_missing(self, tally: Tally, build: str, nodeid: str, reason: str) -> None:
        """Add a test that the run owes and that has no result."""
        test = self._test(tally, build, nodeid, "MISS", {"outcome": "not run"})
        test["comment"] = _text(f"{nodeid}: {reason}")

    def add_summary(self, tally: Tally, build: str, files: Iterable[Path]) -> None:
        """Add the summary of a kernel's tests, with the files that the run wrote."""
        column = _known(column=tally.column)
        statuses = {test["status"] for test in self.tests if column.items() <= test["misc"].items()}
        status = next((each for each in _PRIORITY if each in statuses), "MISS")
        test = self._test(tally, build, "", status, {})
        test |= _known(
            comment=tally.broken or str(tally.kernel or tally.column),
            start_time=_time(self.start),
            output_files=[self.given.resource(path) for path in files],
        )

    def _test(self, tally: Tally, build: str, nodeid: str, status: str, misc: Json) -> Json:
        test: Json = {
            "id": self._id(f"{SUITE}-{self.run_id}-{len(self.tests)}"),
            "build_id": build,
            "origin": self.given.origin,
            "path": path_of(nodeid),
            "status": status,
            "environment": {"comment": _text(str(tally.kernel or tally.column or "unknown"))},
            "misc": _known(nodeid=nodeid, column=tally.column, **misc),
        }
        self.tests.append(test)
        return test

    def _add_incident(self, deviation: str, test: str, *, present: bool) -> None:
        issue = self._id(f"{SUITE}-{deviation}")
        # An issue may be submitted again with another text: the newest one counts.
        version = int(_time(self.start)[:10].replace("-", ""))
        self.issues[issue] = {
            "id": issue,
            "version": version,
            "origin": self.given.origin,
            "culprit": {"code": True, "tool": False, "harness": False},
            **_facts(deviation, DEVIATIONS.get(deviation)),
        }
        self.incidents.append(
            {
                "id": self._id(f"{SUITE}-{self.run_id}-incident-{len(self.incidents)}"),
                "origin": self.given.origin,
                "issue_id": issue,
                "issue_version": version,
                "test_id": test,
                "present": present,
            }
        )


def _facts(deviation: str, entry: Deviation | None) -> Json:
    """Return what an issue says of a deviation."""
    if entry is None:
        return {"comment": deviation}
    fix = re.search(r"\b[0-9a-f]{8,40}\b", entry.fixed)
    return _known(
        comment=f"{deviation}: {entry.summary}",
        report_subject=entry.summary,
        report_url=f"{_LINUS}{fix[0]}" if fix else "",
        misc=_known(kernels=entry.condition, fixed=entry.fixed, evidence=entry.evidence),
    )


def path_of(nodeid: str) -> str:
    """Return a test's place in the tree of tests; the suite's for no test."""
    file, _, test = nodeid.removesuffix("]").partition("::")
    name, _, parameters = test.partition("[")
    parts = [SUITE, Path(file).stem, *name.split("::"), parameters]
    plain = (re.sub(r"[^a-zA-Z0-9_-]+", "_", part).strip("_") for part in parts)
    return ".".join(filter(None, plain))


def _known(**facts: Any) -> Json:
    """Return the facts that are not empty; the schema takes no null."""
    return {name: value for name, value in facts.items() if value not in ("", None, [], {})}


def _text(text: str) -> str:
    return text.replace("\0", "")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
