# SPDX-License-Identifier: GPL-2.0-only
"""The base of generated sequences: the machine, the state that the model remembers, the checks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from helpers.apic import ApicMode, LapicPage, Message, Register
from helpers.apic.host import after_init
from helpers.apic.ioapic import EoiFilter, Ioapic
from helpers.apic.lapic import bits
from helpers.apic.model import Switches
from helpers.apic.topology import Topology, VcpuState
from helpers.guest import Cpu, Machine, Mismatch, Snapshot, start_over
from helpers.guest.injection import Setting
from helpers.kvm import System, recording
from helpers.verdicts.session import KernelComplaint

__tracebackhide__ = True  # A failure's traceback ends at the line of the test.


@dataclass(slots=True)
class Campaign:
    """All sequences of one test: the kernel under test, and the work so far.

    ``complaint`` returns what the kernel has logged since the last call. ``is_muted`` says whether
    the kernel may not repeat a complaint.
    """

    system: System
    switches: Switches
    vector_hashing: bool  # the parameter of kvm.ko
    complaint: Callable[[], KernelComplaint | None] = lambda: None
    is_muted: Callable[[], bool] = lambda: False
    steps: int = 0  # number of steps taken
    messages: int = 0  # number of messages sent


class Unshrinkable(BaseException):
    """A complaint that the kernel does not repeat.

    Hypothesis catches no BaseException, and so repeats no step.
    """

    def __init__(self, complaint: KernelComplaint) -> None:
        super().__init__(complaint)
        self.complaint = complaint


@dataclass(slots=True)
class HiddenState:
    """State that no ioctl shows, by the index of a vCPU.

    ``in_probe``: vCPUs at the probe's idle loop. ``unhalted``: vCPUs that delivery mode 3 has
    un-halted; when KVM forgets the un-halt depends on the kernel. ``overlooked``: vCPUs whose LAPIC
    was enabled again, and that got no event since that makes KVM look for pending interrupts.
    ``at_reset``: vCPUs at the reset vector. ``chosen``: VcpuState.arb_prio. ``eois``: EoiFilter.
    ``map_builds``: Machine.map_builds when ``eois`` was last brought up to date.
    """

    in_probe: set[int] = field(default_factory=set)
    unhalted: set[int] = field(default_factory=set)
    overlooked: set[int] = field(default_factory=set)
    at_reset: set[int] = field(default_factory=set)
    chosen: Counter[int] = field(default_factory=Counter)
    eois: list[EoiFilter] = field(default_factory=list)
    map_builds: int = 0


Step = Callable[..., None]


def recorded(function: Step) -> Step:
    """Record each call of a method as a step, and call end_step() after the method."""

    @functools.wraps(function)
    def take(self: AnyMachine, **values: Any) -> None:
        self.steps.append((function.__name__, values))
        function(self, **values)
        self.end_step()

    return take


def step(**arguments: Any) -> Callable[[Step], Step]:
    """Make a method a rule of Hypothesis. ``arguments`` are the strategies of its arguments."""

    def made(function: Step) -> Step:
        as_rule: Callable[[Step], Step] = rule(**arguments)
        return as_rule(recorded(function))

    return made


WITH_VCPUS = precondition(lambda sequence: sequence.machine.cpus)

# The registers that VcpuState describes, and PPR, which KVM computes late.
_DESCRIBED = (
    *(Register.ID, Register.TPR, Register.PPR, Register.LDR, Register.DFR, Register.SVR),
    *(
        register + 16 * word
        for register in (Register.ISR, Register.TMR, Register.IRR)
        for word in range(8)
    ),
)
_REST = ~sum(0xFFFFFFFF << 8 * offset for offset in _DESCRIBED)


def _expect_rest(subject: str, wanted: LapicPage, actual: LapicPage) -> None:
    """Raise Mismatch unless all other registers are equal."""
    pages = [int.from_bytes(page.raw, "little") for page in (wanted, actual)]
    words = {bit // 32 * 4 for bit in bits((pages[0] ^ pages[1]) & _REST)}
    if words:
        recording.leave_out("the model has the registers after a step that is no message")
        show = [
            " ".join(f"{each:#x}={page[each]:#x}" for each in sorted(words))
            for page in (wanted, actual)
        ]
        raise Mismatch(subject, *show)


class AnyMachine(RuleBasedStateMachine):
    """A machine, what the model remembers of it, and the steps taken so far.

    The names of the rules matter: Hypothesis sorts the rules by number of arguments and name, and
    shrinks a failing sequence toward the first. A seed draws the same steps only while the rules
    and their arguments keep their names.
    """

    machine: Machine

    def __init__(self, campaign: Campaign) -> None:
        super().__init__()
        start_over()  # The last sequence, which is the smallest, stands for the test.
        self.campaign = campaign
        self.hidden = HiddenState()
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.ioapic: Ioapic | None = None
        self.routes: dict[int, Message | None] = {}  # by GSI; None: a pin of the IOAPIC
        self.reset_pages: list[LapicPage] = []

    def teardown(self) -> None:
        if hasattr(self, "machine"):  # False if the sequence ended before start().
            self.machine.close()

    @property
    def switches(self) -> Switches:
        return self.campaign.switches

    def nth(self, nth: int, of: Sequence[Cpu] = ()) -> Cpu:
        cpus = of or self.machine.cpus
        return cpus[nth % len(cpus)]

    def in_probe(self) -> list[Cpu]:
        return [cpu for cpu in self.machine.cpus if cpu.index in self.hidden.in_probe]

    def run_guest(self, cpu: Cpu) -> None:
        """Run a vCPU until no event is pending, and compare the events with those before."""
        raise NotImplementedError

    # --- the end of a step ------------------------------------------------------------------------

    def end_step(self) -> None:
        """Count the step, and raise KernelComplaint if the kernel has complained."""
        self.campaign.steps += 1
        if not (complaint := self.campaign.complaint()):
            return
        if self.campaign.is_muted():
            complaint.add_note(
                "The kernel does not repeat the complaint: this is all of the sequence."
            )
            for name, values in self.steps:
                arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
                complaint.add_note(f"state.{name}({arguments})")
            raise Unshrinkable(complaint)
        raise complaint

    # --- the state of the vCPUs -------------------------------------------------------------------

    def look(self) -> list[Snapshot]:
        """Return the state of all vCPUs."""
        return self.machine.latest_snapshots()

    def topology(self, snapshots: Sequence[Snapshot], setting: Setting | None = None) -> Topology:
        """Return the machine in the terms of the model; now, unless ``setting`` is older."""
        hashing, chosen = self.campaign.vector_hashing, self.hidden.chosen
        setting = setting or self.machine.setting()
        topology = setting.topology(snapshots, hashing, self.machine.has_smm)
        if hashing:
            return topology
        vcpus = (replace(vcpu, arb_prio=chosen[i]) for i, vcpu in enumerate(topology.vcpus))
        return replace(topology, vcpus=tuple(vcpus))

    def vcpu(self, index: int, snapshot: Snapshot) -> VcpuState:
        """Return the state of one vCPU in the terms of the model."""
        return self.machine.setting().vcpu(index, snapshot)

    def expect_changes(
        self,
        what: str,
        before: Sequence[Snapshot],
        changes: Mapping[int, VcpuState],
        pages: Mapping[int, LapicPage] | None = None,
    ) -> None:
        """Raise Mismatch unless ``what`` has changed these vCPUs to these states, and no others.

        ``pages``: registers that VcpuState does not describe, where they have changed, too.
        """
        after, setting = self.look(), self.machine.setting()
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if index not in changes:
                if old == new:
                    continue
                wanted = setting.vcpu(index, old)
            else:
                wanted = changes[index]
            actual = setting.vcpu(index, new)
            if index in self.hidden.unhalted:
                wanted = replace(wanted, mp_state=actual.mp_state)
            _expect(f"vCPU {index} after {what}", wanted, actual)
            page = pages[index] if pages and index in pages else old.lapic
            _expect_rest(f"registers of vCPU {index} after {what}", page, new.lapic)
        self.settle(after)

    def settle(self, seen: Sequence[Snapshot]) -> None:
        """Hold the reset by each INIT that ``seen`` shows to the model."""
        inits = [i for i, each in enumerate(seen) if each.latched_init and not each.smm]
        if not inits:
            return
        setting, now = self.machine.setting(), self.look()
        changes = {}
        for index in inits:
            vcpu = setting.vcpu(index, seen[index])
            after = after_init(vcpu)
            # An INIT may leave NMIs masked and the interrupt shadow. Both are held to the state
            # before: kvm_amd unmasks NMIs before 916b54a7688b (6.4), and keeps the shadow.
            masked, shadow = bool(now[index].nmi_masked), bool(now[index].shadow)
            masked, shadow = masked and vcpu.nmi_masked, shadow and vcpu.shadow
            changes[index] = replace(after, nmi_masked=masked, shadow=shadow)
        for index in inits:
            self.hidden.chosen[index] = 0
            self.hidden.in_probe.discard(index)
            self.hidden.at_reset.add(index)
        pages = {index: self.reset_pages[index] for index in inits}
        self.expect_changes("INIT", seen, changes, pages)


def _expect(subject: str, wanted: VcpuState, actual: VcpuState) -> None:
    if _comparable(wanted) != _comparable(actual):
        recording.leave_out("the model has the state of a vCPU after a step that is no message")
        raise Mismatch(subject, str(wanted), str(actual))


def _comparable(vcpu: VcpuState) -> VcpuState:
    """Return the state without what KVM does not report, or what has no meaning."""
    id = vcpu.id if vcpu.apic_mode is ApicMode.XAPIC else 0
    return replace(vcpu, mapped=True, arb_prio=0, id=id)
