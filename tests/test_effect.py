# SPDX-License-Identifier: GPL-2.0-only
"""The effects that the model predicts on one vCPU."""

from __future__ import annotations

import pytest

from helpers.apic.model import Switches
from helpers.apic.topology import MpState
from tests.test_model import DELIVERY_MODES, HINT, NMI, outcome_of, predicted

EACH_VECTOR = [
    pytest.param("1", f"vector={vector}", f"IRR SET {{{vector:#04x}}}", id=f"vector-{vector}")
    for vector in range(256)
]


@pytest.mark.parametrize(
    "vcpu, message, effect",
    [
        *EACH_VECTOR,
        ("1/irr=0x41", "vector=0x41", "nothing"),
        ("1/irr=0x42", "vector=0x41", "IRR SET {0x41}"),
        ("1", "trigger_mode=level", "IRR SET {0x41}, TMR SET {0x41}"),
        ("1", "trigger_mode=level level=1", "IRR SET {0x41}, TMR SET {0x41}"),
        ("1/tmr=0x41", "trigger_mode=level", "IRR SET {0x41}"),
        ("1/irr=0x41", "trigger_mode=level", "TMR SET {0x41}"),
        ("1/irr=0x41/tmr=0x41", "trigger_mode=edge", "TMR CLEARED {0x41}"),
        ("1/tmr=0x42", "trigger_mode=edge", "IRR SET {0x41}"),
        ("1", "delivery_mode=lowest_priority", "IRR SET {0x41}"),
        ("1", "delivery_mode=smi", "SMI pending"),
        ("1/smi=1", "delivery_mode=smi", "nothing"),
        ("1/irr=3/tmr=0x41", "delivery_mode=nmi trigger_mode=level", "NMI pending"),
        ("1/nmi=1", "delivery_mode=nmi", "NMI pending"),
        ("1/nmi=2", "delivery_mode=nmi", "nothing"),
        ("1", "delivery_mode=init", "INIT pending, mp_state RUNNABLE->INIT_RECEIVED"),
        ("1/halted", "delivery_mode=init", "INIT pending, mp_state HALTED->INIT_RECEIVED"),
        ("1/init-received", "delivery_mode=init", "INIT pending"),
        ("1/init-received/init=1", "delivery_mode=init", "nothing"),
        ("0", "delivery_mode=init", "INIT pending"),
        ("0/halted", "delivery_mode=init", "INIT pending, mp_state HALTED->RUNNABLE"),
        ("1/init-received", "delivery_mode=sipi", "mp_state INIT_RECEIVED->RUNNABLE"),
        ("1/uninitialized", "delivery_mode=sipi", "nothing"),
        ("1/halted", "delivery_mode=sipi", "nothing"),
        ("1/ap-reset-hold", "delivery_mode=sipi", "nothing"),
        ("1", "delivery_mode=sipi", "nothing"),
        ("1", "delivery_mode=remrd", "nothing"),
        ("1/halted", "delivery_mode=remrd", "mp_state HALTED->RUNNABLE"),
        ("1/ap-reset-hold", "delivery_mode=remrd", "mp_state AP_RESET_HOLD->RUNNABLE"),
        ("1/init-received", "delivery_mode=remrd", "nothing"),
        ("1/nmi-masked", "delivery_mode=nmi", "NMI pending"),
        ("1/nmi-masked/nmi=1", "delivery_mode=nmi", "nothing"),
        ("1/shadow/tpr=0xf0/isr=0x41/eoi-suppressed", "vector=0x41", "IRR SET {0x41}"),
        ("1/smm", "delivery_mode=init", "INIT pending"),
        ("1/smm/init=1", "delivery_mode=init", "nothing"),
        ("1/smm/init-received", "delivery_mode=sipi", "nothing"),
        ("1/smm/halted", "delivery_mode=remrd", "mp_state HALTED->RUNNABLE"),
        ("1/bsp", "delivery_mode=init", "INIT pending"),
        ("0/ap", "delivery_mode=init", "INIT pending, mp_state RUNNABLE->INIT_RECEIVED"),
    ],
)
def test_effect_on_the_vcpu_that_accepts_it(vcpu, message, effect):
    outcome = predicted(vcpu, f"{message} destination={vcpu[0]}", {})
    assert outcome_of(outcome) == "1: 0"
    assert str(outcome.effects[0]) == effect


@pytest.mark.parametrize(
    "switch, vcpu, message, effect",
    [
        ("nmis_are_counted", "1", "delivery_mode=nmi", "NMI pending"),
        ("nmis_are_counted", "1/nmi=1", "delivery_mode=nmi", "nothing"),
        ("remrd_ends_reset_hold", "1/ap-reset-hold", "delivery_mode=remrd", "nothing"),
        ("remrd_ends_reset_hold", "1/halted", "delivery_mode=remrd", "mp_state HALTED->RUNNABLE"),
    ],
)
def test_effect_with_a_switch_off(switch, vcpu, message, effect):
    outcome = predicted(vcpu, f"{message} destination=1", {}, Switches(**{switch: False}))
    assert outcome_of(outcome) == "1: 0"
    assert str(outcome.effects[0]) == effect


@pytest.mark.parametrize("state", MpState, ids=lambda state: state.name)
@pytest.mark.parametrize("delivery_mode", DELIVERY_MODES[:-1])
def test_return_value_does_not_depend_on_the_mp_state(delivery_mode, state):
    vcpu = f"1/{state.name.lower().replace('_', '-')}"
    assert outcome_of(predicted(vcpu, f"delivery_mode={delivery_mode} destination=1", {})) == "1: 0"


def test_refused_message_does_nothing():
    outcome = predicted("0 1/sw-disabled/tmr=0x41", "destination=0xff vector=0x41", {})
    assert [str(effect) for effect in outcome.effects] == ["IRR SET {0x41}", "nothing"]
    assert outcome.accepted == (0,)


def test_hint_to_broadcast_turns_an_nmi_into_its_vector():
    outcome = predicted("0 1", f"{HINT + NMI} vector=0 destination=0xff", {})
    assert [str(effect) for effect in outcome.effects] == ["IRR SET {0x00}", "nothing"]
