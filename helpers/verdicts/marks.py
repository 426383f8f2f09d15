"""The marks of a test: the clause that the test checks, and known deviations."""

from __future__ import annotations

import pytest

from helpers.spec import CLAUSES, DEVIATIONS


def clause(id: str) -> pytest.MarkDecorator:
    """Mark a test with its clause. Raises KeyError for an unknown id."""
    return pytest.mark.clause(CLAUSES[id])


def deviation(id: str) -> pytest.MarkDecorator:
    """Mark a test with a known deviation. Raises KeyError for an unknown id."""
    return pytest.mark.deviation(DEVIATIONS[id])
