# SPDX-License-Identifier: GPL-2.0-only
"""The order of tests that detects a defect of a function soon.

First run the files that test what the function does, then tests that have detected other mutants,
then few parameters of each test.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

_NEAR = {
    r"vcpu_events": ("vcpu_events", "mp_state", "shadow"),
    r"mpstate|accept_events|init_sipi|has_events": ("mp_state", "halted", "boot", "nmi"),
    r"has_events": ("smm", "missing_page", "host_ioctls"),
    r"base|present|enabled|spiv|_id|ldr|dfr|mode": ("apic_base", "guest_registers", "x2apic"),
    r"rout|map_gsi|set_irq|msi": (*("route_table", "routing", "routes_in_flight", "host_ioctls"),),
    r"lapic_reset|update_apicv": ("reset", "host_ioctls"),
    r"_state": ("x2apic", "saved_state", "host_ioctls"),
    r"eoi|scan|handles|_isr": ("in_flight", "routes_in_flight", "ioapic_pins", "host_ioctls"),
    r"nmi|smi": ("nmi", "smm", "vcpu_events", "halted"),
    r"ppr|tpr|cr8|irr|vector|interrupt|intr": (
        *("tpr", "in_flight", "guest", "host_ioctls", "pv_eoi"),
    ),
    r"match|dest|mda|broadcast|prio|recalculate|delivery|index": (
        *("destination", "matching", "lowest_priority", "x2apic"),
    ),
    r"accept_irq|apic_set_irq": ("boot", "in_flight", "halted", "message"),
}
"""The files of suites/ for functions with such names."""
_SLOW = ("sweep", "generated")
"""Files whose tests take seconds each."""
_SLOW_TEST = "test_three_hundred_vcpus"
_SPREAD = 0.618
"""The golden ratio: its multiples, modulo 1, lie far apart."""
_NEAR_ROUNDS, _CAUGHT, _OTHERS = range(3)


def that_caught(text: str) -> list[str]:
    """Return the node ids of the tests that caught a mutant, in the text of reports."""
    return sorted({f"suites/{test}" for test in re.findall(r"`(test_\w+\.py::[^`]+)`", text)})


def files_for(function: str) -> list[str]:
    """Return the files of suites/ that test a function of the kernel, without "test_"."""
    matching = (files for name, files in _NEAR.items() if re.search(name, function))
    return list(dict.fromkeys(file for files in matching for file in files))


def by_defects_per_second(
    ids: Iterable[str], function: str = "", caught: Collection[str] = (), quick: int = 0
) -> list[str]:
    """Return the node ids of tests in the order in which to run them.

    ``caught`` are the tests that have detected other mutants. With ``quick``, only these, and this
    number of parameters of the tests near ``function``; no test that takes seconds.
    """
    near = files_for(function)
    variants: dict[str, list[str]] = defaultdict(list)
    for id in ids:
        variants[id.partition("[")[0]].append(id)
    ranked = []
    for test, each in variants.items():
        file = re.sub(r".*/test_|\.py::.*", "", test)
        is_slow = file in _SLOW or _SLOW_TEST in test
        for round, id in zip(rounds(len(each)), each, strict=True):
            if is_slow or not (file in near or id in caught):
                kind = _OTHERS
            else:
                kind = _NEAR_ROUNDS if file in near else _CAUGHT
            if not quick or kind == _CAUGHT or (kind == _NEAR_ROUNDS and round < quick):
                index = near.index(file) if kind == _NEAR_ROUNDS else 0
                ranked.append(((kind, is_slow, round if kind != _CAUGHT else 0, index), id))
    return [id for _, id in sorted(ranked, key=lambda each: each[0])]


def rounds(number: int) -> list[int]:
    """Return the round in which each of ``number`` parameters of a test runs.

    The first parameter comes first, then the last one, then those far from the ones before.
    """
    middle = sorted(range(1, number - 1), key=lambda place: place * _SPREAD % 1)
    order = [0, number - 1, *middle] if number > 1 else [0]
    return sorted(range(number), key=order.__getitem__)
