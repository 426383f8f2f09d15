"""Irqchips: none, full, split; when each can be made, and what the ioctl says with each."""

from errno import EEXIST, EINVAL
from itertools import product

import pytest

from helpers.apic import DeliveryMode, DestinationMode, Message
from helpers.guest import expect
from helpers.kvm import KvmError, abi
from helpers.verdicts import clause

BOTH = pytest.mark.parametrize("irqchip", ["full", "split"])


@clause("msi.needs-irqchip")
@pytest.mark.parametrize("vcpus", range(3), ids="{}-vcpus".format)
def test_without_irqchip_every_message_is_an_error(machines, vcpus):
    machine = machines(irqchip="none", vcpu_ids=range(vcpus), power_on=False)
    for mode, destination in product(DeliveryMode, (0, vcpus, 0xFF)):
        machine.signal(Message(destination=destination, delivery_mode=mode)).fails(EINVAL)
    events = [cpu.vcpu.get_events() for cpu in machine.cpus]
    expect("pending NMIs", [event.nmi.pending for event in events], [0] * vcpus)
    expect("pending SMIs", [event.smi.pending for event in events], [0] * vcpus)


@clause("msi.needs-irqchip")
@pytest.mark.parametrize("flags", [0, 1, 1 << 31], ids="flags{:#x}".format)
def test_without_irqchip_no_flag_helps(machines, flags):
    machine = machines(irqchip="none", vcpu_ids=(0,), power_on=False)
    machine.signal(Message(), flags=flags).fails(EINVAL)


@clause("msi.needs-irqchip")
@BOTH
def test_with_irqchip_a_message_is_delivered(machine):
    machine.signal(Message(destination=2)).returns(1).accepted_by(2)


@clause("msi.needs-irqchip")
@pytest.mark.parametrize("kind", ["full", "split"])
def test_irqchip_made_late_takes_messages(machines, kind):
    machine = machines(irqchip="none", vcpu_ids=())
    machine.signal(Message()).fails(EINVAL)
    machine.vm.create_irqchip() if kind == "full" else machine.vm.split_irqchip()
    machine.irqchip = kind
    machine.add_cpu(0).power_on()
    machine.signal(Message()).returns(1).accepted_by(0)


@clause("msi.needs-irqchip")
@pytest.mark.parametrize("pins", [0, 1, 24, 4095, 4096], ids="{}-pins".format)
def test_split_irqchip_of_any_number_of_pins_takes_messages(machines, pins):
    machine = machines(irqchip="none", vcpu_ids=())
    machine.vm.split_irqchip(pins)
    machine.irqchip = "split"
    machine.add_cpu(0).power_on()
    machine.signal(Message()).returns(1).accepted_by(0)


# --- the same with a split irqchip ----------------------------------------------------------------

SPLIT = pytest.mark.parametrize("irqchip", ["split"])


@clause("msi.flags")
@SPLIT
@pytest.mark.parametrize("bit", range(1, 32), ids="bit{}".format)
def test_split_irqchip_rejects_undefined_flag(machine, bit):
    machine.signal(Message(destination=0xFF), flags=1 << bit).fails(EINVAL).reached_nobody()


@clause("message.delivery-mode")
@pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("destination_mode", DestinationMode, ids=lambda mode: mode.name)
def test_split_irqchip_delivers_as_a_full_one(shared_machine, mode, destination_mode):
    message = Message(
        destination=2, destination_mode=destination_mode, delivery_mode=mode, vector=0x51
    )
    machines = [shared_machine(irqchip=kind, vcpu_ids=range(4)) for kind in ("full", "split")]
    full, split = (machine.signal(message) for machine in machines)
    expect("return value", split.returned, full.returned)
    expect("effects", split.effects(), full.effects(), show=lambda e: "; ".join(map(str, e)))


# --- when an irqchip can be made ------------------------------------------------------------------


def create(vm):
    vm.create_irqchip()


def split(vm):
    vm.split_irqchip()


def vcpu(vm):
    vm.create_vcpu(0)


def steps(*functions):
    return pytest.param(functions, id="-".join(function.__name__ for function in functions))


def expect_last_to_fail(machines, functions, code=None):
    vm = machines(irqchip="none", vcpu_ids=()).vm
    for function in functions[:-1]:
        function(vm)
    with pytest.raises(KvmError) as refused:
        functions[-1](vm)
    if code is not None:
        expect("errno", refused.value.errno, code)


SPLIT_RULES = {(vcpu, split): EEXIST, (create, split): EEXIST, (split, split): EEXIST}
CREATE_RULES = {(vcpu, create): EINVAL, (create, create): EEXIST, (split, create): EEXIST}


@clause("split.creation")
@pytest.mark.parametrize("functions", [steps(*functions) for functions in SPLIT_RULES])
def test_splitting_fails_once_a_vcpu_or_irqchip_exists(machines, functions):
    expect_last_to_fail(machines, functions)


@clause("irqchip.before-vcpus")
@pytest.mark.parametrize("functions", [steps(*functions) for functions in CREATE_RULES])
def test_irqchip_is_created_before_vcpus_and_once(machines, functions):
    expect_last_to_fail(machines, functions)


@clause("abi.errno")
@pytest.mark.parametrize("functions", [steps(*f) for f in (SPLIT_RULES | CREATE_RULES)])
def test_errno_of_an_irqchip_made_too_late(machines, functions):
    expect_last_to_fail(machines, functions, (SPLIT_RULES | CREATE_RULES)[functions])


@clause("msi.needs-irqchip")
def test_irqchip_refused_too_late_does_not_exist(machines):
    machine = machines(irqchip="none", vcpu_ids=(0,), power_on=False)
    with pytest.raises(KvmError):
        machine.vm.create_irqchip()
    machine.signal(Message()).fails(EINVAL)


@clause("split.creation")
@pytest.mark.parametrize(
    "pins, flags", [(4097, 0), (24, 1)], ids=["more-pins-than-routes", "undefined-flag"]
)
def test_invalid_split_is_refused(machines, pins, flags):
    vm = machines(irqchip="none", vcpu_ids=()).vm
    with pytest.raises(KvmError):
        vm.enable_cap(abi.KVM_CAP_SPLIT_IRQCHIP, pins, flags=flags)
