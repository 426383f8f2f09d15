# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a tape as C statements, which call helpers/program/runtime.c.

A KVM_SET_* starts from the vCPU's latest KVM_GET_*, as the test did: only the fields that differ
are assigned. What a kernel reports and no test looks at may then differ from kernel to kernel.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from helpers.apic import Message
from helpers.guest import layout
from helpers.guest.sender import combinations
from helpers.kvm import abi
from helpers.program import text
from helpers.program.text import number, string
from helpers.record.tape import (
    SYSTEM,
    Block,
    Call,
    Compared,
    Copy,
    Memory,
    Observed,
    Owed,
    Run,
    Save,
    SendEach,
    Signal,
    Snapshots,
    Step,
    Take,
    Target,
    Write,
)

_KEPT = {
    "kvm_regs": "regs",
    "kvm_sregs": "sregs",
    "kvm_lapic_state": "lapic",
    "kvm_vcpu_events": "events",
    "kvm_mp_state": "mp_state",
    "kvm_irqchip": "ioapic",
}
"""By name of a structure, the member of struct vcpu or struct machine that has the latest one."""

_CHECKS = {"dec": "check", "hex": "check_hex", "bool": "check_bool", "mp_state": "check_mp_state"}
_VECTORS = ("isr", "tmr", "irr")
_CONTROL = {name: getattr(layout.Control, name) for name, *_ in layout.Control._fields_}

_FIRST = Target(0)
_MOST_ROUTES = 64
_MOST_SAVES = 64  # MAX_SAVED of runtime.c


class NotInC(Exception):
    """Raised for a step that has no C. The message says which."""


class Statements:
    """Makes the statements of one function. ``functions`` has the functions shared by all tests.

    ``named``: the machine that is ``m`` in the function, with one vCPU ``v`` if the function is for
    a vCPU. ``kept``: the content of the structures that the C program keeps.
    """

    def __init__(
        self,
        functions: dict[str, str],
        named: Target = _FIRST,
        kept: dict[tuple[Target, str], bytes] | None = None,
    ) -> None:
        self.functions = functions
        self.lines: list[str] = []
        self.machines = named.machine
        self._named = named
        self._one = named.vcpu >= 0
        self._kept = {} if kept is None else kept

    # --- names ------------------------------------------------------------------------------------

    def _vcpu(self, target: Target) -> str:
        return "v" if self._one else f"{self._machine(target.machine)}->vcpus[{target.vcpu}]"

    def _machine(self, index: int) -> str:
        return "m" if index == self._named.machine else f"m{index + 1}"

    def _owner(self, target: Target) -> str:
        return self._machine(target.machine) if target.vcpu < 0 else self._vcpu(target)

    def _add(self, code: str) -> None:
        self.lines.append(text.statement(code))

    # --- steps ------------------------------------------------------------------------------------

    def add(self, steps: Iterable[Step]) -> Statements:
        """Append the statements of ``steps``."""
        for step in steps:
            _RENDERERS[type(step)](self, step)
        return self

    def _block(self, block: Block) -> None:
        """Call the function that has the block's statements."""
        target = Target(block.machine, block.vcpu)
        inner = Statements(self.functions, target, self._kept).add(block.steps)
        if block.vcpu >= 0:
            name = self._shared("set_up", "static void {}(struct vcpu *v)", inner.lines)
            self._add(f"{name}({self._vcpu(target)});")
            return
        body = ["\tstruct machine *m;", "", *inner.lines, "\treturn m;"]
        name = self._shared("machine", "static struct machine *{}(void)", body)
        self._add(f"{self._machine(block.machine)} = obtain({name});")
        self.machines = max(self.machines, block.machine + 1)

    def _shared(self, name: str, head: str, lines: list[str]) -> str:
        """Return the name of the shared function that has the statements ``lines``."""
        body = "\n".join(lines)
        for known, text_of in self.functions.items():
            if text_of.endswith(f"\n{{\n{body}\n}}\n"):
                return known
        named = f"{name}_{len(self.functions)}"
        self.functions[named] = f"{head.format(named)}\n{{\n{body}\n}}\n"
        return named

    def _memory(self, step: Memory) -> None:
        function = "load_guest" if step.guest else "add_memory"
        self._add(f"{function}({self._machine(step.machine)}, {step.size:#x});")

    def _snapshots(self, step: Snapshots) -> None:
        if step.vcpus:
            self._add(f"read_all({self._machine(step.machine)});")

    def _save(self, step: Save) -> None:
        if step.number >= _MOST_SAVES:
            raise NotInC("many saved states")
        self._add(f"save(&saved[{step.number}], {self._vcpu(step.target)});")

    def _compared(self, step: Compared) -> None:
        if step.expected is None:
            return
        owed = f"{string(step.subject)}, {string(str(step.expected))}"
        self._add(f"check_same({owed}, &saved[{step.one}], &saved[{step.other}]);")

    def _signal(self, step: Signal) -> None:
        self._add(f"raise_irqfd({self._machine(step.machine)}, {step.gsi});")

    def _sweep(self, _: SendEach) -> None:
        raise NotInC("messages of a sweep")

    # --- ioctls -----------------------------------------------------------------------------------

    def _call(self, step: Call) -> None:
        match step.request:
            case abi.KVM_CREATE_VM:
                self.machines += 1
                self._add(f"{self._machine(self.machines - 1)} = create_vm();")
            case abi.KVM_CREATE_VCPU if step.outcome == "accepted":
                machine = self._machine(step.target.machine)
                self._add(f"create_vcpu({machine}, {number(int(step.argument))});")
            case abi.KVM_SET_CPUID2:
                self._add(f"set_cpuid({self._vcpu(step.target)});")
            case abi.KVM_SET_MSRS:
                self._set_msr(step)
            case abi.KVM_SET_GSI_ROUTING:
                self._set_routes(step)
            case abi.KVM_IRQ_LINE_STATUS:
                self._irq_line(step)
            case abi.KVM_GET_VCPU_MMAP_SIZE | abi.KVM_GET_SUPPORTED_CPUID:
                pass
            case _:
                self._plain(step)

    def _plain(self, step: Call) -> None:
        fd = "kvm" if step.target.machine == SYSTEM else f"{self._owner(step.target)}->fd"
        if isinstance(step.argument, int):
            name = "cap" if step.request == abi.KVM_CHECK_EXTENSION else ""
            argument = text.value_of(name, step.argument)
        elif kept := _KEPT.get(step.struct.__name__ if step.struct else ""):
            argument = self._kept_argument(step, kept)
        elif step.struct:
            fields = text.initializers(text.fields_of(step.struct, step.argument))
            argument = f"&((struct {step.struct.__name__}){{ {fields} }})"
        else:
            raise NotInC(step.request.name)
        if step.outcome == "accepted" and not step.subject:
            self._add(f"must({fd}, {step.request.name}, {argument});")
        else:
            self._add(f"owe({fd}, {step.request.name}, {argument}, {_outcome(step)});")
        for owed in step.owed:
            self._check(owed, *self._place(step, owed))

    def _kept_argument(self, step: Call, kept: str) -> str:
        assert isinstance(step.argument, bytes)
        key = step.target, kept
        owner = self._owner(step.target)
        if step.request.name.startswith("KVM_SET_"):
            if step.saved >= 0:
                self._add(f"{owner}->{kept} = saved[{step.saved}].{kept};")
            else:
                self._assign(step, kept, owner)
            self._kept[key] = step.argument
        else:
            if kept == "ioapic":
                chip = abi.kvm_irqchip.from_buffer_copy(step.argument).chip_id
                self._add(f"{owner}->ioapic.chip_id = {chip};")
            self._kept[key] = step.output
        return f"&{owner}->{kept}"

    def _assign(self, step: Call, kept: str, owner: str) -> None:
        """Make the kept structure the argument of the step."""
        assert step.struct
        assert isinstance(step.argument, bytes)
        content = step.argument
        own = self._kept.get((step.target, kept))
        if own is None:
            own = bytes(len(content))
            self._add(f"memset(&{owner}->{kept}, 0, sizeof({owner}->{kept}));")
        if kept == "lapic":
            self._assign_registers(owner, own, content)
            return
        if kept == "ioapic" and abi.kvm_irqchip.from_buffer_copy(content).chip_id != 2:
            raise NotInC("KVM_SET_IRQCHIP of a PIC")
        old = text.fields_of(step.struct, own)
        for (name, before), (_, value) in zip(
            old, text.fields_of(step.struct, content), strict=True
        ):
            if value != before:
                self._add(f"{owner}->{kept}.{name} = {self._value(step.target, name, value)};")

    def _assign_registers(self, owner: str, old: bytes, new: bytes) -> None:
        for offset in range(0, len(new), 4):
            word = new[offset : offset + 4]
            if word != old[offset : offset + 4]:
                value = number(int.from_bytes(word, "little"))
                self._add(f"LAPIC({owner}, {text.register(offset)}) = {value};")

    def _value(self, target: Target, name: str, value: int) -> str:
        area = layout.AREAS + target.vcpu * layout.AREA_SIZE
        if self._one and name in ("gs.base", "rsp") and area <= value <= area + layout.AREA_SIZE:
            return f"AREA(v) + {value - area:#x}" if value > area else "AREA(v)"
        return text.value_of(name, value)

    def _set_msr(self, step: Call) -> None:
        assert isinstance(step.argument, bytes)
        entry = abi.kvm_msr_entry.from_buffer_copy(step.argument, ctypes.sizeof(abi.kvm_msrs))
        call = f"set_msr({self._vcpu(step.target)}, {number(entry.index)}, {number(entry.data)})"
        self._add(f"check_outcome({_outcome(step)}, {call});")

    def _set_routes(self, step: Call) -> None:
        assert isinstance(step.argument, bytes)
        header = abi.kvm_irq_routing.from_buffer_copy(step.argument)
        entries = text.routes_of(step.argument)
        if len(entries) != header.nr or header.nr > _MOST_ROUTES:
            raise NotInC("a long routing table")
        routes = ", ".join(map(text.route, entries))
        table = f"(struct kvm_irq_routing_entry[]){{ {routes} }}" if entries else "NULL"
        arguments = f"{self._machine(step.target.machine)}, {header.flags}, {header.nr}, {table}"
        self._add(f"check_outcome({_outcome(step)}, set_routes({arguments}));")

    def _irq_line(self, step: Call) -> None:
        assert isinstance(step.argument, bytes)
        line = abi.kvm_irq_level.from_buffer_copy(step.argument)
        call = f"irq_line({self._machine(step.target.machine)}, {line.irq}, {line.level})"
        if step.outcome != "accepted":
            raise NotInC("KVM_IRQ_LINE_STATUS that is refused")
        if not step.owed:
            self._add(f"{call};")
        for owed in step.owed:
            self._check(owed, call)

    # --- running ----------------------------------------------------------------------------------

    def _run(self, step: Run) -> None:
        vcpu = self._vcpu(step.target)
        if step.immediate:
            self._add(f"enter_at_once({vcpu});")
        elif step.window:
            self._add(f"run_to_window({vcpu}, {text.exit_name(step.exit_reason)});")
        elif step.exit_reason == abi.KVM_EXIT_IO:
            self._add(f"run_to({vcpu}, {text.port_name(step.port)});")
        else:
            self._add(f"run_to_exit({vcpu}, {text.exit_name(step.exit_reason)});")
        for owed in step.owed:
            place = f"{vcpu}->control->value"
            self._check(owed, place if owed.place == "value" else self._smis(step.target))

    def _take(self, step: Take) -> None:
        vcpu = self._vcpu(step.target)
        has_exits = step.exits is not None
        self._add(f"take({vcpu}, {int(has_exits)});" if step.runs else f"read_taken({vcpu});")
        vectors = string("[" + " ".join(f"{vector:#04x}" for vector in step.vectors) + "]")
        subject = "vectors taken" if has_exits else step.subject
        self._add(f"check_taken({string(subject)}, {vectors}, {vcpu});")
        if has_exits:
            self._exits(step, vcpu)
        for owed in step.owed:
            if owed.place == "smis_handled":
                self._check(owed, self._smis(step.target))
                continue
            index, _, name = owed.place.partition(".")
            place = f"taken({vcpu}, {index})->{name}"
            self._check(owed, place, 4 if name in _VECTORS else 0)

    def _exits(self, step: Take, vcpu: str) -> None:
        assert step.exits is not None
        subject = string(step.subject if "KVM_EXIT" in step.subject else "EOIs that exit")
        if step.last_exit:
            last = str(step.exits[-1] if step.exits else None)
            self._add(f"check_last_exit({subject}, {string(last)}, {vcpu});")
        else:
            self._add(f"check_exits({subject}, {string(str(step.exits))}, {vcpu});")

    def _smis(self, target: Target) -> str:
        return f"*(__u32 *)({self._machine(target.machine)}->memory + SMI_COUNTER)"

    def _write(self, step: Write) -> None:
        index, offset = divmod(step.address - layout.AREAS, layout.AREA_SIZE)
        machine = self._machine(step.machine)
        fields = {each.offset: (name, each.size) for name, each in _CONTROL.items()}
        if step.address >= layout.AREAS and offset in fields:
            name, size = fields[offset]
            if size == len(step.content):
                value = int.from_bytes(step.content, "little")
                vcpu = self._vcpu(Target(step.machine, index))
                self._add(f"{vcpu}->control->{name} = {self._control(name, value)};")
                return
        content = text.string_of_bytes(step.content)
        self._add(f"memcpy({machine}->memory + {step.address:#x}, {content}, {len(step.content)});")

    def _control(self, name: str, value: int) -> str:
        if name == "operation" and value < len(layout.OPERATIONS):
            return f"OP_{layout.OPERATIONS[value]}"
        if name == "self_address" and self._one:
            return "AREA(v)"
        return number(value)

    def _copy(self, step: Copy) -> None:
        target, source = self._machine(step.machine), self._machine(step.source)
        place = f"{step.address:#x}"
        self._add(
            f"memcpy({target}->memory + {place}, {source}->memory + {place}, {step.size:#x});"
        )

    # --- messages ---------------------------------------------------------------------------------

    def _observed(self, step: Observed) -> None:
        machine = self._machine(step.machine)
        for inner in step.inner:
            if isinstance(inner, SendEach):
                self._send_each(inner)
            elif isinstance(inner, Call) and inner.request == abi.KVM_SIGNAL_MSI:
                self._signal_msi(inner, machine)
            elif isinstance(inner, Call) and inner.request == abi.KVM_IRQ_LINE_STATUS:
                assert isinstance(inner.argument, bytes)
                line = abi.kvm_irq_level.from_buffer_copy(inner.argument)
                self._add(f"raise_line({machine}, {line.irq});")
            else:
                self.add([inner])
        if step.vcpus:
            self._add(f"read_all({machine});")
        for expected in dict.fromkeys(step.returns):
            self._add(f"check_return({machine}, {string(expected)});")
        if step.alike is not None:
            self._add(f"check_same_effects({machine}, {self._machine(step.alike)});")
        numbered = enumerate(map(str, step.effects or ()))
        for effect, group in groupby(numbered, key=lambda each: each[1]):
            indices = [index for index, _ in group]
            bounds = f"{indices[0]}, {indices[-1]}"
            self._add(f"check_effects({machine}, {bounds}, {string(effect)});")
        subject = string(step.subject)
        if step.acceptors is not None:
            self._add(f"check_acceptors({subject}, {string(str(step.acceptors))}, {machine}, 0);")
        if step.count is not None:
            self._add(f"check_acceptors({subject}, {string(str(step.count))}, {machine}, 1);")

    def _send_each(self, step: SendEach) -> None:
        """Send the messages: all combinations of some bits, in order, but the first and last."""
        mask = functools.reduce(operator.or_, step.values, 0)
        every = combinations(mask)
        skipped = next(
            (n for n in (0, 1) if every[n : len(every) - n] == list(step.values)),
            None,
        )
        if skipped is None:
            raise NotInC("messages with many values of a word")
        machine = self._machine(step.machine)
        fields = text.initializers(text.fields_of(abi.kvm_msi, step.content)) or "0"
        self._add(
            f"send_combinations({machine}, offsetof(struct kvm_msi, {step.word}), {number(mask)}, "
            f"{skipped}, {step.returns}, {fields});"
        )

    def _signal_msi(self, step: Call, machine: str) -> None:
        assert isinstance(step.argument, bytes)
        msi = abi.kvm_msi.from_buffer_copy(step.argument)
        shown = str(Message.decode(msi.address_lo, msi.address_hi, msi.data)).strip("<>")
        self.lines.append(f"\t/* {shown} */")
        fields = text.initializers(text.fields_of(abi.kvm_msi, step.argument)) or "0"
        self._add(f"signal_msi({machine}, {fields});")

    # --- checks -----------------------------------------------------------------------------------

    def _place(self, step: Call, owed: Owed) -> tuple[str, int]:
        owner = self._owner(step.target)
        if owed.place == "smis_handled":
            return self._smis(step.target), 0
        kept = _KEPT.get(step.struct.__name__ if step.struct else "")
        if owed.place == "xapic_id":
            return f"LAPIC({owner}, APIC_ID) >> 24", 0
        if kept == "lapic":
            words, _, offset = owed.place.rpartition(" ")
            place = f"LAPIC({owner}, {text.register(int(offset, 16))})"
            return (f"&{place}", 16) if words else (place, 0)
        if kept is None:
            raise NotInC(f"a look at {step.request.name}")
        return f"{owner}->{kept}.{text.c_name(owed.place)}", 0

    def _check(self, owed: Owed, place: str, stride: int = 0) -> None:
        arguments = f"{string(owed.subject)}, {string(owed.expected)}, {place}"
        if stride:
            self._add(f"check_vectors({arguments}, {stride});")
        else:
            self._add(f"{_CHECKS[owed.show]}({arguments});")


def _outcome(step: Call) -> str:
    return f"{string(step.subject or step.request.name)}, {string(step.outcome)}"


_RENDERERS: dict[type[Step], Callable[[Statements, Any], None]] = {
    Block: Statements._block,
    Call: Statements._call,
    Run: Statements._run,
    Take: Statements._take,
    Write: Statements._write,
    Copy: Statements._copy,
    Memory: Statements._memory,
    Snapshots: Statements._snapshots,
    Save: Statements._save,
    Compared: Statements._compared,
    Observed: Statements._observed,
    Signal: Statements._signal,
    SendEach: Statements._sweep,
}
