"""Made-up sequences: any ioctls and guest writes, with every message held to the model.

Hypothesis makes the sequences up and shrinks a failing sequence. Importing Hypothesis takes seconds
in an emulator: a test imports this module when the test runs.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from helpers.sweep.hypothesis_patch import patch_hypothesis
from helpers.sweep.state_machine import AnySequence, Campaign

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.

EXAMPLES = 5
"""Sequences per seed."""

STEPS = 50
"""Steps per sequence, at most."""


def run_sequences(campaign: Campaign, number: int) -> None:
    """Run the sequences of seed ``number``, the same ones on every kernel.

    Raises Mismatch for the smallest sequence found whose outcome differs from the model's. The
    notes of the exception are the steps of the sequence.
    """
    patch_hypothesis()

    def sequence() -> AnySequence:
        return AnySequence(campaign)

    with with_reporter(lambda _: None):  # The notes of the exception say the same.
        run_state_machine_as_test(
            seed(number)(sequence),  # type: ignore[arg-type]
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
