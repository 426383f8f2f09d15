# SPDX-License-Identifier: GPL-2.0-only
"""Effects, the checks of an injection and ``expect()``, on snapshots made by hand."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.apic import ApicMode, DeliveryMode, LapicPage, Message, Register, TriggerMode
from helpers.apic.effect import Effect
from helpers.apic.model import effect_of
from helpers.guest import Injection, Mismatch, Snapshot, expect
from helpers.guest.injection import Setting, effect_between
from helpers.kvm import abi
from helpers.verdicts.kernel import running_kernel, topology_before

FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

RUNNABLE, HALTED = abi.KVM_MP_STATE_RUNNABLE, abi.KVM_MP_STATE_HALTED
RECEIVED = abi.KVM_MP_STATE_INIT_RECEIVED

SETTING = Setting(vcpu_ids=(0, 1, 2), apic_modes=(ApicMode.XAPIC,) * 3)
VECTORS = {"irr": Register.IRR, "tmr": Register.TMR, "isr": Register.ISR}
IDLE = Snapshot(LapicPage(), nmi_pending=0, smi_pending=0, latched_init=0, mp_state=RUNNABLE)


def having(before: Snapshot = IDLE, **changes: Any) -> Snapshot:
    """Return ``before`` with other vectors (``irr=[0x41]``), registers or latches."""
    page = before.lapic.copy()
    latches = {}
    for name, value in changes.items():
        if name in VECTORS:
            page.set_vectors(VECTORS[name], value)
        elif name.upper() in Register.__members__:
            page[Register[name.upper()]] = value
        else:
            latches[name] = value
    return before._replace(lapic=page, **latches)


# --- what changed ---------------------------------------------------------------------------------


def test_nothing_changed():
    effect = effect_between(having(irr=[0x41]), having(irr=[0x41]))
    assert not effect
    assert str(effect) == "nothing"


@pytest.mark.parametrize(
    "before, after, effect, shown",
    [
        (IDLE, having(irr=[0x41]), Effect(irr_set=frozenset({0x41})), "IRR SET {0x41}"),
        (having(irr=[0x41]), IDLE, Effect(irr_cleared=frozenset({0x41})), "IRR CLEARED {0x41}"),
        (IDLE, having(tmr=[0x41]), Effect(tmr_set=frozenset({0x41})), "TMR SET {0x41}"),
        (having(tmr=[0x41]), IDLE, Effect(tmr_cleared=frozenset({0x41})), "TMR CLEARED {0x41}"),
        (IDLE, having(isr=[0x41]), Effect(registers=("ISR",)), "changed ISR"),
        (IDLE, having(tpr=1, svr=1), Effect(registers=("TPR", "SVR")), "changed TPR SVR"),
        (IDLE, having(nmi_pending=1), Effect(nmi=1), "NMI pending"),
        (IDLE, having(nmi_pending=2), Effect(nmi=2), "NMI +2"),
        (having(nmi_pending=1), IDLE, Effect(nmi=-1), "NMI -1"),
        (IDLE, having(smi_pending=1), Effect(smi=1), "SMI pending"),
        (IDLE, having(latched_init=1), Effect(init=1), "INIT pending"),
        (
            having(mp_state=HALTED),
            IDLE,
            Effect(mp_state=(HALTED, RUNNABLE)),
            "mp_state HALTED->RUNNABLE",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_change_is_an_effect(before, after, effect, shown):
    assert effect_between(before, after) == effect
    assert effect
    assert str(effect) == shown


@pytest.mark.parametrize("offset", range(0, 1024, 4), ids="{:#x}".format)
def test_no_word_of_the_page_is_left_out(offset):
    after = having()
    after.lapic[offset] = 1
    assert effect_between(IDLE, after)


def test_register_without_a_name_is_its_offset():
    after = having()
    after.lapic[0x3F0] = 1
    assert effect_between(IDLE, after).registers == ("0x3f0",)


# --- what accepting does --------------------------------------------------------------------------


def accepted_effect(message, before, index=1):
    return effect_of(message, SETTING.vcpu(index, before), message.delivery_mode)


vectors = st.frozensets(st.sampled_from([0x40, 0x41, 0x5F, 0xFF]))


@pytest.mark.parametrize("delivery_mode", [FIXED, LOWEST], ids=lambda mode: mode.name)
@pytest.mark.parametrize("trigger_mode", TriggerMode, ids=lambda mode: mode.name)
@given(vector=st.sampled_from([0x41, 0x60]), irr=vectors, tmr=vectors)
def test_interrupt_sets_its_irr_bit_and_its_tmr_bit(delivery_mode, trigger_mode, vector, irr, tmr):
    before = having(irr=irr, tmr=tmr)
    after = having(irr=irr | {vector}, tmr=tmr | {vector} if trigger_mode else tmr - {vector})
    message = Message(vector, delivery_mode=delivery_mode, trigger_mode=trigger_mode)
    assert accepted_effect(message, before) == effect_between(before, after)


@pytest.mark.parametrize(
    "delivery_mode, before, after",
    [
        (NMI, IDLE, having(nmi_pending=1)),
        (NMI, having(nmi_pending=1), having(nmi_pending=2)),
        (NMI, having(nmi_pending=2), having(nmi_pending=2)),
        (SMI, IDLE, having(smi_pending=1)),
        (SMI, having(smi_pending=1), having(smi_pending=1)),
        (INIT, IDLE, having(latched_init=1, mp_state=RECEIVED)),
        (INIT, having(mp_state=RECEIVED), having(latched_init=1, mp_state=RECEIVED)),
        (SIPI, having(mp_state=RECEIVED), IDLE),
        (SIPI, IDLE, IDLE),
        (SIPI, having(mp_state=HALTED), having(mp_state=HALTED)),
        (REMRD, having(mp_state=HALTED), IDLE),
        (REMRD, IDLE, IDLE),
        (EXTINT, IDLE, IDLE),
    ],
    ids=[
        *("NMI", "NMI-pending", "two-NMIs-pending", "SMI", "SMI-pending", "INIT", "INIT-received"),
        *("SIPI-to-waiting", "SIPI-to-runnable", "SIPI-to-halted"),
        *("REMRD-to-halted", "REMRD-to-runnable", "EXTINT"),
    ],
)
def test_delivery_mode_has_its_effect(delivery_mode, before, after):
    message = Message(delivery_mode=delivery_mode, trigger_mode=TriggerMode.LEVEL)
    assert accepted_effect(message, before) == effect_between(before, after)


def test_init_leaves_the_bootstrap_processor_runnable():
    effect = accepted_effect(Message(delivery_mode=INIT), IDLE, index=0)
    assert effect == effect_between(IDLE, having(latched_init=1))


# --- the checks -----------------------------------------------------------------------------------

TO_ONE = Message(destination=1)
MSI = abi.kvm_msi(address_lo=TO_ONE.address_lo, data=TO_ONE.data)
PENDING = having(irr=[0x41])


def sent(result: int, code: int = 0, after: tuple[Snapshot, ...] = (IDLE, IDLE, IDLE)) -> Injection:
    """Return the injection of a fixed message with vector 0x41 on a machine of three idle vCPUs."""
    return Injection(MSI, result, code, (IDLE, IDLE, IDLE), after, SETTING)


ONE = sent(1, after=(IDLE, PENDING, IDLE))
TWO = sent(2, after=(IDLE, PENDING, PENDING))
BLOCKED = sent(0)
UNMATCHED = sent(-1, errno.EPERM)
REJECTED = sent(-1, errno.EINVAL)
REJECTED_BUT_PENDING = sent(-1, errno.EINVAL, after=(IDLE, PENDING, IDLE))
NEXT_VECTOR = sent(1, after=(IDLE, having(irr=[0x42]), IDLE))
LEVEL = sent(1, after=(IDLE, having(irr=[0x41], tmr=[0x41]), IDLE))
ALSO_TPR = sent(1, after=(IDLE, having(irr=[0x41], tpr=0x10), IDLE))

Check = Callable[[Injection], Injection]

PASSING: dict[str, tuple[Check, Injection]] = {
    "returns-1": (lambda s: s.returns(1), ONE),
    "returns-0": (lambda s: s.returns(0), BLOCKED),
    "delivered-to-1": (lambda s: s.delivered(), ONE),
    "delivered-to-2": (lambda s: s.delivered(), TWO),
    "blocked": (lambda s: s.blocked(), BLOCKED),
    "fails-EINVAL": (lambda s: s.fails(errno.EINVAL), REJECTED),
    "blocked-or-unmatched-0": (lambda s: s.blocked_or_unmatched(), BLOCKED),
    "blocked-or-unmatched-EPERM": (lambda s: s.blocked_or_unmatched(), UNMATCHED),
    "accepted-by-1": (lambda s: s.accepted_by(1), ONE),
    "accepted-by-1-and-2": (lambda s: s.accepted_by(1, 2), TWO),
    "reached-nobody": (lambda s: s.reached_nobody(), REJECTED),
}

FAILING: dict[str, tuple[Check, Injection, str, str, str]] = {
    "returns-1-of-2": (lambda s: s.returns(1), TWO, "return value", "1", "2"),
    "returns-1-of-0": (lambda s: s.returns(1), BLOCKED, "return value", "1", "0"),
    "returns-of-error": (lambda s: s.returns(1), REJECTED, "return value", "1", "-1 EINVAL"),
    "delivered-of-0": (lambda s: s.delivered(), BLOCKED, "return value", "> 0", "0"),
    "delivered-of-error": (lambda s: s.delivered(), UNMATCHED, "return value", "> 0", "-1 EPERM"),
    "blocked-of-1": (lambda s: s.blocked(), ONE, "return value", "0", "1"),
    "blocked-of-error": (lambda s: s.blocked(), UNMATCHED, "return value", "0", "-1 EPERM"),
    "fails-of-1": (lambda s: s.fails(errno.EINVAL), ONE, "return value", "-1 EINVAL", "1"),
    "fails-of-other-errno": (
        *(lambda s: s.fails(errno.EINVAL), UNMATCHED),
        *("return value", "-1 EINVAL", "-1 EPERM"),
    ),
    "blocked-or-unmatched-of-1": (
        *(lambda s: s.blocked_or_unmatched(), ONE),
        *("return value", "0 or -1 EPERM", "1"),
    ),
    "blocked-or-unmatched-of-EINVAL": (
        *(lambda s: s.blocked_or_unmatched(), REJECTED),
        *("return value", "0 or -1 EPERM", "-1 EINVAL"),
    ),
    "accepted-by-too-few": (
        *(lambda s: s.accepted_by(1, 2), ONE),
        *("effect on vCPU 2", "IRR SET {0x41}", "nothing"),
    ),
    "accepted-by-too-many": (
        *(lambda s: s.accepted_by(1), TWO),
        *("effect on vCPU 2", "nothing", "IRR SET {0x41}"),
    ),
    "accepted-by-another": (
        *(lambda s: s.accepted_by(0), ONE),
        *("effect on vCPU 0", "IRR SET {0x41}", "nothing"),
    ),
    "accepted-with-another-vector": (
        *(lambda s: s.accepted_by(1), NEXT_VECTOR),
        *("effect on vCPU 1", "IRR SET {0x41}", "IRR SET {0x42}"),
    ),
    "accepted-as-level": (
        *(lambda s: s.accepted_by(1), LEVEL),
        *("effect on vCPU 1", "IRR SET {0x41}", "IRR SET {0x41}, TMR SET {0x41}"),
    ),
    "accepted-and-more": (
        *(lambda s: s.accepted_by(1), ALSO_TPR),
        *("effect on vCPU 1", "IRR SET {0x41}", "IRR SET {0x41}, changed TPR"),
    ),
    "reached-somebody": (
        *(lambda s: s.reached_nobody(), REJECTED_BUT_PENDING),
        *("effect on vCPU 1", "nothing", "IRR SET {0x41}"),
    ),
}


@pytest.mark.parametrize("check, injection", PASSING.values(), ids=PASSING)
def test_check_passes_and_can_be_chained(check, injection):
    assert check(injection) is injection


@pytest.mark.parametrize(
    "check, injection, subject, expected, actual", FAILING.values(), ids=FAILING
)
def test_check_raises_a_mismatch(check, injection, subject, expected, actual):
    with pytest.raises(Mismatch) as mismatch:
        check(injection)
    error = mismatch.value
    assert (error.subject, error.expected, error.actual) == (subject, expected, actual)


def test_first_vcpu_is_the_bootstrap_processor():
    message = Message(destination=0xFF, delivery_mode=INIT)
    msi = abi.kvm_msi(address_lo=message.address_lo, data=message.data)
    after = (having(latched_init=1), having(latched_init=1, mp_state=RECEIVED))
    Injection(msi, 2, 0, (IDLE, IDLE), after, SETTING).accepted_by(0, 1)


def test_acceptors_are_the_vcpus_that_changed():
    assert TWO.acceptors() == [1, 2]
    assert BLOCKED.acceptors() == []


def test_explanation_has_message_outcome_and_every_vcpu():
    first, words, outcome, *vcpus = REJECTED_BUT_PENDING.explain().splitlines()
    assert first == repr(TO_ONE)
    assert "address_lo=0xfee01000" in words
    assert outcome == "  returned -1 EINVAL"
    effects = [line.split(";")[0] for line in vcpus]
    assert effects == ["  vCPU 0: nothing", "  vCPU 1: IRR SET {0x41}", "  vCPU 2: nothing"]


def test_explanation_is_short_on_many_vcpus():
    many = Injection(MSI, 0, 0, (IDLE,) * 300, (IDLE,) * 300)
    lines = many.explain(most=8).splitlines()
    assert len([line for line in lines if "vCPU " in line]) == 8
    assert lines[-1] == "  and 292 more vCPUs"


# --- expect ---------------------------------------------------------------------------------------


def test_expect_passes_equal_values():
    expect("IRR", {0x41}, frozenset({0x41}))


@pytest.mark.parametrize(
    "actual, expected, said",
    [
        ({0x41, 0x52}, set(), "IRR: expected {}, got {0x41 0x52}"),
        (1, 0, "IRR: expected 0, got 1"),
        ("a", "b", "IRR: expected b, got a"),
    ],
    ids=["vectors", "numbers", "words"],
)
def test_expect_names_subject_and_both_values(actual, expected, said):
    with pytest.raises(Mismatch) as mismatch:
        expect("IRR", actual, expected)
    assert str(mismatch.value) == said


def test_expect_shows_values_by_the_given_function():
    with pytest.raises(Mismatch, match=r"^LDR: expected 0x1, got 0x2$"):
        expect("LDR", 2, 1, show=hex)


# --- in the terms of the model --------------------------------------------------------------------


def test_state_that_no_vcpu_can_have_has_no_topology():
    injection = Injection(abi.kvm_msi(), 0, 0, [IDLE], [IDLE], SETTING)
    first = "0" if running_kernel().has_smm else "no-smm"
    assert str(topology_before(injection)).startswith(first)
    assert topology_before(replace(injection, before=[having(mp_state=77)])) is None
    assert topology_before(replace(injection, before=[], after=[])) is None
