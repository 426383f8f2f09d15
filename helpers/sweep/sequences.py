# SPDX-License-Identifier: GPL-2.0-only
"""Generated sequences: any ioctls and guest writes, with every message held to the model.

Hypothesis makes the sequences up and shrinks a failing sequence. Importing Hypothesis takes seconds
in an emulator: a test imports this module when the test runs.
"""

from __future__ import annotations

import hypothesis
from hypothesis import HealthCheck, Phase, core, seed, settings
from hypothesis.internal.conjecture import engine, providers
from hypothesis.internal.constants_ast import Constants
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from helpers.sweep.sequence import Campaign, Unshrinkable
from helpers.sweep.state_machine import AnySequence

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

EXAMPLES = 5  # Sequences per seed.
STEPS = 50  # Steps per sequence, at most.
SHRINKING_SECONDS = 20  # A failing sequence is shrunk and reported within the timeout of a test.


def run_sequences(campaign: Campaign, number: int) -> None:
    """Run the sequences of seed ``number``, the same ones on every kernel.

    Raises Mismatch for the smallest sequence found whose outcome differs from the model's, and
    KernelComplaint for the smallest one at which the kernel complains. The notes of the exception
    are the steps of the sequence.
    """
    patch_hypothesis()
    try:
        _run(campaign, number)
    except Unshrinkable as found:
        raise found.complaint from None


def _run(campaign: Campaign, number: int) -> None:
    with with_reporter(lambda _: None):  # The notes of the exception say the same.
        run_state_machine_as_test(
            seed(number)(lambda: AnySequence(campaign)),  # type: ignore[arg-type]
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                deadline=None,
                database=None,
                report_multiple_bugs=False,
            ),
        )


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
