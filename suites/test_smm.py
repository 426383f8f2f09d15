# SPDX-License-Identifier: GPL-2.0-only
"""Messages to a vCPU in SMM: what waits for the end of SMM, and what the end lets through.

Clauses: guest.smm-holds, guest.init-in-smm, guest.hlt, state.smm-init-received, state.smi,
kernel.no-warning.

A vCPU enters SMM by an SMI and leaves SMM by RSM ("guest"), or a host that restores a vCPU makes it
enter and leave by KVM_SET_VCPU_EVENTS ("host"). The SMI handler of the guest stops before RSM.
"""

import pytest

from helpers.apic import DeliveryMode, Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    NEEDS_SMM,
    enter_handler,
    expect_asleep,
    expect_mp_state,
    expect_taken,
    outcome_of,
    set_events,
    to,
    try_to,
)
from suites.names import FIXED, INIT, NMI, SIPI, SMI, SVR_ENABLED

pytestmark = NEEDS_SMM

EACH_WAY = pytest.mark.parametrize("way", ["host", "guest"])
EACH_SAVE = pytest.mark.parametrize("saved", [False, True], ids=["kept", "saved"])


@pytest.fixture
def in_smm(machines, way):
    """Two vCPUs; vCPU 1 is in SMM."""
    machine = machines(vcpu_ids=range(2))
    if way == "host":
        set_events(machine[1], smi_smm=1, nmi_masked=1)
    else:
        machine.pause_smis()
        machine.send(to(1, delivery_mode=SMI))
        machine[1].run_to_smi_handler()
        machine.pause_smis(False)
    return machine


def leave(machine, way):
    """Have vCPU 1 leave SMM on the next entry, or at once."""
    if way == "host":
        set_events(machine[1], smi_smm=0, nmi_masked=0)


def leave_with_init(machine, way):
    """Have vCPU 1, for which an INIT waits, leave SMM. KVM_RUN does not return after the INIT."""
    leave(machine, way)
    while machine[1].vcpu.get_events().smi.smm:  # A kick may come before RSM.
        with machine[1].waiting() as running:
            running.kick()


def waiting(cpu):
    """Return the SMIs, INITs, NMIs and vectors that wait for ``cpu``, which is in SMM."""
    events = cpu.vcpu.get_events()
    expect("in SMM", events.smi.smm, 1)
    return {
        "SMIs": events.smi.pending,
        "INITs": events.smi.latched_init,
        "NMIs": events.nmi.pending,
        "vectors": sorted(cpu.lapic.irr),
    }


def expect_smis(machine, way, count):
    """Raise Mismatch unless the SMI handler has run ``count`` times since ``in_smm``."""
    expect("SMIs handled", machine.smis_handled - (way == "guest"), count)


@clause("guest.smm-holds")
@EACH_WAY
@EACH_SAVE
def test_messages_wait_in_smm(in_smm, saved):
    cpu = in_smm[1]
    waits = {"SMIs": 0, "INITs": 0, "NMIs": 0, "vectors": []}
    for delivery_mode, change in (
        (FIXED, {"vectors": [0x41]}),
        (SIPI, {}),
        (SMI, {"SMIs": 1}),
        (NMI, {"NMIs": 1}),
        (INIT, {"INITs": 1}),
        (SIPI, {}),
    ):
        waits |= change
        for _ in range(2):
            expect("return value", in_smm.send(to(1, delivery_mode=delivery_mode)), 1)
            if saved:
                set_events(cpu)
            expect("waiting in SMM", waiting(cpu), waits)
            expect_mp_state(cpu, MpState.RUNNABLE)


@clause("guest.smm-holds")
@EACH_WAY
@pytest.mark.parametrize(
    "delivery_mode, taken, smis",
    [(FIXED, [0x41], 0), (SIPI, [], 0), (SMI, [], 1), (NMI, [2], 0)],
    ids=["FIXED", "SIPI", "SMI", "NMI"],
)
def test_end_of_smm_lets_a_message_through_once(in_smm, way, delivery_mode, taken, smis):
    for _ in range(2):
        in_smm.send(to(1, delivery_mode=delivery_mode))
    leave(in_smm, way)
    expect_taken(in_smm[1], *taken)
    expect_smis(in_smm, way, smis)
    expect_mp_state(in_smm[1], MpState.RUNNABLE)


@clause("guest.smm-holds")
@EACH_WAY
@EACH_SAVE
def test_end_of_smm_lets_all_through(in_smm, way, saved):
    for delivery_mode in (FIXED, NMI, SMI, SIPI):
        in_smm.send(to(1, delivery_mode=delivery_mode))
    if saved:
        set_events(in_smm[1])
    leave(in_smm, way)
    expect_taken(in_smm[1], 2, 0x41)
    expect_smis(in_smm, way, 1)


@clause("guest.init-in-smm")
@EACH_WAY
@EACH_SAVE
def test_end_of_smm_lets_an_init_through(in_smm, way, saved):
    in_smm.send(to(1, delivery_mode=INIT))
    if saved:
        set_events(in_smm[1])
    expect("SVR in SMM", in_smm[1].lapic[Register.SVR], SVR_ENABLED)
    leave_with_init(in_smm, way)
    expect_mp_state(in_smm[1], MpState.INIT_RECEIVED)
    expect("SVR after SMM", in_smm[1].lapic[Register.SVR], SVR_RESET)
    expect("in SMM", in_smm[1].vcpu.get_events().smi.smm, 0)


@clause("guest.init-in-smm")
@EACH_WAY
def test_host_clears_a_latched_init(in_smm, way):
    in_smm.send(to(1, delivery_mode=INIT))
    set_events(in_smm[1], smi_latched_init=0)
    leave(in_smm, way)
    expect_taken(in_smm[1])
    expect_mp_state(in_smm[1], MpState.RUNNABLE)


@clause("guest.init-in-smm")
@EACH_WAY
def test_sipi_after_smm_starts_the_processor(in_smm, way):
    in_smm.send(to(1, delivery_mode=INIT))
    leave_with_init(in_smm, way)
    in_smm.send(to(1, vector=in_smm.start_page, delivery_mode=SIPI))
    in_smm[1].step()
    expect("SVR", in_smm[1].read(Register.SVR), SVR_RESET)


# --- guest.hlt ------------------------------------------------------------------------------------


@clause("guest.hlt")
@EACH_WAY
@each.delivery_mode(SMI, pytest.param(INIT, marks=deviation("latched-init-wakes")))
def test_message_that_waits_in_smm_does_not_wake(in_smm, delivery_mode):
    in_smm.send(to(1, delivery_mode=delivery_mode))
    waits = {"SMIs": int(delivery_mode is SMI), "INITs": int(delivery_mode is INIT)}
    expect("waiting in SMM", waiting(in_smm[1]), {**waits, "NMIs": 0, "vectors": []})
    in_smm[1].mp_state = MpState.HALTED
    with in_smm[1].waiting() as running:
        expect_asleep(in_smm[1], running)


@clause("guest.hlt")
def test_restored_smi_wakes(machines):
    machine = machines(vcpu_ids=range(2))
    machine[1].mp_state = MpState.HALTED
    set_events(machine[1], smi_pending=1)
    with machine[1].in_thread() as running:
        running.finish()
    expect("SMIs handled", machine.smis_handled, 1)


# --- guest.smm-holds: NMIs were masked before the SMI ---------------------------------------------


@pytest.fixture
def smi_in_nmi(machines):
    """vCPU 1 is in an SMI handler that interrupted the handler of an NMI."""
    machine = machines(vcpu_ids=range(2))
    machine.send(to(1, delivery_mode=NMI))
    enter_handler(machine[1])
    machine.pause_smis()
    machine.send(to(1, delivery_mode=SMI))
    machine[1].run_to_smi_handler()
    return machine


@clause("guest.smm-holds")
@EACH_SAVE
def test_rsm_returns_to_masked_nmis(smi_in_nmi, saved):
    for delivery_mode in (NMI, SMI):
        smi_in_nmi.send(to(1, delivery_mode=delivery_mode))
    for _ in range(2):  # The second SMI interrupts the handler of the NMI right after RSM.
        if saved:
            set_events(smi_in_nmi[1])
        events = smi_in_nmi[1].vcpu.get_events()
        expect("NMIs masked before SMM", events.smi.smm_inside_nmi, 1)
        expect("NMIs masked, pending", (events.nmi.masked, events.nmi.pending), (1, 1))
        if events.smi.pending:
            smi_in_nmi[1].run_to_smi_handler()
    smi_in_nmi.pause_smis(False)
    expect_taken(smi_in_nmi[1], 2, 2)
    expect("SMIs handled", smi_in_nmi.smis_handled, 2)


@clause("guest.smm-holds")
def test_rsm_unmasks_nmis(machines):
    machine = machines(vcpu_ids=range(2))
    machine.send(to(1, delivery_mode=SMI))
    expect_taken(machine[1])
    events = machine[1].vcpu.get_events()
    expect("NMIs masked, in SMM", (events.nmi.masked, events.smi.smm), (0, 0))


# --- state.smm-init-received ----------------------------------------------------------------------

EACH_SMI_FIELD = pytest.mark.parametrize("field", ["smm", "smi"])


@clause("state.smm-init-received")
@deviation("smm-refuses-init-received")
@EACH_SMI_FIELD
def test_smm_can_be_restored_before_init_received(machine, field):
    machine[1].set_events({field: 1})
    outcome = outcome_of(machine[1].vcpu.set_mp_state, MpState.INIT_RECEIVED)
    expect("KVM_SET_MP_STATE", outcome, "accepted")


@clause("state.smm-init-received")
@deviation("smm-refuses-init-received")
@EACH_SMI_FIELD
def test_smm_can_be_restored_after_init_received(machine, field):
    machine[1].vcpu.set_mp_state(MpState.INIT_RECEIVED)
    outcome = outcome_of(machine[1].set_events, {field: 1})
    expect("KVM_SET_VCPU_EVENTS", outcome, "accepted")


# --- state.smi ------------------------------------------------------------------------------------


@clause("state.smi")
@each.value("pending", [0, 1], "pending{}")
def test_pending_smi_is_restored(machines, pending):
    machine = machines(vcpu_ids=range(2))
    if not pending:
        machine.send(to(1, delivery_mode=SMI))
    set_events(machine[1], smi_pending=pending)
    expect_taken(machine[1])
    expect("SMIs handled", machine.smis_handled, pending)


@clause("state.smi")
def test_without_its_flag_an_smi_does_not_count(machines):
    cpu = machines(vcpu_ids=range(2))[1]
    without = abi.KVM_VCPUEVENT_VALID_SMM
    set_events(cpu, without=without, smi_smm=1, smi_pending=1, smi_latched_init=1)
    smi = cpu.vcpu.get_events().smi
    shown = smi.smm, smi.pending, smi.latched_init
    expect("in SMM, SMIs, INITs pending", shown, (0, 0, 0))


# --- kernel.no-warning ----------------------------------------------------------------------------

EVENTS = {
    "smi": {"smi_pending": 1},
    "smm": {"smi_smm": 1},
    "smm-init": {"smi_smm": 1, "smi_latched_init": 1},
    "init": {"smi_latched_init": 1},
}
NO_EVENTS = {"smi_smm": 0, "smi_pending": 0, "smi_latched_init": 0, "nmi_pending": 0}
WARNS = deviation("init-received-in-smm-warns")


def states():
    """Yield each mp_state with each set of events."""
    for name, events in EVENTS.items():
        for state in MpState:
            waits = state in (MpState.INIT_RECEIVED, MpState.SIPI_RECEIVED)
            marks = [WARNS] if waits and "smi_smm" in events else []
            yield pytest.param(state, events, id=f"{state.name}-{name}", marks=marks)


@clause("kernel.no-warning")
@pytest.mark.parametrize("state, events", list(states()))
def test_no_message_raises_a_warning(machines, state, events):
    machine = machines(vcpu_ids=range(2))
    cpu = machine[1]
    for delivery_mode in DeliveryMode:
        # KVM refuses some combinations, depending on the order.
        try_to(cpu.vcpu.set_mp_state, state)
        try_to(set_events, cpu, **events)
        try_to(cpu.vcpu.set_mp_state, state)
        machine.send(to(1, delivery_mode=delivery_mode))
        for ask in (cpu.vcpu.get_mp_state, cpu.vcpu.get_events, cpu.vcpu.enter_at_once):
            try_to(ask)
        set_events(cpu, **NO_EVENTS)
        cpu.mp_state = MpState.RUNNABLE
