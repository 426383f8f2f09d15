"""What KVM_SIGNAL_MSI must do: the executable specification.

A message is answered in four steps, each a method of :class:`Model`:

* ``entry``: is it a message at all? If not, an errno.
* ``route``: whom does it address? vCPUs, or slots of which one is to be chosen.
* ``choose``: which of them get it?
* ``accept``: what does it do to each?

Vector and trigger mode decide nothing before ``choose``. Every rule says which clauses it stands
for and where it is written; what no document says is what the newest mainline kernel does. Older
kernels differ by named :class:`Switches`. Pure: no file descriptor, no kernel version.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, field

from helpers.apic.effect import NOTHING, Effect
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, bits
from helpers.apic.message import DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.topology import MpState, Topology, VcpuState
from helpers.kvm import show_result
from helpers.kvm.abi import KVM_MSI_VALID_DEVID

XAPIC_BROADCAST = 0xFF
X2APIC_BROADCAST = 0xFFFFFFFF
BSP_ID = 0
MOST_NMIS = 2


@dataclass(frozen=True, slots=True)
class Switches:
    """How kernels differ; all on is the reference kernel. A name says what happens when it is on.

    Which kernels have one off is said by the deviation that names it (helpers/verdicts).
    """

    aliased_ids_all_receive: bool = True
    aliased_logical_ids_all_receive: bool = True
    unmatched_logical_is_blocked: bool = True
    x2apics_keep_their_ids: bool = True
    nmis_are_counted: bool = True
    remrd_ends_reset_hold: bool = True


REFERENCE = Switches()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it says, the clauses it stands for, and where that is written."""

    text: str
    clauses: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Route:
    """Whom a message addresses.

    ``slots``: indices of vCPUs, None for a bit of the destination that is nobody's. ``one``: only
    one of the slots gets it. ``nobody``: the errno when there is no slot, 0 where that is blocked.
    """

    delivery_mode: DeliveryMode
    slots: tuple[int | None, ...]
    one: bool
    nobody: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens: the return value, errno with -1, and the effect on each vCPU.

    ``accepted`` are the vCPUs the return value counts; ``applied`` the rules that led here, each
    with what it said of this message.
    """

    result: int
    errno: int
    effects: tuple[Effect, ...]
    accepted: tuple[int, ...] = ()
    applied: tuple[tuple[Rule, str], ...] = ()

    @property
    def returned(self) -> str:
        """``1``, or ``-1 EINVAL``: the outcome as everybody writes it."""
        return show_result(self.result, self.errno)


# --- the map --------------------------------------------------------------------------------------


class LogicalMode(enum.Enum):
    """How the map finds a logical destination."""

    NONE = "no enabled LAPIC has a logical ID"
    FLAT = "flat"
    CLUSTER = "cluster"
    X2APIC = "x2APIC"
    UNUSABLE = "mixed or overlapping logical IDs"


@dataclass(slots=True)
class Map:
    """Who is found without a search: LAPICs by physical ID, and by the bits of their logical IDs.

    The kernel keeps one (lapic.c kvm_recalculate_apic_map). Whether a destination is looked up in
    it or searched for among all LAPICs shows in the return value when nobody is there, and in who
    may be chosen for lowest priority.
    """

    largest: int
    physical: dict[int, int] = field(default_factory=dict)
    logical_mode: LogicalMode = LogicalMode.NONE
    logical: dict[int, int] = field(default_factory=dict)

    @classmethod
    def build(cls, topology: Topology, switches: Switches) -> Map | None:
        """None: every destination is searched for."""
        if not topology.vcpus:
            return None
        mapped = [
            (index, vcpu)
            for index, vcpu in enumerate(topology.vcpus)
            if vcpu.mapped and vcpu.hardware_enabled
        ]
        made = cls(largest=max([XAPIC_BROADCAST, *(vcpu.vcpu_id for _, vcpu in mapped)]))
        unique = switches.aliased_ids_all_receive and not topology.is_mapped_with_32bit_ids
        for index, vcpu in mapped:
            if unique and not made._add_unique(index, vcpu):
                return None
            if not unique:
                made._add_first(index, vcpu)
            if vcpu.software_enabled and vcpu.ldr:
                made._add_logical(index, vcpu, switches)
        return made

    def _add_unique(self, index: int, vcpu: VcpuState) -> bool:
        own = vcpu.vcpu_id if vcpu.is_x2apic else vcpu.id
        return self.physical.setdefault(own, index) == index

    def _add_first(self, index: int, vcpu: VcpuState) -> None:
        """An ID above 0xff also addresses an xAPIC: a hot-plugged vCPU starts as one."""
        if vcpu.is_x2apic or vcpu.vcpu_id > 0xFF:
            self.physical[vcpu.vcpu_id] = index
        if not vcpu.is_x2apic:
            self.physical.setdefault(vcpu.id, index)

    def _add_logical(self, index: int, vcpu: VcpuState, switches: Switches) -> None:
        mode = (
            LogicalMode.X2APIC
            if vcpu.is_x2apic
            else LogicalMode.FLAT
            if vcpu.dfr == DFR_FLAT
            else LogicalMode.CLUSTER
        )
        if self.logical_mode not in (LogicalMode.NONE, mode):
            self.logical_mode = LogicalMode.UNUSABLE
            return
        self.logical_mode = mode
        if mode is LogicalMode.X2APIC:
            if not switches.x2apics_keep_their_ids:
                for place in self._places(vcpu.ldr):
                    self.physical[place] = index
            return
        places = self._places(vcpu.ldr >> 24)
        if switches.aliased_logical_ids_all_receive and (
            len(places) > 1 or any(place in self.logical for place in places)
        ):
            self.logical_mode = LogicalMode.UNUSABLE
            return
        for place in places[:1]:
            self.logical[place] = index

    def _places(self, destination: int) -> list[int]:
        """The keys of a logical destination's bits; those of x2APICs are physical IDs."""
        match self.logical_mode:
            case LogicalMode.FLAT:
                return list(bits(destination & 0xFF))
            case LogicalMode.CLUSTER:
                return [(destination >> 4 & 0xF) * 4 + bit for bit in bits(destination & 0xF)]
            case _:
                first = (destination >> 16) * 16
                ids = [first + bit for bit in bits(destination & 0xFFFF)]
                return [id for id in ids if id <= self.largest]

    def slots(self, destination: int) -> tuple[int | None, ...]:
        """The vCPU of each bit of a logical destination, None for a bit that is nobody's."""
        if self.logical_mode is LogicalMode.NONE:
            return ()
        x2apic = self.logical_mode is LogicalMode.X2APIC
        found = self.physical if x2apic else self.logical
        return tuple(found.get(place) for place in self._places(destination))


# --- the rules ------------------------------------------------------------------------------------

_SIGNAL = "api.rst 4.71"
_SDM = "Intel SDM vol. 3, "

NEEDS_IRQCHIP = Rule(
    "Without an in-kernel irqchip every message is an error.", ("msi.needs-irqchip",), _SIGNAL
)
UNKNOWN_FLAG = Rule(
    "A flag other than KVM_MSI_VALID_DEVID is an error.", ("msi.flags", "abi.errno"), _SIGNAL
)
HI_RESERVED = Rule(
    "With 32-bit IDs, address_hi bits 7:0 must be zero.", ("msi.address-hi-zero",), _SIGNAL
)
NOT_LOOKED_AT = Rule(
    "devid and padding are not looked at.", ("abi.ignored",), "irqchip.c kvm_send_userspace_msi"
)
DESTINATION_8 = Rule(
    "address_hi is ignored without 32-bit IDs.", ("msi.address-hi-ignored",), _SIGNAL
)
DESTINATION_32 = Rule(
    "With 32-bit IDs, address_hi has destination bits 31:8.", ("msi.address-hi-bits",), _SIGNAL
)
PHYSICAL = Rule("The LAPIC with that APIC ID.", ("dest.physical",), _SDM + "11.6.2.1")
FLAT = Rule("Any LAPIC that shares a bit.", ("dest.flat",), _SDM + "11.6.2.2")
CLUSTER = Rule(
    "Any LAPIC of the cluster in bits 7:4 that shares a bit of 3:0.",
    ("dest.cluster",),
    _SDM + "11.6.2.2",
)
X2APIC_LOGICAL = Rule(
    "Any LAPIC of the cluster in bits 31:16 that shares a bit of 15:0, by its APIC ID: an xAPIC "
    "without a logical ID is found too.",
    ("dest.x2apic-logical",),
    _SDM + "11.12.10",
)
NO_LOGICAL_ID = Rule(
    "No enabled LAPIC has a logical ID: blocked.", ("return.nobody",), "35366901017c (6.3)"
)
SEARCH = Rule(
    "Each LAPIC is asked by its own rule: the destination is a broadcast, or IDs are aliased or "
    "mixed.",
    ("dest.broadcast", "dest.mixed-modes", "dest.aliased", "errata.alias-8bit"),
    _SDM + "11.6.2; lapic.c kvm_apic_match_dest",
)
HINT_BROADCAST = Rule(
    "Lowest priority or redirection hint to physical 0xff: the message becomes fixed.",
    ("dest.hint-broadcast", "dest.lowest-broadcast"),
    "irq_comm.c kvm_irq_delivery_to_apic",
)
NOBODY = Rule(
    "Nobody matches a destination that is searched for: EPERM.",
    ("return.nobody",),
    "irq_comm.c kvm_irq_delivery_to_apic",
)
HASHED = Rule(
    "Of n candidates, number vector mod n.",
    ("dest.lowest-priority", "dest.redirection-hint", "dest.vector-hashing"),
    "lapic.c kvm_vector_to_index; 52004014f7c6 (4.5)",
)
ROUND = Rule(
    "The candidate that was chosen least often, of those the first.",
    ("dest.round-robin",),
    "lapic.c kvm_apic_compare_prio",
)
EMPTY_SLOT = Rule(
    "The chosen bit of the destination is nobody's: dropped.",
    ("dest.vector-hashing",),
    "lapic.c kvm_apic_map_get_dest_lapic",
)
ENABLED = Rule(
    "A software-enabled LAPIC sets IRR, and TMR for level.",
    ("message.vector", "message.trigger-mode"),
    _SDM + "11.8.4",
)
SOFTWARE_DISABLED = Rule(
    "A software-disabled LAPIC takes no fixed interrupt.",
    ("lapic.software-disabled", "msi.returns-blocked"),
    _SDM + "11.4.7.2",
)
SIGNAL = Rule(
    "SMI, NMI and INIT raise what they name, also when software-disabled.",
    ("message.delivery-mode", "lapic.software-disabled"),
    _SDM + "11.5.1, 11.4.7.2",
)
NO_SMM = Rule("Without SMM no SMI.", ("message.delivery-mode",), "4b8e1b32013d (6.2)")
STARTUP = Rule(
    "A SIPI starts a vCPU that waits for one; accepted by all.",
    ("guest.init-sipi", "return.mp-state"),
    _SDM + "9.4.3",
)
UNHALT = Rule(
    "Reserved delivery mode 3 un-halts.",
    ("return.remrd", "return.remrd-reset-hold"),
    "lapic.c __apic_accept_irq; 6aef266c6e17 (3.12)",
)
NO_EXTINT = Rule(
    "ExtINT is never accepted from a message.", ("return.extint",), "lapic.c __apic_accept_irq"
)

RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))


class Model:
    """The specification, applied to one topology and one generation of kernels."""

    def __init__(self, topology: Topology, switches: Switches = REFERENCE) -> None:
        self.topology = topology
        self.switches = switches
        self.map = Map.build(topology, switches)
        self._index = {vcpu.vcpu_id: index for index, vcpu in enumerate(topology.vcpus)}
        self._applied: list[tuple[Rule, str]] = []

    def predict(
        self, message: Message, *, flags: int = 0, devid: int = 0, pad: bytes = bytes(12)
    ) -> Outcome:
        """What KVM_SIGNAL_MSI with these fields returns and does."""
        self._applied = []
        effects = [NOTHING] * len(self.topology.vcpus)
        if code := self.entry(message, flags):
            return Outcome(-1, code, tuple(effects), applied=tuple(self._applied))
        if devid or any(pad):
            self._apply(NOT_LOOKED_AT, f"devid {devid:#x}, padding {pad.hex()}")
        route = self.route(message)
        chosen = self.choose(route, message.vector)
        accepted = []
        for index in chosen:
            effect = self.accept(self.topology.vcpus[index], route.delivery_mode, message)
            if effect is not None:
                accepted.append(index)
                effects[index] = effect
        code = route.nobody if not route.slots else 0
        return Outcome(
            -1 if code else len(accepted),
            code,
            tuple(effects),
            tuple(accepted),
            tuple(self._applied),
        )

    def _apply(self, rule: Rule, detail: str) -> None:
        self._applied.append((rule, detail))

    # --- is it a message ---------------------------------------------------------------------

    def entry(self, message: Message, flags: int) -> int:
        """The errno of a message that is not one; 0. The order is the kernel's (abi.errno)."""
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

    def destination(self, message: Message) -> int:
        """The destination ID."""
        if self.topology.has_32bit_ids:
            self._apply(DESTINATION_32, f"destination {message.destination:#x}")
            return message.destination
        self._apply(DESTINATION_8, f"destination {message.destination & 0xFF:#x}")
        return message.destination & 0xFF

    # --- whom does it address ----------------------------------------------------------------

    def route(self, message: Message) -> Route:
        """Whom ``message`` addresses, whatever its vector and trigger mode."""
        destination = self.destination(message)
        mode = message.delivery_mode
        hint = bool(message.redirection_hint)
        one = hint or mode is DeliveryMode.LOWEST_PRIORITY
        logical = message.destination_mode is DestinationMode.LOGICAL
        if self.map is None:
            why = "aliased IDs" if self.topology.vcpus else "no vCPU"
        elif self._is_broadcast(self.map, destination):
            why = "a broadcast"
        else:
            if not logical:
                found = self.map.physical.get(destination)
                self._apply(PHYSICAL, f"ID {destination:#x} is {_show([found])}")
                return Route(mode, (found,), one=False, nobody=0)
            if self._is_looked_up(self.map):
                slots = self.map.slots(destination)
                self._apply(_LOGICAL[self.map.logical_mode], f"{destination:#x} is {_show(slots)}")
                return Route(mode, slots, one, nobody=0)
            why = self.map.logical_mode.value
        if not logical and destination == XAPIC_BROADCAST and one:
            self._apply(HINT_BROADCAST, f"{mode.name} becomes FIXED")
            mode, one = DeliveryMode.FIXED, hint
        members = tuple(
            index
            for index, vcpu in enumerate(self.topology.vcpus)
            if vcpu.hardware_enabled
            and (vcpu.software_enabled or not one)
            and self.matches(vcpu, destination, logical)
        )
        self._apply(SEARCH, f"{why}: {destination:#x} is {_show(members)}")
        if not members:
            self._apply(NOBODY, "EPERM")
        return Route(mode, members, one, nobody=errno.EPERM)

    def _is_broadcast(self, found: Map, destination: int) -> bool:
        """Whether the map is not asked (x2apic-api.quirk, x2apic-api.quirk-32bit)."""
        if self.topology.has_broadcast_quirk:
            return destination == XAPIC_BROADCAST
        if destination == XAPIC_BROADCAST:
            return found.logical_mode is not LogicalMode.X2APIC
        return destination == X2APIC_BROADCAST

    def _is_looked_up(self, found: Map) -> bool:
        if found.logical_mode is LogicalMode.NONE:
            return self.switches.unmatched_logical_is_blocked
        return found.logical_mode is not LogicalMode.UNUSABLE

    def matches(self, vcpu: VcpuState, destination: int, logical: bool) -> bool:
        """Whether a LAPIC, asked by itself, takes ``destination`` for its own.

        SDM vol. 3, 11.6.2 and 11.12.9-10; api.rst 7.7 for the quirk. An ID above 0xff is also that
        of a hot-plugged xAPIC (lapic.c kvm_apic_match_physical_addr).
        """
        if vcpu.is_x2apic and self.topology.has_broadcast_quirk and destination == XAPIC_BROADCAST:
            return True
        if destination == (X2APIC_BROADCAST if vcpu.is_x2apic else XAPIC_BROADCAST):
            return True
        if not logical:
            wide = vcpu.is_x2apic or destination > 0xFF
            return destination == (vcpu.vcpu_id if wide else vcpu.id)
        if vcpu.is_x2apic:
            return vcpu.ldr >> 16 == destination >> 16 and bool(vcpu.ldr & destination & 0xFFFF)
        own = vcpu.ldr >> 24
        if vcpu.dfr == DFR_FLAT:
            return bool(own & destination)
        if vcpu.dfr == DFR_CLUSTER:
            return own >> 4 == destination >> 4 and bool(own & destination & 0xF)
        return False

    # --- which of them get it ----------------------------------------------------------------

    def choose(self, route: Route, vector: int) -> list[int]:
        """The vCPUs that get it: those of all slots, or of the one chosen slot."""
        present = [slot for slot in route.slots if slot is not None]
        if not route.one or not route.slots:
            return present
        if not self.topology.vector_hashing:
            vcpus = self.topology.vcpus
            least = sorted(present, key=lambda index: vcpus[index].arb_prio)[:1]
            self._apply(ROUND, _show(least))
            return least
        number = vector % len(route.slots)
        slot = route.slots[number]
        self._apply(HASHED, f"{vector:#x} mod {len(route.slots)} is {number}: {_show([slot])}")
        if slot is None:
            self._apply(EMPTY_SLOT, "blocked")
            return []
        return [slot]

    # --- what it does to each ----------------------------------------------------------------

    def accept(self, vcpu: VcpuState, mode: DeliveryMode, message: Message) -> Effect | None:
        """What ``message``, delivered as ``mode``, does to a vCPU; None where it is refused."""
        name = f"vCPU {self._index[vcpu.vcpu_id]}"
        fixed = mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)
        if fixed and not vcpu.software_enabled:
            self._apply(SOFTWARE_DISABLED, name)
            return None
        if mode is DeliveryMode.SMI and not self.topology.smm:
            self._apply(NO_SMM, name)
            return None
        if mode is DeliveryMode.EXTINT:
            self._apply(NO_EXTINT, name)
            return None
        by_mp_state = mode in (DeliveryMode.SIPI, DeliveryMode.REMRD)
        self._apply(_ACCEPTING[mode], f"{name}, {vcpu.mp_state.name}" if by_mp_state else name)
        return effect_of(message, vcpu, mode, self.switches)


def effect_of(
    message: Message, vcpu: VcpuState, mode: DeliveryMode, switches: Switches = REFERENCE
) -> Effect:
    """What ``message`` does to a vCPU that accepts it as ``mode``."""
    vector = frozenset({message.vector})
    match mode:
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
            most = MOST_NMIS if switches.nmis_are_counted else 1
            return Effect(nmi=min(vcpu.nmi + 1, most) - vcpu.nmi)
        case DeliveryMode.INIT:
            then = MpState.RUNNABLE if vcpu.vcpu_id == BSP_ID else MpState.INIT_RECEIVED
            return Effect(init=1 - vcpu.init, mp_state=_change(vcpu, then))
        case DeliveryMode.SIPI:
            return Effect(mp_state=_runnable_from(vcpu, MpState.INIT_RECEIVED))
        case DeliveryMode.REMRD:
            held = [MpState.AP_RESET_HOLD] if switches.remrd_ends_reset_hold else []
            return Effect(mp_state=_runnable_from(vcpu, MpState.HALTED, *held))
        case DeliveryMode.EXTINT:  # pragma: no cover - nobody accepts it
            return NOTHING


_ACCEPTING = {
    DeliveryMode.FIXED: ENABLED,
    DeliveryMode.LOWEST_PRIORITY: ENABLED,
    DeliveryMode.SMI: SIGNAL,
    DeliveryMode.NMI: SIGNAL,
    DeliveryMode.INIT: SIGNAL,
    DeliveryMode.SIPI: STARTUP,
    DeliveryMode.REMRD: UNHALT,
}
_LOGICAL = {
    LogicalMode.NONE: NO_LOGICAL_ID,
    LogicalMode.FLAT: FLAT,
    LogicalMode.CLUSTER: CLUSTER,
    LogicalMode.X2APIC: X2APIC_LOGICAL,
}


def _change(vcpu: VcpuState, state: MpState) -> tuple[int, int] | None:
    return None if vcpu.mp_state is state else (vcpu.mp_state, state)


def _runnable_from(vcpu: VcpuState, *states: MpState) -> tuple[int, int] | None:
    return _change(vcpu, MpState.RUNNABLE) if vcpu.mp_state in states else None


def _show(slots: tuple[int | None, ...] | list[int | None] | list[int]) -> str:
    if not slots:
        return "nobody"
    return ", ".join("nobody" if slot is None else f"vCPU {slot}" for slot in slots)
