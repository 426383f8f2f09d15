# SPDX-License-Identifier: GPL-2.0-only
"""xAPIC destinations: physical, broadcast, flat, cluster, mixed and aliased.

Clauses: dest.physical, dest.broadcast, dest.lowest-broadcast, dest.flat, dest.cluster,
dest.mixed-modes, errata.alias-8bit, dest.aliased, lapic.follows-guest.

A software-disabled LAPIC stays addressable but takes no vector, so a destination is always checked
from both sides: the LAPICs that accept, and the others, on which nothing may change. Two xAPICs
can have one ID: a guest may write it, and without 32-bit IDs vCPU 256 has the xAPIC ID of vCPU 0.
"""

import pytest

from helpers.apic import ApicMode
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET, bits
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import VECTOR_HASHING, expect_acceptors, mix_models, sharing_a_bit, to
from suites.names import FIXED, INIT, LOGICAL, LOWEST, NMI, USE_32BIT_IDS

# --- dest.physical --------------------------------------------------------------------------------


@clause("dest.physical")
@each.irqchip
@each.delivery_mode(FIXED, LOWEST, NMI, INIT)
def test_physical_destination_is_one_lapic(machine, delivery_mode):
    for index in range(4):
        machine.signal(to(index, delivery_mode=delivery_mode)).returns(1).accepted_by(index)


@clause("dest.physical")
@each.value("high", range(16), "0x{0:x}0-0x{0:x}f")
def test_absent_id_reaches_nobody(machine, high):
    for destination in set(range(high << 4, (high << 4) + 16)) - {*range(4), 0xFF}:
        machine.signal(to(destination)).blocked_or_unmatched().reached_nobody()


@clause("dest.physical")
@each.value("vcpu_id", [1 << bit for bit in range(8)] + [0xFE])
def test_every_bit_of_the_id_counts(shared_machine, vcpu_id):
    machine = shared_machine(vcpu_ids=(0, *(1 << bit for bit in range(8)), 0xFE))
    index = [cpu.vcpu.vcpu_id for cpu in machine.cpus].index(vcpu_id)
    machine.signal(to(vcpu_id)).returns(1).accepted_by(index)


@clause("dest.physical")
@each.value("new", [4, 5, 0x80, 0xFE])
def test_rewritten_id_is_the_destination(machine, new):
    machine[1].configure(id=new)
    machine.signal(to(new)).returns(1).accepted_by(1)
    machine.signal(to(1)).blocked_or_unmatched().reached_nobody()


@clause("dest.physical")
def test_exchanged_ids(machine):
    machine[1].configure(id=2)
    machine[2].configure(id=1)
    machine.signal(to(1)).returns(1).accepted_by(2)
    machine.signal(to(2, vector=0x42)).returns(1).accepted_by(1)


@clause("dest.physical")
def test_relocated_apic_base_does_not_move_the_destination(machines):
    machine = machines(vcpu_ids=range(2))
    sregs = machine[1].vcpu.get_sregs()
    sregs.apic_base = 0x80000000 | sregs.apic_base & 0xFFF
    machine[1].vcpu.set_sregs(sregs)
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("dest.physical")
def test_creation_order_does_not_matter(machines):
    machine = machines(vcpu_ids=(7, 2, 5, 0))
    for index, destination in enumerate((7, 2, 5, 0)):
        machine.signal(to(destination, vector=0x40 + index)).returns(1).accepted_by(index)


# --- dest.broadcast and dest.lowest-broadcast -----------------------------------------------------


@clause("dest.broadcast")
@each.irqchip
@each.delivery_mode(FIXED, NMI, INIT)
def test_broadcast_reaches_all(machine, delivery_mode):
    machine.signal(to(0xFF, delivery_mode=delivery_mode)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.broadcast")
def test_lapic_with_id_255_does_not_take_the_broadcast_for_itself(machine):
    machine[1].configure(id=0xFF)
    machine.signal(to(0xFF)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.broadcast")
@each.value("off", range(1, 15), "off{:04b}")
def test_broadcast_reaches_all_software_enabled(machine, off):
    for index in bits(off):
        machine[index].configure(svr=SVR_RESET)
    enabled = [*bits(~off & 0xF)]
    machine.signal(to(0xFF)).returns(len(enabled)).accepted_by(*enabled)


@clause("dest.broadcast")
@each.delivery_mode(FIXED, NMI, INIT)
@each.value("off", range(4), "off{}")
def test_broadcast_reaches_all_but_a_hardware_disabled_lapic(machine, off, delivery_mode):
    machine[off].apic_mode = ApicMode.DISABLED
    others = [index for index in range(4) if index != off]
    machine.signal(to(0xFF, delivery_mode=delivery_mode)).returns(3).accepted_by(*others)


@clause("dest.lowest-broadcast")
def test_lowest_priority_to_physical_broadcast_reaches_all(machine):
    machine.signal(to(0xFF, delivery_mode=LOWEST)).returns(4).accepted_by(0, 1, 2, 3)


# --- dest.flat ------------------------------------------------------------------------------------

EIGHT = tuple(range(8))


@clause("dest.flat")
@each.bit(range(8))
def test_flat_destination_bit_is_one_lapic(shared_machine, bit):
    machine = shared_machine(vcpu_ids=EIGHT)
    machine.signal(to(1 << bit, LOGICAL)).returns(1).accepted_by(bit)


@clause("dest.flat")
@each.delivery_mode(FIXED, NMI)
def test_flat_destination_is_every_lapic_that_shares_a_bit(machine, delivery_mode):
    for mask in range(1, 16):
        message = to(mask, LOGICAL, delivery_mode=delivery_mode)
        expect_acceptors(machine, message, *sharing_a_bit(mask))
        for cpu in machine.cpus:
            cpu.take()


@clause("dest.flat")
@each.value("mask", range(1, 16), "{:04b}")
def test_init_to_a_flat_destination_is_for_every_lapic_that_shares_a_bit(machine, mask):
    message = to(mask, LOGICAL, delivery_mode=INIT)
    expect_acceptors(machine, message, *sharing_a_bit(mask))


@clause("dest.flat")
@each.value("mask", [0xF1, 0x8F, 0x7E, 0xAA])
def test_destination_bits_without_lapic_do_not_matter(machine, mask):
    expect_acceptors(machine, to(mask, LOGICAL), *sharing_a_bit(mask))


@clause("dest.flat")
@each.value("destination", [0, 0x10, 0xF0])
def test_destination_without_a_lapics_bit_reaches_nobody(machine, destination):
    machine.signal(to(destination, LOGICAL)).blocked_or_unmatched().reached_nobody()


@clause("dest.flat")
def test_ldr_not_the_id_is_the_logical_id(machine):
    machine[1].configure(ldr=0x80)
    machine.signal(to(0x80, LOGICAL)).returns(1).accepted_by(1)
    machine.signal(to(0x02, LOGICAL)).blocked_or_unmatched().reached_nobody()


@clause("dest.flat")
def test_software_disabled_lapic_does_not_take_a_vector_by_its_bit(machine):
    machine[1].configure(svr=SVR_RESET)
    machine.signal(to(0x0F, LOGICAL)).returns(3).accepted_by(0, 2, 3)


@clause("dest.flat")
def test_logical_broadcast_reaches_all(machine):
    machine[3].configure(ldr=0)
    machine.signal(to(0xFF, LOGICAL)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.flat")
def test_logical_broadcast_reaches_more_lapics_than_bits(machines):
    machine = machines(vcpu_ids=range(10))
    machine.signal(to(0xFF, LOGICAL)).returns(10).accepted_by(*range(10))


# --- dest.cluster ---------------------------------------------------------------------------------

CLUSTERED = (0x11, 0x12, 0x14, 0x18, 0x21, 0x22, 0xE1, 0xE8)
"""LDRs of eight vCPUs. Bits 7:4 are the cluster, bits 3:0 the LAPIC's bit in it."""


@pytest.fixture
def clusters(shared_machine):
    machine = shared_machine(vcpu_ids=EIGHT)
    for cpu, ldr in zip(machine.cpus, CLUSTERED, strict=True):
        cpu.configure(dfr=DFR_CLUSTER, ldr=ldr)
    return machine


def members_of(cluster, mask):
    """Return the vCPUs of ``cluster`` whose bit is in ``mask``."""
    return [i for i, ldr in enumerate(CLUSTERED) if ldr >> 4 == cluster and ldr & mask]


@clause("dest.cluster")
@each.value("cluster", range(0xF), "cluster{:x}")
def test_cluster_destination_is_every_lapic_of_the_cluster_that_shares_a_bit(clusters, cluster):
    for mask in range(16):
        message = to(cluster << 4 | mask, LOGICAL, vector=0x40 + mask)
        expect_acceptors(clusters, message, *members_of(cluster, mask))


@clause("dest.cluster")
def test_broadcast_reaches_all_clusters(clusters):
    clusters.signal(to(0xFF, LOGICAL)).returns(8).accepted_by(*EIGHT)


# --- dest.mixed-modes -----------------------------------------------------------------------------


MEMBERS_IN_MIXED_MODELS = {
    0x01: [0],
    0x02: [1],
    0x03: [0, 1],
    0x11: [0, 2],
    0x12: [1, 3],
    0x13: [0, 1, 2, 3],
}
"""vCPUs 0 and 1 match by bits 0 and 1 of the destination; 2 and 3 are of cluster 1."""


@clause("dest.mixed-modes")
@pytest.mark.parametrize(
    "destination, members",
    MEMBERS_IN_MIXED_MODELS.items(),
    ids=map(hex, MEMBERS_IN_MIXED_MODELS),
)
def test_flat_and_cluster_match_each_by_its_own_rule(machine, destination, members):
    mix_models(machine)
    machine.signal(to(destination, LOGICAL)).returns(len(members)).accepted_by(*members)


@clause("dest.mixed-modes")
@each.value("cluster", range(4), "cluster{}")
def test_bit_is_of_its_cluster_only_beside_flat_lapics(machine, cluster):
    machine[2].configure(dfr=DFR_CLUSTER, ldr=0x04)
    expect_acceptors(machine, to(cluster << 4 | 0x04, LOGICAL), *([2] if cluster == 0 else []))


@clause("dest.mixed-modes")
@each.index(range(4))
def test_physical_ids_of_xapic_and_x2apic(machine, index):
    machine[2].apic_mode = machine[3].apic_mode = ApicMode.X2APIC
    machine.signal(to(index)).returns(1).accepted_by(index)


@clause("dest.mixed-modes")
def test_x2apic_of_another_cluster_is_not_reached_beside_an_xapic(machines):
    machine = machines(vcpu_ids=(0, 1, 0x11))
    machine[1].apic_mode = machine[2].apic_mode = ApicMode.X2APIC
    machine.signal(to(1 << 1, LOGICAL)).returns(1).accepted_by(1)


@clause("dest.mixed-modes")
@each.x2apic_api(0, USE_32BIT_IDS)
def test_broadcast_reaches_xapic_and_x2apic(machine):
    machine[2].apic_mode = machine[3].apic_mode = ApicMode.X2APIC
    machine.signal(to(0xFF)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.mixed-modes")
@each.value("dfr", [0x1FFFFFFF, 0x7FFFFFFF, 0xEFFFFFFF])
def test_dfr_that_is_neither_flat_nor_cluster_is_mapped_as_cluster(machine, dfr):
    for cpu in machine.cpus:
        cpu.configure(dfr=dfr, ldr=0x10 | 1 << cpu.index)
    machine.signal(to(0x13, LOGICAL)).returns(2).accepted_by(0, 1)


# --- errata.alias-8bit and dest.aliased -----------------------------------------------------------


@clause("errata.alias-8bit")
@deviation("alias-one-receives")
@each.delivery_mode(FIXED, NMI)
def test_all_lapics_with_one_id_accept(machine, delivery_mode):
    machine[1].configure(id=2)
    machine.signal(to(2, delivery_mode=delivery_mode)).returns(2).accepted_by(1, 2)


@clause("errata.alias-8bit")
@deviation("alias-one-receives")
def test_all_four_lapics_with_one_id_accept(machine):
    for cpu in machine.cpus:
        cpu.configure(id=7)
    machine.signal(to(7)).returns(4).accepted_by(0, 1, 2, 3)


@clause("errata.alias-8bit")
@deviation("alias-one-receives")
def test_id_256_wraps_to_0_in_xapic_mode(machines):
    machines(vcpu_ids=(0, 1, 256)).signal(to(0)).returns(2).accepted_by(0, 2)


@clause("dest.aliased")
@VECTOR_HASHING
@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(0x40, id="0x40"),
        pytest.param(0x41, id="0x41", marks=deviation("alias-one-receives")),
    ],
)
def test_lowest_priority_to_an_aliased_id_reaches_one(machine, vector):
    machine[1].configure(id=2)
    injection = machine.signal(to(2, delivery_mode=LOWEST, vector=vector)).returns(1)
    injection.accepted_by(1 + vector % 2)


@clause("dest.aliased")
@deviation("logical-alias-one-receives")
def test_all_lapics_with_one_ldr_accept(machine):
    machine[1].configure(ldr=1)
    machine.signal(to(1, LOGICAL)).returns(2).accepted_by(0, 1)


@clause("dest.aliased")
@pytest.mark.parametrize(
    "destination, members",
    [
        pytest.param(2, [1], id="2"),
        pytest.param(4, [1, 2], id="4", marks=deviation("logical-alias-one-receives")),
        pytest.param(6, [1, 2], id="6"),
    ],
)
def test_ldr_of_several_bits_matches_by_any(machine, destination, members):
    machine[1].configure(ldr=6)
    machine.signal(to(destination, LOGICAL)).returns(len(members)).accepted_by(*members)


@clause("lapic.follows-guest")
@deviation("forced-xapic-id-zero")
def test_host_switch_from_x2apic_to_xapic_keeps_the_id(machine):
    machine[3].apic_mode = ApicMode.X2APIC
    machine[3].apic_mode = ApicMode.XAPIC
    machine[3].lapic = machine[3].lapic
    machine.signal(to(3)).returns(1).accepted_by(3)
