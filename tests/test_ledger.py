# SPDX-License-Identifier: GPL-2.0-only
"""The ledger of a machine: by itself, then beside the real kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.apic import ApicMode, DeliveryMode, LapicPage, Message, Register
from helpers.apic.lapic import SVR_ENABLE, SVR_RESET
from helpers.apic.topology import Topology
from helpers.guest import Machine, Snapshot, msi_of
from helpers.guest.ledger import IA32_APIC_BASE, Ledger
from helpers.kvm import System, abi, ioctl

VM, VCPU, NEWEST = 9000, 9001, 9002  # no file descriptors of this process
XAPIC = abi.kvm_sregs(apic_base=0xFEE00000 | ApicMode.XAPIC.value)
X2APIC = abi.kvm_sregs(apic_base=0xFEE00000 | ApicMode.X2APIC.value)
LATE = abi.KVM_X2APIC_API_USE_32BIT_IDS
SETTLED = Snapshot(LapicPage(), nmi_pending=0, smi_pending=0, latched_init=0, mp_state=0)

Event = Callable[[Ledger], None]


def call(fd: int, request: abi.Request, argument: Any = 0, result: int = 0) -> Event:
    """Return the event of an ioctl."""
    return lambda ledger: ledger.called(fd, request.number, argument, result)


def message(delivery_mode: DeliveryMode) -> Event:
    return call(VM, abi.KVM_SIGNAL_MSI, msi_of(Message(delivery_mode=delivery_mode)))


def mp_state(state: int) -> Event:
    return call(VCPU, abi.KVM_SET_MP_STATE, abi.kvm_mp_state(mp_state=state))


def guest_writes(register: Register, value: int, was_enabled: bool = False) -> Event:
    return lambda ledger: ledger.guest_writes_register(register, value, was_enabled)


def guest_writes_msr(msr: int, value: int) -> Event:
    return lambda ledger: ledger.guest_writes_msr(VCPU, msr, value, ApicMode.XAPIC)


def guest_switches(sregs: abi.kvm_sregs) -> Event:
    return guest_writes_msr(IA32_APIC_BASE, sregs.apic_base)


def named(events: dict[str, Event]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("event", events.values(), ids=list(events))


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger of a shareable VM with two xAPIC vCPUs, the newer not in the map."""
    with Ledger() as made:
        for fd in (VCPU, NEWEST):
            call(VM, abi.KVM_CREATE_VCPU, result=fd)(made)
            call(fd, abi.KVM_GET_SREGS, XAPIC)(made)
        made.shareable = True
        yield made


# --- the map of LAPICs ----------------------------------------------------------------------------

REBUILDING: dict[str, Event] = {
    "KVM_SET_LAPIC": call(VCPU, abi.KVM_SET_LAPIC),
    "other-apic-mode": call(VCPU, abi.KVM_SET_SREGS, X2APIC),
    "guest-other-apic-mode": guest_switches(X2APIC),
    "guest-ID": guest_writes(Register.ID, 0),
    "guest-LDR": guest_writes(Register.LDR, 0),
    "guest-DFR": guest_writes(Register.DFR, 0),
    "guest-enables": guest_writes(Register.SVR, SVR_ENABLE | SVR_RESET),
    "guest-disables": guest_writes(Register.SVR, SVR_RESET, was_enabled=True),
    "reported": Ledger.map_rebuilt,
}

NOT_REBUILDING: dict[str, Event] = {
    "failed-KVM_SET_LAPIC": call(VCPU, abi.KVM_SET_LAPIC, result=-1),
    "failed-KVM_CREATE_VCPU": call(VM, abi.KVM_CREATE_VCPU, result=-1),
    "failed-other-apic-mode": call(VCPU, abi.KVM_SET_SREGS, X2APIC, result=-1),
    "same-apic-mode": call(VCPU, abi.KVM_SET_SREGS, XAPIC),
    "guest-same-apic-mode": guest_switches(XAPIC),
    "guest-other-msr": guest_writes_msr(0xC0000080, 0xC00),
    "guest-TPR": guest_writes(Register.TPR, 0x20),
    "guest-stays-enabled": guest_writes(Register.SVR, SVR_ENABLE, was_enabled=True),
    "KVM_RUN": call(VCPU, abi.KVM_RUN),
    "message": message(DeliveryMode.INIT),
}


def late(ledger: Ledger, result: int = 0, capability: int = abi.KVM_CAP_X2APIC_API) -> None:
    """Enable KVM_X2APIC_API_USE_32BIT_IDS when vCPUs exist."""
    argument = abi.kvm_enable_cap(cap=capability, args=(ctypes.c_uint64 * 4)(LATE))
    call(VM, abi.KVM_ENABLE_CAP, argument, result)(ledger)


@named(REBUILDING)
def test_map_is_rebuilt_by(ledger, event):
    late(ledger)
    assert (ledger.unmapped, ledger.mapped_api, ledger.x2apic_api) == (1, 0, LATE)
    event(ledger)
    assert (ledger.unmapped, ledger.mapped_api, ledger.x2apic_api) == (None, None, LATE)


@named(NOT_REBUILDING)
def test_map_is_not_rebuilt_by(ledger, event):
    late(ledger)
    event(ledger)
    assert (ledger.unmapped, ledger.mapped_api) == (1, 0)


def test_next_vcpu_is_the_one_that_the_map_lacks(ledger):
    late(ledger)
    call(VM, abi.KVM_CREATE_VCPU, result=9003)(ledger)
    assert (ledger.unmapped, ledger.mapped_api) == (2, None)


def test_feature_enabled_before_the_first_vcpu_is_not_late():
    with Ledger() as ledger:
        late(ledger)
        assert ledger.mapped_api is None
        call(VM, abi.KVM_CREATE_VCPU, result=VCPU)(ledger)
        assert ledger.mapped_api is None


@pytest.mark.parametrize(
    "refused", [{"result": -1}, {"capability": abi.KVM_CAP_SPLIT_IRQCHIP}], ids=["failed", "other"]
)
def test_other_capability_is_no_feature(ledger, refused):
    late(ledger, **refused)
    assert (ledger.x2apic_api, ledger.mapped_api) == (0, None)


# --- APIC modes -----------------------------------------------------------------------------------


def test_apic_mode_is_known_once_read(ledger):
    assert ledger.apic_bases == dict.fromkeys((VCPU, NEWEST), XAPIC.apic_base)


@named({"host": call(VCPU, abi.KVM_SET_SREGS, XAPIC), "guest": guest_switches(X2APIC)})
def test_apic_mode_is_unknown_after_a_write(ledger, event):
    event(ledger)
    assert ledger.apic_bases == {NEWEST: XAPIC.apic_base}


def test_second_write_of_the_same_apic_mode_does_not_rebuild_the_map(ledger):
    for _ in range(2):
        guest_switches(XAPIC)(ledger)
        assert ledger.unmapped == 1


# --- sharing --------------------------------------------------------------------------------------

UNDONE: dict[str, Event] = {
    "FIXED": message(DeliveryMode.FIXED),
    "LOWEST_PRIORITY": message(DeliveryMode.LOWEST_PRIORITY),
    "NMI": message(DeliveryMode.NMI),
    "EXTINT": message(DeliveryMode.EXTINT),
    "message-by-address": call(VM, abi.KVM_SIGNAL_MSI, 0x1000),
    "HALTED": mp_state(abi.KVM_MP_STATE_HALTED),
    "KVM_SET_LAPIC": call(VCPU, abi.KVM_SET_LAPIC),
    "KVM_GET_SREGS": call(VCPU, abi.KVM_GET_SREGS, XAPIC),
    "KVM_RUN": call(VCPU, abi.KVM_RUN),
    "guest-LDR": guest_writes(Register.LDR, 0),
}

NOT_UNDONE: dict[str, Event] = {
    "SMI": message(DeliveryMode.SMI),
    "REMRD": message(DeliveryMode.REMRD),
    "INIT": message(DeliveryMode.INIT),
    "SIPI": message(DeliveryMode.SIPI),
    "SIPI_RECEIVED": mp_state(abi.KVM_MP_STATE_SIPI_RECEIVED),
    "KVM_SET_SREGS": call(VCPU, abi.KVM_SET_SREGS, XAPIC),
    "KVM_CREATE_VCPU": call(VM, abi.KVM_CREATE_VCPU, result=9003),
    "KVM_ENABLE_CAP": late,
    "KVM_SET_GSI_ROUTING": call(VM, abi.KVM_SET_GSI_ROUTING),
    "unknown": call(VCPU, abi.Request("unknown", 0xAE00)),
    "guest-msr": guest_writes_msr(0xC0000102, 0),
}


@named(UNDONE)
def test_machine_can_be_shared_after(ledger, event):
    event(ledger)
    assert ledger.shareable


@named(NOT_UNDONE)
def test_machine_cannot_be_shared_after(ledger, event):
    event(ledger)
    message(DeliveryMode.FIXED)(ledger)
    assert not ledger.shareable


# --- snapshots ------------------------------------------------------------------------------------


def test_snapshots_hold_until_the_next_ioctl(ledger):
    ledger.snapshots_read([SETTLED])
    assert ledger.snapshots == [SETTLED]
    call(VCPU, abi.KVM_GET_LAPIC)(ledger)
    assert ledger.snapshots is None


def test_snapshots_of_a_latched_init_do_not_hold(ledger):
    ledger.snapshots_read([SETTLED, SETTLED._replace(latched_init=1)])
    assert ledger.snapshots is None


# --- watching -------------------------------------------------------------------------------------


def test_vcpus_of_a_watched_vm_are_watched_until_the_ledger_is_closed(monkeypatch):
    monkeypatch.setattr(ioctl, "raw_ioctl", lambda *_: (VCPU, 0))
    with Ledger() as ledger:
        ledger.watch(VM)
        ioctl.attempt(VM, abi.KVM_CREATE_VCPU)
        ledger.snapshots_read([])
        ioctl.attempt(VCPU, abi.KVM_RUN)
        assert ledger.snapshots is None
    ledger.snapshots_read([])
    ioctl.attempt(VCPU, abi.KVM_RUN)
    assert ledger.snapshots == []


# --- snapshots, beside the kernel -----------------------------------------------------------------


@pytest.fixture
def machine(system: System) -> Iterator[Machine]:
    """Two vCPUs."""
    with Machine(system, vcpu_ids=range(2)) as made:
        yield made


def test_state_that_nobody_touched_is_not_read_again(machine):
    first = machine.signal(Message(destination=1))
    second = machine.signal(Message(vector=0x42, destination=1))
    assert second.before is first.after


@pytest.mark.parametrize(
    "touch",
    [
        lambda machine: machine[1].configure(tpr=0x20),
        lambda machine: machine[1].step(),
        lambda machine: machine.send(Message(vector=0x43, destination=1)),
    ],
    ids=["host", "guest", "message"],
)
def test_state_that_was_touched_is_read_again(machine, touch):
    first = machine.signal(Message(destination=1))
    touch(machine)
    second = machine.signal(Message(vector=0x42, destination=1))
    assert second.before != first.after


def test_state_that_reading_changes_is_read_again(machine):
    first = machine.signal(Message(destination=1, delivery_mode=DeliveryMode.INIT))
    second = machine.signal(Message(vector=0x42, destination=0))
    assert second.before != first.after


# --- the map, beside the kernel -------------------------------------------------------------------


@pytest.fixture
def stale() -> Iterator[Machine]:
    """A machine whose map lacks the newest vCPU and the late KVM_X2APIC_API_USE_32BIT_IDS."""
    with System() as system, Machine(system, vcpu_ids=(0,)) as machine:
        machine.add_cpu(1)
        machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, abi.KVM_X2APIC_API_USE_32BIT_IDS)
        yield machine


def test_stale_map_is_in_the_topology(stale):
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (0, False)
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine[0].configure(),
        lambda machine: machine[0].write(Register.LDR, 1 << 24),
        lambda machine: machine[0].write(Register.SVR, 0xFF),
        lambda machine: machine[0].wrmsr(
            IA32_APIC_BASE, 0xFEE00000 | 0x100 | ApicMode.X2APIC.value
        ),
        lambda machine: setattr(machine[0], "apic_mode", ApicMode.DISABLED),
        lambda machine: machine.signal(Message(delivery_mode=DeliveryMode.INIT)),
    ],
    ids=["KVM_SET_LAPIC", "guest-ldr", "guest-svr", "guest-mode", "KVM_SET_SREGS", "INIT"],
)
def test_map_is_built_again_by(stale, change):
    change(stale)
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (None, True)
    nmi = Message(destination=1, delivery_mode=DeliveryMode.NMI)
    assert stale.signal(nmi).returned == "1"


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine[0].write(Register.SVR, 0x1F0),
        lambda machine: machine[0].write(Register.TPR, 0),
        lambda machine: setattr(machine[0], "apic_mode", ApicMode.XAPIC),
    ],
    ids=["guest-svr-still-enabled", "guest-tpr", "same-mode"],
)
def test_map_is_not_built_again_by(stale, change):
    change(stale)
    topology = stale.topology()
    assert (topology.mapped_api, topology.vcpus[1].mapped) == (0, False)
    nmi = Message(destination=1, delivery_mode=DeliveryMode.NMI)
    assert stale.signal(nmi).returned == "0"
