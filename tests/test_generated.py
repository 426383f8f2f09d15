# SPDX-License-Identifier: GPL-2.0-only
"""Made-up sequences: the wrong models that they notice, seeds, and --generate."""

from __future__ import annotations

import re

import pytest
from hypothesis import core
from hypothesis.internal.conjecture import engine, providers

from helpers.apic import model
from helpers.guest import Mismatch
from helpers.kvm import System
from helpers.sweep import sequences
from helpers.sweep.sequences import STEPS, Campaign, run_sequences
from tests.copy_of_the_suite import ROOT, run_pytest

TEST = "suites/test_generated.py"


@pytest.fixture
def campaign():
    with System() as system:
        yield Campaign(system, model.REFERENCE, vector_hashing=True)


def run_seeds(campaign, count):
    for seed in range(count):
        run_sequences(campaign, seed)


# --- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, wrong",
    [("XAPIC_BROADCAST", 0xFE), ("MAX_PENDING_NMIS", 1), ("KVM_MSI_VALID_DEVID", 2)],
)
def test_wrong_model_is_noticed(campaign, monkeypatch, name, wrong):
    monkeypatch.setattr(model, name, wrong)
    monkeypatch.setattr(sequences, "SHRINKING_SECONDS", 2)
    with pytest.raises(Mismatch, match=r"expected .*, got .*, of <Message .*> .*to .*") as caught:
        run_seeds(campaign, 50)
    assert any("state.start(" in note for note in caught.value.__notes__)


def test_same_seed_is_the_same_sequence(campaign):
    counts = []
    for _ in range(2):
        campaign.steps = campaign.messages = 0
        run_seeds(campaign, 2)
        counts.append((campaign.steps, campaign.messages))
    assert counts[0] == counts[1]
    assert counts[0][0] > STEPS


def test_nothing_is_left_behind(tmp_path):
    run = run_pytest(tmp_path, f"{ROOT}/{TEST}", f"--config-file={ROOT}/pytest.ini")
    assert (run.exit_code, list(tmp_path.iterdir())) == (0, [])


# --- Hypothesis' internals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, name",
    [
        (engine, "MAX_SHRINKING_SECONDS"),
        (providers, "_get_local_constants"),
        (core, "failure_exceptions_to_catch"),
    ],
    ids=["shrinking", "constants", "failures"],
)
def test_missing_internal_is_named(monkeypatch, module, name):
    monkeypatch.delattr(module, name)
    with pytest.raises(
        AssertionError, match=rf"^Hypothesis [\d.]+ has no {module.__name__}.{name}"
    ):
        sequences.patch_hypothesis()


# --- options --------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_sequences_are_shared_by_the_workers_and_counted():
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
