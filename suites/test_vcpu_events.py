# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS, the ioctls that save and restore pending events.

Clauses: state.events, state.events-refused, state.events-unchanged.
"""

import pytest

from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import (
    NEEDS_PAYLOAD,
    NEEDS_SMM,
    expect_mp_state,
    fixed,
    outcome_of,
    to,
)
from suites.names import INIT, SIPI

ALWAYS_VALID = (
    abi.KVM_VCPUEVENT_VALID_NMI_PENDING
    | abi.KVM_VCPUEVENT_VALID_SHADOW
    | abi.KVM_VCPUEVENT_VALID_SMM
)
DEFINED = 0x3F

NEEDS_TRIPLE_FAULT = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_X86_TRIPLE_FAULT_EVENT']",
    reason="the kernel has no KVM_CAP_X86_TRIPLE_FAULT_EVENT",
)


def events_with(cpu, flags=0, **fields):
    """Return the events of ``cpu`` with ``flags`` and with ``exception_nr`` and the like."""
    events = cpu.vcpu.get_events()
    events.flags = flags
    for name, value in fields.items():
        structure, _, field = name.partition("__")
        setattr(getattr(events, structure) if field else events, field or name, value)
    return events


def restore(cpu, flags=0, **fields):
    cpu.vcpu.set_events(events_with(cpu, flags, **fields))


def expect_events(cpu, **fields):
    """Raise Mismatch unless KVM_GET_VCPU_EVENTS returns these fields."""
    events = cpu.vcpu.get_events()
    for name, value in fields.items():
        structure, _, field = name.partition("__")
        expect(
            name,
            getattr(getattr(events, structure), field) if field else getattr(events, name),
            value,
        )


# --- state.events ---------------------------------------------------------------------------------

PAGE_FAULT = {
    "exception__nr": 14,
    "exception__has_error_code": 1,
    "exception__error_code": 0x80000005,
}


@pytest.fixture
def enabling(machines):
    """Return a function that creates a machine and enables a capability in it."""

    def make(capability):
        machine = machines(vcpu_ids=range(2))
        machine.vm.enable_cap(capability, 1)
        return machine

    return make


@clause("state.events")
def test_flags_say_what_is_valid(machine):
    expect_events(machine[1], flags=ALWAYS_VALID)


@clause("state.events")
@pytest.mark.parametrize("nr", [0, 1, 6, 13, 14, 31])
def test_injected_exception_is_restored(machine, nr):
    fields = PAGE_FAULT | {"exception__nr": nr, "exception__injected": 1}
    restore(machine[1], **fields)
    expect_events(machine[1], **fields, exception__pending=0, exception_has_payload=0)
    restore(machine[1], exception__injected=0)
    expect_events(machine[1], exception__injected=0)


@clause("state.events")
def test_exception_without_the_payload_flag_is_injected_or_nothing(machine):
    restore(machine[1], **PAGE_FAULT, exception__pending=1, exception_has_payload=1)
    expect_events(machine[1], exception__injected=0, exception__pending=0, exception_has_payload=0)


@clause("state.events")
@each.vector([0x10, 0x41, 0xFF])
def test_injected_interrupt_is_restored(machine, vector):
    restore(machine[1], interrupt__injected=1, interrupt__nr=vector)
    expect_events(machine[1], interrupt__injected=1, interrupt__nr=vector)
    machine[1].step()
    expect("vectors taken", [taken.vector for taken in machine[1].log()], [vector])
    expect_events(machine[1], interrupt__injected=0)


@clause("state.events")
def test_software_interrupt_is_not_saved(machine):
    restore(machine[1], interrupt__injected=1, interrupt__nr=0x41, interrupt__soft=1)
    expect_events(machine[1], interrupt__injected=0, interrupt__soft=0)


@clause("state.events")
@pytest.mark.parametrize("field", ["injected", "masked"])
def test_nmi_is_restored(machine, field):
    for value in (1, 0):
        restore(machine[1], **{f"nmi__{field}": value})
        expect_events(machine[1], **{f"nmi__{field}": value})


@clause("state.events")
@pytest.mark.parametrize("pending", [0, 1])
def test_restored_number_of_nmis_replaces_the_old_one(machine, pending):
    restore(machine[1], abi.KVM_VCPUEVENT_VALID_NMI_PENDING, nmi__pending=1)
    expect_events(machine[1], nmi__pending=1)
    restore(machine[1], abi.KVM_VCPUEVENT_VALID_NMI_PENDING, nmi__pending=pending)
    expect_events(machine[1], nmi__pending=pending)


@clause("state.events")
@NEEDS_SMM
@pytest.mark.parametrize("smm_inside_nmi", [0, 1])
def test_smm_is_restored(machines, smm_inside_nmi):
    cpu = machines(vcpu_ids=range(2))[1]
    fields = {"smi__smm": 1, "smi__pending": 1, "smi__smm_inside_nmi": smm_inside_nmi}
    restore(cpu, abi.KVM_VCPUEVENT_VALID_SMM, **fields)
    expect_events(cpu, **fields)
    restore(cpu, **dict.fromkeys(fields, 0))
    expect_events(cpu, **fields)
    restore(cpu, abi.KVM_VCPUEVENT_VALID_SMM, smi__smm=1, smi__pending=0, smi__smm_inside_nmi=0)
    expect_events(cpu, smi__smm=1, smi__pending=0, smi__smm_inside_nmi=0)


@clause("state.events")
@pytest.mark.parametrize("latched_init", [0, 1])
def test_latched_init_is_restored(machine, latched_init):
    machine.send(to(1, delivery_mode=INIT))
    restore(machine[1], smi__latched_init=0)
    expect_events(machine[1], smi__latched_init=1)
    restore(machine[1], abi.KVM_VCPUEVENT_VALID_SMM, smi__latched_init=latched_init)
    expect_events(machine[1], smi__latched_init=latched_init)
    expect_mp_state(machine[1], [MpState.RUNNABLE, MpState.INIT_RECEIVED][latched_init])


@clause("state.events")
@pytest.mark.parametrize("valid", [0, 1])
def test_sipi_vector_is_restored_if_the_flag_says_so(machine, valid):
    machine.send(to(1, delivery_mode=INIT))
    expect_mp_state(machine[1], MpState.INIT_RECEIVED)
    sent, restored = (0, machine.start_page) if valid else (machine.start_page, 0)
    machine.send(to(1, vector=sent, delivery_mode=SIPI))
    restore(machine[1], valid * abi.KVM_VCPUEVENT_VALID_SIPI_VECTOR, sipi_vector=restored)
    expect_events(machine[1], sipi_vector=0)
    machine[1].step()


@clause("state.events")
def test_events_leave_the_irr_alone(machine):
    machine.send(fixed(0x41))
    restore(machine[1], interrupt__nr=0x42)
    expect("IRR", machine[1].lapic.irr, {0x41})


@clause("state.events")
@NEEDS_PAYLOAD
def test_pending_exception_and_payload_are_restored(enabling):
    cpu = enabling(abi.KVM_CAP_EXCEPTION_PAYLOAD)[1]
    valid = abi.KVM_VCPUEVENT_VALID_PAYLOAD
    expect_events(cpu, flags=ALWAYS_VALID | valid)
    payload = {"exception_has_payload": 1, "exception_payload": 0x123456789ABC}
    restore(cpu, valid, **PAGE_FAULT, **payload, exception__pending=1, exception__injected=1)
    expect_events(cpu, **PAGE_FAULT, **payload, exception__pending=1, exception__injected=0)
    restore(cpu, valid, **PAGE_FAULT, **payload, exception__pending=0, exception__injected=1)
    expect_events(cpu, exception__pending=0, exception__injected=1, exception_has_payload=0)


@clause("state.events")
@NEEDS_TRIPLE_FAULT
def test_triple_fault_is_restored(enabling):
    cpu = enabling(abi.KVM_CAP_X86_TRIPLE_FAULT_EVENT)[1]
    valid = abi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    expect_events(cpu, flags=ALWAYS_VALID | valid, triple_fault=0)
    restore(cpu, valid, triple_fault=1)
    expect_events(cpu, triple_fault=1)
    restore(cpu, triple_fault=0)
    expect_events(cpu, triple_fault=1)
    restore(cpu, valid, triple_fault=0)
    expect_events(cpu, triple_fault=0)
    cpu.step()


@clause("state.events")
@NEEDS_TRIPLE_FAULT
def test_restored_triple_fault_shuts_down(enabling):
    cpu = enabling(abi.KVM_CAP_X86_TRIPLE_FAULT_EVENT)[1]
    restore(cpu, abi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT, triple_fault=1)
    expect("exit reason", cpu.vcpu.run(), abi.KVM_EXIT_SHUTDOWN)


@clause("state.events")
def test_events_of_a_vcpu_without_lapic_are_restored(machines):
    cpu = machines(irqchip="none", vcpu_ids=(0,), power_on=False)[0]
    fields = {"nmi__masked": 1, "nmi__pending": 1, "smi__latched_init": 0}
    restore(cpu, ALWAYS_VALID | abi.KVM_VCPUEVENT_VALID_SIPI_VECTOR, **fields, sipi_vector=0x41)
    expect_events(cpu, flags=ALWAYS_VALID, **fields, sipi_vector=0)


# --- state.events-refused -------------------------------------------------------------------------


def expect_outcome(cpu, outcome, flags=0, **fields):
    expect("outcome", outcome_of(cpu.vcpu.set_events, events_with(cpu, flags, **fields)), outcome)


@clause("state.events-refused")
@each.bit(range(32))
def test_flag_that_is_not_enabled_is_refused(machine, bit):
    enabled = ALWAYS_VALID | abi.KVM_VCPUEVENT_VALID_SIPI_VECTOR
    expect_outcome(machine[1], "accepted" if enabled >> bit & 1 else "EINVAL", 1 << bit)


@clause("state.events-refused")
@NEEDS_PAYLOAD
@NEEDS_TRIPLE_FAULT
def test_enabled_flags_are_accepted_together(enabling):
    machine = enabling(abi.KVM_CAP_EXCEPTION_PAYLOAD)
    machine.vm.enable_cap(abi.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    expect_outcome(machine[1], "accepted", DEFINED)
    expect_events(machine[1], flags=DEFINED & ~abi.KVM_VCPUEVENT_VALID_SIPI_VECTOR)


@clause("state.events-refused")
@pytest.mark.parametrize("nr", [2, 32, 33, 255])
def test_vector_that_is_no_exception_is_refused(machine, nr):
    expect_outcome(machine[1], "EINVAL", exception__injected=1, exception__nr=nr)
    expect_outcome(machine[1], "accepted", exception__injected=0, exception__nr=nr)


@clause("state.events-refused")
@NEEDS_PAYLOAD
@pytest.mark.parametrize("nr", [2, 32])
def test_pending_vector_that_is_no_exception_is_refused(enabling, nr):
    cpu = enabling(abi.KVM_CAP_EXCEPTION_PAYLOAD)[1]
    valid = abi.KVM_VCPUEVENT_VALID_PAYLOAD
    expect_outcome(cpu, "EINVAL", valid, exception__pending=1, exception__nr=nr)


@clause("state.events-refused")
def test_refused_events_change_nothing(machine):
    before = bytes(machine[1].vcpu.get_events())
    expect_outcome(machine[1], "EINVAL", 1 << 31, **PAGE_FAULT, exception__injected=1)
    expect("events", bytes(machine[1].vcpu.get_events()), before)


# --- state.events-unchanged -----------------------------------------------------------------------

REFUSED = [
    pytest.param({"flags": 1 << 31}, id="undefined-flag"),
    pytest.param({"flags": abi.KVM_VCPUEVENT_VALID_PAYLOAD}, id="payload"),
    pytest.param(
        {"flags": abi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT},
        id="triple-fault",
        marks=deviation("refused-triple-fault-restores"),
    ),
    pytest.param({"exception__injected": 1, "exception__nr": 32}, id="exception"),
]


@clause("state.events-unchanged")
@pytest.mark.parametrize("refused", REFUSED)
def test_no_refused_event_is_restored(machine, refused):
    expect_outcome(machine[1], "EINVAL", **refused, nmi__masked=1)
    expect_events(machine[1], nmi__masked=0)
