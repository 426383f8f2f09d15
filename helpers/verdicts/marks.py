"""The marks of a test: the clause it checks, the known deviations it meets."""

from __future__ import annotations

import pytest

from helpers.spec import CLAUSES, DEVIATIONS


def clause(id: str) -> pytest.MarkDecorator:
    """Mark a test with its clause. Raises KeyError for an unknown id."""
    return pytest.mark.clause(CLAUSES[id])


def deviation(id: str) -> pytest.MarkDecorator:
    """Mark a test with a deviation it meets. Raises KeyError for an unknown id."""
    return pytest.mark.deviation(DEVIATIONS[id])
