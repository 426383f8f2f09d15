# SPDX-License-Identifier: GPL-2.0-only
"""Properties in pytest's own JUnit report (``--junitxml``): what a test judged, and on what."""

from __future__ import annotations

import pytest

from helpers.ci.ended import Ended, Reports
from helpers.spec import CLAUSES, DEVIATIONS
from helpers.verdicts.session import VERDICTS, Verdicts


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin in the process that writes the report."""
    if config.getoption("xmlpath", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Properties(config), "kvm-junit")


class Properties:
    """Adds properties to the last report of a test, from which pytest takes them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reports = Reports()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if ended := self.reports.add(report):
            report.user_properties += properties(ended, self.config.stash[VERDICTS]).items()


def properties(ended: Ended, verdicts: Verdicts) -> dict[str, str]:
    """Return the properties of a test; empty for a test that judges no kernel."""
    verdict = ended.verdict
    clause = CLAUSES.get(verdict.clause)
    if clause is None:
        return {}
    tally = verdicts.tally(ended.column)
    kernel = tally.kernel
    entry = DEVIATIONS.get(verdict.deviation)
    named = {
        "clause": clause.id,
        "level": clause.level,
        "source": clause.source,
        "outcome": ended.outcome,
        "column": ended.column,
        "kernel": kernel.release if kernel else "",
        "vendor": kernel.vendor if kernel else "",
        "processor": kernel.cpu if kernel else "",
        "deviation": verdict.deviation,
        "fixed": entry.fixed if entry else "",
        "repeat": verdict.repeat,
        "reproducer": ended.reproducer,
    }
    return {name: value for name, value in named.items() if value}
