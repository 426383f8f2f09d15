# SPDX-License-Identifier: GPL-2.0-only
"""What KVM_SIGNAL_MSI must return and do: the executable specification.

The path of a message:

1. Entry: the ioctl fails with EINVAL without an in-kernel irqchip, for an undefined flag and, with
   32-bit IDs, for nonzero address_hi bits 7:0. ``Model.entry()``
2. Destination: KVM finds the LAPICs that the destination ID addresses, in a map or by a search.
   Vector and trigger mode have no influence so far. ``Model.route()``
3. Choice: each of these LAPICs receives the message. With delivery mode lowest priority, or with
   the redirection hint, the LAPICs are candidates: one receives the message. ``Model.choose()``
4. Acceptance: each LAPIC that receives the message accepts or refuses the message. The return value
   is the number of LAPICs that accept. ``Model.accept()``, ``effect_of()``

The map: KVM maps APIC IDs and logical IDs to LAPICs (``struct kvm_apic_map``), so that most
destinations need no search. ``kvm_recalculate_apic_map()`` rebuilds the map when a LAPIC is
created, enabled, disabled or gets another ID. A search (``kvm_irq_delivery_to_apic()``) compares
the destination with every LAPIC that is enabled in IA32_APIC_BASE. KVM searches

* if there is no map: the VM has no vCPU, or (since 6.3, without 32-bit IDs) two LAPICs have the
  same APIC ID;
* for a broadcast;
* for a logical destination, if the logical IDs of software-enabled LAPICs mix the flat, cluster
  and x2APIC formats, or (since 6.3) overlap or have several bits.

An optimization should be invisible, but user space can tell a look at the map from a search:

* If no LAPIC matches, a look at the map returns 0. The result of a search starts as -1, and -1 is
  -EPERM.
* Of a logical destination, the map offers every bit as a candidate for lowest priority. If KVM
  chooses a bit without a LAPIC, the message is lost. A search offers software-enabled LAPICs only.
* The map has no logical ID for a software-disabled xAPIC, so an NMI to that logical ID is lost. A
  search finds the xAPIC.
* The map lacks the vCPU created last until the next rebuild. A search finds the vCPU.

A ``Rule`` states one fact and names the clauses (helpers/spec) that the fact stands for. Where no
document makes a statement, the rule is the behavior of the newest mainline kernel. Older kernels
differ by the named ``Switches``. The model knows no file descriptor and no kernel version.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from helpers.apic.effect import NOTHING, Effect
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, bits
from helpers.apic.message import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.topology import MpState, Topology, VcpuState
from helpers.kvm import show_result
from helpers.kvm.abi import KVM_MSI_VALID_DEVID
from helpers.spec import CLAUSES

XAPIC_BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFFFFFF
MAX_PENDING_NMIS = 2


@dataclass(frozen=True, slots=True)
class Switches:
    """The differences between kernels: a name states what the reference kernel does.

    The deviation that names a switch (helpers/spec) tells the kernels that have the switch off.
    """

    aliased_ids_all_receive: bool = True
    aliased_logical_ids_all_receive: bool = True
    unmatched_logical_is_blocked: bool = True
    x2apics_keep_their_ids: bool = True
    nmis_are_counted: bool = True
    remrd_ends_reset_hold: bool = True
    smm_allows_init_received: bool = True
    init_in_smm_is_quiet: bool = True
    moved_routes_exit: bool = True
    stale_eois_exit_once: bool = True
    disabled_lapics_run: bool = True
    disabled_lapics_hold: bool = True


REFERENCE = Switches()


# --- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One fact, and the IDs of the clauses that the fact stands for."""

    text: str
    clauses: tuple[str, ...]

    @property
    def source(self) -> str:  # pragma: no cover - no prediction reads a source
        """The sources of the clauses, each once."""
        return "; ".join(dict.fromkeys(CLAUSES[id].source for id in self.clauses))


# Entry.
NEEDS_IRQCHIP = Rule(
    "Without an in-kernel irqchip every message fails with EINVAL.", ("msi.needs-irqchip",)
)
UNKNOWN_FLAG = Rule(
    "A flag other than KVM_MSI_VALID_DEVID fails with EINVAL.", ("msi.flags", "abi.errno")
)
HI_RESERVED = Rule(
    "With 32-bit IDs, nonzero address_hi bits 7:0 fail with EINVAL.", ("msi.address-hi-zero",)
)
IGNORED = Rule("devid and padding are ignored.", ("abi.ignored",))

# Destination.
DESTINATION_8 = Rule("address_hi is ignored without 32-bit IDs.", ("msi.address-hi-ignored",))
DESTINATION_32 = Rule(
    "With 32-bit IDs, address_hi bits 31:8 are destination bits 31:8.", ("msi.address-hi-bits",)
)
PHYSICAL = Rule("A physical destination addresses the LAPIC with that APIC ID.", ("dest.physical",))
FLAT = Rule(
    "Flat model: each bit of a logical destination addresses the LAPICs with that bit.",
    ("dest.flat",),
)
CLUSTER = Rule(
    "Cluster model: bits 7:4 of a logical destination name a cluster, each bit of 3:0 addresses "
    "the LAPICs of the cluster with that bit.",
    ("dest.cluster",),
)
X2APIC_LOGICAL = Rule(
    "x2APIC mode: bits 31:16 of a logical destination name a cluster, each bit of 15:0 addresses "
    "the LAPIC with APIC ID 16 * cluster + bit, even an xAPIC without a logical ID.",
    ("dest.x2apic-logical",),
)
# 35366901017c (6.3); older kernels search.
NO_LOGICAL_ID = Rule(
    "If no software-enabled LAPIC has a logical ID, a logical destination addresses none.",
    ("return.nobody",),
)
SEARCH = Rule(
    "KVM compares the destination with each LAPIC: there is no map, the destination is a "
    "broadcast, or logical IDs are mixed or overlap.",
    ("dest.broadcast", "dest.mixed-modes", "dest.aliased", "errata.alias-8bit"),
)
HINT_BROADCAST = Rule(
    "To physical destination 0xff, lowest priority or a redirection hint makes the message fixed.",
    ("dest.hint-broadcast", "dest.lowest-broadcast"),
)
UNMATCHED = Rule("If a search finds no LAPIC, the ioctl fails with EPERM.", ("return.nobody",))

# Choice.
HASHED = Rule(
    "Vector hashing chooses candidate number vector mod n of n candidates.",
    ("dest.lowest-priority", "dest.redirection-hint", "dest.vector-hashing"),
)
ROUND_ROBIN = Rule(
    "Without vector hashing, KVM chooses the candidate that received the fewest lowest-priority "
    "messages; of equals, the first.",
    ("dest.round-robin",),
)
EMPTY_BIT = Rule(
    "If no LAPIC has the chosen bit of the destination, the message is dropped.",
    ("dest.vector-hashing",),
)

# Acceptance.
ENABLED = Rule(
    "A software-enabled LAPIC accepts a fixed interrupt: IRR is set, TMR is set for level and "
    "cleared for edge.",
    ("message.vector", "message.trigger-mode"),
)
SOFTWARE_DISABLED = Rule(
    "A software-disabled LAPIC refuses a fixed interrupt.",
    ("lapic.software-disabled", "msi.returns-blocked"),
)
SIGNAL = Rule(
    "SMI, NMI and INIT become pending, on a software-disabled LAPIC too.",
    ("message.delivery-mode", "lapic.software-disabled"),
)
IN_SMM = Rule("In SMM an INIT waits and a SIPI is dropped.", ("guest.init-in-smm",))
MASKED_NMI = Rule("While NMIs are masked, one NMI can be pending.", ("guest.nmi-held",))
# 4b8e1b32013d (6.2)
NO_SMM = Rule("Without SMM an SMI is refused.", ("message.delivery-mode",))
STARTUP = Rule(
    "Every LAPIC accepts a SIPI. A vCPU that does not wait for a SIPI ignores it.",
    ("guest.init-sipi", "return.mp-state"),
)
UNHALT = Rule(
    "Reserved delivery mode 3 is accepted. A vCPU in HALTED or AP_RESET_HOLD becomes runnable.",
    ("return.remrd", "return.remrd-reset-hold"),
)
NO_EXTINT = Rule("ExtINT is never accepted from a message.", ("return.extint",))

RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))


class LogicalMode(enum.Enum):
    """``enum kvm_apic_logical_mode``: the format of all logical IDs in the map."""

    SW_DISABLED = "no software-enabled LAPIC has a logical ID"
    XAPIC_FLAT = "flat"
    XAPIC_CLUSTER = "cluster"
    X2APIC = "x2APIC"
    MAP_DISABLED = "mixed or overlapping logical IDs"


_LOGICAL = {
    LogicalMode.SW_DISABLED: NO_LOGICAL_ID,
    LogicalMode.XAPIC_FLAT: FLAT,
    LogicalMode.XAPIC_CLUSTER: CLUSTER,
    LogicalMode.X2APIC: X2APIC_LOGICAL,
}
_RULE_OF = {
    DeliveryMode.FIXED: ENABLED,
    DeliveryMode.LOWEST_PRIORITY: ENABLED,
    DeliveryMode.SMI: SIGNAL,
    DeliveryMode.NMI: SIGNAL,
    DeliveryMode.INIT: SIGNAL,
    DeliveryMode.SIPI: STARTUP,
    DeliveryMode.REMRD: UNHALT,
    DeliveryMode.EXTINT: NO_EXTINT,
}


# --- the map --------------------------------------------------------------------------------------


@dataclass(slots=True)
class ApicMap:
    """``struct kvm_apic_map``, with the index of a vCPU in place of a pointer to a LAPIC.

    A key of ``logical_map`` is the bit number of a flat logical ID, or 4 * cluster + bit number.
    The logical ID of an x2APIC derives from the APIC ID: ``phys_map`` serves both.
    """

    max_apic_id: int
    phys_map: dict[int, int] = field(default_factory=dict)
    logical_mode: LogicalMode = LogicalMode.SW_DISABLED
    logical_map: dict[int, int] = field(default_factory=dict)

    @classmethod
    def build(cls, topology: Topology, switches: Switches) -> ApicMap | None:
        """Return the map of ``kvm_recalculate_apic_map()``, None if there is no map."""
        if not topology.vcpus:
            return None
        vcpus = enumerate(topology.vcpus)
        mapped = [(i, vcpu) for i, vcpu in vcpus if vcpu.mapped and vcpu.hardware_enabled]
        made = cls(max_apic_id=max([XAPIC_BROADCAST, *(vcpu.vcpu_id for _, vcpu in mapped)]))
        unique = switches.aliased_ids_all_receive and not topology.is_mapped_with_32bit_ids
        for index, vcpu in mapped:
            if not made._add_physical(index, vcpu, unique):
                return None
            if vcpu.software_enabled and vcpu.ldr:
                made._add_logical(index, vcpu, switches)
        return made

    def _add_physical(self, index: int, vcpu: VcpuState, unique: bool) -> bool:
        """Map the APIC ID; return False if ``unique`` and another LAPIC has the same APIC ID.

        If not ``unique``, ``phys_map`` keeps the first xAPIC with an ID. A vCPU ID above 0xff maps
        to an xAPIC too, because a hot-plugged vCPU starts in xAPIC mode.
        """
        if unique:
            apic_id = vcpu.vcpu_id if vcpu.is_x2apic else vcpu.id
            return self.phys_map.setdefault(apic_id, index) == index
        if vcpu.is_x2apic or vcpu.vcpu_id > 0xFF:
            self.phys_map[vcpu.vcpu_id] = index
        if not vcpu.is_x2apic:
            self.phys_map.setdefault(vcpu.id, index)
        return True

    def _add_logical(self, index: int, vcpu: VcpuState, switches: Switches) -> None:
        """Do as ``kvm_recalculate_logical_map()``."""
        xapic = LogicalMode.XAPIC_FLAT if vcpu.dfr == DFR_FLAT else LogicalMode.XAPIC_CLUSTER
        logical_mode = LogicalMode.X2APIC if vcpu.is_x2apic else xapic
        if self.logical_mode not in (LogicalMode.SW_DISABLED, logical_mode):
            self.logical_mode = LogicalMode.MAP_DISABLED
            return
        self.logical_mode = logical_mode
        if logical_mode is LogicalMode.X2APIC:
            if not switches.x2apics_keep_their_ids:
                for key in self._keys(vcpu.ldr):
                    self.phys_map[key] = index
            return
        keys = self._keys(vcpu.ldr >> 24)
        if switches.aliased_logical_ids_all_receive and (
            len(keys) > 1 or any(key in self.logical_map for key in keys)
        ):
            self.logical_mode = LogicalMode.MAP_DISABLED
            return
        for key in keys[:1]:
            self.logical_map[key] = index

    def _keys(self, destination: int) -> list[int]:
        """Return the key of each bit of a logical destination."""
        match self.logical_mode:
            case LogicalMode.XAPIC_FLAT:
                return list(bits(destination & 0xFF))
            case LogicalMode.XAPIC_CLUSTER:
                return [(destination >> 4 & 0xF) * 4 + bit for bit in bits(destination & 0xF)]
            case _:
                first = (destination >> 16) * 16
                ids = [first + bit for bit in bits(destination & 0xFFFF)]
                return [id for id in ids if id <= self.max_apic_id]

    def slots(self, destination: int) -> tuple[int | None, ...]:
        """Return the vCPU of each bit of a logical destination, None for a bit without a LAPIC."""
        if self.logical_mode is LogicalMode.SW_DISABLED:
            return ()
        found = self.phys_map if self.logical_mode is LogicalMode.X2APIC else self.logical_map
        return tuple(found.get(key) for key in self._keys(destination))


# --- the engine -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """The LAPICs that a destination addresses.

    ``delivery_mode`` is FIXED where KVM rewrites the delivery mode of the message. ``slots`` are
    indices of vCPUs; None stands for a bit of the destination without a LAPIC in the map. ``one``
    says whether a single slot receives the message (``kvm_lowest_prio_delivery()``). ``nobody`` is
    the errno if ``slots`` is empty: EPERM after a search, 0 after a look at the map.
    """

    delivery_mode: DeliveryMode
    slots: tuple[int | None, ...]
    one: bool
    nobody: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The return value, the errno (0 unless the return value is -1), and the effect on each vCPU.

    ``accepted`` holds the indices of the vCPUs that the return value counts. ``applied`` holds the
    rules that were applied, in order, each with its result for this message.
    """

    result: int
    errno: int
    effects: tuple[Effect, ...]
    accepted: tuple[int, ...] = ()
    applied: tuple[tuple[Rule, str], ...] = ()

    @property
    def returned(self) -> str:
        """The outcome in strace's notation: ``1``, or ``-1 EINVAL``."""
        return show_result(self.result, self.errno)

    def on(self, topology: Topology) -> Topology:
        """Return ``topology`` with the effects applied."""
        pairs = zip(self.effects, topology.vcpus, strict=True)
        return replace(topology, vcpus=tuple(effect.on(vcpu) for effect, vcpu in pairs))


class Model:
    """The rules, applied to one topology and one generation of kernels."""

    def __init__(self, topology: Topology, switches: Switches = REFERENCE) -> None:
        self.topology = topology
        self.switches = switches
        self.map = ApicMap.build(topology, switches)
        self._index = {vcpu.vcpu_id: index for index, vcpu in enumerate(topology.vcpus)}
        self._applied: list[tuple[Rule, str]] = []

    def predict(
        self, message: Message, *, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)
    ) -> Outcome:
        """Return the outcome of KVM_SIGNAL_MSI with these fields of struct kvm_msi."""
        self._applied = []
        effects = [NOTHING] * len(self.topology.vcpus)
        if code := self.entry(message, flags):
            return Outcome(-1, code, tuple(effects), applied=tuple(self._applied))
        if devid or any(pad):
            self._apply(IGNORED, f"devid {devid:#x}, padding {pad.hex()}")
        route = self.route(message)
        accepted = []
        for index in self.choose(route, message.vector):
            effect = self.accept(self.topology.vcpus[index], route.delivery_mode, message)
            if effect is not None:
                accepted.append(index)
                effects[index] = effect
        code = route.nobody if not route.slots else 0
        result = -1 if code else len(accepted)
        return Outcome(result, code, tuple(effects), tuple(accepted), tuple(self._applied))

    def _apply(self, rule: Rule, detail: str) -> None:
        self._applied.append((rule, detail))

    # --- 1. entry ----------------------------------------------------------------------------

    def entry(self, message: Message, flags: int) -> int:
        """Return the errno of the first check that fails, in the order of KVM; 0 if none does."""
        if self.topology.irqchip == "none":
            self._apply(NEEDS_IRQCHIP, "EINVAL")
            return errno.EINVAL
        if flags & ~KVM_MSI_VALID_DEVID:
            self._apply(UNKNOWN_FLAG, f"flags {flags:#x}: EINVAL")
            return errno.EINVAL
        if self.topology.has_32bit_ids and message.address_hi_reserved:
            self._apply(HI_RESERVED, f"{message.address_hi_reserved:#x}: EINVAL")
            return errno.EINVAL
        return 0

    # --- 2. destination ----------------------------------------------------------------------

    def route(self, message: Message) -> Route:
        """Return the LAPICs that ``message`` addresses, for any vector and trigger mode."""
        destination = self._destination(message)
        logical = message.destination_mode is DestinationMode.LOGICAL
        if self.map is None:
            why = "aliased APIC IDs" if self.topology.vcpus else "no vCPU"
        elif self._is_broadcast(self.map, destination):
            why = "a broadcast"
        elif logical and not self._has_logical_map(self.map):
            why = self.map.logical_mode.value
        else:
            return self._look_up(self.map, message, destination)
        return self._search(message, destination, why)

    def _destination(self, message: Message) -> int:
        wide = self.topology.has_32bit_ids
        destination = message.destination if wide else message.destination_7_0
        self._apply(DESTINATION_32 if wide else DESTINATION_8, f"destination {destination:#x}")
        return destination

    def _is_broadcast(self, apic_map: ApicMap, destination: int) -> bool:
        """Do as ``kvm_apic_is_broadcast_dest()`` (x2apic-api.quirk, x2apic-api.quirk-32bit)."""
        if self.topology.has_broadcast_quirk:
            return destination == XAPIC_BROADCAST
        if destination == XAPIC_BROADCAST:
            return apic_map.logical_mode is not LogicalMode.X2APIC
        return destination == X2APIC_BROADCAST

    def _has_logical_map(self, apic_map: ApicMap) -> bool:
        if apic_map.logical_mode is LogicalMode.SW_DISABLED:
            return self.switches.unmatched_logical_is_blocked
        return apic_map.logical_mode is not LogicalMode.MAP_DISABLED

    def _look_up(self, apic_map: ApicMap, message: Message, destination: int) -> Route:
        """Do as ``kvm_apic_map_get_dest_lapic()``."""
        if message.destination_mode is DestinationMode.LOGICAL:
            slots, one = apic_map.slots(destination), _is_for_one(message)
            rule = _LOGICAL[apic_map.logical_mode]
        else:
            slots, one = (apic_map.phys_map.get(destination),), False
            rule = PHYSICAL
        self._apply(rule, f"{destination:#x} is {_show(slots)}")
        return Route(message.delivery_mode, slots, one, nobody=0)

    def _search(self, message: Message, destination: int, why: str) -> Route:
        """Do as the loop over all vCPUs in ``kvm_irq_delivery_to_apic()``."""
        delivery_mode, one = message.delivery_mode, _is_for_one(message)
        logical = message.destination_mode is DestinationMode.LOGICAL
        if not logical and destination == XAPIC_BROADCAST and one:
            self._apply(HINT_BROADCAST, f"{delivery_mode.name} becomes FIXED")
            delivery_mode, one = DeliveryMode.FIXED, bool(message.redirection_hint)
        slots = tuple(
            index
            for index, vcpu in enumerate(self.topology.vcpus)
            if vcpu.hardware_enabled
            and (vcpu.software_enabled or not one)
            and self._matches(vcpu, destination, logical)
        )
        self._apply(SEARCH, f"{why}: {destination:#x} is {_show(slots)}")
        if not slots:
            self._apply(UNMATCHED, "EPERM")
        return Route(delivery_mode, slots, one, nobody=errno.EPERM)

    def is_addressed(self, vcpu: VcpuState, message: Message) -> bool:
        """Return whether a search for the destination of ``message`` finds ``vcpu``."""
        wide = self.topology.has_32bit_ids
        destination = message.destination if wide else message.destination_7_0
        logical = message.destination_mode is DestinationMode.LOGICAL
        return self._matches(vcpu, destination, logical)

    def _matches(self, vcpu: VcpuState, destination: int, logical: bool) -> bool:
        """Do as ``kvm_apic_match_dest()``: compare the destination with one LAPIC.

        A physical destination above 0xff is a vCPU ID, even of an xAPIC: see ``_add_physical()``.
        """
        if destination == (X2APIC_BROADCAST if vcpu.is_x2apic else XAPIC_BROADCAST):
            return True
        if destination == XAPIC_BROADCAST and self.topology.has_broadcast_quirk:
            return True
        if not logical:
            wide = vcpu.is_x2apic or destination > 0xFF
            return destination == (vcpu.vcpu_id if wide else vcpu.id)
        if vcpu.is_x2apic:
            return vcpu.ldr >> 16 == destination >> 16 and bool(vcpu.ldr & destination & 0xFFFF)
        logical_id = vcpu.ldr >> 24
        if vcpu.dfr == DFR_FLAT:
            return bool(logical_id & destination)
        same_cluster = vcpu.dfr == DFR_CLUSTER and logical_id >> 4 == destination >> 4
        return same_cluster and bool(logical_id & destination & 0xF)

    # --- 3. choice ---------------------------------------------------------------------------

    def choose(self, route: Route, vector: int) -> list[int]:
        """Return the vCPUs that receive the message: all slots, or the chosen slot."""
        present = [slot for slot in route.slots if slot is not None]
        if not route.one or not route.slots:
            return present
        if not self.topology.vector_hashing:
            # kvm_apic_compare_prio()
            vcpus = self.topology.vcpus
            least = sorted(present, key=lambda index: vcpus[index].arb_prio)[:1]
            self._apply(ROUND_ROBIN, _show(least))
            return least
        # kvm_vector_to_index()
        number = vector % len(route.slots)
        slot = route.slots[number]
        self._apply(HASHED, f"{vector:#x} mod {len(route.slots)} is {number}: {_show([slot])}")
        if slot is None:
            self._apply(EMPTY_BIT, "blocked")
            return []
        return [slot]

    # --- 4. acceptance -----------------------------------------------------------------------

    def accept(
        self, vcpu: VcpuState, delivery_mode: DeliveryMode, message: Message
    ) -> Effect | None:
        """Return the effect of ``message`` on a vCPU that receives it, None if it is refused."""
        rule = _RULE_OF[delivery_mode]
        if rule is ENABLED and not vcpu.software_enabled:
            rule = SOFTWARE_DISABLED
        elif delivery_mode is DeliveryMode.SMI and not self.topology.smm:
            rule = NO_SMM
        state = f", {vcpu.mp_state.name}" if rule is STARTUP or rule is UNHALT else ""
        self._apply(rule, f"vCPU {self._index[vcpu.vcpu_id]}{state}")
        if rule is SOFTWARE_DISABLED or rule is NO_SMM or rule is NO_EXTINT:
            return None
        if vcpu.smm and delivery_mode in (DeliveryMode.INIT, DeliveryMode.SIPI):
            self._apply(IN_SMM, delivery_mode.name)
        elif vcpu.nmi_masked and delivery_mode is DeliveryMode.NMI:
            self._apply(MASKED_NMI, f"{vcpu.nmi} pending before")
        return effect_of(message, vcpu, delivery_mode, self.switches)


def effect_of(
    message: Message, vcpu: VcpuState, delivery_mode: DeliveryMode, switches: Switches = REFERENCE
) -> Effect:
    """Return the effect on a vCPU that accepts ``message`` with ``delivery_mode``."""
    vector = frozenset({message.vector})
    match delivery_mode:
        case DeliveryMode.FIXED | DeliveryMode.LOWEST_PRIORITY:
            level = message.trigger_mode is TriggerMode.LEVEL
            return Effect(
                irr_set=vector - vcpu.irr,
                tmr_set=vector - vcpu.tmr if level else frozenset(),
                tmr_cleared=frozenset() if level else vector & vcpu.tmr,
            )
        case DeliveryMode.SMI:
            return Effect(smi=1 - vcpu.smi)
        case DeliveryMode.NMI:
            return Effect(nmi=min(vcpu.nmi + 1, most_nmis(vcpu, switches)) - vcpu.nmi)
        case DeliveryMode.INIT:
            return Effect(init=1 - vcpu.init, mp_state=init_changes_mp_state(vcpu))
        case DeliveryMode.SIPI:
            return NOTHING if vcpu.smm else _runnable_from(vcpu, MpState.INIT_RECEIVED)
        case DeliveryMode.REMRD:
            held = [MpState.AP_RESET_HOLD] if switches.remrd_ends_reset_hold else []
            return _runnable_from(vcpu, MpState.HALTED, *held)
        case DeliveryMode.EXTINT:  # pragma: no cover - no LAPIC accepts ExtINT
            return NOTHING


def most_nmis(vcpu: VcpuState, switches: Switches = REFERENCE) -> int:
    """Return how many NMIs can be pending, as KVM_GET_VCPU_EVENTS shows them."""
    return MAX_PENDING_NMIS if switches.nmis_are_counted and not vcpu.nmi_masked else 1


def init_changes_mp_state(vcpu: VcpuState) -> tuple[int, int] | None:
    """Return the mp_state before and after an INIT, None if the mp_state stays.

    In SMM the INIT waits. The BSP runs on after an INIT, from the reset vector.
    """
    state = MpState.RUNNABLE if vcpu.bsp else MpState.INIT_RECEIVED
    return None if vcpu.smm or vcpu.mp_state is state else (vcpu.mp_state, state)


def _is_for_one(message: Message) -> bool:
    """Do as ``kvm_lowest_prio_delivery()``."""
    lowest_priority = message.delivery_mode is DeliveryMode.LOWEST_PRIORITY
    return lowest_priority or bool(message.redirection_hint)


def _runnable_from(vcpu: VcpuState, *states: MpState) -> Effect:
    woken = vcpu.mp_state in states
    return Effect(mp_state=(vcpu.mp_state, MpState.RUNNABLE)) if woken else NOTHING


def _show(slots: Sequence[int | None]) -> str:
    return ", ".join("none" if slot is None else f"vCPU {slot}" for slot in slots) or "none"
