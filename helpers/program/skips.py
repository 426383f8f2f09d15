# SPDX-License-Identifier: GPL-2.0-only
"""The preconditions of a test as C conditions: each ``skipif`` and ``needs_parameter`` mark."""

from __future__ import annotations

import re

from helpers.program.text import c_identifier
from helpers.record.tape import Tape

_FORMS = (
    (r"not kernel\.has_smm", "!capability(kvm, KVM_CAP_X86_SMM)"),
    (r"not kernel\.has_ioapic", "!capability(kvm, KVM_CAP_PIT2)"),
    (r"not kernel\.capabilities\['(\w+)'\]", r"!capability(kvm, \1)"),
    (r"not kernel\.capabilities\['(\w+)'\] & (\w+)", r"!(capability(kvm, \1) & \2)"),
    (r"kernel\.capabilities\['(\w+)'\] & (\w+) == 0", r"!(capability(kvm, \1) & \2)"),
    (r"kernel\.vendor == '(\w+)'", r'vendor_is("\1")'),
    (r"kernel\.vendor != '(\w+)'", r'!vendor_is("\1")'),
    (r"kernel\.parameters\.get\('([\w.]+)'\) == '(\w+)'", r'parameter_is("\1", "\2")'),
    (r"not kernel\.vector_hashing", 'parameter_is("kvm.vector_hashing", "N")'),
    (r"kernel\.version < \((\d+), (\d+)\)", r"kernel_major * 100 + kernel_minor < \1 * 100 + \2"),
)
"""Conditions as the marks of suites/ write them, and the same in C (helpers/program/judge.c)."""


class NoCondition(ValueError):
    """Raised for a condition that has no form in C. The message is the condition."""


def skips_of(tape: Tape) -> tuple[tuple[str, str], ...]:
    """Return the preconditions of a test: pairs of a C condition, and the reason to skip."""
    found = [(_in_c(condition), reason) for condition, reason in tape.preconditions]
    for name, value in tape.needs:
        found.append((f'!parameter_is("{name}", "{value}")', f"{name} is not {value}"))
    for name, number in tape.facts:
        condition = f"capability(kvm, {name}) != {number}"
        found.append((condition, f"recorded on a kernel whose {name} is {number}"))
    for id, has_it in tape.switches:
        condition = f"{'!' * has_it}applies(&{c_identifier(id)})"
        found.append((condition, f"recorded on a kernel {'with' if has_it else 'without'} {id}"))
    return tuple(found)


def _in_c(condition: str) -> str:
    for pattern, code in _FORMS:
        if match := re.fullmatch(pattern, condition):
            return match.expand(code)
    raise NoCondition(condition)
