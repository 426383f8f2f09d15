# SPDX-License-Identifier: GPL-2.0-only
"""x2APIC destinations, 32-bit IDs, and KVM_CAP_X2APIC_API.

Clauses: dest.physical, msi.address-hi-*, dest.x2apic-*, return.count, x2apic-api.*,
dest.mixed-modes, dest.lowest-priority, dest.xapic-logical-hi, lapic.format, errata.alias-32bit,
dest.aliased, dest.flat.

A message has room for 8 bits of destination in address_lo. KVM_X2APIC_API_USE_32BIT_IDS puts bits
31:8 into address_hi, and KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK makes 0xff an ID like any other.
Without the capability KVM ignores address_hi, where existing user space may leave garbage.
"""

from errno import EINVAL

import pytest

from helpers.apic import ApicMode, Register
from helpers.apic.lapic import DFR_CLUSTER, SVR_ENABLE, SVR_RESET, x2apic_ldr
from helpers.guest import expect, msi_route
from helpers.kvm import abi
from helpers.verdicts import clause, deviation
from suites import each
from suites.common import IDS, SMALL_IDS, expect_acceptors, of_ids, outcome_of, to, with_address_hi
from suites.names import BOTH, DISABLE_QUIRK, FIXED, INIT, LOGICAL, LOWEST, NMI, USE_32BIT_IDS

# --- physical -------------------------------------------------------------------------------------


@clause("dest.physical")
@each.delivery_mode(FIXED, LOWEST, NMI, INIT)
def test_x2apic_id_below_255(small, delivery_mode):
    for index, vcpu_id in enumerate(SMALL_IDS):
        small.signal(to(vcpu_id, delivery_mode=delivery_mode)).returns(1).accepted_by(index)


@clause("msi.address-hi-bits")
@each.delivery_mode(FIXED, LOWEST, NMI, INIT)
def test_address_hi_completes_the_destination(large, delivery_mode):
    for index, vcpu_id in enumerate(IDS):
        large.signal(to(vcpu_id, delivery_mode=delivery_mode)).returns(1).accepted_by(index)


@clause("msi.address-hi-bits")
@each.bit(range(8, 32))
def test_every_bit_of_address_hi_counts(large, bit):
    expect_acceptors(large, to(1 << bit), *of_ids(1 << bit))


@clause("msi.address-hi-bits")
@each.value("destination", [301, 0x12C00, 0x1FF, 0xFFFFFFFE])
def test_absent_32bit_id_reaches_nobody(large, destination):
    large.signal(to(destination)).blocked_or_unmatched().reached_nobody()


@clause("dest.x2apic-no-alias")
def test_large_id_does_not_reach_the_xapic_of_its_low_byte(shared_machine):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=USE_32BIT_IDS)
    machine.signal(to(0x101)).blocked_or_unmatched().reached_nobody()
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("msi.address-hi-bits")
def test_xapic_of_id_256_answers_to_its_32bit_id(machines):
    machine = machines(vcpu_ids=(0, 1, 256), x2apic_api=USE_32BIT_IDS)
    machine.signal(to(0)).returns(1).accepted_by(0)
    machine.signal(to(256, vector=0x42)).returns(1).accepted_by(2)


@clause("return.count")
def test_three_hundred_vcpus_or_as_many_as_there_can_be(machines, kernel):
    count = min(300, kernel.capabilities["KVM_CAP_MAX_VCPUS"])
    machine = machines(vcpu_ids=range(count), apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)
    machine.signal(to(0xFFFFFFFF)).returns(count).accepted_by(*range(count))
    machine.signal(to(count - 1, vector=0x42)).returns(1).accepted_by(count - 1)


# --- address_hi -----------------------------------------------------------------------------------


@clause("msi.address-hi-zero")
@each.bit(range(8))
@each.value("destination", [1, 300, 0xFFFFFFFF], "to-{:#x}")
def test_address_hi_bits_7_0_must_be_zero(large, destination, bit):
    message = to(destination, address_hi_reserved=1 << bit)
    large.signal(message).fails(EINVAL).reached_nobody()


@clause("msi.address-hi-zero")
@pytest.mark.parametrize(
    "x2apic_api", [USE_32BIT_IDS, BOTH], ids=["32bit-ids", "32bit-ids-no-quirk"]
)
def test_address_hi_bits_7_0_must_be_zero_for_xapics_too(machine):
    machine.signal(to(1, address_hi_reserved=0xFF)).fails(EINVAL).reached_nobody()


@clause("msi.address-hi-ignored")
@each.bit(range(32))
def test_address_hi_bit_is_ignored_without_32bit_ids(small, bit):
    small.signal(with_address_hi(1 << bit)).returns(1).accepted_by(1)


@clause("msi.address-hi-ignored")
@pytest.mark.parametrize("x2apic_api", [0, DISABLE_QUIRK], ids=["not-enabled", "no-quirk-only"])
@each.apic_mode
def test_all_of_address_hi_is_ignored_without_32bit_ids(machine):
    machine.signal(with_address_hi(0xFFFFFFFF)).returns(1).accepted_by(1)


# --- broadcast ------------------------------------------------------------------------------------


@clause("x2apic-api.quirk")
@each.destination_mode
@each.x2apic_api(0, USE_32BIT_IDS)
def test_0xff_is_a_broadcast_with_the_quirk(small, destination_mode):
    small.signal(to(0xFF, destination_mode)).returns(6).accepted_by(*range(6))


@clause("x2apic-api.quirk")
@each.x2apic_api(DISABLE_QUIRK, BOTH)
def test_0xff_is_an_absent_id_without_the_quirk(small):
    small.signal(to(0xFF)).blocked_or_unmatched().reached_nobody()


@clause("x2apic-api.quirk")
def test_0xff_is_vcpu_255_without_the_quirk(large):
    large.signal(to(0xFF)).returns(1).accepted_by(*of_ids(255))


@clause("x2apic-api.quirk")
@each.x2apic_api(DISABLE_QUIRK, BOTH)
def test_logical_0xff_is_cluster_0_without_the_quirk(small):
    small.signal(to(0xFF, LOGICAL)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.x2apic-broadcast")
@each.destination_mode
@each.delivery_mode(FIXED, NMI, INIT)
def test_0xffffffff_is_a_broadcast(large, destination_mode, delivery_mode):
    injection = large.signal(to(0xFFFFFFFF, destination_mode, delivery_mode=delivery_mode))
    injection.returns(len(IDS)).accepted_by(*range(len(IDS)))


@clause("dest.mixed-modes")
@pytest.mark.parametrize(
    "destination, members",
    [(0xFF, [0, 1]), (0xFFFFFFFF, [2, 3])],
    ids=["0xff-xapics", "0xffffffff-x2apics"],
)
def test_broadcast_of_each_mode_without_the_quirk(machines, destination, members):
    machine = machines(vcpu_ids=range(4), x2apic_api=BOTH)
    machine[2].apic_mode = machine[3].apic_mode = ApicMode.X2APIC
    machine.signal(to(destination)).returns(2).accepted_by(*members)


@clause("x2apic-api.quirk-32bit")
@each.destination_mode
def test_0xffffffff_with_the_quirk_is_no_broadcast(shared_machine, destination_mode):
    machine = shared_machine(
        vcpu_ids=SMALL_IDS, apic_mode=ApicMode.X2APIC, x2apic_api=USE_32BIT_IDS
    )
    machine.signal(to(0xFFFFFFFF, destination_mode)).blocked_or_unmatched().reached_nobody()


@clause("dest.lowest-priority")
@each.destination_mode
@each.arbitration
def test_one_of_a_0xffffffff_broadcast_accepts(large, destination_mode, fields):
    injection = large.signal(to(0xFFFFFFFF, destination_mode, **fields)).returns(1)
    expect("number of acceptors", len(injection.acceptors()), 1)


# --- logical --------------------------------------------------------------------------------------

CLUSTERS = sorted({vcpu_id >> 4 for vcpu_id in IDS})


@clause("dest.x2apic-logical")
@each.value("cluster", CLUSTERS, "cluster{:x}")
def test_logical_destination_is_cluster_and_bit(large, cluster):
    for bit in range(16):
        message = to(cluster << 16 | 1 << bit, LOGICAL)
        expect_acceptors(large, message, *of_ids(cluster << 4 | bit))


@clause("dest.x2apic-logical")
@each.value("cluster", CLUSTERS, "cluster{:x}")
def test_logical_destination_of_all_bits_is_the_whole_cluster(large, cluster):
    members = of_ids(*range(cluster << 4, (cluster + 1) << 4))
    expect_acceptors(large, to(cluster << 16 | 0xFFFF, LOGICAL), *members)


@clause("dest.x2apic-logical")
@each.value("cluster", [3, 0x13, 0x100, 0xFFFE], "cluster{:x}")
def test_cluster_without_lapics_reaches_nobody(large, cluster):
    expect_acceptors(large, to(cluster << 16 | 0xFFFF, LOGICAL))


@clause("dest.x2apic-logical")
def test_logical_destination_skips_software_disabled_lapics(large):
    large[1].configure(svr=SVR_RESET)
    large.signal(to(0x0007, LOGICAL)).returns(2).accepted_by(0, 2)


@clause("dest.x2apic-logical")
def test_ldr_is_derived_from_the_id_and_read_only(large):
    large[6].configure(ldr=0xFF)
    expect("LDR", large[6].lapic[Register.LDR], x2apic_ldr(33))
    large.signal(to(2 << 16 | 2, LOGICAL)).returns(1).accepted_by(6)


@clause("dest.xapic-logical-hi")
@each.value("high", [0x100, 0xFFFFFF00])
def test_xapic_logical_destination_ignores_address_hi(shared_machine, high):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=USE_32BIT_IDS)
    machine.signal(to(high | 2, LOGICAL)).returns(1).accepted_by(1)


@clause("dest.xapic-logical-hi")
def test_xapic_cluster_destination_ignores_address_hi(shared_machine):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=USE_32BIT_IDS)
    for cpu in machine.cpus:
        cpu.configure(dfr=DFR_CLUSTER, ldr=0x10 | 1 << cpu.index)
    machine.signal(to(0x112, LOGICAL)).returns(1).accepted_by(1)


# --- enabling the capability ----------------------------------------------------------------------


def enabling(vm, features):
    """Return the outcome of enabling ``features``: "accepted", or the name of the errno."""
    return outcome_of(vm.enable_cap, abi.KVM_CAP_X2APIC_API, features)


@clause("x2apic-api.flags")
def test_invalid_feature_is_refused(machines):
    vm = machines(vcpu_ids=()).vm
    for bit in range(4, 64):
        expect(f"outcome of bit {bit}", enabling(vm, 1 << bit), "EINVAL")


@clause("x2apic-api.flags")
@each.irqchip
@each.bit([2, 3])
def test_feature_that_is_not_advertised_is_refused(machines, irqchip, bit):
    vm = machines(irqchip=irqchip, vcpu_ids=()).vm
    advertised = vm.check_extension(abi.KVM_CAP_X2APIC_API) & 1 << bit
    expect("outcome", enabling(vm, 1 << bit), "accepted" if advertised else "EINVAL")


@clause("x2apic-api.flags")
def test_contradicting_features_are_refused(machines):
    vm = machines(irqchip="split", vcpu_ids=()).vm
    enable = abi.KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
    disable = abi.KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST
    expect("outcome", enabling(vm, enable | disable), "EINVAL")


@clause("x2apic-api.flags")
@each.value("x2apic_api", range(4), "{:02b}")
def test_every_combination_of_the_features_is_accepted(machines, x2apic_api):
    machine = machines(vcpu_ids=())
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, x2apic_api)
    machine.add_cpu(0).power_on()
    machine.signal(to(0)).returns(1).accepted_by(0)


@clause("x2apic-api.flags")
def test_refused_features_change_nothing(machines):
    machine = machines(vcpu_ids=range(2))
    expect("outcome", enabling(machine.vm, USE_32BIT_IDS | 1 << 63), "EINVAL")
    machine.signal(with_address_hi(0xFFFFFFFF)).returns(1).accepted_by(1)


@clause("x2apic-api.sticky")
def test_enabling_late_takes_effect_at_once(machines):
    machine = machines(vcpu_ids=range(2), apic_mode=ApicMode.X2APIC)
    machine.signal(to(1, address_hi_reserved=1)).returns(1).accepted_by(1)
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, BOTH)
    machine.signal(to(1, vector=0x42, address_hi_reserved=1)).fails(EINVAL).reached_nobody()


@clause("x2apic-api.sticky")
def test_large_id_is_in_reach_after_enabling_late(machines):
    machine = machines(vcpu_ids=(0, 256, 1), power_on=False)
    for cpu in machine.cpus:
        cpu.set_cpuid()
        cpu.apic_mode = ApicMode.X2APIC
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, BOTH)
    machine.signal(to(256, delivery_mode=NMI)).returns(1).accepted_by(1)


@clause("x2apic-api.late-aliases")
def test_large_id_beside_aliased_ones_is_reached_after_enabling_late(machines):
    machine = machines(vcpu_ids=(0, 1, 257))
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, USE_32BIT_IDS)
    machine.signal(to(257)).returns(1).accepted_by(2)


@clause("x2apic-api.late-aliases")
@deviation("alias-one-receives")
def test_aliased_ids_are_what_they_were_until_a_lapic_changes(machines):
    machine = machines(vcpu_ids=range(2))
    machine[1].configure(id=0)
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, USE_32BIT_IDS)
    machine.signal(to(0)).returns(2).accepted_by(0, 1)
    machine[1].configure(svr=SVR_ENABLE | SVR_RESET)
    machine.signal(to(0, vector=0x42)).returns(1).accepted_by(0)


@clause("x2apic-api.sticky")
def test_features_stay_enabled(machines):
    machine = machines(vcpu_ids=range(2), x2apic_api=BOTH)
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, 0)
    machine.signal(to(1, address_hi_reserved=1)).fails(EINVAL).reached_nobody()


@clause("msi.address-hi-ignored")
@pytest.mark.parametrize(
    "message, members",
    [
        pytest.param(to(44), [], id="44", marks=deviation("x2apic-id-usurped")),
        pytest.param(to(16 << 16 | 1, LOGICAL), [0], id="cluster"),
    ],
)
def test_large_id_is_out_of_reach_without_32bit_ids(machines, message, members):
    machine = machines(vcpu_ids=(0, 300), apic_mode=ApicMode.X2APIC)
    machine.signal(message).accepted_by(*members)


@clause("x2apic-api.scope")
def test_32bit_ids_change_the_route_too(machines):
    machine = machines(irqchip="split", vcpu_ids=IDS, apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)
    message = to(300, vector=0x52)
    machine.vm.set_gsi_routing([msi_route(24, message)])
    machine.raise_line(24, message).returns(1).accepted_by(*of_ids(300))


@clause("lapic.format")
@pytest.mark.parametrize(
    "x2apic_api, apic_mode, expected",
    [
        pytest.param(0, ApicMode.XAPIC, 0x11000000, id="xapic"),
        pytest.param(0, ApicMode.X2APIC, 0x11000000, id="x2apic"),
        pytest.param(DISABLE_QUIRK, ApicMode.X2APIC, 0x11000000, id="x2apic-no-quirk"),
        pytest.param(USE_32BIT_IDS, ApicMode.XAPIC, 0x11000000, id="xapic-32bit"),
        pytest.param(USE_32BIT_IDS, ApicMode.X2APIC, 0x11, id="x2apic-32bit"),
    ],
)
def test_format_of_the_id_register(shared_machine, x2apic_api, apic_mode, expected):
    machine = shared_machine(vcpu_ids=(0, 0x11), apic_mode=apic_mode, x2apic_api=x2apic_api)
    expect("ID register", machine[1].lapic[Register.ID], expected)


@clause("lapic.format")
def test_32bit_id_is_the_whole_register(large):
    expect("ID registers", [cpu.lapic[Register.ID] for cpu in large.cpus], list(IDS))


@clause("dest.x2apic-logical")
@each.value("vcpu_id", [9, 0x1F, 0x28])
def test_ldr_is_the_cluster_and_the_bit(machines, vcpu_id):
    machine = machines(vcpu_ids=(0, vcpu_id), apic_mode=ApicMode.X2APIC)
    expect("LDR", machine[1].lapic[Register.LDR], x2apic_ldr(vcpu_id))


@clause("x2apic-api.scope")
def test_set_lapic_refuses_another_32bit_id(large):
    page = large[1].lapic
    page[Register.ID] = 7
    expect("outcome", outcome_of(setattr, large[1], "lapic", page), "EINVAL")


@clause("lapic.format")
@deviation("x2apic-id-writable")
def test_set_lapic_does_not_change_an_x2apic_id(misnamed):
    expect("x2APIC ID", misnamed[3].lapic.xapic_id, 3)


@clause("dest.x2apic-logical")
@deviation("x2apic-id-writable")
def test_set_lapic_does_not_change_an_x2apic_logical_id(misnamed):
    misnamed.signal(to(1 << 7, LOGICAL)).blocked_or_unmatched().reached_nobody()
    misnamed.signal(to(1 << 3, LOGICAL)).returns(1).accepted_by(3)


@clause("dest.physical")
@deviation("x2apic-id-usurped")
def test_id_given_by_set_lapic_is_not_the_destination(machines):
    machine = machines(vcpu_ids=range(4), apic_mode=ApicMode.X2APIC)
    machine[3].configure(id=7)
    machine.signal(to(7)).blocked_or_unmatched().reached_nobody()


@clause("dest.physical")
def test_id_that_set_lapic_would_change_is_the_destination(machines):
    machine = machines(vcpu_ids=range(4), apic_mode=ApicMode.X2APIC)
    machine[3].configure(id=7)
    machine.signal(to(3)).returns(1).accepted_by(3)


@clause("dest.physical")
@deviation("x2apic-id-usurped")
def test_large_id_does_not_take_the_messages_of_id_0(machines):
    machine = machines(vcpu_ids=(0, 1, 256), apic_mode=ApicMode.X2APIC)
    machine.signal(to(0)).returns(1).accepted_by(0)


@clause("dest.x2apic-logical")
@deviation("x2apic-id-usurped")
def test_large_id_does_not_take_the_messages_of_logical_id_1(machines):
    machine = machines(vcpu_ids=(0, 1, 256), apic_mode=ApicMode.X2APIC)
    machine.signal(to(1, LOGICAL)).returns(1).accepted_by(0)


# --- aliases under 32-bit IDs ---------------------------------------------------------------------


@clause("errata.alias-32bit")
@pytest.mark.parametrize(
    "order",
    [
        pytest.param((1, 5), id="created-1-5"),
        pytest.param((5, 1), id="created-5-1", marks=deviation("alias-first-created")),
    ],
)
def test_aliased_id_reaches_the_lowest_vcpu_id(machines, order):
    machine = machines(vcpu_ids=(0, *order), x2apic_api=USE_32BIT_IDS)
    for index in (1, 2):
        machine[index].configure(id=9)
    expect("acceptors", machine.signal(to(9)).returns(1).acceptors(), [1 + order.index(1)])


@clause("dest.aliased")
def test_aliased_id_under_32bit_ids_reaches_the_first_created(machines):
    machine = machines(vcpu_ids=(0, 5, 1), x2apic_api=USE_32BIT_IDS)
    for index in (1, 2):
        machine[index].configure(id=9)
    machine.signal(to(9)).returns(1).accepted_by(1)


@clause("dest.flat")
@deviation("silent-xapic-reached")
@each.index([1, 3])
def test_xapic_without_logical_id_is_not_reached_by_one(machine, index):
    for cpu in machine.cpus:
        cpu.configure(ldr=0)
    machine[0].apic_mode = machine[2].apic_mode = ApicMode.X2APIC
    expect_acceptors(machine, to(1 << index, LOGICAL))
