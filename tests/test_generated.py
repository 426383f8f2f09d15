"""Generated topologies: what a wrong model makes of them, seeds, and --generate."""

from __future__ import annotations

import re

import pytest
from hypothesis.internal.conjecture import engine

from helpers.apic import model
from helpers.guest import Mismatch, generated
from helpers.kvm import System
from tests.copy_of_the_suite import ROOT, run_pytest

TEST = "suites/test_generated.py"


@pytest.fixture
def world():
    with System() as system:
        yield generated.World(system, model.REFERENCE, vector_hashing=True)


def hunt(world, seeds):
    for seed in range(seeds):
        generated.run_sequences(world, seed)


@pytest.mark.parametrize(
    "name, wrong",
    [("XAPIC_BROADCAST", 0xFE), ("MOST_NMIS", 1), ("KVM_MSI_VALID_DEVID", 2)],
)
def test_wrong_model_is_noticed(world, monkeypatch, name, wrong):
    monkeypatch.setattr(model, name, wrong)
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", 2)
    with pytest.raises(Mismatch, match=r"expected .*, got .*, of <Message .*> .*to .*") as caught:
        hunt(world, 50)
    assert any("state.start(" in note for note in caught.value.__notes__)


def test_same_seed_is_the_same_sequence(world):
    counts = []
    for _ in range(2):
        world.steps = world.messages = 0
        hunt(world, 2)
        counts.append((world.steps, world.messages))
    assert counts[0] == counts[1]
    assert counts[0][0] > generated.STEPS


def test_nothing_is_left_behind(tmp_path):
    run = run_pytest(tmp_path, f"{ROOT}/{TEST}", f"--config-file={ROOT}/pytest.ini")
    assert (run.exit_code, list(tmp_path.iterdir())) == (0, [])


@pytest.mark.timeout(120)
def test_hunt_is_shared_and_says_what_was_done():
    run = run_pytest(ROOT, TEST, "-n", "2", "--generate=0.02", "--hypothesis-seed=7")
    assert run.outcomes == {"passed": 2}
    said = " ".join(run.lines_with("generated: "))
    assert re.findall(r"seed (\d+)", said) in (["7", "1000007"], ["1000007", "7"])


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan", "inf"])
def test_bad_minutes_are_one_line(minutes):
    run = run_pytest(ROOT, TEST, f"--generate={minutes}")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.output.strip() == (
        f"ERROR: --generate wants minutes, a number above 0, not '{minutes}'"
    )


def test_bad_seed_is_one_line():
    run = run_pytest(ROOT, TEST, "--hypothesis-seed=lucky", "--generate=1")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.lines_with("lucky") == ["ERROR: --hypothesis-seed wants a number, not 'lucky'"]
