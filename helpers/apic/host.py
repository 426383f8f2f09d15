# SPDX-License-Identifier: GPL-2.0-only
"""The state of a vCPU after an ioctl of the host, or after an INIT: the model's second half.

helpers/apic/model.py predicts the effect of a message. The functions here predict the state of a
vCPU after an ioctl, in the terms of the model, for a sequence of ioctls and messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from helpers.apic.lapic import (
    DFR_FLAT,
    SVR_ENABLE,
    SVR_SUPPRESS_EOI,
    ApicMode,
    Register,
    x2apic_ldr,
)
from helpers.apic.model import REFERENCE, Switches, init_changes_mp_state, most_nmis
from helpers.apic.topology import MpState, VcpuState

EventChanges = Mapping[str, int]
"""Fields of VcpuState that KVM_SET_VCPU_EVENTS writes, each with the value to write."""

SMM_FIELDS = ("smm", "smi", "init")
"""Fields that KVM_SET_VCPU_EVENTS writes with KVM_VCPUEVENT_VALID_SMM."""

EVENT_FIELDS = ("nmi_masked", "nmi", "shadow", *SMM_FIELDS)
"""All fields that KVM_SET_VCPU_EVENTS writes."""


def after_events(
    vcpu: VcpuState, changes: EventChanges, switches: Switches = REFERENCE
) -> VcpuState | None:
    """Return the state after KVM_SET_VCPU_EVENTS with ``changes``; None if KVM refuses (EINVAL).

    A pending INIT takes effect at the next KVM_GET_MP_STATE, unless the vCPU is in SMM. As in an
    Effect, the mp_state is that after the INIT, and the LAPIC is as before.
    """
    written = replace(vcpu, **changes)  # type: ignore[arg-type]
    writes_smm = any(name in changes for name in SMM_FIELDS)
    if writes_smm and (written.smm or written.smi) and not _may_wait_for_sipi(written, switches):
        return None
    written = replace(written, nmi=min(written.nmi, most_nmis(written, switches)))
    change = init_changes_mp_state(written) if written.init else None
    return replace(written, mp_state=MpState(change[1])) if change else written


def _may_wait_for_sipi(vcpu: VcpuState, switches: Switches) -> bool:
    """Return whether KVM lets the vCPU be in SMM, or have an SMI pending, in its mp_state."""
    # 0fe3e8d804fd (6.17)
    return switches.smm_allows_init_received or vcpu.mp_state is not MpState.INIT_RECEIVED


def after_mp_state(
    vcpu: VcpuState, state: MpState, switches: Switches = REFERENCE
) -> VcpuState | None:
    """Return the state after KVM_SET_MP_STATE; None if KVM refuses (EINVAL)."""
    written = replace(vcpu, mp_state=state)
    if (vcpu.smm or vcpu.smi) and not _may_wait_for_sipi(written, switches):
        return None
    return written


def after_init(vcpu: VcpuState) -> VcpuState:
    """Return the state that an INIT leaves: ``kvm_vcpu_reset()``, ``kvm_lapic_reset()``.

    The LAPIC keeps mode, ID and BSP flag.
    """
    return VcpuState(
        vcpu_id=vcpu.vcpu_id,
        apic_mode=vcpu.apic_mode,
        software_enabled=False,
        id=vcpu.id,
        ldr=vcpu.ldr if vcpu.is_x2apic else 0,
        dfr=DFR_FLAT,
        mp_state=MpState.RUNNABLE if vcpu.bsp else MpState.INIT_RECEIVED,
        bsp=vcpu.bsp,
    )


def after_apic_mode(vcpu: VcpuState, apic_mode: ApicMode) -> VcpuState:
    """Return the state after a switch of the APIC mode, which sets the IDs of the new mode.

    The ID of a disabled LAPIC has no meaning.
    """
    if apic_mode is vcpu.apic_mode:
        return vcpu
    is_x2apic = apic_mode is ApicMode.X2APIC
    ldr = x2apic_ldr(vcpu.vcpu_id) if is_x2apic else vcpu.ldr
    return replace(vcpu, apic_mode=apic_mode, id=-1, ldr=ldr)


def after_register(vcpu: VcpuState, register: Register, value: int) -> VcpuState:
    """Return the state after a write of a LAPIC register. An x2APIC keeps ID and LDR."""
    match register:
        case Register.ID:
            return vcpu if vcpu.is_x2apic else replace(vcpu, id=value >> 24)
        case Register.LDR:
            return vcpu if vcpu.is_x2apic else replace(vcpu, ldr=value)
        case Register.DFR:
            return replace(vcpu, dfr=value)
        case Register.TPR:
            return replace(vcpu, tpr=value)
        case Register.SVR:
            enabled, suppressed = bool(value & SVR_ENABLE), bool(value & SVR_SUPPRESS_EOI)
            return replace(vcpu, software_enabled=enabled, eoi_suppressed=suppressed)
    raise ValueError(f"{register.name} is no part of the state")


def deliverable(vcpu: VcpuState) -> list[int]:
    """Return the pending vectors that the vCPU can take, in the order of taking.

    A vector is held while TPR, or a vector in service, is of the same priority class or a higher
    one. Intel SDM vol. 3, "Task and Processor Priorities".
    """
    if not vcpu.hardware_enabled:
        return []
    priority = max([vcpu.tpr >> 4, *(vector >> 4 for vector in vcpu.isr)])
    return sorted((v for v in vcpu.irr if v >> 4 > priority), reverse=True)
