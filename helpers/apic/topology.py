# SPDX-License-Identifier: GPL-2.0-only
"""The state of a VM that decides on a message: irqchip, capabilities, and the LAPIC of each vCPU.

A topology has a text form:

    split x2apic_api=3 0 1/ldr=0x02000000 2/sw-disabled 300/x2apic/halted

The words of the VM come first, then a word for each vCPU in the order of creation: the vCPU ID,
then, after slashes, the differences from a software-enabled xAPIC with that ID and an LDR of 0.

VM words (the default is a full irqchip, and no capability of KVM_CAP_X2APIC_API):

  none, split        no in-kernel irqchip, a split irqchip
  x2apic_api=N       args[0] of KVM_CAP_X2APIC_API
  mapped_api=N       x2apic_api when KVM last built the map of LAPICs, if not the same
  boot=N             the argument of KVM_SET_BOOT_CPU_ID, a vCPU ID
  no-vector-hashing  kvm.vector_hashing=N
  no-smm             the host has no KVM_CAP_X86_SMM

vCPU words:

  x2apic, disabled   x2APIC mode; LAPIC disabled in IA32_APIC_BASE
  bsp, ap            the BSP flag of IA32_APIC_BASE; default: bsp for vCPU ID 0, ap for others
  sw-disabled        LAPIC disabled in SVR
  eoi-suppressed     SVR bit 12: EOIs are not broadcast to IOAPICs
  id= ldr= dfr=      xAPIC ID (8 bits), LDR and DFR (32-bit registers)
  tpr=               TPR; bits 7:4 are CR8
  irr= isr= tmr=     vectors, such as 0x41+0x42
  nmi= smi= init=    number of pending NMIs; pending SMI and INIT, 0 or 1
  nmi-masked         NMIs are held, as in the handler of an NMI
  shadow             interrupts are held for one instruction, as after STI
  smm                the vCPU is in SMM
  halted             mp_state; also uninitialized, init-received, sipi-received, ap-reset-hold
  unmapped           created after KVM last built the map of LAPICs
  arb_prio=N         messages of delivery mode lowest priority received since the LAPIC was reset
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from operator import and_, attrgetter
from typing import Literal, get_args

from helpers.apic.lapic import DFR_FLAT, ApicMode, VectorSet, x2apic_ldr
from helpers.apic.message import number_of
from helpers.kvm import abi

Irqchip = Literal["none", "full", "split"]


class MpState(enum.IntEnum):
    """The mp_states of an x86 vCPU (api.rst, KVM_GET_MP_STATE)."""

    RUNNABLE = abi.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = abi.KVM_MP_STATE_UNINITIALIZED
    INIT_RECEIVED = abi.KVM_MP_STATE_INIT_RECEIVED
    HALTED = abi.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = abi.KVM_MP_STATE_SIPI_RECEIVED
    AP_RESET_HOLD = abi.KVM_MP_STATE_AP_RESET_HOLD


def show_mp_state(state: int) -> str:
    """Return the name of an mp_state, such as ``HALTED``; the number if there is no name."""
    try:
        return MpState(state).name
    except ValueError:
        return str(state)


@dataclass(frozen=True, slots=True)
class VcpuState:
    """One vCPU and its LAPIC. Raises ValueError for a value out of range.

    ``id`` is the 8-bit xAPIC ID; the ID of an x2APIC is ``vcpu_id``. ``ldr`` and ``dfr`` are the
    32-bit registers. ``bsp`` is the BSP flag of IA32_APIC_BASE. ``id``, ``ldr`` and ``bsp`` of -1
    become the values after reset. ``nmi`` counts pending NMIs, ``smi`` and ``init`` are 0 or 1.
    ``nmi_masked``, ``shadow`` and ``smm`` are fields of KVM_GET_VCPU_EVENTS, ``eoi_suppressed`` is
    bit 12 of SVR. ``mapped`` says whether KVM has built the map of LAPICs since the vCPU was
    created. ``arb_prio`` counts the messages of delivery mode lowest priority that the LAPIC
    received, accepted or not, since the last reset or KVM_SET_LAPIC (lapic.c, ``apic_arb_prio``).
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
    bsp: int = -1
    tpr: int = 0
    isr: VectorSet = frozenset()
    eoi_suppressed: bool = False
    nmi_masked: bool = False
    shadow: bool = False
    smm: bool = False

    def __post_init__(self) -> None:
        usual_ldr = x2apic_ldr(self.vcpu_id) if self.apic_mode is ApicMode.X2APIC else 0
        is_first = int(self.vcpu_id == 0)
        for name, usual in (("id", self.vcpu_id & 0xFF), ("ldr", usual_ldr), ("bsp", is_first)):
            if getattr(self, name) == -1:
                object.__setattr__(self, name, usual)
        if any(map(and_, _limited(self), _BEYOND)):
            for name, bits in _LIMITS.items():
                if getattr(self, name) >> bits:
                    raise ValueError(f"{name} {getattr(self, name):#x} does not fit {bits} bits")
        for name in _VECTORS:
            if beyond := getattr(self, name) - _ALL_VECTORS:
                raise ValueError(f"{name}: {min(beyond):#x} is not a vector")

    @property
    def hardware_enabled(self) -> bool:
        """Whether bit 11 of IA32_APIC_BASE is set."""
        return self.apic_mode is not ApicMode.DISABLED

    @property
    def is_x2apic(self) -> bool:
        return self.apic_mode is ApicMode.X2APIC

    def __str__(self) -> str:
        reset, usual = VcpuState(self.vcpu_id), VcpuState(self.vcpu_id, self.apic_mode)
        words = [str(self.vcpu_id)]
        for word, (name, value) in _WORDS.items():
            if getattr(self, name) == value and value != getattr(reset, name):
                words.append(word)
        for name in _NUMBERS:
            if (value := getattr(self, name)) != getattr(usual, name):
                words.append(f"{name}={value:#x}" if name in _HEX else f"{name}={value}")
        for name in _VECTORS:
            if value := getattr(self, name):
                words.append(f"{name}=" + "+".join(f"{vector:#x}" for vector in sorted(value)))
        return "/".join(words)

    @classmethod
    def parse(cls, text: str) -> VcpuState:
        """Return the vCPU with this text form, the inverse of ``str()``. Raises ValueError."""
        first, *words = text.split("/")
        given: dict[str, object] = {"vcpu_id": number_of(f"vCPU {text!r}", first)}
        for word in words:
            name, equals, value = word.partition("=")
            if word in _WORDS:
                field, given_value = _WORDS[word]
                given[field] = given_value
            elif equals and name in _NUMBERS:
                given[name] = number_of(f"vCPU {text!r}", value)
            elif equals and name in _VECTORS:
                vectors = value.split("+")
                given[name] = frozenset(number_of(f"vCPU {text!r}", each) for each in vectors)
            else:
                known = [*_WORDS, *(f"{name}=" for name in (*_NUMBERS, *_VECTORS))]
                raise ValueError(f"vCPU {text!r}: {word!r} is none of {' '.join(known)}")
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValueError as reason:
            raise ValueError(f"vCPU {text!r}: {reason}") from None


# The number of bits of each.
_NUMBERS = {
    **{"id": 8, "ldr": 32, "dfr": 32, "tpr": 8},
    **{"nmi": 8, "smi": 1, "init": 1, "arb_prio": 31},
}
_HEX = ("id", "ldr", "dfr", "tpr")
_VECTORS = ("irr", "isr", "tmr")
_ALL_VECTORS = frozenset(range(256))
_LIMITS = {"vcpu_id": 32, **_NUMBERS}
_LIMITS["bsp"] = 1
_limited = attrgetter(*_LIMITS)
_BEYOND = [-1 << bits for bits in _LIMITS.values()]


# Words for the values of fields.
_WORDS: dict[str, tuple[str, object]] = {
    **{apic_mode.name.lower(): ("apic_mode", apic_mode) for apic_mode in ApicMode},
    "bsp": ("bsp", 1),
    "ap": ("bsp", 0),
    "sw-disabled": ("software_enabled", False),
    "eoi-suppressed": ("eoi_suppressed", True),
    **{name.replace("_", "-"): (name, True) for name in ("nmi_masked", "shadow", "smm")},
    **{state.name.lower().replace("_", "-"): ("mp_state", state) for state in MpState},
    "unmapped": ("mapped", False),
}


@dataclass(frozen=True, slots=True)
class Topology:
    """A VM: the irqchip, the vCPUs in the order of creation, the enabled capabilities.

    ``x2apic_api`` is args[0] of KVM_CAP_X2APIC_API (api.rst, KVM_CAP_X2APIC_API). Enabling the
    capability does not rebuild KVM's map of LAPICs: ``mapped_api`` is the value of ``x2apic_api``
    when the map was built, None if the two are the same. ``vector_hashing`` is the parameter of
    kvm.ko. ``smm`` says whether a vCPU can take an SMI (KVM_CAP_X86_SMM). ``boot_id`` is the vCPU
    ID of the BSP after reset. Raises ValueError for two vCPUs with one vCPU ID.
    """

    vcpus: tuple[VcpuState, ...] = ()
    irqchip: Irqchip = "full"
    x2apic_api: int = 0
    vector_hashing: bool = True
    smm: bool = True
    mapped_api: int | None = None
    boot_id: int = 0

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
        """Whether KVM built the map of LAPICs with 32-bit IDs enabled."""
        api = self.x2apic_api if self.mapped_api is None else self.mapped_api
        return bool(api & abi.KVM_X2APIC_API_USE_32BIT_IDS)

    @property
    def has_broadcast_quirk(self) -> bool:
        return not self.x2apic_api & abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK

    def with_vcpu(self, index: int, vcpu: VcpuState) -> Topology:
        """Return the topology with another state of one vCPU."""
        return replace(self, vcpus=(*self.vcpus[:index], vcpu, *self.vcpus[index + 1 :]))

    def __str__(self) -> str:
        words: list[str] = [] if self.irqchip == "full" else [self.irqchip]
        if self.x2apic_api:
            words.append(f"x2apic_api={self.x2apic_api}")
        if self.mapped_api is not None:
            words.append(f"mapped_api={self.mapped_api}")
        if self.boot_id:
            words.append(f"boot={self.boot_id}")
        words += [word for word, (name, value) in _FLAGS.items() if getattr(self, name) == value]
        return " ".join([*words, *map(str, self.vcpus)])

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Return the topology with this text form, the inverse of ``str()``. Raises ValueError."""
        given: dict[str, object] = {}
        vcpus = []
        for word in text.split():
            if word in get_args(Irqchip):
                given["irqchip"] = word
            elif word in _FLAGS:
                name, value = _FLAGS[word]
                given[name] = value
            elif word.startswith(tuple(_VM_NUMBERS)):
                name, equals, number = word.partition("=")
                given[_VM_NUMBERS[name + equals]] = number_of(name, number)
            elif word[0].isdecimal():
                vcpus.append(VcpuState.parse(word))
            else:
                known = [*get_args(Irqchip), *_VM_NUMBERS, *_FLAGS]
                forms = f"neither a vCPU (a number, then /words) nor one of {' '.join(known)}"
                raise ValueError(f"topology: {word!r} is {forms}")
        return cls(tuple(vcpus), **given)  # type: ignore[arg-type]


# The words that a number follows: {word: field of Topology}.
_VM_NUMBERS = {"x2apic_api=": "x2apic_api", "mapped_api=": "mapped_api", "boot=": "boot_id"}
# The words for a value that is not the default: {word: (field of Topology, value)}.
_FLAGS = {"no-vector-hashing": ("vector_hashing", False), "no-smm": ("smm", False)}
