# SPDX-License-Identifier: GPL-2.0-only
"""vCPU IDs up to the highest, and destinations around the powers of two.

Clauses: vcpu.max-id, vcpu.max-id-limit, msi.address-hi-bits, dest.x2apic-broadcast,
guest.init-sipi, dest.x2apic-logical, dest.lowest-priority, dest.xapic-large-id, lapic.format,
x2apic-api.scope, split.eoi-exit, cpuid.ext-dest-id, equivalence.routes.

KVM keeps tables that are indexed by the APIC ID, and user space can make the IDs of a VM sparse. A
message of a real device has 8 bits of destination. A VMM gives the guest 15 bits by moving address
bits 11:5 to address_hi.
"""

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import x2apic_ldr
from helpers.apic.message import translate_extended_destination
from helpers.guest import expect, msi_route
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import expect_acceptors, expect_eoi_exit, expect_refused, outcome_of, to
from suites.names import BOTH, INIT, LEVEL, LOGICAL, LOWEST, SIPI, USE_32BIT_IDS

X2APIC = ApicMode.X2APIC
SPARSE = (0, 1, 254, 255, 256, 257, 0x3FE, 0x7FF, 0xFFF, 0x1FF0, 0x3FFF)
"""vCPU IDs of ``sparse``, as far as the kernel allows. 0x3fe is the highest ID of Linux 5.10."""

AROUND = [
    power + offset
    for power in (1 << 8, 1 << 14, 1 << 15, 1 << 16, 1 << 31)
    for offset in (-1, 0, 1)
]
"""Destinations around the powers of two at which a table or a field of an ID may end."""


@pytest.fixture
def limit(kernel):
    """The number of vCPU IDs."""
    return kernel.capabilities["KVM_CAP_MAX_VCPU_ID"]


@pytest.fixture
def ids(limit):
    """The vCPU IDs of ``sparse``."""
    return tuple(vcpu_id for vcpu_id in SPARSE if vcpu_id < limit)


@pytest.fixture
def sparse(shared_machine, ids, x2apic_api):
    """x2APICs with ``ids``. A test parametrizes ``x2apic_api`` to enable KVM_CAP_X2APIC_API."""
    return shared_machine(vcpu_ids=ids, apic_mode=X2APIC, x2apic_api=x2apic_api)


EACH_32BIT = each.x2apic_api(USE_32BIT_IDS, BOTH)
ONLY_32BIT = each.x2apic_api(BOTH)


def who_has(ids, *wanted):
    """Return the vCPUs of ``sparse`` that have one of these IDs."""
    return [ids.index(vcpu_id) for vcpu_id in wanted if vcpu_id in ids]


# --- vcpu.max-id ----------------------------------------------------------------------------------


@clause("vcpu.max-id")
def test_highest_id_is_an_id_like_any_other(machines, limit):
    machine = machines(vcpu_ids=(0, limit - 1), apic_mode=X2APIC, x2apic_api=BOTH)
    machine.signal(to(limit - 1)).returns(1).accepted_by(1)
    expect("APIC ID that the guest reads", machine[1].read(Register.ID), limit - 1)


@clause("vcpu.max-id")
@pytest.mark.parametrize(
    "beyond",
    [lambda limit: limit, lambda limit: limit + 1, lambda _: 1 << 31],
    ids=["limit", "limit+1", "bit31"],
)
def test_id_from_the_limit_on_is_refused(machines, limit, beyond):
    vm = machines(vcpu_ids=()).vm
    expect("outcome", outcome_of(vm.create_vcpu, beyond(limit)), "EINVAL")


@clause("vcpu.max-id")
@deviation("vcpu-id-truncated")
def test_id_of_more_than_32_bits_is_refused(machines):
    vm = machines(vcpu_ids=()).vm
    expect("outcome", outcome_of(vm.create_vcpu, 1 << 32 | 1), "EINVAL")


@clause("vcpu.max-id")
@pytest.mark.parametrize("highest_first", [False, True], ids=["lowest-first", "highest-first"])
def test_order_of_creation_does_not_matter(machines, limit, highest_first):
    order = sorted((0, 300, limit - 1), reverse=highest_first)
    machine = machines(vcpu_ids=order, apic_mode=X2APIC, x2apic_api=BOTH)
    for index, vcpu_id in enumerate(order):
        machine.signal(to(vcpu_id)).returns(1).accepted_by(index)


@clause("vcpu.max-id")
@deviation("boot-id-at-limit")
def test_bsp_has_an_id_below_the_limit(machines, limit):
    vm = machines(vcpu_ids=()).vm
    expect("outcome", outcome_of(vm.set_boot_cpu_id, limit), "EINVAL")


@clause("vcpu.max-id")
@deviation("boot-id-not-checked")
@pytest.mark.parametrize(
    "beyond", [lambda limit: limit + 1, lambda _: 1 << 32], ids=["limit+1", "bit32"]
)
def test_bsp_has_no_id_above_the_limit(machines, limit, beyond):
    vm = machines(vcpu_ids=()).vm
    expect("outcome", outcome_of(vm.set_boot_cpu_id, beyond(limit)), "EINVAL")


# --- vcpu.max-id-limit ----------------------------------------------------------------------------


def expect_limiting(vm, limit, outcome):
    """Raise Mismatch unless limiting the IDs of a VM is "accepted", or refused with an errno."""
    expect("outcome", outcome_of(vm.enable_cap, abi.KVM_CAP_MAX_VCPU_ID, limit), outcome)


@clause("vcpu.max-id-limit")
@deviation("no-vcpu-id-limit")
def test_ids_below_the_limit_of_the_vm_are_used(machines):
    machine = machines(vcpu_ids=(), x2apic_api=BOTH)
    expect_limiting(machine.vm, 300, "accepted")
    machine.add_cpu(299).power_on(X2APIC)
    machine.signal(to(299)).returns(1).accepted_by(0)
    expect_refused(machine.vm.create_vcpu, 300)


@clause("vcpu.max-id-limit")
def test_limit_above_the_capability_is_refused(machines, limit):
    expect_limiting(machines(vcpu_ids=()).vm, limit + 1, "EINVAL")


@clause("vcpu.max-id-limit")
def test_limit_after_a_vcpu_is_refused(machines):
    expect_limiting(machines(vcpu_ids=(0,)).vm, 300, "EINVAL")


@clause("vcpu.max-id-limit")
@deviation("no-vcpu-id-limit")
def test_limit_is_set_once(machines):
    vm = machines(vcpu_ids=()).vm
    for limit, outcome in ((0, "accepted"), (300, "accepted"), (301, "EINVAL"), (299, "EINVAL")):
        expect_limiting(vm, limit, outcome)


# --- msi.address-hi-bits: physical destinations ---------------------------------------------------


@clause("msi.address-hi-bits")
@EACH_32BIT
@each.value("destination", [*AROUND[1:], 0xFFFFFFFE], "to-{:#x}")
def test_physical_destination_is_one_id(sparse, ids, destination):
    expect_acceptors(sparse, to(destination), *who_has(ids, destination))


@clause("dest.x2apic-broadcast")
@ONLY_32BIT
@each.destination_mode
def test_0xffffffff_reaches_sparse_ids(sparse, ids, destination_mode):
    message = to(0xFFFFFFFF, destination_mode)
    sparse.signal(message).returns(len(ids)).accepted_by(*range(len(ids)))


@clause("msi.address-hi-bits")
@ONLY_32BIT
def test_handler_reads_its_id_and_logical_id(sparse, ids):
    for cpu, vcpu_id in zip(sparse.cpus, ids, strict=True):
        sparse.send(to(vcpu_id))
        read = [(taken.id, taken.ldr) for taken in cpu.take()]
        expect("ID, LDR in the handler", read, [(vcpu_id, x2apic_ldr(vcpu_id))])


@clause("guest.init-sipi")
@ONLY_32BIT
def test_init_and_sipi_start_a_large_id(machines, limit, x2apic_api):
    machine = machines(vcpu_ids=(0, limit - 1), apic_mode=X2APIC, x2apic_api=x2apic_api)
    for delivery_mode in (INIT, SIPI):
        message = to(limit - 1, vector=0x0A, delivery_mode=delivery_mode)
        machine.signal(message).returns(1).accepted_by(1)
    expect("CS base", machine[1].vcpu.get_sregs().cs.base, 0xA000)


# --- dest.x2apic-logical: clusters ----------------------------------------------------------------

CLUSTERS = [
    0,
    0xF,
    0x10,
    0x11,
    0x3F,
    0x3FF,
    0x400,
    0x7FF,
    0x800,
    0xFFF,
    0x1000,
    0x7FFF,
    0x8000,
    0xFFFE,
]


@clause("dest.x2apic-logical")
@EACH_32BIT
def test_logical_id_is_one_vcpu(sparse, ids):
    for index, vcpu_id in enumerate(ids):
        sparse.signal(to(x2apic_ldr(vcpu_id), LOGICAL)).returns(1).accepted_by(index)


@clause("dest.x2apic-logical")
@ONLY_32BIT
@each.value("cluster", CLUSTERS, "cluster{:x}")
def test_all_bits_are_one_cluster(sparse, ids, cluster):
    members = who_has(ids, *range(cluster << 4, (cluster + 1) << 4))
    expect_acceptors(sparse, to(cluster << 16 | 0xFFFF, LOGICAL), *members)


@clause("dest.lowest-priority")
def test_lone_member_of_the_last_cluster_is_chosen_by_every_vector(shared_machine):
    machine = shared_machine(vcpu_ids=(0, 0x3F0), apic_mode=X2APIC, x2apic_api=BOTH)
    for vector in range(0x30, 0x40):
        message = to(0x3F << 16 | 0xFFFF, LOGICAL, delivery_mode=LOWEST, vector=vector)
        machine.signal(message).returns(1).accepted_by(1)


# --- dest.xapic-large-id --------------------------------------------------------------------------


@pytest.fixture
def xapic(machines):
    """xAPICs with 32-bit IDs. vCPU 1 has vCPU ID 0x302 and APIC ID 2."""
    return machines(vcpu_ids=(0, 0x302), x2apic_api=USE_32BIT_IDS)


@clause("dest.xapic-large-id")
@each.value("destination", [2, 0x302], "to-{:#x}")
def test_xapic_answers_to_its_apic_id_and_its_vcpu_id(xapic, destination):
    xapic.signal(to(destination)).returns(1).accepted_by(1)


@clause("dest.xapic-large-id")
@pytest.mark.parametrize(
    "destination, members",
    [(9, [1]), (0x302, [1]), (2, []), (0x309, [])],
    ids=["new-id", "vcpu-id", "old-id", "neither"],
)
def test_xapic_with_another_apic_id_keeps_its_vcpu_id(xapic, destination, members):
    xapic[1].configure(id=9)
    expect_acceptors(xapic, to(destination), *members)


# --- lapic.format and x2apic-api.scope: the saved ID ----------------------------------------------


@clause("lapic.format")
@each.x2apic_api(0, USE_32BIT_IDS)
def test_saved_id_is_the_whole_id_or_its_low_byte(sparse, ids, x2apic_api):
    expected = [vcpu_id if x2apic_api else (vcpu_id & 0xFF) << 24 for vcpu_id in ids]
    expect("ID registers", [cpu.lapic[Register.ID] for cpu in sparse.cpus], expected)


@clause("lapic.format")
@pytest.mark.parametrize(
    "x2apic_api",
    [
        pytest.param(0, id="not-enabled", marks=deviation("x2apic-id-writable")),
        pytest.param(USE_32BIT_IDS, id="32bit-ids"),
    ],
)
def test_guest_reads_its_whole_id_after_set_lapic(machines, x2apic_api):
    machine = machines(vcpu_ids=(0, 0x3FE), apic_mode=X2APIC, x2apic_api=x2apic_api)
    machine[1].lapic = machine[1].lapic
    expect("x2APIC ID", machine[1].read(Register.ID), 0x3FE)


@clause("x2apic-api.scope")
@ONLY_32BIT
def test_set_lapic_refuses_an_id_with_another_bit(sparse):
    for bit in range(32):
        page = sparse[-1].lapic
        page[Register.ID] ^= 1 << bit
        expect(f"bit {bit}", outcome_of(setattr, sparse[-1], "lapic", page), "EINVAL")


# --- split.eoi-exit -------------------------------------------------------------------------------


@clause("split.eoi-exit")
@each.value("vcpu_id", [257, 0x3FE])
def test_eoi_exits_on_the_large_id_of_the_route(machines, vcpu_id):
    ids = (0, vcpu_id & 0xFF, vcpu_id)
    machine = machines(irqchip="split", vcpu_ids=ids, apic_mode=X2APIC, x2apic_api=BOTH)
    message = to(vcpu_id, vector=0x61, trigger_mode=LEVEL, level=1)
    machine.vm.set_gsi_routing([msi_route(5, message)])
    for index, exits in ((1, None), (2, 0x61)):
        machine[index].step()  # KVM scans the routes when a vCPU is entered.
        machine.send(to(ids[index], vector=0x61))
        expect_eoi_exit(machine[index], exits)


# --- cpuid.ext-dest-id: the VMM's half ------------------------------------------------------------

GSI = 24
EXTENDED = each.value("vcpu_id", [256, 257, 0x2FF, 0x300, 0x3FE])


@pytest.fixture
def extended(shared_machine, vcpu_id):
    """x2APICs: vCPU 0, the vCPU whose ID is the low byte of ``vcpu_id``, and ``vcpu_id``."""
    ids = (0x80, vcpu_id & 0xFF, vcpu_id)
    return shared_machine(vcpu_ids=ids, apic_mode=X2APIC, x2apic_api=BOTH)


def of_guest(vcpu_id):
    """Return a guest's message to an ID of up to 15 bits, of which 14:8 are address bits 11:5."""
    return to(vcpu_id & 0xFF, address_reserved_11_4=vcpu_id >> 8 << 1)


@clause("cpuid.ext-dest-id")
@EXTENDED
def test_address_bits_11_5_alone_are_ignored(extended, vcpu_id):
    extended.signal(of_guest(vcpu_id)).returns(1).accepted_by(1)


@clause("msi.address-hi-bits")
@EXTENDED
def test_translated_message_reaches_the_extended_id(extended, vcpu_id):
    message = translate_extended_destination(of_guest(vcpu_id))
    extended.signal(message).returns(1).accepted_by(2)


@clause("cpuid.ext-dest-id")
@EXTENDED
def test_address_bits_11_5_of_a_route_are_ignored(extended, vcpu_id):
    message = of_guest(vcpu_id)
    extended.vm.set_gsi_routing([msi_route(GSI, message)])
    extended.raise_line(GSI, message).returns(1).accepted_by(1)


@clause("equivalence.routes")
@EXTENDED
def test_translated_route_reaches_the_extended_id(extended, vcpu_id):
    message = translate_extended_destination(of_guest(vcpu_id))
    extended.vm.set_gsi_routing([msi_route(GSI, message)])
    extended.raise_line(GSI, message).returns(1).accepted_by(2)


@clause("equivalence.routes")
@EXTENDED
def test_irqfd_of_a_translated_route_reaches_the_extended_id(extended, vcpu_id):
    message = translate_extended_destination(of_guest(vcpu_id))
    extended.vm.set_gsi_routing([msi_route(GSI, message)])
    reached = [bool(effect) for effect in extended.raise_irqfd(GSI)]
    expect("vCPUs reached", reached, [False, False, True])
