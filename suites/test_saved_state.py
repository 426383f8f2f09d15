# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts that are pending when a vCPU's state is saved and restored, as in live migration.

Clauses: state.saved.

A message that a LAPIC has accepted must not be lost when the vCPU moves to another host: after
KVM_GET_* there and KVM_SET_* here the guest takes it.
"""

from helpers.apic import Register
from helpers.apic.lapic import SVR_RESET
from helpers.apic.topology import MpState
from helpers.guest import expect
from helpers.verdicts import clause
from suites import each
from suites.common import NEEDS_SMM, expect_mp_state, expect_taken, fixed, to
from suites.names import INIT, LOGICAL, NMI, REMRD, SIPI, SMI


@clause("state.saved")
@each.apic_mode
@each.irqchip
def test_pending_vectors_are_taken(machine, migrated):
    for vector in (0x41, 0x31, 0xFF):
        machine.signal(fixed(vector)).returns(1)
    new = migrated(machine)
    expect_taken(new[1], 0xFF, 0x41, 0x31)
    expect_taken(new[0])


@clause("state.saved")
def test_pending_nmi_is_taken(machine, migrated):
    machine.signal(to(1, delivery_mode=NMI)).returns(1)
    new = migrated(machine)
    expect("NMIs pending", new[1].snapshot().nmi_pending, 1)
    expect_taken(new[1], 2)


@clause("state.saved")
@NEEDS_SMM
def test_pending_smi_enters_its_handler(machine, migrated):
    machine.signal(to(1, delivery_mode=SMI)).returns(1)
    new = migrated(machine)
    new[1].step()
    expect("SMIs handled", new.smis_handled, 1)


@clause("state.saved")
def test_unhalted_processor_runs(machine, migrated):
    machine[1].mp_state = MpState.HALTED
    machine.signal(to(1, delivery_mode=REMRD)).returns(1)
    new = migrated(machine)
    expect_mp_state(new[1], MpState.RUNNABLE)
    new[1].step()


@clause("state.saved")
def test_processor_after_init_waits_for_sipi(machine, migrated):
    machine.signal(to(1, delivery_mode=INIT)).returns(1)
    new = migrated(machine)
    new.signal(to(1, vector=new.start_page, delivery_mode=SIPI)).returns(1).accepted_by(1)
    new[1].step()


@clause("state.saved")
def test_ids_are_who_is_addressed(machine, migrated):
    machine[1].configure(id=9, ldr=0x40)
    new = migrated(machine)
    new.signal(to(9)).returns(1).accepted_by(1)
    new.signal(to(0x40, LOGICAL, vector=0x42)).accepted_by(1)


@clause("state.saved")
def test_disabled_lapic_blocks(machine, migrated):
    machine[1].write(Register.SVR, SVR_RESET)
    new = migrated(machine)
    new.signal(to(1)).blocked().reached_nobody()
