# SPDX-License-Identifier: GPL-2.0-only
"""Generated sequences: the wrong models that they notice, seeds, and --generate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import core
from hypothesis.internal.conjecture import engine, providers

from helpers.apic import ApicMode, DeliveryMode, Register, ioapic, model
from helpers.apic.topology import MpState, VcpuState
from helpers.guest import Cpu, Mismatch, journal
from helpers.kvm import System
from helpers.sweep import host_steps, sequence, sequences
from helpers.sweep.sequences import STEPS, Campaign, run_sequences
from helpers.sweep.state_machine import AnySequence
from helpers.verdicts.session import KernelComplaint
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
    [("XAPIC_BROADCAST", 0xFE), ("X2APIC_BROADCAST", 0xFE), ("KVM_MSI_VALID_DEVID", 2)],
)
def test_wrong_model_is_noticed(campaign, monkeypatch, name, wrong):
    monkeypatch.setattr(model, name, wrong)
    monkeypatch.setattr(sequences, "SHRINKING_SECONDS", 2)
    with pytest.raises(Mismatch, match=r"expected .*, got .*, of <Message .*> .*to .*") as caught:
        run_seeds(campaign, 50)
    assert any("state.start(" in note for note in caught.value.__notes__)


def lying(changes: dict[str, Any]) -> Callable[..., VcpuState]:
    """Return a function of the model that predicts ``changes`` more than the original."""

    def lie(original: Callable[..., VcpuState], *arguments: Any) -> VcpuState | None:
        return replace(told, **changes) if (told := original(*arguments)) else told

    return lie


@pytest.mark.parametrize(
    "place, name, changes, subject",
    [
        (host_steps, "after_events", {"shadow": True}, "vCPU . after KVM_SET_VCPU_EVENTS"),
        (host_steps, "after_events", {"nmi": 0}, "vCPU . after KVM_SET_VCPU_EVENTS"),
        (host_steps, "after_mp_state", {"tpr": 0x10}, "vCPU . after KVM_SET_MP_STATE"),
        (
            host_steps,
            "after_register",
            {"eoi_suppressed": False},
            "vCPU . after KVM_SET_LAPIC of .*",
        ),
        (host_steps, "after_apic_mode", {"bsp": 1}, "vCPU . after .*"),
        (sequence, "after_init", {"bsp": 1}, "vCPU . after INIT"),
        (sequence, "after_init", {"tpr": 0x40}, "vCPU . after INIT"),
    ],
)
def test_wrong_state_is_noticed(campaign, monkeypatch, place, name, changes, subject):
    lie = partial(lying(changes), getattr(place, name))
    monkeypatch.setattr(place, name, lie)
    monkeypatch.setattr(sequences, "SHRINKING_SECONDS", 1)
    with pytest.raises(Mismatch, match=rf"^{subject}: expected .*, got "):
        run_seeds(campaign, 50)


@pytest.mark.parametrize(
    "name, wrong, subject",
    [
        ("deliverable", lambda vcpu: sorted(vcpu.irr, reverse=True), "vectors taken"),
        ("REMOTE_IRR", 0, "redirection entry .*"),
        ("MASKED", 1 << 17, ".*"),
    ],
)
def test_wrong_irqchip_is_noticed(campaign, monkeypatch, name, wrong, subject):
    monkeypatch.setattr(ioapic, name, wrong)
    monkeypatch.setattr(sequences, "SHRINKING_SECONDS", 1)
    with pytest.raises(Mismatch, match=rf"^{subject}: expected "):
        run_seeds(campaign, 50)


# --- a LAPIC that is enabled again ----------------------------------------------------------------


@pytest.fixture
def held(campaign):
    """A sequence whose vCPU 0 has vector 0x31 pending, below TPR, and a disabled LAPIC."""
    state = AnySequence(campaign)
    state.start(irqchip="split", x2apic_api=0, ids=[0], boot=None, apic_mode=ApicMode.XAPIC)
    state.host_sets_cr8(nth=0, cr8=4, contents=[(0x31, DeliveryMode.FIXED, {}, {})])
    state.guest_switches_mode(nth=0, which=1)
    yield state
    state.teardown()


def tpr_and_irr(state):
    page = state.look()[0].lapic
    return page[Register.TPR], page.irr


def change_at_wrmsr(monkeypatch, change):
    """Have ``change(cpu)`` happen right after the WRMSR that enables a LAPIC."""

    def take_with_exits(cpu):
        cpu.step()
        if cpu.apic_mode is not ApicMode.DISABLED:
            change(cpu)
        return original(cpu)

    original = Cpu.take_with_exits
    monkeypatch.setattr(Cpu, "take_with_exits", take_with_exits)


def test_vector_is_held_until_the_lapic_is_enabled(held):
    held.host_sets_cr8(nth=0, cr8=0, contents=[])
    held.enter(nth=0)
    held.guest_switches_mode(nth=0, which=0)
    held.enter(nth=0)
    assert tpr_and_irr(held) == (0, set())


def test_vector_may_be_taken_as_soon_as_the_lapic_is_enabled(held, monkeypatch):
    held.host_sets_cr8(nth=0, cr8=0, contents=[])
    # As with APICv: KVM_SET_MP_STATE has KVM look for pending vectors.
    change_at_wrmsr(monkeypatch, lambda cpu: setattr(cpu, "mp_state", MpState.RUNNABLE))
    held.guest_switches_mode(nth=0, which=0)
    assert tpr_and_irr(held) == (0, set())


def test_vector_that_is_lost_when_the_lapic_is_enabled_is_noticed(held, monkeypatch):
    held.host_sets_cr8(nth=0, cr8=0, contents=[])
    change_at_wrmsr(monkeypatch, lambda cpu: setattr(cpu, "lapic", held.reset_pages[0]))
    with pytest.raises(Mismatch, match=r"^vCPU 0 after WRMSR: expected .*/irr=0x31, got "):
        held.guest_switches_mode(nth=0, which=0)


def test_tpr_is_not_lowered_where_a_disabled_lapic_delivers(held):
    held.campaign.switches = replace(model.REFERENCE, disabled_lapics_hold=False)
    held.host_sets_cr8(nth=0, cr8=0, contents=[])
    held.host_writes(nth=0, write=(Register.TPR, 0))
    assert tpr_and_irr(held) == (0x40, {0x31})
    held.host_sets_cr8(nth=0, cr8=3, contents=[])
    assert tpr_and_irr(held) == (0x30, {0x31})


def test_lapic_with_a_vector_is_not_disabled_where_a_disabled_lapic_delivers(held):
    held.campaign.switches = replace(model.REFERENCE, disabled_lapics_hold=False)
    held.reset_vcpu(nth=0, apic_mode=ApicMode.XAPIC)
    held.send_to_one(nth=0, contents=[(0x51, DeliveryMode.FIXED, {}, {})])
    held.host_switches_mode(nth=0, apic_mode=ApicMode.DISABLED)
    assert held.nth(0).apic_mode is ApicMode.XAPIC
    held.enter(nth=0)
    held.host_switches_mode(nth=0, apic_mode=ApicMode.DISABLED)
    assert held.nth(0).apic_mode is ApicMode.DISABLED


# --- complaints of the kernel ---------------------------------------------------------------------


def complain_at_nmi(campaign: Campaign, muted: bool) -> None:
    """Have a kernel log a WARNING at each message that sends an NMI; at the first one if muted."""
    logged = []

    def complaint() -> KernelComplaint | None:
        sent = journal and journal[-1].message.delivery_mode is DeliveryMode.NMI
        if not sent or (muted and logged):
            return None
        logged.append(journal[-1])
        return KernelComplaint(["WARNING: CPU: 0 PID: 1 at x.c:1 accept+0x1/0x2"])

    campaign.complaint, campaign.is_muted = complaint, lambda: muted


def steps_of(error: BaseException) -> list[str]:
    return [note for note in error.__notes__ if note.startswith("state.")]


def test_complaint_shrinks_to_the_smallest_sequence(campaign):
    complain_at_nmi(campaign, muted=False)
    with pytest.raises(KernelComplaint, match=r"^kernel log: .* WARNING in accept") as caught:
        run_seeds(campaign, 5)
    start, *steps, end = steps_of(caught.value)
    assert (start[: len("state.start")], end) == ("state.start", "state.teardown()")
    assert len(steps) < STEPS / 2
    assert "DeliveryMode.NMI" in steps[-1]


def test_complaint_that_is_not_repeated_has_all_of_its_sequence(campaign):
    complain_at_nmi(campaign, muted=True)
    with pytest.raises(KernelComplaint) as caught:
        run_seeds(campaign, 5)
    start, *_, end = steps_of(caught.value)
    assert start.startswith("state.start(")
    assert "DeliveryMode.NMI" in end
    assert caught.value.__notes__[1].startswith("The kernel does not repeat the complaint")


# --- seeds ----------------------------------------------------------------------------------------


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
