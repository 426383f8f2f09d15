"""The clauses: every checkable statement, where it stands, and since when.

The one place where a clause is described. A test names its clause with :func:`clause`; ids are
stable, results are archived under them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

Level = Literal["documented", "required", "architectural", "observed"]
LEVELS: dict[Level, str] = {
    "documented": "Linux's Documentation/virt/kvm says so",
    "required": "asked of this suite, though no document says it",
    "architectural": "the processor manuals say so",
    "observed": "no document; what the reference kernel does",
}


@dataclass(frozen=True, slots=True)
class Clause:
    """One checkable statement, in this suite's words.

    ``source`` is document and section, ``since`` the first kernel version that owes it;
    ``unchecked`` says why no x86 kernel can be held to it, where that is so.
    """

    id: str
    level: Level
    text: str
    source: str
    since: str
    unchecked: str = ""


_API = "Documentation/virt/kvm/api.rst"
_ERRATA = "Documentation/virt/kvm/x86/errata.rst, x2APIC"
_SIGNAL = f"{_API} 4.71 KVM_SIGNAL_MSI"
_X2APIC_API = f"{_API} 7.7 KVM_CAP_X2APIC_API"
_SPLIT = f"{_API} 7.5 KVM_CAP_SPLIT_IRQCHIP"
_SDM = "Intel SDM vol. 3"


def _documented(id: str, since: str, source: str, text: str, unchecked: str = "") -> Clause:
    return Clause(id, "documented", text, source, since, unchecked)


def _architectural(id: str, section: str, text: str) -> Clause:
    return Clause(id, "architectural", text, f"{_SDM} {section}", "3.5")


def _observed(id: str, since: str, text: str, source: str = "the reference kernel") -> Clause:
    return Clause(id, "observed", text, source, since)


_TABLE = (
    # --- the ioctl, as api.rst documents it -------------------------------------------------------
    _documented(
        "msi.capability",
        "3.5",
        _SIGNAL,
        "KVM_CAP_SIGNAL_MSI is advertised, and tells whether the ioctl exists.",
    ),
    _documented(
        "msi.vm-ioctl",
        "3.5",
        f"{_SIGNAL}; {_API} 1",
        "The ioctl belongs to VM file descriptors; on any other it fails.",
    ),
    _documented(
        "msi.same-process",
        "3.5",
        f"{_API} 1 General description",
        "A VM ioctl is valid only in the process (address space) that created the VM.",
    ),
    _documented(
        "msi.struct",
        "4.8",
        _SIGNAL,
        "The parameter is a 32-byte struct kvm_msi: five 32-bit words and 12 bytes of padding.",
    ),
    _documented(
        "msi.input-only",
        "3.5",
        _SIGNAL,
        "The parameter is input only: the kernel reads it and never writes it.",
    ),
    _documented(
        "msi.returns-delivered", "3.5", _SIGNAL, "A delivered message returns a value above 0."
    ),
    _documented("msi.returns-blocked", "3.5", _SIGNAL, "A message the guest blocks returns 0."),
    _documented("msi.returns-error", "3.5", _SIGNAL, "An error returns -1."),
    _documented(
        "msi.needs-irqchip",
        "3.5",
        _SIGNAL,
        "The ioctl is valid only with an in-kernel irqchip that handles MSI messages.",
    ),
    _documented(
        "msi.direct",
        "3.5",
        f"{_SIGNAL}; commit 07975ad3b305",
        "The message is injected directly: no GSI route is needed, used or changed.",
    ),
    _documented(
        "msi.flags",
        "3.5",
        _SIGNAL,
        "KVM_MSI_VALID_DEVID is the only flag; a message with any other fails.",
    ),
    _documented(
        "msi.devid-flag",
        "4.8",
        _SIGNAL,
        "Without KVM_CAP_MSI_DEVID, setting KVM_MSI_VALID_DEVID might fail; nothing worse.",
    ),
    _documented(
        "msi.devid-capability",
        "4.8",
        _SIGNAL,
        "KVM_CAP_MSI_DEVID advertises that a device ID must be given; no x86 irqchip needs one.",
    ),
    _documented(
        "msi.devid-meaning",
        "4.8",
        _SIGNAL,
        "devid is the unique device ID of the writer, for PCI usually its BDF.",
        "no x86 irqchip looks at devid",
    ),
    _documented(
        "msi.address-hi-ignored",
        "4.8",
        _SIGNAL,
        "address_hi is ignored unless KVM_X2APIC_API_USE_32BIT_IDS is enabled.",
    ),
    _documented(
        "msi.address-hi-bits",
        "4.8",
        _SIGNAL,
        "With 32-bit IDs, address_hi bits 31:8 are the destination ID's bits 31:8.",
    ),
    _documented(
        "msi.address-hi-zero",
        "4.8",
        _SIGNAL,
        "With 32-bit IDs, address_hi bits 7:0 must be zero.",
    ),
    Clause(
        "msi.pad",
        "required",
        "A message with nonzero padding, or a devid without its flag, fails with EINVAL and "
        "injects nothing: what is ignored today can never be given a meaning.",
        "this suite; Documentation/process/adding-syscalls.rst, Designing the API",
        "3.5",
    ),
    # --- documented elsewhere ---------------------------------------------------------------------
    _documented(
        "kvm.api-version",
        "2.6.22",
        f"{_API} 4.1 KVM_GET_API_VERSION",
        "KVM_GET_API_VERSION returns 12.",
    ),
    _documented(
        "state.saved",
        "2.6.33",
        f"{_API} 4.31 KVM_GET_VCPU_EVENTS, 4.38 KVM_GET_MP_STATE, 4.57 KVM_GET_LAPIC",
        "Interrupts, NMI and SMI that are pending, and whether a vCPU runs, waits or is halted, "
        "are state that can be read, and be given to another vCPU.",
    ),
    _documented(
        "x2apic-api.flags",
        "4.8",
        _X2APIC_API,
        "Enabling KVM_CAP_X2APIC_API with invalid features fails with EINVAL.",
    ),
    _documented(
        "x2apic-api.eoi-broadcast",
        "7.0",
        _X2APIC_API,
        "Two features say whether the guest is offered to suppress EOI broadcasts; offering it "
        "takes a split irqchip.",
    ),
    _documented(
        "x2apic-api.quirk",
        "4.8",
        _X2APIC_API,
        "Destination 0xff is a broadcast even to x2APICs, unless "
        "KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK is enabled.",
    ),
    _documented(
        "x2apic-api.scope",
        "4.8",
        _X2APIC_API,
        "KVM_X2APIC_API_USE_32BIT_IDS changes KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI, KVM_SET_LAPIC "
        "and KVM_GET_LAPIC, so that 32-bit IDs can be used.",
    ),
    _documented(
        "lapic.format",
        "4.8",
        f"{_API} 4.57 KVM_GET_LAPIC, 4.58 KVM_SET_LAPIC",
        "The ID register is in xAPIC format (bits 31:24), but with 32-bit IDs that of an x2APIC "
        "is the whole register.",
    ),
    _documented(
        "split.creation",
        "4.4",
        _SPLIT,
        "Splitting the irqchip fails once a vCPU or an in-kernel irqchip exists.",
    ),
    _documented(
        "split.eoi-exit",
        "4.4",
        _SPLIT,
        "The first args[0] MSI routes stand for IOAPIC pins: an EOI of their vector exits with "
        "KVM_EXIT_IOAPIC_EOI.",
    ),
    _documented(
        "split.msi-routes-only",
        "4.4",
        _SPLIT,
        "With a split irqchip only MSI routes are allowed.",
    ),
    _documented(
        "irqchip.before-vcpus",
        "2.6.22",
        f"{_API} 4.24 KVM_CREATE_IRQCHIP",
        "The irqchip is created before any vCPU, and once.",
    ),
    _documented(
        "routing.flags",
        "4.8",
        f"{_API} 4.52 KVM_SET_GSI_ROUTING",
        "A route's flags and address_hi obey the same rules as a message's; the table's flags "
        "must be zero.",
    ),
    _documented(
        "errata.alias-8bit",
        "6.3",
        _ERRATA,
        "Without 32-bit IDs every vCPU whose APIC ID matches receives the interrupt.",
    ),
    _documented(
        "errata.alias-32bit",
        "6.3",
        _ERRATA,
        "With 32-bit IDs, of several vCPUs with one APIC ID the one with the lowest vCPU ID "
        "receives the interrupt.",
    ),
    _documented(
        "cpuid.ext-dest-id",
        "5.10",
        "Documentation/virt/kvm/x86/cpuid.rst, KVM_FEATURE_MSI_EXT_DEST_ID",
        "The guest may use address bits 11:5 only where user space advertises it; the kernel "
        "neither advertises nor decodes them.",
    ),
    # --- architectural ----------------------------------------------------------------------------
    _architectural(
        "dest.physical",
        "11.11.1, 11.6.2.1",
        "A physical destination is the LAPIC with that APIC ID, and no other.",
    ),
    _architectural(
        "dest.broadcast", "11.6.2.1", "Physical destination 0xff is every LAPIC (xAPIC)."
    ),
    _architectural(
        "dest.flat",
        "11.6.2.2",
        "Flat model: every LAPIC whose LDR shares a bit with the destination.",
    ),
    _architectural(
        "dest.cluster",
        "11.6.2.2",
        "Cluster model: destination bits 7:4 name the cluster, 3:0 the LAPICs in it.",
    ),
    _architectural(
        "dest.x2apic-logical",
        "11.12.10",
        "x2APIC: the logical ID is cluster (ID bits 31:4) and one bit of sixteen (ID bits 3:0).",
    ),
    _architectural(
        "dest.x2apic-broadcast", "11.12.9", "x2APIC: destination 0xffffffff is every LAPIC."
    ),
    _architectural(
        "dest.lowest-priority",
        "11.6.2.4",
        "Lowest priority: exactly one of the destination's enabled LAPICs accepts the interrupt.",
    ),
    _architectural(
        "dest.redirection-hint",
        "11.11.1",
        "Redirection hint: one of the destination's processors gets the message as it is.",
    ),
    _architectural(
        "message.vector",
        "11.11.2",
        "Data bits 7:0 are the vector, 16 to 255, and no other vector is raised.",
    ),
    _architectural(
        "message.illegal-vector",
        "11.5.2",
        "Vectors 0 to 15 are illegal: a LAPIC that receives one does not deliver it.",
    ),
    _architectural(
        "message.delivery-mode",
        "11.11.2",
        "Data bits 10:8 are the delivery mode: fixed and lowest priority raise the vector; SMI, "
        "NMI and INIT raise what they name.",
    ),
    _architectural(
        "message.trigger-mode",
        "11.11.2, 11.8.4",
        "On acceptance the vector's TMR bit is set for level-triggered, cleared for edge.",
    ),
    _architectural(
        "lapic.software-disabled",
        "11.4.7.2",
        "A software-disabled LAPIC takes no fixed interrupt, but INIT, NMI, SMI and SIPI as usual.",
    ),
    _architectural(
        "lapic.hardware-disabled", "11.4.3", "A LAPIC disabled in IA32_APIC_BASE takes nothing."
    ),
    _architectural(
        "lapic.fresh",
        "11.4.7.1",
        "A LAPIC after power-up takes NMI, INIT and SIPI addressed to its APIC ID.",
    ),
    _architectural(
        "lapic.follows-guest",
        "11.4.3, 11.6.2, 11.12.5",
        "Messages follow at once when the guest rewrites SVR, LDR, DFR, ID or IA32_APIC_BASE.",
    ),
    _architectural(
        "guest.taken-once",
        "11.8.4",
        "An accepted interrupt is taken once, by the LAPIC's own processor, with its vector.",
    ),
    _architectural(
        "guest.coalesced",
        "11.8.4",
        "A vector that is already pending is taken once; in service, it is pending once more.",
    ),
    _architectural(
        "guest.in-service",
        "11.8.4, 11.8.3.1",
        "From the moment it is taken until EOI a vector is in service: its ISR bit is set, and "
        "PPR holds its class.",
    ),
    _architectural(
        "guest.in-service-holds",
        "11.8.3.1",
        "While a vector is in service its class and those below it wait.",
    ),
    _architectural(
        "guest.priority", "11.8.3", "Of several pending vectors the highest is taken first."
    ),
    _architectural(
        "guest.eoi", "11.8.5", "EOI ends the highest vector in service and releases what waits."
    ),
    _architectural(
        "guest.tpr", "11.8.3.1", "TPR holds back its class and those below it, and lets go."
    ),
    _architectural("guest.if", "6.8.1", "RFLAGS.IF = 0 holds back interrupts, but not NMIs."),
    _architectural(
        "guest.nmi", "6.7", "An NMI is taken through vector 2, whatever TPR and IF say."
    ),
    _architectural("guest.smi", "32.3", "An SMI enters the SMI handler."),
    _architectural(
        "guest.hlt",
        "6.8.1; vol. 2, HLT",
        "An unmasked interrupt, NMI or SMI wakes a halted processor; a masked one does not.",
    ),
    _architectural(
        "guest.init-sipi",
        "9.4.3",
        "INIT then SIPI starts a processor in real mode at the page its vector names.",
    ),
    _architectural("guest.running", "11.8.4", "An interrupt reaches a processor while it runs."),
    # --- observed ---------------------------------------------------------------------------------
    _observed(
        "abi.errno",
        "5.10",
        "The errno of each entry check, and which check wins where several would fail.",
        "virt/kvm/kvm_main.c kvm_vm_ioctl, virt/kvm/irqchip.c kvm_send_userspace_msi",
    ),
    _observed(
        "abi.other-numbers",
        "5.10",
        "The same nr with another size or direction is another ioctl: ENOTTY.",
        "virt/kvm/kvm_main.c kvm_vm_ioctl",
    ),
    _observed(
        "abi.compat",
        "5.10",
        "The ioctl is the same through the 32-bit system call entry.",
        "virt/kvm/kvm_main.c kvm_vm_compat_ioctl",
    ),
    _observed(
        "abi.ignored",
        "5.10",
        "devid and padding do not change what is delivered.",
        "virt/kvm/irqchip.c kvm_send_userspace_msi",
    ),
    _observed(
        "return.count",
        "5.10",
        "The return value is the number of vCPUs that accepted the message.",
        "arch/x86/kvm/irq_comm.c kvm_irq_delivery_to_apic",
    ),
    _observed(
        "return.nobody",
        "6.3",
        "With nobody to accept it, a message returns 0 where the optimized map finds the "
        "destination, and -1 EPERM where all vCPUs are searched.",
        "arch/x86/kvm/irq_comm.c kvm_irq_delivery_to_apic",
    ),
    _observed(
        "return.masked",
        "5.10",
        "TPR, IF, and the vector being pending or in service do not make a message blocked: 1.",
        "arch/x86/kvm/lapic.c __apic_accept_irq",
    ),
    _observed(
        "return.mp-state",
        "5.10",
        "The return value does not depend on the target's mp_state.",
        "arch/x86/kvm/lapic.c __apic_accept_irq",
    ),
    _observed(
        "return.extint",
        "5.10",
        "ExtINT is never accepted from a message: 0.",
        "arch/x86/kvm/lapic.c __apic_accept_irq",
    ),
    _observed(
        "return.remrd",
        "5.10",
        "Reserved delivery mode 3 returns 1 and un-halts its target.",
        "arch/x86/kvm/lapic.c __apic_accept_irq; 6aef266c6e17 (3.12)",
    ),
    _observed(
        "return.remrd-reset-hold",
        "5.11",
        "Reserved delivery mode 3 makes a vCPU in AP_RESET_HOLD runnable.",
        "arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_get_mpstate; 647daca25d24 (5.11)",
    ),
    _observed(
        "return.remrd-latched",
        "5.10",
        "Reserved delivery mode 3 to a runnable vCPU un-halts it when it is next made HALTED.",
        "arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_get_mpstate",
    ),
    _observed(
        "return.remrd-forgotten",
        "6.15",
        "Becoming RUNNABLE, a vCPU forgets that reserved delivery mode 3 un-halted it.",
        "arch/x86/kvm/x86.h kvm_set_mp_state; e9cb61055fee (6.15)",
    ),
    _observed(
        "message.nmi-count",
        "6.4",
        "Of the NMIs sent before the vCPU takes one, two at most are pending; the host sees how "
        "many, and the guest takes them all.",
        "arch/x86/kvm/x86.c kvm_vcpu_ioctl_x86_get_vcpu_events; ab2ee212a57b (6.4)",
    ),
    _observed(
        "message.ignored-bits",
        "5.10",
        "Address bits 31:20, 11:4, 1:0 and data bits 31:16, 14:11 do not change anything.",
        "arch/x86/kvm/irq_comm.c kvm_set_msi_irq",
    ),
    _observed(
        "message.low-vectors",
        "5.10",
        "Vectors 0 to 15 return 1 and stay in IRR for ever.",
        "arch/x86/kvm/lapic.c __apic_accept_irq, apic_has_interrupt_for_ppr",
    ),
    _observed(
        "dest.mixed-modes",
        "5.10",
        "Where xAPIC and x2APIC, or flat and cluster LAPICs are mixed, each LAPIC matches by its "
        "own rule.",
        "arch/x86/kvm/lapic.c kvm_apic_match_dest",
    ),
    _observed(
        "dest.aliased",
        "6.3",
        "Aliased and overlapping IDs: all matching LAPICs accept.",
        "5b84b0291702, 2970052481b9, 2bf934aadcac (6.3)",
    ),
    _observed(
        "dest.x2apic-no-alias",
        "4.10",
        "An x2APIC ID above 0xff never reaches an xAPIC whose 8-bit ID is its low byte.",
        "arch/x86/kvm/lapic.c kvm_apic_match_physical_addr",
    ),
    _observed(
        "dest.xapic-logical-hi",
        "5.10",
        "With 32-bit IDs, destination bits 31:8 are ignored by a logical destination in xAPIC "
        "mode.",
        "arch/x86/kvm/lapic.c kvm_apic_map_get_logical_dest",
    ),
    _observed(
        "dest.vector-hashing",
        "5.10",
        "Lowest priority picks the slot vector mod n of the n destination bits, or of the n "
        "matching LAPICs where all vCPUs are searched; TPR is not consulted.",
        "arch/x86/kvm/lapic.c kvm_vector_to_index; 52004014f7c6 (4.5)",
    ),
    _observed(
        "dest.round-robin",
        "5.10",
        "With kvm.vector_hashing=N, lowest priority goes round; a redirection hint does not.",
        "arch/x86/kvm/irq_comm.c kvm_irq_delivery_to_apic",
    ),
    _observed(
        "dest.hint-broadcast",
        "5.10",
        "Redirection hint and physical broadcast: any delivery mode becomes fixed, to one LAPIC.",
        "arch/x86/kvm/irq_comm.c kvm_irq_delivery_to_apic",
    ),
    _observed(
        "dest.lowest-broadcast",
        "5.10",
        "Lowest priority to physical 0xff becomes fixed, to all.",
        "arch/x86/kvm/irq_comm.c kvm_irq_delivery_to_apic",
    ),
    _observed(
        "x2apic-api.quirk-32bit",
        "5.10",
        "With 32-bit IDs and the broadcast quirk, 0xffffffff is an absent ID.",
        "arch/x86/kvm/lapic.c kvm_apic_is_broadcast_dest",
    ),
    _observed(
        "x2apic-api.sticky",
        "5.10",
        "KVM_CAP_X2APIC_API may be enabled when vCPUs exist, takes effect at once and stays.",
        "arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap",
    ),
    _observed(
        "x2apic-api.late-aliases",
        "6.3",
        "Where 32-bit IDs are enabled late, aliased IDs all receive until a LAPIC is changed.",
        "arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap",
    ),
    _observed(
        "model.generated",
        "5.10",
        "Whatever ioctls and guest writes went before, a message does what the model says.",
        "helpers/apic/model.py",
    ),
    _observed(
        "model.swept",
        "5.10",
        "To any topology, any message does what the model says.",
        "helpers/apic/model.py",
    ),
    _observed(
        "equivalence.routes",
        "5.10",
        "A message does the same through a GSI route: by irqfd, by KVM_IRQ_LINE_STATUS, directly.",
        "arch/x86/kvm/irq_comm.c kvm_set_msi",
    ),
)

CLAUSES: dict[str, Clause] = {entry.id: entry for entry in _TABLE}
if len(CLAUSES) != len(_TABLE):
    raise ValueError("two clauses have one id")


def clause(id: str) -> pytest.MarkDecorator:
    """Decorate a test with the clause it checks; KeyError for an id that is not in the table."""
    return pytest.mark.clause(CLAUSES[id])
