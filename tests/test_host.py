# SPDX-License-Identifier: GPL-2.0-only
"""What ioctls of the host and an INIT do to a vCPU, in the terms of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.host import (
    after_apic_mode,
    after_events,
    after_init,
    after_mp_state,
    after_register,
    deliverable,
)
from helpers.apic.lapic import DFR_CLUSTER, SVR_ENABLE, SVR_SUPPRESS_EOI
from helpers.apic.model import REFERENCE
from helpers.apic.topology import MpState, VcpuState

BEFORE_6_17 = replace(REFERENCE, smm_allows_init_received=False)
BEFORE_6_4 = replace(REFERENCE, nmis_are_counted=False)


def state(text: str) -> VcpuState:
    return VcpuState.parse(text)


# --- KVM_SET_VCPU_EVENTS --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, changes, after",
    [
        ("1", {"nmi_masked": 1, "shadow": 1}, "1/nmi-masked/shadow"),
        ("1", {"nmi": 2}, "1/nmi=2"),
        ("1", {"nmi": 2, "nmi_masked": 1}, "1/nmi=1/nmi-masked"),
        ("1/nmi=2", {"nmi_masked": 1}, "1/nmi=1/nmi-masked"),
        ("1/nmi=1/nmi-masked", {"nmi_masked": 0}, "1/nmi=1"),
        ("1", {"smm": 1, "smi": 1}, "1/smm/smi=1"),
        ("1", {"init": 1}, "1/init=1/init-received"),
        ("1/bsp/halted", {"init": 1}, "1/bsp/init=1"),
        ("1", {"smm": 1, "init": 1}, "1/smm/init=1"),
        ("1/smm/init=1", {"smm": 0}, "1/init=1/init-received"),
        ("1/smm/init=1", {"smm": 0, "init": 0}, "1"),
    ],
)
def test_events_are_written(before, changes, after):
    assert after_events(state(before), changes) == state(after)


def test_older_kernel_shows_one_nmi():
    assert after_events(state("1"), {"nmi": 2}, BEFORE_6_4) == state("1/nmi=1")


@pytest.mark.parametrize("changes", [{"smm": 1}, {"smi": 1}, {"smm": 1, "init": 1}])
def test_older_kernel_refuses_smm_while_a_sipi_is_awaited(changes):
    waiting = state("1/init-received")
    assert after_events(waiting, changes) is not None
    assert after_events(waiting, changes, BEFORE_6_17) is None
    assert after_events(state("1/halted"), changes, BEFORE_6_17) is not None


@pytest.mark.parametrize("changes", [{"nmi": 1}, {"shadow": 1}, {"init": 1}, {"smm": 0}])
def test_older_kernel_takes_other_events_while_a_sipi_is_awaited(changes):
    waiting = state("1/init-received")
    assert after_events(waiting, changes, BEFORE_6_17) == after_events(waiting, changes)


# --- KVM_SET_MP_STATE -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["1", "1/smm", "1/smi=1"])
def test_mp_state_is_written(before):
    halted = after_mp_state(state(before), MpState.HALTED, BEFORE_6_17)
    assert halted == replace(state(before), mp_state=MpState.HALTED)


@pytest.mark.parametrize("before", ["1/smm", "1/smi=1"])
def test_older_kernel_lets_no_vcpu_in_smm_await_a_sipi(before):
    assert after_mp_state(state(before), MpState.INIT_RECEIVED, BEFORE_6_17) is None
    assert after_mp_state(state(before), MpState.INIT_RECEIVED) is not None
    assert after_mp_state(state("1"), MpState.INIT_RECEIVED, BEFORE_6_17) is not None


# --- INIT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, after",
    [
        ("1/ldr=0x2000000/dfr=0xfffffff/id=9/tpr=0x40", "1/id=9/sw-disabled/init-received"),
        ("1/irr=0x41/isr=0x51/tmr=0x41/eoi-suppressed", "1/sw-disabled/init-received"),
        ("1/nmi=2/smi=1/init=1/arb_prio=4", "1/sw-disabled/init-received"),
        ("1/bsp/halted", "1/bsp/sw-disabled"),
        ("0/ap", "0/ap/sw-disabled/init-received"),
        ("300/x2apic/ldr=0x8", "300/x2apic/ldr=0x8/sw-disabled/init-received"),
        ("1/disabled/ldr=0x2000000", "1/disabled/sw-disabled/init-received"),
    ],
)
def test_init_resets_all_but_mode_id_and_bsp_flag(before, after):
    assert after_init(state(before)) == state(after)


# --- registers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, mode, after",
    [
        ("1/id=9/ldr=0x2000000", ApicMode.X2APIC, "1/x2apic"),
        ("300/x2apic", ApicMode.XAPIC, "300/id=44/ldr=0x121000"),
        ("1/disabled/id=0", ApicMode.XAPIC, "1"),
        ("1/id=9", ApicMode.XAPIC, "1/id=9"),
    ],
)
def test_switch_of_the_apic_mode_sets_the_ids(before, mode, after):
    assert after_apic_mode(state(before), mode) == state(after)


@pytest.mark.parametrize(
    "before, register, value, after",
    [
        ("1", Register.ID, 9 << 24, "1/id=9"),
        ("1", Register.LDR, 1 << 24, "1/ldr=0x1000000"),
        ("1", Register.DFR, DFR_CLUSTER, "1/dfr=0xfffffff"),
        ("1", Register.TPR, 0x40, "1/tpr=0x40"),
        ("1/eoi-suppressed", Register.SVR, 0xFF, "1/sw-disabled"),
        ("1/sw-disabled", Register.SVR, SVR_ENABLE | SVR_SUPPRESS_EOI, "1/eoi-suppressed"),
        ("1/x2apic", Register.ID, 9 << 24, "1/x2apic"),
        ("1/x2apic", Register.LDR, 9, "1/x2apic"),
    ],
)
def test_register_is_written(before, register, value, after):
    assert after_register(state(before), register, value) == state(after)


def test_register_that_is_no_state_is_refused():
    with pytest.raises(ValueError, match=r"^ESR is no part of the state$"):
        after_register(state("1"), Register.ESR, 0)


# --- what can be taken ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vcpu, vectors",
    [
        ("1", []),
        ("1/irr=0x41+0x61+0x52", [0x61, 0x52, 0x41]),
        ("1/irr=0x0+0xf+0x10", [0x10]),
        ("1/irr=0x41+0x61/tpr=0x4f", [0x61]),
        ("1/irr=0x41+0x61/tpr=0x60", []),
        ("1/irr=0x41+0x61/isr=0x5f", [0x61]),
        ("1/irr=0x41/disabled", []),
        ("1/irr=0x41/sw-disabled", [0x41]),
    ],
)
def test_deliverable_vectors_highest_first(vcpu, vectors):
    assert deliverable(state(vcpu)) == vectors
