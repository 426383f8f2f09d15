# SPDX-License-Identifier: GPL-2.0-only
"""Turn the outcomes of tests into verdicts on clauses. A test names both with these marks."""

from __future__ import annotations

import pytest

from helpers.spec import CLAUSES, DEVIATIONS


def clause(id: str) -> pytest.MarkDecorator:
    """Mark a test with the clause that the test checks. Raises KeyError for an unknown id."""
    return pytest.mark.clause(CLAUSES[id])


def deviation(id: str) -> pytest.MarkDecorator:
    """Mark a test with a known deviation. Raises KeyError for an unknown id."""
    return pytest.mark.deviation(DEVIATIONS[id])


def needs_parameter(name: str, value: str) -> pytest.MarkDecorator:
    """Mark a test with a module parameter, MODULE.NAME, and the value it must read.

    A booted kernel reloads KVM for the test, after the other tests. The running kernel skips the
    test.
    """
    return pytest.mark.needs_parameter(name, value)


parallel = pytest.mark.parallel
"""Marks a test whose vCPUs run in threads. An emulator that can run two processors does so then."""
