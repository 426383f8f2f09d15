"""What a message meets: the irqchip, the enabled capabilities, and every vCPU's LAPIC.

Registers are as the kernel holds them. A topology has a text form, the same in every command::

    split x2apic_api=3 0 1/ldr=0x02000000 2/sw-disabled 300/x2apic/halted

Words before the first number describe the VM, then comes a word per vCPU in the order of creation:
its vCPU ID, and after slashes what differs from a software-enabled xAPIC with that ID and no LDR.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from operator import and_, attrgetter
from typing import Literal, get_args

from helpers.apic.lapic import DFR_FLAT, ApicMode, VectorSet, x2apic_ldr
from helpers.apic.message import number_of
from helpers.kvm import abi

Irqchip = Literal["none", "full", "split"]


class MpState(enum.IntEnum):
    """KVM_GET_MP_STATE (api.rst 4.38), those of x86."""

    RUNNABLE = abi.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = abi.KVM_MP_STATE_UNINITIALIZED
    INIT_RECEIVED = abi.KVM_MP_STATE_INIT_RECEIVED
    HALTED = abi.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = abi.KVM_MP_STATE_SIPI_RECEIVED
    AP_RESET_HOLD = abi.KVM_MP_STATE_AP_RESET_HOLD


def show_mp_state(state: int) -> str:
    """``HALTED``; the bare number where it has no name."""
    try:
        return MpState(state).name
    except ValueError:
        return str(state)


@dataclass(frozen=True, slots=True)
class VcpuState:
    """One vCPU and its LAPIC.

    ``id`` is the xAPIC ID, 8 bits; an x2APIC's ID is ``vcpu_id``. ``ldr`` and ``dfr`` are the whole
    32-bit registers. ``nmi`` counts pending NMIs, ``smi`` and ``init`` are 0 or 1. ``mapped``: the
    kernel's map of LAPICs has been built since the vCPU was created. ``arb_prio``: the
    lowest-priority messages it was chosen for since its LAPIC's last reset or KVM_SET_LAPIC.
    """

    vcpu_id: int
    apic_mode: ApicMode = ApicMode.XAPIC
    software_enabled: bool = True
    id: int = -1
    ldr: int = -1
    dfr: int = DFR_FLAT
    irr: VectorSet = frozenset()
    tmr: VectorSet = frozenset()
    nmi: int = 0
    smi: int = 0
    init: int = 0
    mp_state: MpState = MpState.RUNNABLE
    mapped: bool = True
    arb_prio: int = 0

    def __post_init__(self) -> None:
        usual_ldr = x2apic_ldr(self.vcpu_id) if self.apic_mode is ApicMode.X2APIC else 0
        for name, usual in (("id", self.vcpu_id & 0xFF), ("ldr", usual_ldr)):
            if getattr(self, name) == -1:
                object.__setattr__(self, name, usual)
        if any(map(and_, _limited(self), _BEYOND)):
            for name, bits in _LIMITS.items():
                if getattr(self, name) >> bits:
                    raise ValueError(f"{name} {getattr(self, name):#x} does not fit {bits} bits")
        for name in _VECTORS:
            if beyond := getattr(self, name) - _ALL_VECTORS:
                raise ValueError(f"{name}: {min(beyond):#x} is no vector")

    @property
    def hardware_enabled(self) -> bool:
        """IA32_APIC_BASE bit 11."""
        return self.apic_mode is not ApicMode.DISABLED

    @property
    def is_x2apic(self) -> bool:
        return self.apic_mode is ApicMode.X2APIC

    def __str__(self) -> str:
        usual = VcpuState(self.vcpu_id, self.apic_mode)
        words = [str(self.vcpu_id)]
        if self.apic_mode is not ApicMode.XAPIC:
            words.append(self.apic_mode.name.lower())
        if not self.software_enabled:
            words.append("sw-disabled")
        if self.mp_state is not MpState.RUNNABLE:
            words.append(_dashed(self.mp_state.name))
        if not self.mapped:
            words.append("unmapped")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value != getattr(usual, name):
                words.append(f"{name}={value:#x}" if name in _HEX else f"{name}={value}")
        for name in _VECTORS:
            if value := getattr(self, name):
                words.append(f"{name}=" + "+".join(f"{vector:#x}" for vector in sorted(value)))
        return "/".join(words)

    @classmethod
    def parse(cls, text: str) -> VcpuState:
        """The inverse of ``str()``; ValueError says which word is not understood."""
        first, *words = text.split("/")
        given: dict[str, object] = {"vcpu_id": number_of(f"vCPU {text!r}", first)}
        for word in words:
            name, equals, value = word.partition("=")
            if word in _MODES:
                given["apic_mode"] = _MODES[word]
            elif word in _STATES:
                given["mp_state"] = _STATES[word]
            elif word == "sw-disabled":
                given["software_enabled"] = False
            elif word == "unmapped":
                given["mapped"] = False
            elif equals and name in _NUMBERS:
                given[name] = number_of(f"vCPU {text!r}", value)
            elif equals and name in _VECTORS:
                vectors = value.split("+")
                given[name] = frozenset(number_of(f"vCPU {text!r}", each) for each in vectors)
            else:
                known = [*_MODES, *_STATES, "sw-disabled", "unmapped"]
                known += [f"{name}=" for name in (*_NUMBERS, *_VECTORS)]
                raise ValueError(f"vCPU {text!r}: {word!r} is none of {' '.join(known)}")
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValueError as reason:
            raise ValueError(f"vCPU {text!r}: {reason}") from None


_NUMBERS = {"id": 8, "ldr": 32, "dfr": 32, "nmi": 8, "smi": 1, "init": 1, "arb_prio": 31}
"""How many bits each has."""
_HEX = ("id", "ldr", "dfr")
_VECTORS = ("irr", "tmr")
_ALL_VECTORS = frozenset(range(256))
_LIMITS = {"vcpu_id": 32, **_NUMBERS}
_limited = attrgetter(*_LIMITS)
_BEYOND = [-1 << bits for bits in _LIMITS.values()]


def _dashed(name: str) -> str:
    return name.lower().replace("_", "-")


_MODES = {_dashed(mode.name): mode for mode in ApicMode}
_STATES = {_dashed(state.name): state for state in MpState}


@dataclass(frozen=True, slots=True)
class Topology:
    """A VM: its irqchip, its vCPUs in the order of their creation, and what was enabled.

    ``x2apic_api`` is KVM_CAP_X2APIC_API's args[0] (api.rst 7.7); ``mapped_api`` what it was when
    the kernel's map of LAPICs was built, which enabling more does not do again, None where that is
    the same. ``vector_hashing`` is the parameter of kvm.ko, ``smm`` whether a vCPU can take an SMI
    (KVM_CAP_X86_SMM).
    """

    vcpus: tuple[VcpuState, ...] = ()
    irqchip: Irqchip = "full"
    x2apic_api: int = 0
    vector_hashing: bool = True
    smm: bool = True
    mapped_api: int | None = None

    def __post_init__(self) -> None:
        ids = [vcpu.vcpu_id for vcpu in self.vcpus]
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise ValueError(f"topology: two vCPUs have the vCPU ID {twice}")

    @property
    def has_32bit_ids(self) -> bool:
        return bool(self.x2apic_api & abi.KVM_X2APIC_API_USE_32BIT_IDS)

    @property
    def is_mapped_with_32bit_ids(self) -> bool:
        """Whether the map was built for 32-bit IDs."""
        api = self.x2apic_api if self.mapped_api is None else self.mapped_api
        return bool(api & abi.KVM_X2APIC_API_USE_32BIT_IDS)

    @property
    def has_broadcast_quirk(self) -> bool:
        return not self.x2apic_api & abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK

    def __str__(self) -> str:
        words: list[str] = [] if self.irqchip == "full" else [self.irqchip]
        if self.x2apic_api:
            words.append(f"x2apic_api={self.x2apic_api}")
        if self.mapped_api is not None:
            words.append(f"mapped_api={self.mapped_api}")
        words += [word for word, (name, value) in _FLAGS.items() if getattr(self, name) == value]
        return " ".join([*words, *map(str, self.vcpus)])

    @classmethod
    def parse(cls, text: str) -> Topology:
        """The inverse of ``str()``; ValueError says which word is not understood."""
        given: dict[str, object] = {}
        vcpus = []
        for word in text.split():
            if word in get_args(Irqchip):
                given["irqchip"] = word
            elif word in _FLAGS:
                name, value = _FLAGS[word]
                given[name] = value
            elif word.startswith(("x2apic_api=", "mapped_api=")):
                name, _, number = word.partition("=")
                given[name] = number_of(name, number)
            elif word[0].isdecimal():
                vcpus.append(VcpuState.parse(word))
            else:
                known = [*get_args(Irqchip), "x2apic_api=", "mapped_api=", *_FLAGS]
                raise ValueError(
                    f"topology: {word!r} is neither a vCPU (a number, then /words) nor one of "
                    + " ".join(known)
                )
        return cls(tuple(vcpus), **given)  # type: ignore[arg-type]


# The words for what is rarely so.
_FLAGS = {"no-vector-hashing": ("vector_hashing", False), "no-smm": ("smm", False)}
