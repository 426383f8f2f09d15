# SPDX-License-Identifier: GPL-2.0-only
"""Build the machine that a topology describes."""

from __future__ import annotations

from dataclasses import replace

from helpers.apic import ApicMode, Message, Register
from helpers.apic.host import EVENT_FIELDS
from helpers.apic.lapic import APIC_BASE_BSP, SVR_ENABLE, SVR_RESET, SVR_SUPPRESS_EOI
from helpers.apic.model import Model, Switches
from helpers.apic.topology import MpState, Topology, VcpuState
from helpers.guest.cpu import Cpu
from helpers.guest.expect import Mismatch
from helpers.guest.machine import Machine
from helpers.kvm import KvmError, System, abi


def build(system: System, topology: Topology) -> Machine:
    """Return a machine in the state of ``topology``.

    Raises ValueError if no sequence of ioctls leads to the state.
    """
    machine = Machine(
        system,
        irqchip=topology.irqchip,
        vcpu_ids=[vcpu.vcpu_id for vcpu in topology.vcpus if vcpu.mapped],
        x2apic_api=topology.x2apic_api if topology.mapped_api is None else topology.mapped_api,
        boot_id=topology.boot_id or None,
        power_on=topology.irqchip != "none",
    )
    try:
        for vcpu in topology.vcpus:
            if not vcpu.mapped:
                machine.add_cpu(vcpu.vcpu_id)
        if topology.irqchip != "none":
            for cpu, vcpu in zip(machine.cpus, topology.vcpus, strict=True):
                _set_state(cpu, vcpu)
            if topology.mapped_api is not None:
                machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, topology.x2apic_api)
            _check(machine, topology)
    except KvmError as refused:
        machine.close()
        raise ValueError(f"topology {topology} cannot be made: {refused}") from None
    except ValueError:
        machine.close()
        raise
    return machine


def disagreement(
    system: System, topology: Topology, message: Message, switches: Switches
) -> Mismatch | None:
    """Return the first difference between kernel and model for one message, None if they agree.

    Raises ValueError if the topology cannot be built.
    """
    with build(system, topology) as machine:
        injection = machine.signal(message)
    try:
        injection.answers(Model(topology, switches).predict(message))
    except Mismatch as mismatch:
        return mismatch
    return None


def _set_state(cpu: Cpu, vcpu: VcpuState) -> None:
    if not vcpu.mapped:
        return  # a write would enter the vCPU in the map
    if vcpu.is_x2apic:
        cpu.apic_mode = ApicMode.X2APIC
    if vcpu.bsp != bool(cpu.apic_base & APIC_BASE_BSP):
        sregs = cpu.vcpu.get_sregs()
        sregs.apic_base ^= APIC_BASE_BSP
        cpu.vcpu.set_sregs(sregs)
    page = cpu.lapic
    page[Register.SVR] = SVR_RESET | (SVR_ENABLE if vcpu.software_enabled else 0)
    page[Register.SVR] |= SVR_SUPPRESS_EOI if vcpu.eoi_suppressed else 0
    page[Register.TPR] = vcpu.tpr
    if not vcpu.is_x2apic:
        page[Register.ID] = vcpu.id << 24
        page[Register.LDR] = vcpu.ldr
        page[Register.DFR] = vcpu.dfr
    page.set_vectors(Register.IRR, vcpu.irr)
    page.set_vectors(Register.ISR, vcpu.isr)
    page.set_vectors(Register.TMR, vcpu.tmr)
    cpu.lapic = page
    if vcpu.apic_mode is ApicMode.DISABLED:
        cpu.apic_mode = ApicMode.DISABLED
    events = {name: int(getattr(vcpu, name)) for name in EVENT_FIELDS}
    if not vcpu.smm:
        del events["init"]  # An INIT stays pending in SMM only.
    cpu.set_events({name: value for name, value in events.items() if value})
    if vcpu.mp_state is MpState.SIPI_RECEIVED:
        cpu.mp_state = MpState.INIT_RECEIVED
    cpu.mp_state = vcpu.mp_state


def _check(machine: Machine, topology: Topology) -> None:
    """Raise ValueError unless the machine is in the state of ``topology``.

    ``arb_prio`` is not compared: KVM does not report it.
    """
    wanted = tuple(replace(vcpu, arb_prio=0) for vcpu in topology.vcpus)
    made = machine.topology()
    for vcpu, became in zip(wanted, made.vcpus, strict=True):
        if vcpu != became:
            raise ValueError(f"vCPU {vcpu} cannot be made: it becomes {became}")
    if made.mapped_api != topology.mapped_api:
        raise ValueError(f"mapped_api={topology.mapped_api} cannot be made")
