# SPDX-License-Identifier: GPL-2.0-only
"""The interrupt shadow of STI and MOV SS, which a host restores by KVM_SET_VCPU_EVENTS.

Clauses: state.shadow, guest.shadow, guest.shadow-in-smm.

The guest executes instructions of one byte each: a vector or an NMI that the shadow holds back
interrupts the second instruction.
"""

import pytest

from helpers.guest import GuestError, expect, layout
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import NEEDS_SMM, fixed, set_events, to
from suites.names import FIXED, NMI, SMI

NOPS = layout.PROBE + layout.NOPS
MOV_SS, STI = 1, 2  # KVM_X86_SHADOW_INT_*

NEEDS_SHADOW = pytest.mark.skipif(
    "kernel.vendor == 'kvm_pvm'",
    reason="kvm_pvm keeps a restored interrupt shadow until the vCPU leaves the guest",
)
EACH_SHADOW = pytest.mark.parametrize("shadow", [MOV_SS, STI], ids=["mov-ss", "sti"])


def in_shadow(cpu, shadow):
    """Have ``cpu`` execute the instructions at NOPS next, the first one in the shadow."""
    regs = cpu.vcpu.get_regs()
    regs.rip = NOPS
    cpu.vcpu.set_regs(regs)
    set_events(cpu, interrupt_shadow=shadow)


def interruptions(cpu):
    """Step ``cpu`` until an entry takes nothing. Return what interrupted the NOPs, and where."""
    try:
        return [f"{taken.vector:#x} after {taken.rip - NOPS}" for taken in cpu.take()]
    except GuestError as error:
        return [str(error)]


def shadow_in_smi_handler(cpu):
    """Run ``cpu`` to the SMI handler. Return the shadow there, or what happened instead."""
    try:
        cpu.run_to_smi_handler()
    except GuestError as error:
        return str(error)
    return str(cpu.vcpu.get_events().interrupt.shadow)


def expect_interruptions(cpu, *expected):
    expect("taken", "; ".join(interruptions(cpu)) or "nothing", "; ".join(expected))


@pytest.fixture
def loaded(machines, kernel):
    """Skip the test where the emulated processor under the kernel forgets the shadow."""
    if "QEMU" in kernel.cpu:
        machine = machines(vcpu_ids=range(2))
        in_shadow(machine[1], STI)
        machine.send(fixed(0x41))
        if interruptions(machine[1]) == ["0x41 after 0"]:
            pytest.skip("QEMU's SVM does not load the interrupt shadow on VMRUN")


# --- state.shadow ---------------------------------------------------------------------------------


@clause("state.shadow")
@pytest.mark.parametrize("shadow", [0, MOV_SS, STI], ids=["none", "mov-ss", "sti"])
def test_shadow_is_restored(machine, shadow):
    in_shadow(machine[1], shadow)
    shown = machine[1].vcpu.get_events().interrupt.shadow
    # AMD has one bit for both, which reads back as both.
    expect("shadow", bool(shown & shadow), bool(shadow))
    set_events(machine[1], interrupt_shadow=0)
    expect("shadow", machine[1].vcpu.get_events().interrupt.shadow, 0)


@clause("state.shadow")
def test_without_its_flag_the_shadow_does_not_count(machine):
    without = abi.KVM_VCPUEVENT_VALID_SHADOW
    set_events(machine[1], without=without, interrupt_shadow=STI)
    expect("shadow", machine[1].vcpu.get_events().interrupt.shadow, 0)


@clause("state.shadow")
def test_one_instruction_ends_the_shadow(machine):
    in_shadow(machine[1], STI)
    machine[1].step()
    expect("shadow", machine[1].vcpu.get_events().interrupt.shadow, 0)


# --- guest.shadow ---------------------------------------------------------------------------------


@clause("guest.shadow")
@EACH_SHADOW
@NEEDS_SHADOW
@pytest.mark.usefixtures("loaded")
def test_vector_waits_for_one_instruction(machine, shadow):
    in_shadow(machine[1], shadow)
    machine.signal(fixed(0x41)).returns(1).accepted_by(1)
    expect_interruptions(machine[1], "0x41 after 1")


@clause("guest.shadow")
@EACH_SHADOW
@NEEDS_SHADOW
def test_nmi_waits_for_one_instruction(machine, shadow):
    in_shadow(machine[1], shadow)
    machine.signal(to(1, delivery_mode=NMI)).returns(1).accepted_by(1)
    expect_interruptions(machine[1], "0x2 after 1")


@clause("guest.shadow")
@each.delivery_mode(FIXED, NMI)
def test_without_a_shadow_nothing_waits(machine, delivery_mode):
    in_shadow(machine[1], 0)
    machine.signal(to(1, delivery_mode=delivery_mode)).returns(1).accepted_by(1)
    expect_interruptions(machine[1], "0x2 after 0" if delivery_mode is NMI else "0x41 after 0")


# --- guest.shadow-in-smm --------------------------------------------------------------------------


@pytest.fixture
def smi_in_shadow(machines, shadow):
    """vCPU 1 is in the shadow, with an SMI pending."""
    machine = machines(vcpu_ids=range(2))
    in_shadow(machine[1], shadow)
    machine.send(to(1, delivery_mode=SMI))
    return machine


@clause("guest.shadow-in-smm")
@NEEDS_SMM
@EACH_SHADOW
@deviation("smi-loses-shadow")
@pytest.mark.usefixtures("loaded")
def test_rsm_returns_to_the_shadow_of_a_vector(smi_in_shadow):
    smi_in_shadow.signal(fixed(0x41)).returns(1)
    expect_interruptions(smi_in_shadow[1], "0x41 after 1")
    expect("SMIs handled", smi_in_shadow.smis_handled, 1)


@clause("guest.shadow-in-smm")
@NEEDS_SMM
@EACH_SHADOW
@deviation("smi-loses-shadow")
def test_rsm_returns_to_the_shadow_of_an_nmi(smi_in_shadow):
    smi_in_shadow.signal(to(1, delivery_mode=NMI)).returns(1)
    expect_interruptions(smi_in_shadow[1], "0x2 after 1")
    expect("SMIs handled", smi_in_shadow.smis_handled, 1)


@clause("guest.shadow-in-smm")
@NEEDS_SMM
@pytest.mark.parametrize(
    "shadow",
    [MOV_SS, pytest.param(STI, marks=deviation("smi-in-sti-shadow-fails-entry"))],
    ids=["mov-ss", "sti"],
)
def test_smi_handler_is_not_in_the_shadow(smi_in_shadow):
    smi_in_shadow.pause_smis()
    expect("shadow in SMM", shadow_in_smi_handler(smi_in_shadow[1]), "0")
