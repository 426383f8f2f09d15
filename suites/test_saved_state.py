"""What a message left pending is saved and restored with a vCPU's state, as in live migration."""

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register
from helpers.apic.topology import show_mp_state
from helpers.guest import expect
from helpers.kvm import abi
from helpers.verdicts import clause

FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode


@pytest.fixture
def migrated(machines):
    """A new machine of the same kind, its vCPUs in the state that another's are in."""

    def migrate(machine, **options):
        new = machines(vcpu_ids=range(len(machine.cpus)), **options)
        for old, cpu in zip(machine.cpus, new.cpus, strict=True):
            mp_state, events, lapic = old.mp_state, old.vcpu.get_events(), old.lapic
            cpu.vcpu.set_sregs(old.vcpu.get_sregs())
            cpu.vcpu.set_regs(old.vcpu.get_regs())
            cpu.lapic = lapic
            cpu.vcpu.set_events(events)
            cpu.mp_state = mp_state
        return new

    return migrate


def to_one(delivery_mode, vector=0x41):
    return Message(vector=vector, destination=1, delivery_mode=delivery_mode)


def expect_taken(cpu, *expected):
    expect("vectors taken", [record.vector for record in cpu.take()], list(expected))


@clause("state.saved")
@pytest.mark.parametrize("apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name)
@pytest.mark.parametrize("irqchip", ["full", "split"])
def test_pending_vectors_are_taken(machines, migrated, irqchip, apic_mode):
    machine = machines(vcpu_ids=range(2), irqchip=irqchip, apic_mode=apic_mode)
    for vector in (0x41, 0x31, 0xFF):
        machine.signal(to_one(FIXED, vector)).returns(1)
    new = migrated(machine, irqchip=irqchip, apic_mode=apic_mode)
    expect_taken(new[1], 0xFF, 0x41, 0x31)
    expect_taken(new[0])


@clause("state.saved")
def test_pending_nmi_is_taken(machine, migrated):
    machine.signal(to_one(NMI)).returns(1)
    new = migrated(machine)
    expect("NMIs pending", new[1].snapshot().nmi_pending, 1)
    expect_taken(new[1], 2)


@clause("state.saved")
def test_pending_smi_enters_its_handler(machine, migrated, kernel):
    if not kernel.has_smm:
        pytest.skip("the kernel has no SMM (KVM_CAP_X86_SMM is 0)")
    machine.signal(to_one(SMI)).returns(1)
    new = migrated(machine)
    new[1].step()
    expect("SMIs handled", new.smis_handled, 1)


@clause("state.saved")
def test_unhalted_processor_runs(machine, migrated):
    machine[1].mp_state = abi.KVM_MP_STATE_HALTED
    machine.signal(to_one(REMRD)).returns(1)
    new = migrated(machine)
    expect("mp_state", show_mp_state(new[1].mp_state), "RUNNABLE")
    new[1].step()


@clause("state.saved")
def test_processor_after_init_waits_for_sipi(machine, migrated):
    machine.signal(to_one(INIT)).returns(1)
    new = migrated(machine)
    new.signal(to_one(SIPI, new.start_page)).returns(1).accepted_by(1)
    new[1].step()


@clause("state.saved")
def test_ids_are_who_is_addressed(machine, migrated):
    machine[1].configure(id=9, ldr=0x40)
    new = migrated(machine)
    new.signal(Message(vector=0x41, destination=9)).returns(1).accepted_by(1)
    logical = DestinationMode.LOGICAL
    new.signal(Message(vector=0x42, destination=0x40, destination_mode=logical)).accepted_by(1)


@clause("state.saved")
def test_disabled_lapic_blocks(machine, migrated):
    machine[1].write(Register.SVR, 0xFF)
    new = migrated(machine)
    new.signal(to_one(FIXED)).blocked().reached_nobody()
