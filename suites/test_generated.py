# SPDX-License-Identifier: GPL-2.0-only
"""Generated sequences: any ioctls, lines and guest writes, each of them held to the model.

Clauses: model.generated.

    pytest suites/test_generated.py --generate=10 -n auto

runs sequences for ten minutes. ``--hypothesis-seed=N`` repeats a seed that a run has named.
"""

from helpers.verdicts import clause


@clause("model.generated")
def test_any_sequence_is_answered_as_the_model_says(seeds, system, kernel, switches):
    # In an emulator the import of Hypothesis takes seconds, which only this test needs.
    from helpers.sweep.sequences import Campaign, run_sequences  # noqa: PLC0415

    log = seeds.complaint, seeds.is_muted
    campaign = Campaign(system, switches, kernel.vector_hashing, *log)
    try:
        for seed in seeds:
            run_sequences(campaign, seed)
    finally:
        seeds.record(campaign.steps, campaign.messages)
