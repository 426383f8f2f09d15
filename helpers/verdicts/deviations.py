"""Known deviations: kernels that are known to break a clause, with the evidence.

The one place where a deviation is described. A test that meets one names it with :func:`deviation`;
its failure is an expected one only on a kernel the entry applies to, and only when what happened
is what the entry says happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import pytest

from helpers.apic import Message
from helpers.apic.model import REFERENCE, Switches
from helpers.apic.topology import Topology
from helpers.guest.expect import Mismatch
from helpers.guest.sweep import disagreement
from helpers.kvm import System
from helpers.verdicts.kernel import Kernel


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """A switch of the model (helpers/apic/model.py) that is off in kernels with a deviation.

    ``topology`` and ``message``, in their text forms, are a case that tells: a kernel that answers
    it as the reference kernel has it on, whatever its version.
    """

    name: str
    topology: str
    message: str


@dataclass(frozen=True, slots=True)
class Deviation:
    """One known deviation.

    ``bound``: ``every`` kernel so far, a ``version`` range, or a ``host``. ``shows``: patterns
    (subject, actual) as in :class:`helpers.guest.expect.Mismatch`, with ``*`` and ``?`` as
    wildcards. ``fixed``: commit and version, where there is one.
    """

    id: str
    bound: Literal["every", "version", "host"]
    applies: Callable[[Kernel], bool]
    condition: str
    summary: str
    evidence: str
    shows: tuple[tuple[str, str], ...]
    fixed: str = ""
    switch: SwitchOff | None = None

    def explains(self, mismatch: Mismatch) -> bool:
        """Whether this mismatch is what the entry says happens."""
        return any(
            fnmatchcase(mismatch.subject, subject) and fnmatchcase(mismatch.actual, actual)
            for subject, actual in self.shows
        )


def _every(id: str, summary: str, evidence: str, *shows: tuple[str, str]) -> Deviation:
    return Deviation(id, "every", lambda _: True, "every kernel so far", summary, evidence, shows)


def _before(
    version: tuple[int, int],
    id: str,
    fixed: str,
    summary: str,
    *shows: tuple[str, str],
    switch: SwitchOff | None = None,
) -> Deviation:
    name = ".".join(map(str, version))
    return Deviation(
        id,
        "version",
        lambda kernel: kernel.version < version,
        f"before Linux {name}",
        summary,
        f"measured on stock kernels before and after {name}",
        shows,
        fixed,
        switch,
    )


_TABLE = (
    _every(
        "pad-not-checked",
        "Padding, and devid without its flag, are not looked at.",
        "kvm_send_userspace_msi of 3.5 to 7.3 checks flags only",
        ("return value", "1"),
    ),
    _every(
        "newest-vcpu-unreachable",
        "A unicast message does not find the vCPU created last until some LAPIC state is written.",
        "kvm_arch_vcpu_create resets the LAPIC, and so rebuilds the map, before the vCPU is "
        "entered in the VM's array; measured on 5.10 to 7.3",
        ("return value", "0"),
    ),
    _every(
        "hint-broadcast-becomes-fixed",
        "With redirection hint and physical 0xff any delivery mode becomes a fixed interrupt.",
        "kvm_irq_delivery_to_apic rewrites the delivery mode; measured on 5.10 to 7.3",
        ("effect on vCPU *", "IRR SET {*}"),
        ("effect on vCPU *", "nothing"),
    ),
    _every(
        "lowest-priority-dropped",
        "Lowest priority hashes over the bits of the destination, present or not, and drops what "
        "falls on an absent or disabled LAPIC.",
        "kvm_apic_map_get_dest_lapic; measured on 5.10 to 7.3",
        ("return value", "0"),
    ),
    _every(
        "illegal-vector-accepted",
        "Vectors 0 to 15 are accepted into IRR, and no error is recorded.",
        "__apic_accept_irq has no check; measured on 5.10 to 7.3",
        ("effect on vCPU *", "IRR SET {*}"),
    ),
    _every(
        "logical-nmi-lost",
        "A logical destination misses software-disabled LAPICs, for NMI, INIT and SMI too.",
        "the logical map leaves them out; measured on 5.10 to 7.3",
        ("return value", "0"),
    ),
    _every(
        "silent-xapic-reached",
        "Beside x2APICs, a logical destination reaches an xAPIC that has no logical ID by its "
        "physical one.",
        "kvm_apic_map_get_logical_dest looks x2APIC clusters up by physical ID, and an LDR of 0 "
        "does not make the map mixed; measured on 5.10 to 7.3",
        ("return value", "1"),
    ),
    _every(
        "sipi-wakes",
        "A SIPI wakes a vCPU from HLT, though only one that waits for SIPI may notice it.",
        "kvm_vcpu_has_events counts a pending SIPI whatever the mp_state; measured on 5.10 to 7.3",
        ("woken", "True"),
    ),
    _every(
        "alias-first-created",
        "Of vCPUs with one APIC ID the one created first receives the interrupt, which is not "
        "always the one with the lowest vCPU ID.",
        "kvm_recalculate_phys_map keeps the first entry; measured on 5.10 to 7.3",
        ("acceptors", "*"),
    ),
    Deviation(
        "pvm-never-in-service",
        "host",
        lambda kernel: kernel.is_pvm,
        "a /dev/kvm driven by kvm_pvm",
        "Taking an interrupt does not set its ISR bit: PPR stays at TPR, and vectors of the same "
        "or a lower class interrupt the handler.",
        "measured on 6.18 with kvm_pvm, full and split irqchip, xAPIC and x2APIC",
        (
            ("ISR*", "{}"),
            ("PPR*", "0"),
            ("vectors taken*", "*"),
            ("pending*", "*"),
        ),
    ),
    _before(
        (5, 11),
        "reset-hold-stays",
        "647daca25d24 (5.11)",
        "Delivery mode 3 does not end AP_RESET_HOLD.",
        ("mp_state", "AP_RESET_HOLD"),
        switch=SwitchOff(
            "remrd_ends_reset_hold", "0 1/ap-reset-hold", "destination=1 delivery_mode=remrd"
        ),
    ),
    _before(
        (6, 3),
        "nobody-is-eperm",
        "35366901017c (6.3)",
        "A logical destination without a match returns -1 EPERM when no enabled LAPIC has an LDR.",
        ("return value", "-1 EPERM"),
        switch=SwitchOff(
            "unmatched_logical_is_blocked", "0", "destination=1 destination_mode=logical"
        ),
    ),
    _before(
        (6, 3),
        "alias-one-receives",
        "5b84b0291702 (6.3)",
        "Of several LAPICs with one physical APIC ID only the first receives the interrupt.",
        ("return value", "*"),
        ("effect on vCPU *", "*"),
        switch=SwitchOff("aliased_ids_all_receive", "0 1/id=0x0", "destination=0"),
    ),
    _before(
        (6, 3),
        "x2apic-id-usurped",
        "76e527509d37 (6.3)",
        "A message for an x2APIC reaches another one, whose ID KVM_SET_LAPIC has truncated to, or "
        "set to, the destination.",
        ("return value", "1"),
        ("effect on vCPU *", "IRR SET {*}"),
        ("effect on vCPU *", "nothing"),
        switch=SwitchOff("x2apics_keep_their_ids", "0 300/x2apic", "destination=44"),
    ),
    _before(
        (6, 3),
        "logical-alias-one-receives",
        "2970052481b9, 2bf934aadcac (6.3)",
        "Of LAPICs whose LDRs overlap only one receives the interrupt.",
        ("return value", "*"),
        switch=SwitchOff(
            "aliased_logical_ids_all_receive",
            "0/ldr=0x01000000 1/ldr=0x01000000",
            "destination=1 destination_mode=logical",
        ),
    ),
    _before(
        (6, 3),
        "forced-xapic-id-zero",
        "052c3b99cbc8 (6.3)",
        "A LAPIC that the host switches from x2APIC to xAPIC answers as APIC ID 0.",
        ("return value", "0"),
    ),
    _before(
        (6, 4),
        "one-nmi-shown",
        "ab2ee212a57b (6.4)",
        "Of two pending NMIs KVM_GET_VCPU_EVENTS shows one.",
        ("NMIs pending", "1"),
        switch=SwitchOff("nmis_are_counted", "0/nmi=1", "destination=0 delivery_mode=nmi"),
    ),
    _before(
        (6, 11),
        "x2apic-id-writable",
        "4b7c3f6d04bd (6.11)",
        "KVM_SET_LAPIC gives an x2APIC any ID, and the logical ID that follows from it.",
        ("x2APIC ID", "7"),
        ("return value", "1"),
    ),
    _before(
        (6, 15),
        "unhalt-not-forgotten",
        "e9cb61055fee (6.15)",
        "A vCPU that delivery mode 3 once un-halted does not stay HALTED when it is made so again.",
        ("mp_state", "RUNNABLE"),
    ),
    _before(
        (7, 0),
        "no-eoi-broadcast-features",
        "6517dfbcc918 (7.0)",
        "KVM_CAP_X2APIC_API has no features for the suppression of EOI broadcasts.",
        ("KVM_CAP_X2APIC_API", "3"),
    ),
)

DEVIATIONS: dict[str, Deviation] = {entry.id: entry for entry in _TABLE}
if len(DEVIATIONS) != len(_TABLE):
    raise ValueError("two deviations have one id")


def switches_of(kernel: Kernel, system: System) -> Switches:
    """The model's switches as the running kernel has them: off by version, on where it shows."""
    offs = [entry.switch for entry in _TABLE if entry.switch and entry.applies(kernel)]
    return replace(REFERENCE, **{off.name: False for off in offs if _shows(off, system)})


def _shows(off: SwitchOff, system: System) -> bool:
    case = Topology.parse(off.topology), Message.parse(off.message)
    try:
        return disagreement(system, *case, REFERENCE) is not None
    except ValueError:  # it is not the reference kernel's topology either
        return True


def deviation(id: str) -> pytest.MarkDecorator:
    """Decorate a test with a deviation it meets; KeyError for an id that is not in the table."""
    return pytest.mark.deviation(DEVIATIONS[id])
