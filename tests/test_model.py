# SPDX-License-Identifier: GPL-2.0-only
"""The model, checked against cases that were measured on kernels.

``before`` is the outcome on kernels older than 6.3 (all switches off), if different.
"""

from __future__ import annotations

import errno
from dataclasses import fields
from typing import Any

import pytest

from helpers.apic import Message
from helpers.apic.model import (
    DESTINATION_32,
    ENABLED,
    HINT_BROADCAST,
    REFERENCE,
    RULES,
    SEARCH,
    SOFTWARE_DISABLED,
    UNMATCHED,
    Model,
    Outcome,
    Rule,
    Switches,
)
from helpers.apic.model import PHYSICAL as PHYSICAL_ID
from helpers.apic.topology import Topology
from helpers.spec import CLAUSES

OLD = Switches(**dict.fromkeys([each.name for each in fields(Switches)], False))

FLAT = "0/ldr=0x01000000 1/ldr=0x02000000 2/ldr=0x04000000 3/ldr=0x08000000"
FLAT_1_DISABLED = FLAT.replace("0x02000000", "0x02000000/sw-disabled")
CLUSTER = " ".join(
    f"{i}/ldr={cluster << 4 | member:#04x}000000/dfr=0x0fffffff"
    for i, (cluster, member) in enumerate([(0, 1), (0, 2), (1, 1), (1, 8)])
)
X2APIC = "0/x2apic 1/x2apic 2/x2apic 3/x2apic"
X2APIC_34 = " ".join(f"{id}/x2apic" for id in range(34))
MIXED = "0/ldr=0x01000000 1/ldr=0x02000000 2/x2apic 3/x2apic"
X2APIC_HIGH = "x2apic_api=3 0/x2apic 256/x2apic"
MIXED_CLUSTERS = "x2apic_api=3 0/ldr=0x01000000 16/x2apic 33/x2apic"
SW_DISABLED = "0/sw-disabled 1/sw-disabled"
ALIASED = "0 1/id=2 2"
WRAPPED = "0 1 256"
USURPED = "0/x2apic 1/x2apic/ldr=0x00000080"

PHYSICAL = "destination={:#x}".format
LOGICAL = "destination_mode=logical destination={:#x}".format
NMI, LOWEST = "delivery_mode=nmi ", "delivery_mode=lowest_priority "
HINT = "redirection_hint=1 "


def row(
    name: str, topology: str, message: str, reference: str, before: str = "", **parameters: Any
) -> Any:
    """Return a case: its name, the input, and the outcomes as text of :func:`outcome_of`."""
    return pytest.param(topology, message, parameters, reference, before or reference, id=name)


LATE_32BIT = "x2apic_api=1 mapped_api=0 0 1/id=0x0 256"


def outcome_of(outcome: Outcome) -> str:
    """Return the return value and the accepting vCPUs, ``2: 0 3``; or an error, ``-1 EPERM``."""
    accepted = " ".join(map(str, outcome.accepted))
    assert outcome.result in (-1, len(outcome.accepted))
    return f"{outcome.returned}: {accepted}" if accepted else outcome.returned


ENTRY_CHECKS = [
    row("no-irqchip", "none 0", PHYSICAL(0), "-1 EINVAL"),
    row("no-irqchip-no-vcpu", "none", PHYSICAL(0), "-1 EINVAL"),
    row("flag-1", "0", PHYSICAL(0), "1: 0", flags=1),
    row("flag-2", "0", PHYSICAL(0), "-1 EINVAL", flags=2),
    row("flag-31", "0", PHYSICAL(0), "-1 EINVAL", flags=1 << 31),
    row("flag-beats-no-vcpu", "full", PHYSICAL(0), "-1 EINVAL", flags=2),
    row("devid-without-flag", "0", PHYSICAL(0), "1: 0", devid=7),
    row("devid-with-flag", "0", PHYSICAL(0), "1: 0", flags=1, devid=0xFFFFFFFF),
    row("padding", "0", PHYSICAL(0), "1: 0", pad=b"\xff" * 12),
    row("hi-reserved", "x2apic_api=1 0", "address_hi_reserved=1", "-1 EINVAL"),
    row("hi-reserved-beats-no-vcpu", "x2apic_api=1", "address_hi_reserved=1", "-1 EINVAL"),
    row("hi-ignored", "0", "address_hi_reserved=0xff destination=0xffffff00", "1: 0"),
    row("hi-ignored-without-32bit-ids", "x2apic_api=2 0", "address_hi_reserved=1", "1: 0"),
    row("reserved-bits", "0", "fee00ff3:0:ffff7841", "1: 0"),
    row("address-0", "0", "0:0:41", "1: 0"),
]

NOBODY_THERE = [
    row("no-vcpu-physical", "full", PHYSICAL(0), "-1 EPERM"),
    row("no-vcpu-logical", "split", LOGICAL(1), "-1 EPERM"),
    row("no-vcpu-broadcast", "full", PHYSICAL(0xFF), "-1 EPERM"),
    row("absent-id", "0 1", PHYSICAL(5), "0"),
    row("absent-id-some-aliased", ALIASED, PHYSICAL(5), "-1 EPERM", "0"),
    row("absent-logical-some-aliased", ALIASED, LOGICAL(4), "-1 EPERM"),
    row("no-logical-ids", "0 1", LOGICAL(1), "0", "-1 EPERM"),
    row("no-logical-ids-all-disabled", SW_DISABLED, LOGICAL(1), "0", "-1 EPERM"),
    row("absent-logical-id", FLAT, LOGICAL(0x10), "0"),
    row("id-0x100-searched", LATE_32BIT, PHYSICAL(0x100), "1: 2"),
    row("id-0x101-searched", LATE_32BIT, PHYSICAL(0x101), "-1 EPERM", "0"),
    row("absent-logical-id-mixed-modes", MIXED, LOGICAL(0x10), "-1 EPERM"),
    row("broadcast-all-hw-disabled", "0/disabled", PHYSICAL(0xFF), "-1 EPERM"),
    row("logical-broadcast-all-hw-disabled", "0/disabled", LOGICAL(0xFF), "-1 EPERM"),
    row("broadcast-all-sw-disabled", SW_DISABLED, PHYSICAL(0xFF), "0"),
    row("broadcast-all-sw-disabled-lowest", SW_DISABLED, LOWEST + PHYSICAL(0xFF), "0"),
    row("broadcast-all-sw-disabled-hint", SW_DISABLED, HINT + PHYSICAL(0xFF), "-1 EPERM"),
    row("broadcast-all-sw-disabled-logical", SW_DISABLED, LOWEST + LOGICAL(0xFF), "-1 EPERM"),
]

DELIVERY_MODES = ["fixed", "lowest_priority", "smi", "remrd", "nmi", "init", "sipi", "extint"]
LAPIC_STATE = [
    row(
        f"{delivery_mode}-{name}", topology, f"delivery_mode={delivery_mode} destination=1", outcome
    )
    for name, topology, outcomes in [
        ("enabled", "0 1", "1 1 1 1 1 1 1 0"),
        ("no-smm", "no-smm 0 1", "1 1 0 1 1 1 1 0"),
        ("sw-disabled", "0 1/sw-disabled", "0 0 1 1 1 1 1 0"),
        ("hw-disabled", "0 1/disabled", "0 0 0 0 0 0 0 0"),
        ("newest-fresh", "0/sw-disabled 1/sw-disabled/unmapped", "0 0 0 0 0 0 0 0"),
    ]
    for delivery_mode, accepts in zip(DELIVERY_MODES, outcomes.split(), strict=True)
    for outcome in ["1: 1" if accepts == "1" else "0"]
]
LAPIC_STATE += [
    row("newest-fresh-broadcast", "0 1/unmapped", NMI + PHYSICAL(0xFF), "2: 0 1"),
    row("newest-fresh-the-other", "0 1/unmapped", NMI + PHYSICAL(0), "1: 0"),
    row("only-vcpu-is-fresh", "0/sw-disabled/unmapped", NMI + PHYSICAL(0), "0"),
]

LAPIC_STATE += [
    row("init-in-smm", "0 1/smm", "delivery_mode=init destination=1", "1: 1"),
    row("masked-nmi", "0 1/nmi-masked", NMI + PHYSICAL(1), "1: 1"),
    row("held", "0 1/tpr=0xf0/shadow/isr=0x61", PHYSICAL(1), "1: 1"),
]

PHYSICAL_DESTINATION = [
    row("id", FLAT, PHYSICAL(2), "1: 2"),
    row("broadcast", FLAT, PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("broadcast-sw-disabled", FLAT_1_DISABLED, PHYSICAL(0xFF), "3: 0 2 3"),
    row("broadcast-nmi-sw-disabled", FLAT_1_DISABLED, NMI + PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("broadcast-lowest", FLAT, LOWEST + PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("broadcast-hint", FLAT, HINT + PHYSICAL(0xFF), "1: 1"),
    row("broadcast-hint-lowest", FLAT, HINT + LOWEST + PHYSICAL(0xFF), "1: 1"),
    row("broadcast-hint-extint", FLAT, HINT + "delivery_mode=extint destination=0xff", "1: 1"),
    row("broadcast-hint-sw-disabled", FLAT_1_DISABLED, HINT + PHYSICAL(0xFF), "1: 3"),
    row("unicast-lowest", FLAT, LOWEST + PHYSICAL(2), "1: 2"),
    row("unicast-hint", FLAT, HINT + PHYSICAL(2), "1: 2"),
    row("id-255-is-broadcast", "0 255", PHYSICAL(0xFF), "2: 0 1"),
    row("rewritten-id-new", "0 1/id=5", PHYSICAL(5), "1: 1"),
    row("rewritten-id-old", "0 1/id=5", PHYSICAL(1), "0"),
    row("aliased", ALIASED, PHYSICAL(2), "2: 1 2", "1: 1"),
    row("aliased-lowest", ALIASED, LOWEST + PHYSICAL(2), "1: 2", "1: 1"),
    row("aliased-hw-disabled", "0 1/id=2/disabled 2", PHYSICAL(2), "1: 2"),
    row("aliased-32bit", f"x2apic_api=1 {ALIASED}", PHYSICAL(2), "1: 1"),
    row("aliased-32bit-created-5-then-1", "x2apic_api=1 5/id=9 1/id=9", PHYSICAL(9), "1: 0"),
    row("aliased-elsewhere-x2apic", f"{ALIASED} 300/x2apic", PHYSICAL(44), "-1 EPERM", "0"),
    row("wrapped-id", WRAPPED, PHYSICAL(0), "2: 0 2", "1: 0"),
    row("wrapped-id-32bit-low", f"x2apic_api=1 {WRAPPED}", PHYSICAL(0), "1: 0"),
    row("wrapped-id-32bit-high", f"x2apic_api=1 {WRAPPED}", PHYSICAL(0x100), "1: 2"),
    row("wrapped-id-32bit-broadcast", f"x2apic_api=1 {WRAPPED}", PHYSICAL(0x1FF), "0"),
    row("absent-high-id", f"x2apic_api=1 {FLAT}", PHYSICAL(0x101), "0"),
    row("32bit-x2apic-takes-its-id", "x2apic_api=1 0/id=1 1/x2apic", PHYSICAL(1), "1: 1"),
    row("x2apic", X2APIC, PHYSICAL(2), "1: 2"),
    row("x2apic-broadcast-quirk", X2APIC, PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("x2apic-no-quirk-absent-255", f"x2apic_api=2 {X2APIC}", PHYSICAL(0xFF), "0"),
    row("x2apic-no-quirk-255", "x2apic_api=2 0/x2apic 255/x2apic", PHYSICAL(0xFF), "1: 1"),
    row("x2apic-no-quirk-rewritten-255", "x2apic_api=3 0/x2apic 255/id=5", PHYSICAL(0xFF), "0"),
    row("x2apic-high-id", "x2apic_api=3 0/x2apic 300/x2apic", PHYSICAL(300), "1: 1"),
    row("32bit-broadcast-quirk", f"x2apic_api=1 {X2APIC}", PHYSICAL(0xFFFFFFFF), "0"),
    row("32bit-broadcast", f"x2apic_api=3 {X2APIC}", PHYSICAL(0xFFFFFFFF), "4: 0 1 2 3"),
    row("32bit-broadcast-lowest", f"x2apic_api=3 {X2APIC}", LOWEST + PHYSICAL(0xFFFFFFFF), "1: 1"),
    row("32bit-broadcast-hint", f"x2apic_api=3 {X2APIC}", HINT + PHYSICAL(0xFFFFFFFF), "1: 1"),
    row("32bit-broadcast-xapic", f"x2apic_api=3 {FLAT}", PHYSICAL(0xFFFFFFFF), "-1 EPERM"),
    row("mixed-quirk", MIXED, PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("mixed-quirk-32bit-ids", f"x2apic_api=1 {MIXED}", PHYSICAL(0xFF), "4: 0 1 2 3"),
    row("mixed-no-quirk", f"x2apic_api=2 {MIXED}", PHYSICAL(0xFF), "2: 0 1"),
    row("mixed-no-quirk-32bit", f"x2apic_api=3 {MIXED}", PHYSICAL(0xFFFFFFFF), "2: 2 3"),
    row("x2apic-id-usurped", USURPED, PHYSICAL(7), "0", "1: 1"),
    row("x2apic-id-usurped-own", USURPED, PHYSICAL(1), "1: 1"),
    row("x2apic-id-truncated", "300/x2apic/ldr=0x00021000", PHYSICAL(44), "0", "1: 0"),
    row("forced-id-0", "0/disabled 1/id=0", PHYSICAL(0), "1: 1"),
]

LOGICAL_DESTINATION = [
    row("flat", FLAT, LOGICAL(0b1010), "2: 1 3"),
    row("flat-sw-disabled", FLAT_1_DISABLED, LOGICAL(0b1010), "1: 3"),
    row("flat-absent-bit", FLAT, LOGICAL(0b10001), "1: 0"),
    row("flat-broadcast", "0 1 2/ldr=0x01000000", LOGICAL(0xFF), "3: 0 1 2"),
    row("flat-0", FLAT, LOGICAL(0), "0"),
    row("flat-nmi-sw-disabled-found", FLAT_1_DISABLED, NMI + LOGICAL(2), "0"),
    row("flat-nmi-sw-disabled-searched", f"{FLAT_1_DISABLED} 9/x2apic", NMI + LOGICAL(2), "1: 1"),
    row("flat-no-ldr-no-matter", f"{FLAT} 4/dfr=0x0fffffff", LOGICAL(0x18), "1: 3"),
    row("flat-low-ldr-bits", "0/ldr=0x00000001", LOGICAL(1), "0"),
    row("cluster-0", CLUSTER, LOGICAL(0x0F), "2: 0 1"),
    row("cluster-1", CLUSTER, LOGICAL(0x19), "2: 2 3"),
    row("cluster-1-one", CLUSTER, LOGICAL(0x1A), "1: 3"),
    row("cluster-absent", CLUSTER, LOGICAL(0x2F), "0"),
    row("other-dfr-found", "0/ldr=0x11000000/dfr=0x1fffffff", LOGICAL(0x11), "1: 0"),
    row(
        "other-dfr-searched",
        "0/ldr=0x11000000/dfr=0x1fffffff 1/ldr=0x01000000",
        LOGICAL(0x11),
        "1: 1",
    ),
    row("flat-and-cluster", f"{FLAT} 4/ldr=0x12000000/dfr=0x0fffffff", LOGICAL(0x12), "2: 1 4"),
    row(
        "flat-and-cluster-nobody",
        f"{FLAT} 4/ldr=0x12000000/dfr=0x0fffffff",
        LOGICAL(0x10),
        "-1 EPERM",
    ),
    row("aliased", "0/ldr=0x01000000 1/ldr=0x01000000", LOGICAL(1), "2: 0 1", "1: 1"),
    row("several-bits", "0 1/ldr=0x06000000 2/ldr=0x04000000", LOGICAL(4), "2: 1 2", "1: 2"),
    row("several-bits-second", "0 1/ldr=0x06000000", LOGICAL(4), "1: 1", "0"),
    row("flat-ignores-hi", f"x2apic_api=1 {FLAT}", LOGICAL(0x101), "1: 0"),
    row("flat-ignores-hi-ffffff01", f"x2apic_api=1 {FLAT}", LOGICAL(0xFFFFFF01), "1: 0"),
    row("cluster-ignores-hi", f"x2apic_api=1 {CLUSTER}", LOGICAL(0x111), "1: 2"),
    row("cluster-searched-with-hi", f"x2apic_api=1 {CLUSTER} 9/x2apic", LOGICAL(0x111), "-1 EPERM"),
    row("x2apic-cluster-0", f"x2apic_api=3 {X2APIC_34}", LOGICAL(0x8001), "2: 0 15"),
    row("x2apic-cluster-1", f"x2apic_api=3 {X2APIC_34}", LOGICAL(0x18001), "2: 16 31"),
    row("x2apic-partial-cluster", f"x2apic_api=3 {X2APIC_34}", LOGICAL(0x2FFFF), "2: 32 33"),
    row("x2apic-last-id", X2APIC_HIGH, LOGICAL(0x100003), "1: 1"),
    row("x2apic-clusters-searched", MIXED_CLUSTERS, LOGICAL(0x10001), "2: 0 1"),
    row("x2apic-clusters-searched-nobody", MIXED_CLUSTERS, LOGICAL(0x30002), "-1 EPERM"),
    row("x2apic-absent-cluster", f"x2apic_api=3 {X2APIC}", LOGICAL(0x1000FFFF), "0"),
    row("x2apic-quirk", X2APIC_34, LOGICAL(0xFF), f"34: {' '.join(map(str, range(34)))}"),
    row("x2apic-no-quirk", f"x2apic_api=2 {X2APIC_34}", LOGICAL(0xFF), "8: 0 1 2 3 4 5 6 7"),
    row(
        "x2apic-sw-disabled",
        "x2apic_api=2 0/x2apic 1/x2apic/sw-disabled",
        NMI + LOGICAL(3),
        "2: 0 1",
    ),
    row("x2apic-reaches-xapic-without-ldr", "0 1/x2apic", LOGICAL(3), "2: 0 1"),
    row("32bit-broadcast-quirk", f"x2apic_api=1 {X2APIC}", LOGICAL(0xFFFFFFFF), "0"),
    row("32bit-broadcast-quirk-mixed", f"x2apic_api=1 {MIXED}", LOGICAL(0xFFFFFFFF), "4: 0 1 2 3"),
    row("32bit-broadcast", f"x2apic_api=3 {X2APIC}", LOGICAL(0xFFFFFFFF), "4: 0 1 2 3"),
    row("mixed", MIXED, LOGICAL(0x0E), "3: 1 2 3"),
]

VECTOR = "vector={:#x} ".format
LOWEST_PRIORITY = [
    row("hashed-40", FLAT, VECTOR(0x40) + LOWEST + LOGICAL(0xF), "1: 0"),
    row("hashed-41", FLAT, VECTOR(0x41) + LOWEST + LOGICAL(0xF), "1: 1"),
    row("hashed-over-bits", FLAT, VECTOR(0x41) + LOWEST + LOGICAL(0b1010), "1: 3"),
    row("absent-bit-chosen", FLAT, VECTOR(0x40) + LOWEST + LOGICAL(0x1F), "0"),
    row("absent-bit-not-chosen", FLAT, VECTOR(0x41) + LOWEST + LOGICAL(0x1F), "1: 0"),
    row("sw-disabled-chosen", FLAT_1_DISABLED, VECTOR(0x41) + LOWEST + LOGICAL(0xF), "0"),
    row("no-bit", FLAT, LOWEST + LOGICAL(0), "0"),
    row("hint", FLAT, VECTOR(0x42) + HINT + LOGICAL(0xF), "1: 2"),
    row("hint-nmi", FLAT, VECTOR(0x42) + HINT + NMI + LOGICAL(0xF), "1: 2"),
    row("broadcast", FLAT_1_DISABLED, VECTOR(0x40) + LOWEST + LOGICAL(0xFF), "1: 2"),
    row("mixed-modes", MIXED, VECTOR(0x41) + LOWEST + LOGICAL(0x0E), "1: 3"),
    row("x2apic", f"x2apic_api=3 {X2APIC_34}", VECTOR(0x41) + LOWEST + LOGICAL(0x2000F), "1: 33"),
    row("beyond-the-last-id", X2APIC_HIGH, VECTOR(0x41) + LOWEST + LOGICAL(0x100003), "1: 1"),
    row("round-first", f"no-vector-hashing {FLAT}", LOWEST + LOGICAL(0xF), "1: 0"),
    row(
        "round-next",
        "no-vector-hashing 0/ldr=0x01000000/arb_prio=1 1/ldr=0x02000000",
        LOWEST + LOGICAL(3),
        "1: 1",
    ),
    row("round-absent-bit", f"no-vector-hashing {FLAT}", LOWEST + LOGICAL(0x18), "1: 3"),
    row("round-nobody", f"no-vector-hashing {FLAT}", LOWEST + LOGICAL(0x10), "0"),
    row("round-broadcast", "no-vector-hashing 0/arb_prio=2 1", LOWEST + LOGICAL(0xFF), "1: 1"),
    row(
        "round-broadcast-nobody",
        f"no-vector-hashing {SW_DISABLED}",
        HINT + PHYSICAL(0xFF),
        "-1 EPERM",
    ),
]

ROWS = [
    *ENTRY_CHECKS,
    *NOBODY_THERE,
    *LAPIC_STATE,
    *PHYSICAL_DESTINATION,
    *LOGICAL_DESTINATION,
    *LOWEST_PRIORITY,
]


def predicted(
    topology: str, message: str, parameters: dict[str, Any], switches: Switches = REFERENCE
) -> Outcome:
    model = Model(Topology.parse(topology), switches)
    return model.predict(Message.parse(message), **parameters)


TABLE = "topology, message, parameters, reference, before"


def check(topology: str, message: str, parameters: Any, reference: str, before: str) -> None:
    assert outcome_of(predicted(topology, message, parameters)) == reference
    assert outcome_of(predicted(topology, message, parameters, OLD)) == before


@pytest.mark.parametrize(TABLE, ENTRY_CHECKS)
def test_entry_check(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


@pytest.mark.parametrize(TABLE, NOBODY_THERE)
def test_nobody_there(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


@pytest.mark.parametrize(TABLE, LAPIC_STATE)
def test_state_of_the_lapic(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


@pytest.mark.parametrize(TABLE, PHYSICAL_DESTINATION)
def test_physical_destination(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


@pytest.mark.parametrize(TABLE, LOGICAL_DESTINATION)
def test_logical_destination(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


@pytest.mark.parametrize(TABLE, LOWEST_PRIORITY)
def test_lowest_priority(topology, message, parameters, reference, before):
    check(topology, message, parameters, reference, before)


# --- switches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switch, topology, message, on, off",
    [
        ("aliased_ids_all_receive", ALIASED, PHYSICAL(2), "2: 1 2", "1: 1"),
        (
            "aliased_logical_ids_all_receive",
            "0/ldr=0x01000000 1/ldr=0x01000000",
            LOGICAL(1),
            "2: 0 1",
            "1: 1",
        ),
        ("unmatched_logical_is_blocked", "0", LOGICAL(1), "0", "-1 EPERM"),
        ("x2apics_keep_their_ids", USURPED, PHYSICAL(7), "0", "1: 1"),
    ],
)
def test_switch_alone_changes_the_outcome(switch, topology, message, on, off):
    assert outcome_of(predicted(topology, message, {})) == on
    assert outcome_of(predicted(topology, message, {}, Switches(**{switch: False}))) == off


# --- the rules ------------------------------------------------------------------------------------

EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.text)


def applied_somewhere() -> set[Rule]:
    cases = [(case.values[:3], switches) for case in ROWS for switches in (REFERENCE, OLD)]
    return {rule for case, switches in cases for rule, _ in predicted(*case, switches).applied}


@EACH_RULE
def test_rule_is_well_formed(rule):
    assert rule.text.endswith(".")
    assert rule.source
    assert rule.clauses


@EACH_RULE
def test_rule_names_existing_clauses(rule):
    assert set(rule.clauses) <= set(CLAUSES)


def test_rule_has_a_shared_source_once():
    assert HINT_BROADCAST.source == CLAUSES["dest.hint-broadcast"].source
    assert HINT_BROADCAST.source == CLAUSES["dest.lowest-broadcast"].source


def test_rule_has_the_source_of_each_clause():
    sources = [CLAUSES[id].source for id in SOFTWARE_DISABLED.clauses]
    assert SOFTWARE_DISABLED.source == "; ".join(sources)


def test_every_rule_applies_to_some_case():
    assert applied_somewhere() == set(RULES)


def test_every_outcome_has_rules():
    for case in ROWS:
        outcome = predicted(*case.values[:3])
        assert outcome.applied
        rules = [rule for rule, _ in outcome.applied]
        assert (UNMATCHED in rules) == (outcome.errno == errno.EPERM)


def test_vcpus_are_named_by_their_place():
    outcome = predicted("x2apic_api=1 300 5", "destination=300", {})
    assert outcome.applied == (
        (DESTINATION_32, "destination 0x12c"),
        (PHYSICAL_ID, "0x12c is vCPU 0"),
        (ENABLED, "vCPU 0"),
    )


@pytest.mark.parametrize(
    "topology, message, why",
    [
        ("full", PHYSICAL(0), "no vCPU: 0x0 is none"),
        (ALIASED, PHYSICAL(2), "aliased APIC IDs: 0x2 is vCPU 1, vCPU 2"),
        (FLAT, PHYSICAL(0xFF), "a broadcast: 0xff is vCPU 0, vCPU 1, vCPU 2, vCPU 3"),
        (MIXED, LOGICAL(2), "mixed or overlapping logical IDs: 0x2 is vCPU 1"),
    ],
)
def test_search_says_why(topology, message, why):
    applied = dict(predicted(topology, message, {}).applied)
    assert applied[SEARCH] == why
