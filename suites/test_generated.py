"""Topologies nobody would write by hand: sequences that Hypothesis makes up, held to the model.

    pytest suites/test_generated.py --generate=10 -n auto

hunts for ten minutes. ``--hypothesis-seed=N`` repeats what a run says it did.
"""

from helpers.verdicts import clause


@clause("model.generated")
def test_any_sequence_is_answered_as_the_model_says(hunt, system, kernel, switches):
    # Not before it is needed: in an emulator the import of Hypothesis takes seconds.
    from helpers.sweep.sequences import World, run_sequences  # noqa: PLC0415

    world = World(system, switches, kernel.vector_hashing)
    try:
        for seed in hunt:
            run_sequences(world, seed)
    finally:
        hunt.record(world.steps, world.messages)
