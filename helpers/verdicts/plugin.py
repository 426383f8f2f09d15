"""The pytest plugin that turns outcomes into verdicts.

pytest complains of a plugin that is imported before pytest registers it. What other modules need,
the worker in a guest above all, is therefore in session.py.
"""

from __future__ import annotations

import pytest

from helpers.verdicts.session import VERDICTS, ExpectedInOneLine, Verdicts


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks and the session's verdicts."""
    config.addinivalue_line("markers", "clause(clause): the clause that the test checks")
    config.addinivalue_line("markers", "deviation(deviation): a known deviation of some kernels")
    verdicts = Verdicts(config)
    config.stash[VERDICTS] = verdicts
    config.pluginmanager.register(verdicts, "kvm-verdicts")
    config.pluginmanager.register(ExpectedInOneLine(verdicts), "kvm-expected-in-one-line")
