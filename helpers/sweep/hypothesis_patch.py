"""The settings of Hypothesis that have no public name."""

from __future__ import annotations

import hypothesis
from hypothesis import core
from hypothesis.internal.conjecture import engine, providers
from hypothesis.internal.constants_ast import Constants

SHRINKING_SECONDS = 20
"""Time to shrink a failing sequence: a failure is reported within the timeout of a test."""


def patch_hypothesis() -> None:
    """Patch internals of Hypothesis. Further calls do no harm.

    - Hypothesis stops shrinking after SHRINKING_SECONDS, in place of five minutes.
      HypothesisWorks/hypothesis#3400 proposed a setting; the maintainers keep the limit internal.
    - Hypothesis draws no constants from the source code of loaded modules, and so stores none in
      .hypothesis. The same seed makes the same sequence in every process.
    - The timeout of a test ends the test. The timeout arrives as pytest.fail.Exception, which
      Hypothesis would take for a failure of the sequence, and shrink: each attempt would hang
      until the timeout again.

    Raises AssertionError if this version of Hypothesis lacks a name that is patched.
    """
    constants = Constants()
    for module, name, value in (
        (engine, "MAX_SHRINKING_SECONDS", SHRINKING_SECONDS),
        (providers, "_get_local_constants", lambda: constants),
        (core, "failure_exceptions_to_catch", lambda: (Exception,)),
    ):
        version = hypothesis.__version__
        assert hasattr(module, name), f"Hypothesis {version} has no {module.__name__}.{name}"
        setattr(module, name, value)
