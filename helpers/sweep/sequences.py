"""Generated topologies: any sequence of ioctls and guest writes, every message held to the model.

Hypothesis makes up the sequences and shrinks those that fail. Its import takes seconds in an
emulator, so that this module is for a test to import when it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from errno import EINVAL
from typing import Any

from hypothesis import HealthCheck, Phase, core, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine, providers
from hypothesis.reporting import with_reporter
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register, TriggerMode
from helpers.apic.effect import Effect
from helpers.apic.lapic import (
    APIC_BASE_ENABLE,
    APIC_BASE_X2APIC,
    DFR_CLUSTER,
    DFR_FLAT,
    SVR_ENABLE,
    SVR_RESET,
    x2apic_ldr,
)
from helpers.apic.model import Model, Switches
from helpers.apic.topology import Irqchip, MpState, Topology
from helpers.guest import Cpu, Injection, Machine, Mismatch, expect, journal, msi_route
from helpers.kvm import KvmError, System, abi, errno_name

__tracebackhide__ = True  # a failure is shown where the test asked

# Hypothesis also draws numbers that it finds in the source of whatever modules are loaded, and
# keeps them in .hypothesis: the same seed would not be the same sequence everywhere.
providers._get_local_constants = lambda: providers._local_constants
# A kernel with a bug is to be told of within a test's timeout, if need be less than minimal.
engine.MAX_SHRINKING_SECONDS = 20
# That timeout is an exception too, and no failure to shrink: what hangs would hang again.
core.failure_exceptions_to_catch = lambda: (Exception,)

EXAMPLES = 5
STEPS = 50
"""What one seed runs: as many sequences of as many steps."""

IA32_APIC_BASE = 0x1B
NMI_VECTOR = 2
MOST_VCPUS = 8
IDS = (*range(6), 7, 8, 15, 16, 17, 20, 44, 255, 256, 257, 300)
"""vCPU IDs: neighbours, other clusters, the broadcast, and some whose low byte is another's."""


@dataclass(slots=True)
class World:
    """What sequences run on, and how much of that was done: ``steps``, ``messages``."""

    system: System
    switches: Switches
    vector_hashing: bool
    steps: int = 0
    messages: int = 0


def run_sequences(world: World, number: int) -> None:
    """EXAMPLES sequences of up to STEPS steps, the same ones for the same seed ``number``.

    Raises Mismatch for the smallest sequence found whose outcome is not the model's.
    """

    def sequence() -> AnySequence:
        return AnySequence(world)

    with with_reporter(lambda _: None):  # the steps are in the exception
        run_state_machine_as_test(
            seed(number)(sequence),  # type: ignore[arg-type]
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                deadline=None,
                database=None,
                report_multiple_bugs=False,
            ),
        )


# --- what is drawn --------------------------------------------------------------------------------

_NTH = st.integers(0, MOST_VCPUS - 1)  # of those vCPUs that there are
_IRQCHIPS: tuple[Irqchip, ...] = ("full", "split")
_NO_MORE: dict[str, Any] = {}
_MORE: tuple[dict[str, Any], ...] = (
    {"address_base": 0},
    {"address_reserved_11_4": 0xFF},
    {"address_ignored_1_0": 3},
    {"address_hi_reserved": 0x80},
    {"data_reserved_31_16": 0xFFFF},
    {"data_reserved_13_11": 7},
    {"level": 1},
    {"flags": abi.KVM_MSI_VALID_DEVID, "devid": 0x10},
    {"flags": 2},
    {"flags": 1 << 31},
    {"devid": 0xFFFF},
    {"pad": b"\xff" * 12},
)
_ENTRY = {"flags", "devid", "pad"}
_MODES = (
    *[DeliveryMode.FIXED] * 4,
    *[DeliveryMode.LOWEST_PRIORITY] * 4,
    *[DeliveryMode.NMI] * 2,
    DeliveryMode.SMI,
    DeliveryMode.REMRD,
    DeliveryMode.INIT,
    DeliveryMode.SIPI,
    DeliveryMode.EXTINT,
)
_CONTENT = st.fixed_dictionaries(
    {
        "vector": st.integers(0, 255),
        "delivery_mode": st.sampled_from(_MODES),
        "redirection_hint": st.sampled_from((0, 0, 0, 1)),
        "trigger_mode": st.sampled_from(TriggerMode),
        "more": st.sampled_from((*[_NO_MORE] * 2 * len(_MORE), *_MORE)),
    }
)
_CONTENTS = st.lists(_CONTENT, min_size=1, max_size=3)
_NUMBERS = (0xFF, 0, 1, 0xFFFFFFFF, 0xF, 0x1F, 0x100, 0x101, 0xFFFFFF00, 0xFFFF, 0x1FFFF, 0x100FFFF)
_WRITES = (
    *((Register.SVR, value) for value in (SVR_ENABLE | SVR_RESET, SVR_RESET, SVR_ENABLE | 0x31)),
    *((Register.ID, id << 24) for id in (0, 1, 2, 3, 5, 16, 44, 255)),
    *((Register.LDR, id << 24) for id in (0, 1, 2, 4, 6, 0x11, 0x12, 0x21, 0xF1, 0xFF)),
    (Register.LDR, 0x00FFFFFF),  # not zero, yet no logical ID
    *((Register.DFR, value) for value in (DFR_FLAT, DFR_CLUSTER, 0x7FFFFFFF)),
)
_API = st.integers(1, abi.KVM_X2APIC_API_USE_32BIT_IDS | abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
# What a guest may make of a mode (SDM vol. 3, 11.12.5, figure 11-27).
_SWITCHES = {
    ApicMode.DISABLED: (ApicMode.XAPIC,),
    ApicMode.XAPIC: (ApicMode.X2APIC, ApicMode.DISABLED),
    ApicMode.X2APIC: (ApicMode.DISABLED,),
}
_STATES = (
    MpState.RUNNABLE,
    MpState.HALTED,
    MpState.UNINITIALIZED,
    MpState.INIT_RECEIVED,
    MpState.AP_RESET_HOLD,
)


@dataclass(slots=True)
class Known:
    """What of the vCPUs no ioctl shows, by index.

    ``in_probe``: they are at the probe's idle loop; ``unhalted``: delivery mode 3 once un-halted
    them, which some kernels forget later than others; ``overlooked``: since their LAPIC is enabled
    again no event has made the kernel look for what is pending; ``chosen``: VcpuState.arb_prio.
    """

    in_probe: set[int] = field(default_factory=set)
    unhalted: set[int] = field(default_factory=set)
    overlooked: set[int] = field(default_factory=set)
    chosen: Counter[int] = field(default_factory=Counter)


class AnySequence(RuleBasedStateMachine):
    """One sequence: a machine, and whatever can be done to it.

    A failing one shrinks towards the rule whose name is first in the alphabet, a cheap one.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        journal.clear()  # a report shows the messages of the last sequence, the smallest
        self.world = world
        world.steps -= 1
        self.machine: Machine | None = None
        self.known = Known()

    def teardown(self) -> None:
        if self.machine is not None:
            self.machine.close()

    @property
    def _machine(self) -> Machine:
        assert self.machine is not None
        return self.machine

    @property
    def _cpus(self) -> Sequence[Cpu]:
        return self.machine.cpus if self.machine else ()

    def _nth(self, nth: int, of: Sequence[Cpu] = ()) -> Cpu:
        cpus = of or self._cpus
        return cpus[nth % len(cpus)]

    def _in_probe(self) -> list[Cpu]:
        return [cpu for cpu in self._cpus if cpu.index in self.known.in_probe]

    def check_invariants(self, *arguments: Any) -> None:
        """Hypothesis calls it before the first and after every step."""
        self.world.steps += 1
        super().check_invariants(*arguments)

    # --- the VM -----------------------------------------------------------------------------------

    @initialize(
        irqchip=st.sampled_from(_IRQCHIPS),
        x2apic_api=st.one_of(st.just(0), st.just(0), _API),
        ids=st.lists(st.sampled_from(IDS), max_size=4, unique=True),
        apic_mode=st.sampled_from((ApicMode.XAPIC, ApicMode.X2APIC)),
    )
    def start(self, irqchip: Irqchip, x2apic_api: int, ids: list[int], apic_mode: ApicMode) -> None:
        system = self.world.system
        self.machine = Machine(system, irqchip=irqchip, vcpu_ids=(), x2apic_api=x2apic_api)
        for vcpu_id in ids:
            self._add(vcpu_id)
            self._power_on(self._cpus[-1], apic_mode)

    def _add(self, vcpu_id: int) -> None:
        # A fresh vCPU's CPUID has no x2APIC, so that it could not be switched.
        self._machine.add_cpu(vcpu_id).set_cpuid()

    def _power_on(self, cpu: Cpu, apic_mode: ApicMode) -> None:
        cpu.vcpu.finish_exit()
        cpu.power_on(apic_mode)
        self.known.in_probe.add(cpu.index)
        self.known.chosen[cpu.index] = 0

    def _may_grow(self) -> bool:
        return len(self._cpus) < MOST_VCPUS

    @precondition(_may_grow)
    @rule(vcpu_id=st.sampled_from(IDS))
    def hotplug(self, vcpu_id: int) -> None:
        """Fresh from KVM_CREATE_VCPU."""
        if all(cpu.vcpu.vcpu_id != vcpu_id for cpu in self._cpus):
            self._add(vcpu_id)

    @precondition(lambda self: self._cpus)
    @rule(x2apic_api=_API, nth=_NTH, contents=_CONTENTS)
    def turn_on_features(self, x2apic_api: int, nth: int, contents: list[dict[str, Any]]) -> None:
        """KVM_CAP_X2APIC_API, when there are vCPUs, and messages before the map is built again."""
        if not self.world.switches.x2apics_keep_their_ids:
            # These kernels can no longer read a LAPIC that has another ID than its vCPU then.
            for cpu in self._cpus:
                if cpu.apic_mode is ApicMode.X2APIC:
                    cpu.apic_mode = ApicMode.DISABLED
                    cpu.apic_mode = ApicMode.X2APIC
        self._machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
        self._send(contents, DestinationMode.PHYSICAL, self._nth(nth).vcpu.vcpu_id)

    @rule(vectors=st.lists(st.integers(16, 255), max_size=2))
    def reroute(self, vectors: list[int]) -> None:
        """KVM_SET_GSI_ROUTING, which no message depends on (api.rst 4.71: sent directly)."""
        before = self._machine.snapshots()
        routes = [
            msi_route(gsi, Message(vector=vector)) for gsi, vector in enumerate(vectors, start=24)
        ]
        self._machine.vm.set_gsi_routing(routes)
        expect("vCPUs changed", self._machine.snapshots() == before, True)

    # --- what the host does to a vCPU -------------------------------------------------------------

    @precondition(lambda self: self._cpus)
    @rule(nth=_NTH, apic_mode=st.sampled_from((ApicMode.XAPIC, ApicMode.X2APIC)))
    def reset_vcpu(self, nth: int, apic_mode: ApicMode) -> None:
        """As a host resets one: all of its state written anew."""
        self._power_on(self._nth(nth), apic_mode)

    @precondition(lambda self: self._cpus)
    @rule(nth=_NTH, apic_mode=st.sampled_from(ApicMode))
    def host_switches_mode(self, nth: int, apic_mode: ApicMode) -> None:
        """KVM_SET_SREGS, which may do what a guest must not."""
        cpu = self._nth(nth)
        is_forced = cpu.apic_mode is ApicMode.X2APIC and apic_mode is ApicMode.XAPIC
        old = cpu.apic_mode
        cpu.apic_mode = apic_mode
        if is_forced and not self.world.switches.x2apics_keep_their_ids:
            # These kernels neither gave it an xAPIC ID nor built the map again (052c3b99cbc8).
            cpu.configure(id=cpu.vcpu.vcpu_id & 0xFF)
            self.known.chosen[cpu.index] = 0
        self._expect_switch(cpu, old, apic_mode)

    def _expect_switch(self, cpu: Cpu, old: ApicMode, new: ApicMode) -> None:
        expect("mode", cpu.apic_mode.name, new.name)
        if new is old:
            return
        page = cpu.lapic
        if new is ApicMode.XAPIC:
            expect("xAPIC ID", page.xapic_id, cpu.vcpu.vcpu_id & 0xFF)
        if new is ApicMode.X2APIC:
            expect("x2APIC LDR", page[Register.LDR], x2apic_ldr(cpu.vcpu.vcpu_id))
        if old is ApicMode.DISABLED:
            self.known.overlooked.add(cpu.index)

    @precondition(lambda self: self._cpus)
    @rule(nth=_NTH, write=st.sampled_from(_WRITES))
    def host_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """KVM_SET_LAPIC."""
        cpu = self._nth(nth)
        register, value = write
        page = cpu.lapic
        keeps = self.world.switches.x2apics_keep_their_ids
        is_raw = (
            cpu.apic_mode is ApicMode.X2APIC and self._machine.setting().topology(()).has_32bit_ids
        )
        page[register] = value
        try:
            cpu.lapic = page
        except KvmError as error:
            # api.rst 4.57 says nothing of it.
            refused = is_raw and page[Register.ID] != cpu.vcpu.vcpu_id
            expect("KVM_SET_LAPIC", error.name, errno_name(EINVAL) if refused else "accepted")
            return
        self.known.chosen[cpu.index] = 0
        if cpu.apic_mode is ApicMode.X2APIC and register in (Register.ID, Register.LDR):
            if not keeps:
                return
            register = Register.LDR
            value = x2apic_ldr(cpu.vcpu.vcpu_id)
        expect(f"{register.name} after KVM_SET_LAPIC", cpu.lapic[register], value, hex)

    @precondition(lambda self: self._cpus)
    @rule(nth=_NTH, state=st.sampled_from(_STATES))
    def host_sets_mp_state(self, nth: int, state: MpState) -> None:
        """KVM_SET_MP_STATE."""
        cpu = self._nth(nth)
        if state is MpState.INIT_RECEIVED and cpu.snapshot().smi_pending:
            return  # some kernels refuse that
        cpu.mp_state = state
        if cpu.index not in self.known.unhalted:
            expect("mp_state", MpState(cpu.mp_state).name, state.name)

    # --- what the guest does ----------------------------------------------------------------------

    @precondition(lambda self: self._in_probe())
    @rule(nth=_NTH)
    def enter(self, nth: int) -> None:
        """Enter the guest: it takes all that is pending."""
        self._take(self._nth(nth, self._in_probe()))

    def _take(self, cpu: Cpu) -> None:
        before = cpu.snapshot()
        lapic = before.lapic
        pending = set() if cpu.apic_mode is ApicMode.DISABLED else {v for v in lapic.irr if v >= 16}
        wakes = bool(pending or before.nmi_pending or before.smi_pending)
        runs = before.mp_state == MpState.RUNNABLE or (before.mp_state == MpState.HALTED and wakes)
        if not runs or cpu.index in self.known.overlooked:
            cpu.mp_state = MpState.RUNNABLE
        self.known.overlooked.discard(cpu.index)
        smis = self._machine.smis_handled
        vectors = [taken.vector for taken in cpu.take()]
        nmis = before.nmi_pending
        if not self.world.switches.nmis_are_counted and vectors[:2] == [NMI_VECTOR] * 2 and nmis:
            nmis = 2  # of which one is shown
        expect("SMIs handled", self._machine.smis_handled - smis, before.smi_pending)
        expect("NMIs taken", vectors.count(NMI_VECTOR), nmis)
        expect("the NMI taken first", NMI_VECTOR in vectors[:1], bool(nmis))
        interrupts = [vector for vector in vectors if vector != NMI_VECTOR]
        expect("vectors taken", _hex(interrupts), _hex(sorted(pending, reverse=True)))
        after = cpu.snapshot()
        expect("IRR after running", after.lapic.irr, lapic.irr - pending)
        expect("ISR after running", after.lapic.isr, frozenset())
        expect("NMI and SMI pending", (after.nmi_pending, after.smi_pending), (0, 0))
        expect("mp_state", MpState(after.mp_state).name, MpState.RUNNABLE.name)

    @precondition(lambda self: self._in_probe())
    @rule(nth=_NTH, which=st.integers(0, 1))
    def guest_switches_mode(self, nth: int, which: int) -> None:
        """WRMSR of IA32_APIC_BASE."""
        cpu = self._nth(nth, self._in_probe())
        self._take(cpu)
        old = cpu.apic_mode
        new = _SWITCHES[old][which % len(_SWITCHES[old])]
        base = cpu.vcpu.get_sregs().apic_base & ~(APIC_BASE_ENABLE | APIC_BASE_X2APIC)
        cpu.wrmsr(IA32_APIC_BASE, base | new.value)
        self._expect_switch(cpu, old, new)

    def _with_registers(self) -> list[Cpu]:
        return [cpu for cpu in self._in_probe() if cpu.apic_mode is not ApicMode.DISABLED]

    @precondition(lambda self: self._with_registers())
    @rule(nth=_NTH, write=st.sampled_from(_WRITES))
    def guest_writes(self, nth: int, write: tuple[Register, int]) -> None:
        """MMIO, or WRMSR of an x2APIC, which can write the SVR only."""
        cpu = self._nth(nth, self._with_registers())
        register, value = write
        if cpu.apic_mode is ApicMode.X2APIC and register is not Register.SVR:
            return
        self._take(cpu)
        cpu.write(register, value)
        written = {
            Register.ID: value & 0xFF000000,
            Register.LDR: value & 0xFF000000,
            Register.DFR: value | DFR_CLUSTER,
            Register.SVR: value,
        }[register]
        expect(f"{register.name} after the guest's write", cpu.lapic[register], written, hex)

    # --- messages ---------------------------------------------------------------------------------

    @precondition(lambda self: self._cpus)
    @rule(nth=_NTH, contents=_CONTENTS)
    def send_to_one(self, nth: int, contents: list[dict[str, Any]]) -> None:
        """To a vCPU's physical ID: its own, or the one it was created with."""
        cpu = self._nth(nth)
        own = cpu.vcpu.vcpu_id if cpu.apic_mode is ApicMode.X2APIC else cpu.lapic.xapic_id
        self._send(contents, DestinationMode.PHYSICAL, own)

    @precondition(lambda self: self._cpus)
    @rule(nths=st.lists(_NTH, min_size=1, max_size=3), contents=_CONTENTS)
    def send_to_some(self, nths: list[int], contents: list[dict[str, Any]]) -> None:
        """To the logical IDs of some vCPUs; of several clusters it makes something."""
        destination = 0
        for cpu in map(self._nth, nths):
            ldr = cpu.lapic[Register.LDR]
            destination |= ldr if cpu.apic_mode is ApicMode.X2APIC else ldr >> 24
        self._send(contents, DestinationMode.LOGICAL, destination)

    @rule(
        mode=st.sampled_from(DestinationMode),
        destination=st.one_of(
            st.sampled_from(_NUMBERS), st.sampled_from(IDS), st.integers(0, (1 << 32) - 1)
        ),
        contents=_CONTENTS,
    )
    def send(self, mode: DestinationMode, destination: int, contents: list[dict[str, Any]]) -> None:
        """To any number."""
        self._send(contents, mode, destination)

    def _send(
        self, contents: list[dict[str, Any]], mode: DestinationMode, destination: int
    ) -> None:
        for content in contents:
            values = {name: value for name, value in content.items() if name != "more"}
            values |= content["more"]
            entry = {name: values.pop(name) for name in _ENTRY & values.keys()}
            message = Message(destination=destination, destination_mode=mode, **values)
            injection = self._machine.signal(message, **entry)
            self.world.messages += 1
            self._judge(injection, entry)

    def _topology(self, injection: Injection) -> Topology:
        """Of the machine, before the message."""
        hashing = self.world.vector_hashing
        smm = self._machine.has_smm
        topology = injection.setting.topology(injection.before, hashing, smm)
        if hashing:
            return topology
        chosen = self.known.chosen
        vcpus = (replace(vcpu, arb_prio=chosen[i]) for i, vcpu in enumerate(topology.vcpus))
        return replace(topology, vcpus=tuple(vcpus))

    def _judge(self, injection: Injection, entry: dict[str, Any]) -> None:
        message = injection.message
        topology = self._topology(injection)
        model = Model(topology, self.world.switches)
        outcome = model.predict(message, **entry)
        sent = " ".join([str(message), *(f"{name}={value!r}" for name, value in entry.items())])

        try:
            injection.answers(outcome)
        except Mismatch as found:
            where = f"{sent} to {topology}"
            raise Mismatch(found.subject, found.expected, found.actual, where) from None
        if outcome.result >= 0:
            self._learn(model, message, injection.effects())

    def _learn(self, model: Model, message: Message, effects: Sequence[Effect]) -> None:
        route = model.route(message)
        if route.delivery_mode is DeliveryMode.LOWEST_PRIORITY:
            self.known.chosen.update(model.choose(route, message.vector))
        for index, effect in enumerate(effects):
            if not effect:
                continue
            if effect.init:
                self.known.chosen[index] = 0
            if effect.init or message.delivery_mode is DeliveryMode.SIPI:
                self.known.in_probe.discard(index)
        if message.delivery_mode is DeliveryMode.REMRD:
            self.known.unhalted |= set(model.choose(route, message.vector))


def _hex(vectors: Sequence[int]) -> str:
    return " ".join(f"{vector:#04x}" for vector in vectors) or "none"
