# SPDX-License-Identifier: GPL-2.0-only
"""Mutants that nobody chose: changes of the operators in every function that a message passes."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.kernels.edits import Edit, EditError, definitions
from helpers.spec.table import SpecError, read
from tests.mutants.mutant import is_in_range
from tests.mutants.operators import Change, changes

FUNCTIONS = (
    # KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING, KVM_IRQ_LINE
    *("kvm_send_userspace_msi", "kvm_set_msi", "kvm_set_msi_irq", "kvm_msi_to_lapic_irq"),
    *("kvm_msi_route_invalid", "kvm_arch_set_irq_inatomic", "kvm_set_irq", "kvm_irq_map_gsi"),
    *("kvm_set_routing_entry", "setup_routing_entry", "kvm_set_irq_routing"),
    *("kvm_arch_post_irq_routing_update", "kvm_scan_ioapic_routes", "kvm_ioapic_scan_entry"),
    # destinations
    *("kvm_irq_delivery_to_apic", "__kvm_irq_delivery_to_apic", "kvm_irq_delivery_to_apic_fast"),
    *("kvm_apic_map_get_dest_lapic", "kvm_apic_map_get_logical_dest"),
    *("kvm_apic_is_broadcast_dest", "kvm_lowest_prio_delivery", "kvm_vector_to_index"),
    *("kvm_apic_compare_prio", "kvm_apic_mda", "kvm_apic_broadcast", "kvm_apic_match_dest"),
    *("kvm_apic_match_physical_addr", "kvm_apic_match_logical_addr"),
    *("kvm_recalculate_apic_map", "kvm_recalculate_phys_map", "kvm_recalculate_logical_map"),
    *("kvm_apic_calc_x2apic_ldr", "kvm_x2apic_id", "kvm_xapic_id", "apic_x2apic_mode"),
    *("kvm_apic_present", "kvm_apic_hw_enabled", "kvm_apic_sw_enabled"),
    # acceptance
    *("kvm_apic_set_irq", "__apic_accept_irq", "kvm_lapic_set_irr", "find_highest_vector"),
    *("apic_find_highest_irr", "apic_find_highest_isr", "apic_clear_irr", "apic_set_isr"),
    *("apic_clear_isr", "apic_has_interrupt_for_ppr", "__apic_update_ppr", "apic_update_ppr"),
    *("apic_set_tpr", "kvm_lapic_set_tpr", "kvm_lapic_get_cr8", "kvm_apic_has_interrupt"),
    *("kvm_apic_ack_interrupt", "kvm_get_apic_interrupt", "kvm_cpu_has_injectable_intr"),
    "kvm_cpu_get_interrupt",
    *("apic_set_eoi", "kvm_ioapic_send_eoi", "kvm_ioapic_handles_vector", "kvm_apic_pending_eoi"),
    # the state of a LAPIC
    *("kvm_lapic_reset", "apic_set_spiv", "kvm_apic_set_xapic_id", "kvm_apic_set_x2apic_id"),
    *("kvm_apic_set_ldr", "kvm_apic_set_dfr", "kvm_lapic_set_base", "__kvm_apic_set_base"),
    *("kvm_apic_set_base", "kvm_set_apic_base", "kvm_apic_update_apicv"),
    *("kvm_apic_state_fixup", "kvm_apic_get_state", "kvm_apic_set_state"),
    # the other events, and the state of a vCPU
    *("kvm_apic_accept_events", "kvm_apic_init_sipi_allowed", "kvm_inject_nmi", "process_nmi"),
    *("process_smi", "kvm_vcpu_has_events"),
    *("kvm_vcpu_ioctl_x86_set_vcpu_events", "kvm_vcpu_ioctl_x86_get_vcpu_events"),
    *("kvm_arch_vcpu_ioctl_set_mpstate", "kvm_arch_vcpu_ioctl_get_mpstate"),
)
"""Functions of Linux 5.10 to 7.3 that are changed; a kernel has most of them."""


@dataclass(frozen=True, slots=True)
class RandomMutant:
    """A change of ``operator`` in a function.

    ``start`` is the place of ``old`` in ``file``, ``line`` the line of the function.
    """

    id: str
    operator: str
    function: str
    line: int
    file: str
    start: int
    old: str
    new: str

    def apply(self, sources: Mapping[str, str]) -> tuple[str, str]:
        """Return the path of the edited file and its new text. See Edit.apply()."""
        text = sources[self.file]
        return self.file, text[: self.start] + self.new + text[self.start + len(self.old) :]


def all_mutants(sources: Mapping[str, str]) -> list[RandomMutant]:
    """Return the mutants of all functions of a kernel; ``sources`` is {path: text}."""
    found = [
        _mutant(function, file, definition, change)
        for function in FUNCTIONS
        for file, definition in definitions(function, sources)
        for change in changes(definition[0])
    ]
    assert len({mutant.id for mutant in found}) == len(found)
    return found


def _mutant(function: str, file: str, definition: re.Match[str], change: Change) -> RandomMutant:
    text = definition[0]
    line = text.count("\n", 0, change.start) + 1
    old = text[change.start : change.end]
    column = change.start - text.rfind("\n", 0, change.start)
    key = hashlib.sha256(repr((file, column, old, change.new)).encode()).hexdigest()[:6]
    id = f"random-{function}-{line}-{change.operator}-{key}"
    start = definition.start() + change.start
    return RandomMutant(id, change.operator, function, line, file, start, old, change.new)


def drawn(sources: Mapping[str, str], seed: int) -> list[RandomMutant]:
    """Return all mutants of a kernel in the order of a seed."""
    every = all_mutants(sources)
    random.Random(seed).shuffle(every)
    return every


@dataclass(frozen=True, slots=True)
class Argument:
    """Why a mutant lives: a table of argued.toml.

    ``new`` replaces ``old`` in ``function``; without ``new``, any change inside of ``old`` is
    argued. ``older`` has the function and ``old`` of kernels that lack the first. ``since`` and
    ``until`` are as in Mutant.
    """

    id: str
    function: str
    old: str
    why: str
    new: str | None = None
    older: Edit | None = None
    since: str = ""
    until: str = ""

    def covers(self, sources: Mapping[str, str]) -> Covered:
        """Return what the argument covers in a kernel. Raises EditError if ``old`` is absent."""
        try:
            file, start, end = Edit(self.function, self.old).place(sources)
        except EditError:
            if self.older is None:
                raise
            file, start, end = self.older.place(sources)
        text = sources[file]
        result = None if self.new is None else _tokens(text[:start] + self.new + text[end:])
        return Covered(self, file, start, end, result)


@dataclass(frozen=True, slots=True)
class Covered:
    """The place of an argument in a kernel; ``result`` are the tokens of the one edited file."""

    argument: Argument
    file: str
    start: int
    end: int
    result: str | None

    def has(self, mutant: RandomMutant, sources: Mapping[str, str]) -> bool:
        """Return whether a mutant is argued."""
        inside = self.start <= mutant.start and mutant.start + len(mutant.old) <= self.end
        if mutant.file != self.file or not inside:
            return False
        return self.result is None or _tokens(mutant.apply(sources)[1]) == self.result


def _tokens(text: str) -> str:
    return "".join(text.split())


def arguments(
    name: str, sources: Mapping[str, str], file: Path = Path(__file__).parent / "argued.toml"
) -> Iterator[Covered]:
    """Return the arguments for a kernel. Raises SpecError."""
    for argument in read(file, Argument).values():
        if is_in_range(name, argument.since, argument.until):
            try:
                yield argument.covers(sources)
            except EditError as reason:
                raise SpecError(f"{file.name}: {argument.id}: {reason}") from None
