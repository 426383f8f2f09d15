# SPDX-License-Identifier: GPL-2.0-only
"""What several files of suites/ share: preconditions, messages, set-ups, checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from helpers.apic import DestinationMode, Message
from helpers.apic.effect import Effect
from helpers.apic.ioapic import REMOTE_IRR, entry_of
from helpers.apic.lapic import DFR_CLUSTER, bits
from helpers.apic.topology import Irqchip, MpState, show_mp_state
from helpers.guest import Cpu, Machine, Mismatch, Taken, expect, msi_route
from helpers.guest.running import Running
from helpers.kvm import KvmError, abi, recording
from helpers.verdicts import needs_parameter
from suites.names import LEVEL, PHYSICAL, SMI

# --- preconditions --------------------------------------------------------------------------------
# ``kernel`` in a condition is the kernel under test (conftest.py, pytest_markeval_namespace).

NEEDS_SMM = pytest.mark.skipif(
    "not kernel.has_smm", reason="the kernel has no SMM (KVM_CAP_X86_SMM is 0)"
)
NEEDS_IOAPIC = pytest.mark.skipif(
    "not kernel.has_ioapic", reason="the kernel has no IOAPIC (KVM_CAP_PIT2 is 0)"
)
NEEDS_SYNIC = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_HYPERV_SYNIC']",
    reason="the kernel has no SynIC (KVM_CAP_HYPERV_SYNIC is 0)",
)
NEEDS_SYNIC2 = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_HYPERV_SYNIC2']",
    reason="the kernel has no KVM_CAP_HYPERV_SYNIC2 (Linux 4.14)",
)
NEEDS_BLOCK_IRQ = pytest.mark.skipif(
    f"not kernel.capabilities['KVM_CAP_SET_GUEST_DEBUG2'] & {abi.KVM_GUESTDBG_BLOCKIRQ}",
    reason="the kernel has no KVM_GUESTDBG_BLOCKIRQ (KVM_CAP_SET_GUEST_DEBUG2, Linux 5.15)",
)
NEEDS_SREGS2 = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_SREGS2']",
    reason="the kernel has no KVM_SET_SREGS2 (KVM_CAP_SREGS2 is 0)",
)
NEEDS_PAYLOAD = pytest.mark.skipif(
    "not kernel.capabilities['KVM_CAP_EXCEPTION_PAYLOAD']",
    reason="the kernel has no KVM_CAP_EXCEPTION_PAYLOAD",
)
NEEDS_IN_SERVICE = pytest.mark.skipif(
    "kernel.vendor == 'kvm_pvm'", reason="kvm_pvm has no vector in service (pvm-never-in-service)"
)
WITHOUT_APICV = pytest.mark.skipif(
    "kernel.parameters.get('kvm_intel.enable_apicv') == 'Y'",
    reason="with APICv (kvm_intel.enable_apicv=Y) the processor, not KVM, handles TPR and EOI",
)
VECTOR_HASHING = pytest.mark.skipif("not kernel.vector_hashing", reason="kvm.vector_hashing=N")
ROUND_ROBIN = needs_parameter("kvm.vector_hashing", "N")

SMI_IF_SUPPORTED = pytest.param(SMI, marks=NEEDS_SMM)
"""For each.delivery_mode(), where a test expects an SMI to be accepted."""

# --- messages -------------------------------------------------------------------------------------


def to(destination: int, destination_mode: DestinationMode = PHYSICAL, **fields: Any) -> Message:
    """Return a message to ``destination``: fixed, vector 0x41, unless ``fields`` say otherwise."""
    return Message(destination=destination, destination_mode=destination_mode, **fields)


def fixed(vector: int, destination: int = 1) -> Message:
    """Return a message that raises ``vector``, on vCPU 1 unless ``destination`` says otherwise."""
    return Message(vector=vector, destination=destination)


def with_address_hi(address_hi: int) -> Message:
    """Return a message to vCPU 1 with this upper half of the address."""
    return to(1 | address_hi & ~0xFF, address_hi_reserved=address_hi & 0xFF)


# --- set-ups --------------------------------------------------------------------------------------

IDS = (0, 1, 2, 15, 16, 17, 33, 44, 255, 256, 257, 299, 300)
"""vCPU IDs of ``large``, in several clusters, below, at and above 255; 44 is 300's low byte."""

SMALL_IDS = (0, 1, 2, 3, 16, 17)
"""vCPU IDs of ``small``, in two clusters."""


def sharing_a_bit(mask: int) -> list[int]:
    """Return the vCPUs of ``machine`` whose bit is set in ``mask``: their flat logical IDs."""
    return list(bits(mask & 0xF))


def of_ids(*vcpu_ids: int) -> list[int]:
    """Return the vCPUs of ``large`` that have one of these IDs."""
    return [IDS.index(vcpu_id) for vcpu_id in vcpu_ids if vcpu_id in IDS]


EACH_STAGE = pytest.mark.parametrize(
    "when", ["pending", pytest.param("in-service", marks=NEEDS_IN_SERVICE)]
)
"""The stage in which a vector is when a test changes something."""


def enter_handler(cpu: Cpu, *, nest: bool = False) -> None:
    """Run ``cpu`` until a handler stops; the next handlers do not stop. See Cpu.handler()."""
    cpu.handler(pause=True, nest=nest)
    cpu.run_to_handler()
    cpu.handler()


def mix_models(machine: Machine) -> None:
    """Make vCPUs 2 and 3 members 1 and 2 of cluster 1; vCPUs 0 and 1 stay in the flat model."""
    for index, ldr in ((2, 0x11), (3, 0x12)):
        machine[index].configure(dfr=DFR_CLUSTER, ldr=ldr)


def set_events(cpu: Cpu, *, without: int = 0, **values: int) -> None:
    """Write back what KVM_GET_VCPU_EVENTS returns, with ``values``: ``nmi_masked`` is nmi.masked.

    ``without`` is a KVM_VCPUEVENT_VALID_* to clear. KVM_GET_VCPU_EVENTS sets them all.
    """
    events = cpu.vcpu.get_events()
    for name, value in values.items():
        group, _, field = name.partition("_")
        setattr(getattr(events, group), field, value)
    events.flags &= ~without
    cpu.vcpu.set_events(events)


def restore_cr8(cpu: Cpu, cr8: int) -> None:
    """Write CR8 by KVM_SET_SREGS."""
    sregs = cpu.vcpu.get_sregs()
    sregs.cr8 = cr8
    cpu.vcpu.set_sregs(sregs)


def make_irqchip(machine: Machine, irqchip: Irqchip, pins: int = 24) -> None:
    """Make an irqchip, then vCPU 0, in a machine that has neither."""
    machine.vm.create_irqchip() if irqchip == "full" else machine.vm.split_irqchip(pins)
    machine.irqchip = irqchip
    machine.add_cpu(0).power_on()


# --- checks ---------------------------------------------------------------------------------------


def expect_acceptors(machine: Machine, message: Message, *indices: int) -> None:
    """Send ``message``; raise Mismatch unless these vCPUs, and no others, accept it.

    Where no vCPU is given, the return value is 0 or -1 EPERM.
    """
    injection = machine.signal(message)
    injection.returns(len(indices)) if indices else injection.blocked_or_unmatched()
    injection.accepted_by(*indices)


def expect_taken(cpu: Cpu, *vectors: int) -> None:
    """Step ``cpu`` until an entry takes nothing; raise Mismatch unless it took ``vectors``."""
    _expect_vectors(cpu.take(), vectors)


def expect_logged(cpu: Cpu, *vectors: int) -> None:
    """Raise Mismatch unless ``cpu`` has taken ``vectors`` since its log was last read."""
    _expect_vectors(cpu.log(), vectors)


def _expect_vectors(records: list[Taken], expected: Iterable[int]) -> None:
    taken = [record.vector for record in records]
    expect("vectors taken", taken, list(expected), show=_show_in_order)


def _show_in_order(vectors: Iterable[int]) -> str:
    return "[" + " ".join(f"{vector:#04x}" for vector in vectors) + "]"


def expect_same_effects(message: Message, effects: list[Effect], expected: list[Effect]) -> None:
    """Raise Mismatch unless ``message`` did the same to every vCPU, both times."""
    expect(f"effects of {message}", effects, expected, show=lambda e: "; ".join(map(str, e)))


def expect_mp_state(cpu: Cpu, state: MpState) -> None:
    expect("mp_state", cpu.mp_state, state, show=show_mp_state)


def expect_asleep(cpu: Cpu, running: Running) -> None:
    """Raise Mismatch if ``cpu`` has left KVM_RUN by itself, or is not halted after a kick."""
    running.wait_until_asleep()
    expect("woken", running.kick() or cpu.mp_state != MpState.HALTED, False)


def outcome_of(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """Call a function that issues an ioctl; return "accepted", or the name of its errno."""
    try:
        call(*arguments, **options)
    except KvmError as error:
        return error.name
    return "accepted"


def try_to(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call a function whose ioctl may succeed or fail: kernels differ."""
    outcome_of(call, *arguments, **options)
    recording.any_outcome()


def expect_refused(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Raise Mismatch unless the ioctl fails, with any errno."""
    if outcome_of(call, *arguments, **options) == "accepted":
        raise Mismatch("outcome", "refused", "accepted")


def route_pin_to(machine: Machine, *destination: Any, vector: int = 0x61) -> None:
    """Route pin 5 of a split irqchip's IOAPIC to ``vector``, level-triggered."""
    message = to(*destination, vector=vector, trigger_mode=LEVEL, level=1)
    machine.vm.set_gsi_routing([msi_route(5, message)])


PIN = 20
"""A pin of the IOAPIC in the kernel that nothing else uses."""


def level_entry(index: int) -> int:
    """Return the redirection entry of vector 0x61 to vCPU ``index``, level-triggered."""
    return entry_of(to(index, vector=0x61, trigger_mode=LEVEL))


def program_pin(machine: Machine, entry: int, pin: int = PIN) -> None:
    """Write a redirection entry by KVM_SET_IRQCHIP, and keep Remote IRR."""
    irqchip = machine.vm.get_ioapic()
    table = irqchip.chip.ioapic.redirtbl
    table[pin] = entry | table[pin] & REMOTE_IRR
    machine.vm.set_ioapic(irqchip)


def raise_pin(machine: Machine) -> None:
    """Raise the line of the pin, and have vCPU 0 take the vector."""
    machine.vm.irq_line_status(PIN, 1)
    expect_taken(machine[0], 0x61)
    expect_remote_irr(machine, 1)


def expect_remote_irr(machine: Machine, value: int, pin: int = PIN) -> None:
    entry = machine.vm.get_ioapic().chip.ioapic.redirtbl[pin]
    expect("Remote IRR", int(entry & REMOTE_IRR > 0), value)


def expect_eoi_exit(cpu: Cpu, vector: int | None) -> None:
    """Run ``cpu``; raise Mismatch unless the EOI of ``vector`` exits. None: no EOI exits."""
    expect("vector of KVM_EXIT_IOAPIC_EOI", cpu.eoi_exit(), vector)
