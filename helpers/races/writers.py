# SPDX-License-Identifier: GPL-2.0-only
"""What the threads of a race do: writers of the state that decides on a message, and senders.

A writer changes one vCPU, or the VM, and changes it back. The state after each phase is known
before the race, since no two writers change the same thing to different values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from errno import EPERM
from functools import partial
from typing import Any

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, LapicPage, Message, Register
from helpers.apic.host import after_apic_mode, after_init, after_register
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET
from helpers.apic.topology import Topology, VcpuState
from helpers.guest import Machine, msi_of, msi_route
from helpers.kvm import abi
from helpers.kvm.vm import routing_table
from helpers.races.race import (
    CREATED,
    SIGNAL_EVENT,
    Call,
    ioctl_call,
    line_call,
    message_call,
    post_call,
)

RACE_VECTOR = 0x21
"""The vector of messages sent while writers write. The checker's vectors are others."""

GSI = 24
"""The GSI that the writer of routes changes; no pin of an IOAPIC has the number."""


@dataclass(frozen=True, slots=True)
class State:
    """What decides on a message: the topology, and the message that GSI is routed to."""

    topology: Topology
    route: Message

    def with_vcpu(self, index: int, vcpu: VcpuState) -> State:
        return replace(self, topology=self.topology.with_vcpu(index, vcpu))


@dataclass(frozen=True, slots=True)
class Change:
    """One phase of a writer: the calls, and the state after them."""

    calls: Sequence[Call]
    on: Callable[[State], State]


Writer = Callable[[Machine, int], list[Change]]
"""Return the phases of a writer that changes the vCPU with this index. After the last phase the
machine is as before, unless the writer is one of STICKY."""

VCPUS = 4
"""vCPUs of a machine at first. Writers write to vCPU 1 and vCPU 2."""

NEW_IDS = (0x10, 0x111, 0x12, 0x113, 0x14, 0x115, 0x16, 0x117)
"""IDs of vCPUs that writers create. A machine has memory for no more.

The greatest ID decides on the size of KVM's map of LAPICs. No two have the same low byte.
"""

ROUTES = (Message(RACE_VECTOR, 0), Message(RACE_VECTOR, 0x77))
"""The messages that GSI is routed to, in turn: to vCPU 0, to nobody."""


# --- LAPIC registers ------------------------------------------------------------------------------


def _set_lapic(page: LapicPage, fd: int) -> Call:
    state = abi.kvm_lapic_state.from_buffer_copy(page.raw)
    registers = (Register.ID, Register.LDR, Register.DFR, Register.SVR)
    text = " ".join(f"{register.name}={page[register]:#x}" for register in registers)
    return ioctl_call(f"KVM_SET_LAPIC({text})", fd, abi.KVM_SET_LAPIC, state)


Values = Callable[[int], dict[Register, int]]
"""Return what a writer writes, by register, to the vCPU with this index."""


def _written(index: int, values: dict[Register, int]) -> Callable[[State], State]:
    def on(state: State) -> State:
        vcpu = state.topology.vcpus[index]
        for register, value in values.items():
            vcpu = after_register(vcpu, register, value)
        return state.with_vcpu(index, vcpu)

    return on


def _by_host(values: Values) -> Writer:
    """Return the writer of registers by KVM_SET_LAPIC."""

    def changes(machine: Machine, index: int) -> list[Change]:
        cpu = machine[index]
        before, written = cpu.lapic, cpu.lapic
        for register, value in values(index).items():
            written[register] = value
        on = _written(index, values(index))
        return [
            Change([_set_lapic(written, cpu.vcpu.fd)], on),
            Change([_set_lapic(before, cpu.vcpu.fd)], _back(machine, index)),
        ]

    return changes


def _by_guest(values: Values) -> Writer:
    """Return the writer of registers by guest code."""

    def changes(machine: Machine, index: int) -> list[Change]:
        cpu = machine[index]
        run = ioctl_call("KVM_RUN", cpu.vcpu.fd, abi.KVM_RUN)

        def write(register: Register, value: int) -> list[Call]:
            name = f"guest writes {register.name}={value:#x}"
            return [post_call(name, cpu.control, "LAPIC_WRITE", register, value, 0), run]

        written = values(index)
        there = [call for each in written.items() for call in write(*each)]
        back = [call for register in written for call in write(register, cpu.lapic[register])]
        return [
            Change(there, _written(index, written)),
            Change(back, _back(machine, index)),
        ]

    return changes


def _back(machine: Machine, index: int) -> Callable[[State], State]:
    """Return the change of a vCPU to the present state."""
    before = machine.topology().vcpus[index]
    return lambda state: state.with_vcpu(index, before)


# --- APIC mode, INIT ------------------------------------------------------------------------------


def _set_sregs(machine: Machine, index: int, apic_mode: ApicMode) -> Call:
    sregs = machine[index].vcpu.get_sregs()
    sregs.apic_base = sregs.apic_base & ~ApicMode.X2APIC.value | apic_mode.value
    fd = machine[index].vcpu.fd
    return ioctl_call(f"KVM_SET_SREGS({apic_mode.name})", fd, abi.KVM_SET_SREGS, sregs)


def _apic_mode(apic_mode: ApicMode) -> Writer:
    def changes(machine: Machine, index: int) -> list[Change]:
        cpu = machine[index]
        if apic_mode is ApicMode.X2APIC:
            machine.require_x2apic()
        back = _set_sregs(machine, index, cpu.apic_mode)
        return [
            Change(
                [_set_sregs(machine, index, apic_mode)],
                lambda state: state.with_vcpu(
                    index, after_apic_mode(state.topology.vcpus[index], apic_mode)
                ),
            ),
            Change([back, _set_lapic(cpu.lapic, cpu.vcpu.fd)], _back(machine, index)),
        ]

    return changes


def _init(machine: Machine, index: int) -> list[Change]:
    """Send an INIT and have KVM process it; make the vCPU runnable again."""
    fd = machine[index].vcpu.fd
    init = msi_of(Message(destination=index, delivery_mode=DeliveryMode.INIT))
    runnable = abi.kvm_mp_state(mp_state=abi.KVM_MP_STATE_RUNNABLE)
    return [
        Change(
            [
                message_call("INIT", machine.fd, init),
                ioctl_call("KVM_GET_MP_STATE", fd, abi.KVM_GET_MP_STATE, abi.kvm_mp_state()),
            ],
            lambda state: state.with_vcpu(index, after_init(state.topology.vcpus[index])),
        ),
        Change(
            [
                ioctl_call("KVM_SET_MP_STATE(RUNNABLE)", fd, abi.KVM_SET_MP_STATE, runnable),
                _set_sregs(machine, index, machine[index].apic_mode),
                _set_lapic(machine[index].lapic, fd),
            ],
            _back(machine, index),
        ),
    ]


# --- the VM ---------------------------------------------------------------------------------------


def _create(machine: Machine, index: int) -> list[Change]:
    """Create vCPUs, and enter each in KVM's map of LAPICs by KVM_SET_LAPIC."""
    changes = []
    used = {cpu.vcpu.vcpu_id for cpu in machine.cpus}
    free = [vcpu_id for vcpu_id in NEW_IDS if vcpu_id not in used]
    for vcpu_id in free[:2] if index == 1 else free[2:4]:
        page = machine[0].lapic
        page[Register.ID] = (vcpu_id & 0xFF) << 24
        page[Register.LDR] = 0
        create = ioctl_call(f"KVM_CREATE_VCPU({vcpu_id})", machine.fd, abi.KVM_CREATE_VCPU, vcpu_id)
        calls = [replace(create, creates=True), _set_lapic(page, CREATED)]
        changes.append(Change(calls, partial(_with_new, vcpu=VcpuState(vcpu_id))))
    return changes


def _with_new(state: State, vcpu: VcpuState) -> State:
    return replace(state, topology=replace(state.topology, vcpus=(*state.topology.vcpus, vcpu)))


def _capability(machine: Machine, index: int) -> list[Change]:
    """Enable KVM_CAP_X2APIC_API, and have KVM build its map of LAPICs again."""
    cpu = machine[index]
    changes = []
    for api in (abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, abi.KVM_X2APIC_API_USE_32BIT_IDS):
        cap = abi.kvm_enable_cap(cap=abi.KVM_CAP_X2APIC_API)
        cap.args[0] = api
        name = f"KVM_ENABLE_CAP(X2APIC_API, {api})"
        enable = ioctl_call(name, machine.fd, abi.KVM_ENABLE_CAP, cap)
        calls = [enable, _set_lapic(cpu.lapic, cpu.vcpu.fd)]
        changes.append(Change(calls, partial(_with_api, api=api)))
    return changes


def _with_api(state: State, api: int) -> State:
    topology = state.topology
    return replace(state, topology=replace(topology, x2apic_api=topology.x2apic_api | api))


def _routes(machine: Machine, _: int) -> list[Change]:
    """Route GSI to another message, and back."""
    changes = []
    for message in ROUTES[::-1]:
        table = routing_table([msi_route(GSI, message)])
        name = f"KVM_SET_GSI_ROUTING({GSI} to {message.destination:#x})"
        call = ioctl_call(name, machine.fd, abi.KVM_SET_GSI_ROUTING, table)
        changes.append(Change([call], partial(_with_route, message=message)))
    return changes


def _with_route(state: State, message: Message) -> State:
    return replace(state, route=message)


# The IDs of two vCPUs never alias, and the logical IDs have no bit in common.
_REGISTERS: dict[str, Values] = {
    "id": lambda index: {Register.ID: 0x40 + index << 24},
    "ldr": lambda index: {Register.LDR: 0x10 << index << 24},
    "dfr": lambda _: {Register.DFR: DFR_CLUSTER},
    "svr": lambda _: {Register.SVR: SVR_RESET},
}

WRITERS: dict[str, Writer] = {
    **{name: _by_host(values) for name, values in _REGISTERS.items()},
    **{f"guest-{name}": _by_guest(values) for name, values in _REGISTERS.items()},
    "apic-base": _apic_mode(ApicMode.DISABLED),
    "x2apic": _apic_mode(ApicMode.X2APIC),
    "init": _init,
    "vcpu": _create,
    "capability": _capability,
    "routes": _routes,
}
"""By name: everything that writes the state that decides on a message."""

STICKY = ("vcpu", "capability")
"""Writers whose changes cannot be undone, so that a race with them has one round of each phase."""

ROUTED = ("routes", "irqfd", "line")
"""Writers and senders that need a route of GSI. KVM waits for a grace period at each change."""


# --- senders --------------------------------------------------------------------------------------


def _messages(machine: Machine, *messages: Message) -> list[Call]:
    return [message_call(str(each), machine.fd, msi_of(each), EPERM) for each in messages]


def _of_message(**fields: Any) -> Sender:
    """Return the sender of messages with these fields, to each of the destinations."""
    logical = fields.get("destination_mode") is DestinationMode.LOGICAL
    destinations = (0xFF, 0x0F, 0x20, 0x02) if logical else (0, 1, 0x41, 2)
    found = [Message(**{"vector": RACE_VECTOR, "destination": to} | fields) for to in destinations]
    return lambda machine: _messages(machine, *found)


def _irqfd(machine: Machine) -> list[Call]:
    fd = machine.vm.irqfd(GSI)
    return [Call("irqfd", fd, 0, what=SIGNAL_EVENT)] * 4


def _line(machine: Machine) -> list[Call]:
    return [replace(line_call("KVM_IRQ_LINE_STATUS", machine.fd, GSI), tolerated=EPERM)] * 4


Sender = Callable[[Machine], list[Call]]
"""Return the calls of a sender in each phase."""

_LOGICAL = DestinationMode.LOGICAL
SENDERS: dict[str, Sender] = {
    "physical": _of_message(),
    "logical": _of_message(destination_mode=_LOGICAL),
    "lowest": _of_message(destination_mode=_LOGICAL, delivery_mode=DeliveryMode.LOWEST_PRIORITY),
    "broadcast": _of_message(destination=0xFF),
    "nmi": _of_message(delivery_mode=DeliveryMode.NMI),
    "irqfd": _irqfd,
    "line": _line,
}
"""By name: every kind of send."""
