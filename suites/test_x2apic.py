"""x2APIC destinations, 32-bit IDs, and KVM_CAP_X2APIC_API."""

from errno import EINVAL

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, Register
from helpers.apic.lapic import DFR_CLUSTER, SVR_ENABLE, SVR_RESET, x2apic_ldr
from helpers.guest import expect, msi_route
from helpers.kvm import KvmError, abi
from helpers.verdicts import clause, deviation

PHYSICAL, LOGICAL = DestinationMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

USE_32BIT_IDS = abi.KVM_X2APIC_API_USE_32BIT_IDS
DISABLE_QUIRK = abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
BOTH = USE_32BIT_IDS | DISABLE_QUIRK

IDS = (0, 1, 2, 15, 16, 17, 33, 44, 255, 256, 257, 299, 300)
"""vCPU IDs in several clusters, below, at and above 255; 44 is 300's low byte."""

SMALL = (0, 1, 2, 3, 16, 17)


def to(destination, mode=PHYSICAL, **fields):
    return Message(destination=destination, destination_mode=mode, **fields)


@pytest.fixture
def large(shared_machine):
    """All of IDS in x2APIC mode, 32-bit IDs, no broadcast quirk."""
    return shared_machine(vcpu_ids=IDS, apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)


@pytest.fixture
def small(shared_machine):
    """All of SMALL in x2APIC mode, KVM_CAP_X2APIC_API not enabled."""
    return shared_machine(vcpu_ids=SMALL, apic_mode=ApicMode.X2APIC)


# --- physical -------------------------------------------------------------------------------------


@clause("dest.physical")
@pytest.mark.parametrize("mode", [FIXED, LOWEST, NMI, INIT], ids=lambda mode: mode.name)
def test_x2apic_id_below_255(small, mode):
    for index, vcpu_id in enumerate(SMALL):
        small.signal(to(vcpu_id, delivery_mode=mode)).returns(1).accepted_by(index)


@clause("msi.address-hi-bits")
@pytest.mark.parametrize("mode", [FIXED, LOWEST, NMI, INIT], ids=lambda mode: mode.name)
def test_address_hi_completes_the_destination(large, mode):
    for index, vcpu_id in enumerate(IDS):
        large.signal(to(vcpu_id, delivery_mode=mode)).returns(1).accepted_by(index)


@clause("msi.address-hi-bits")
@pytest.mark.parametrize("bit", range(8, 32), ids="bit{}".format)
def test_every_bit_of_address_hi_counts(large, bit):
    members = [IDS.index(1 << bit)] if 1 << bit in IDS else []
    shot = large.signal(to(1 << bit)).accepted_by(*members)
    shot.returns(1) if members else shot.blocked_or_unmatched()


@clause("msi.address-hi-bits")
@pytest.mark.parametrize("destination", [301, 0x12C00, 0x1FF, 0xFFFFFFFE], ids="{:#x}".format)
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
@pytest.mark.parametrize("bit", range(8), ids="bit{}".format)
@pytest.mark.parametrize("destination", [1, 300, 0xFFFFFFFF], ids="to-{:#x}".format)
def test_address_hi_bits_7_0_must_be_zero(large, destination, bit):
    message = to(destination, address_hi_reserved=1 << bit)
    large.signal(message).fails(EINVAL).reached_nobody()


@clause("msi.address-hi-zero")
@pytest.mark.parametrize("api", [USE_32BIT_IDS, BOTH], ids=["32bit-ids", "32bit-ids-no-quirk"])
def test_address_hi_bits_7_0_must_be_zero_for_xapics_too(shared_machine, api):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=api)
    machine.signal(to(1, address_hi_reserved=0xFF)).fails(EINVAL).reached_nobody()


@clause("msi.address-hi-ignored")
@pytest.mark.parametrize("bit", range(32), ids="bit{}".format)
def test_address_hi_bit_is_ignored_without_32bit_ids(small, bit):
    message = Message.decode(to(1).address_lo, 1 << bit, 0x41)
    small.signal(message).returns(1).accepted_by(1)


@clause("msi.address-hi-ignored")
@pytest.mark.parametrize("api", [0, DISABLE_QUIRK], ids=["not-enabled", "no-quirk-only"])
@pytest.mark.parametrize("apic_mode", [ApicMode.XAPIC, ApicMode.X2APIC], ids=lambda mode: mode.name)
def test_all_of_address_hi_is_ignored_without_32bit_ids(shared_machine, apic_mode, api):
    machine = shared_machine(vcpu_ids=range(2), apic_mode=apic_mode, x2apic_api=api)
    message = Message.decode(to(1).address_lo, 0xFFFFFFFF, 0x41)
    machine.signal(message).returns(1).accepted_by(1)


# --- broadcast ------------------------------------------------------------------------------------


@clause("x2apic-api.quirk")
@pytest.mark.parametrize("mode", DestinationMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("api", [0, USE_32BIT_IDS], ids=["not-enabled", "32bit-ids"])
def test_0xff_is_a_broadcast_with_the_quirk(shared_machine, api, mode):
    machine = shared_machine(vcpu_ids=SMALL, apic_mode=ApicMode.X2APIC, x2apic_api=api)
    machine.signal(to(0xFF, mode)).returns(6).accepted_by(*range(6))


@clause("x2apic-api.quirk")
@pytest.mark.parametrize("api", [DISABLE_QUIRK, BOTH], ids=["no-quirk", "32bit-ids-no-quirk"])
def test_0xff_is_an_absent_id_without_the_quirk(shared_machine, api):
    machine = shared_machine(vcpu_ids=SMALL, apic_mode=ApicMode.X2APIC, x2apic_api=api)
    machine.signal(to(0xFF)).blocked_or_unmatched().reached_nobody()


@clause("x2apic-api.quirk")
def test_0xff_is_vcpu_255_without_the_quirk(large):
    large.signal(to(0xFF)).returns(1).accepted_by(IDS.index(255))


@clause("x2apic-api.quirk")
@pytest.mark.parametrize("api", [DISABLE_QUIRK, BOTH], ids=["no-quirk", "32bit-ids-no-quirk"])
def test_logical_0xff_is_cluster_0_without_the_quirk(shared_machine, api):
    machine = shared_machine(vcpu_ids=SMALL, apic_mode=ApicMode.X2APIC, x2apic_api=api)
    machine.signal(to(0xFF, LOGICAL)).returns(4).accepted_by(0, 1, 2, 3)


@clause("dest.x2apic-broadcast")
@pytest.mark.parametrize("mode", DestinationMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("delivery", [FIXED, NMI, INIT], ids=lambda mode: mode.name)
def test_0xffffffff_is_a_broadcast(large, mode, delivery):
    shot = large.signal(to(0xFFFFFFFF, mode, delivery_mode=delivery))
    shot.returns(len(IDS)).accepted_by(*range(len(IDS)))


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
@pytest.mark.parametrize("mode", DestinationMode, ids=lambda mode: mode.name)
def test_0xffffffff_with_the_quirk_is_no_broadcast(shared_machine, mode):
    machine = shared_machine(vcpu_ids=SMALL, apic_mode=ApicMode.X2APIC, x2apic_api=USE_32BIT_IDS)
    machine.signal(to(0xFFFFFFFF, mode)).blocked_or_unmatched().reached_nobody()


@clause("dest.lowest-priority")
@pytest.mark.parametrize("mode", DestinationMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    "fields",
    [{"delivery_mode": LOWEST}, {"redirection_hint": 1}],
    ids=["lowest-priority", "redirection-hint"],
)
def test_one_of_a_0xffffffff_broadcast_accepts(large, mode, fields):
    shot = large.signal(to(0xFFFFFFFF, mode, **fields)).returns(1)
    expect("number of acceptors", len(shot.acceptors()), 1)


# --- logical --------------------------------------------------------------------------------------

CLUSTERS = sorted({vcpu_id >> 4 for vcpu_id in IDS})


@clause("dest.x2apic-logical")
@pytest.mark.parametrize("cluster", CLUSTERS, ids="cluster{:x}".format)
def test_logical_destination_is_cluster_and_bit(large, cluster):
    for bit in range(16):
        vcpu_id = cluster << 4 | bit
        members = [IDS.index(vcpu_id)] if vcpu_id in IDS else []
        shot = large.signal(to(cluster << 16 | 1 << bit, LOGICAL)).accepted_by(*members)
        shot.returns(1) if members else shot.blocked_or_unmatched()


@clause("dest.x2apic-logical")
@pytest.mark.parametrize("cluster", CLUSTERS, ids="cluster{:x}".format)
def test_logical_destination_of_all_bits_is_the_whole_cluster(large, cluster):
    members = [index for index, vcpu_id in enumerate(IDS) if vcpu_id >> 4 == cluster]
    shot = large.signal(to(cluster << 16 | 0xFFFF, LOGICAL))
    shot.returns(len(members)).accepted_by(*members)


@clause("dest.x2apic-logical")
@pytest.mark.parametrize("cluster", [3, 0x13, 0x100, 0xFFFE], ids="cluster{:x}".format)
def test_cluster_without_lapics_reaches_nobody(large, cluster):
    shot = large.signal(to(cluster << 16 | 0xFFFF, LOGICAL))
    shot.blocked_or_unmatched().reached_nobody()


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
@pytest.mark.parametrize("high", [0x100, 0xFFFFFF00], ids="{:#x}".format)
def test_xapic_logical_destination_ignores_address_hi(shared_machine, high):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=USE_32BIT_IDS)
    machine.signal(to(high | 2, LOGICAL)).returns(1).accepted_by(1)


@clause("dest.xapic-logical-hi")
def test_xapic_cluster_destination_ignores_address_hi(shared_machine):
    machine = shared_machine(vcpu_ids=range(2), x2apic_api=USE_32BIT_IDS)
    for cpu in machine.cpus:
        cpu.configure(dfr=DFR_CLUSTER, ldr=0x10 | 1 << cpu.index)
    machine.signal(to(0x112, LOGICAL)).returns(1).accepted_by(1)


# --- the capability -------------------------------------------------------------------------------


def expect_enabling(vm, features, outcome):
    """Enable ``features`` of KVM_CAP_X2APIC_API: "accepted", or an errno."""
    try:
        vm.enable_cap(abi.KVM_CAP_X2APIC_API, features)
        actual = "accepted"
    except KvmError as error:
        actual = error.name
    expect(f"features {features:#x}", actual, outcome)


@clause("x2apic-api.flags")
def test_invalid_feature_is_refused(machines):
    vm = machines(vcpu_ids=()).vm
    for bit in range(4, 64):
        expect_enabling(vm, 1 << bit, "EINVAL")


@clause("x2apic-api.flags")
@pytest.mark.parametrize("irqchip", ["full", "split"])
@pytest.mark.parametrize("bit", [2, 3], ids="bit{}".format)
def test_feature_that_is_not_advertised_is_refused(machines, irqchip, bit):
    vm = machines(irqchip=irqchip, vcpu_ids=()).vm
    advertised = vm.check_extension(abi.KVM_CAP_X2APIC_API) & 1 << bit
    expect_enabling(vm, 1 << bit, "accepted" if advertised else "EINVAL")


@clause("x2apic-api.flags")
def test_contradicting_features_are_refused(machines):
    vm = machines(irqchip="split", vcpu_ids=()).vm
    both = (
        abi.KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST | abi.KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST
    )
    expect_enabling(vm, both, "EINVAL")


@clause("x2apic-api.flags")
@pytest.mark.parametrize("api", range(4), ids="{:02b}".format)
def test_every_combination_of_the_features_is_accepted(machines, api):
    machine = machines(vcpu_ids=())
    machine.vm.enable_cap(abi.KVM_CAP_X2APIC_API, api)
    machine.add_cpu(0).power_on()
    machine.signal(to(0)).returns(1).accepted_by(0)


@clause("x2apic-api.flags")
def test_refused_features_change_nothing(machines):
    machine = machines(vcpu_ids=range(2))
    expect_enabling(machine.vm, USE_32BIT_IDS | 1 << 63, "EINVAL")
    message = Message.decode(to(1).address_lo, 0xFFFFFFFF, 0x41)
    machine.signal(message).returns(1).accepted_by(1)


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
        cpu.vcpu.set_cpuid(machine.cpuid)
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
    "mode, reached",
    [
        pytest.param(PHYSICAL, [], id="44", marks=deviation("x2apic-id-usurped")),
        pytest.param(LOGICAL, [0], id="cluster"),
    ],
)
def test_large_id_is_out_of_reach_without_32bit_ids(machines, mode, reached):
    machine = machines(vcpu_ids=(0, 300), apic_mode=ApicMode.X2APIC)
    destination = 44 if mode is PHYSICAL else 16 << 16 | 1
    machine.signal(to(destination, mode)).accepted_by(*reached)


@clause("x2apic-api.scope")
def test_32bit_ids_change_the_route_too(machines):
    machine = machines(irqchip="split", vcpu_ids=IDS, apic_mode=ApicMode.X2APIC, x2apic_api=BOTH)
    message = to(300, vector=0x52)
    machine.vm.set_gsi_routing([msi_route(24, message)])
    machine.raise_line(24, message).returns(1).accepted_by(IDS.index(300))


@clause("lapic.format")
@pytest.mark.parametrize(
    "api, apic_mode, expected",
    [
        (0, ApicMode.XAPIC, 0x11000000),
        (0, ApicMode.X2APIC, 0x11000000),
        (DISABLE_QUIRK, ApicMode.X2APIC, 0x11000000),
        (USE_32BIT_IDS, ApicMode.XAPIC, 0x11000000),
        (USE_32BIT_IDS, ApicMode.X2APIC, 0x11),
    ],
    ids=["xapic", "x2apic", "x2apic-no-quirk", "xapic-32bit", "x2apic-32bit"],
)
def test_format_of_the_id_register(shared_machine, api, apic_mode, expected):
    machine = shared_machine(vcpu_ids=(0, 0x11), apic_mode=apic_mode, x2apic_api=api)
    expect("ID register", machine[1].lapic[Register.ID], expected)


@clause("lapic.format")
def test_32bit_id_is_the_whole_register(large):
    ids = [cpu.lapic[Register.ID] for cpu in large.cpus]
    expect("ID registers", ids, list(IDS))


@clause("dest.x2apic-logical")
@pytest.mark.parametrize("vcpu_id", [9, 0x1F, 0x28], ids="{:#x}".format)
def test_ldr_is_the_cluster_and_the_bit(machines, vcpu_id):
    machine = machines(vcpu_ids=(0, vcpu_id), apic_mode=ApicMode.X2APIC)
    expect("LDR", machine[1].lapic[Register.LDR], x2apic_ldr(vcpu_id))


@clause("x2apic-api.scope")
def test_set_lapic_refuses_another_32bit_id(large):
    with pytest.raises(KvmError) as refused:
        page = large[1].lapic
        page[Register.ID] = 7
        large[1].lapic = page
    expect("errno", refused.value.name, "EINVAL")


@pytest.fixture
def misnamed(machines):
    """Two xAPICs and two x2APICs; KVM_SET_LAPIC says that the last one's ID were 7, not 3."""
    machine = machines(vcpu_ids=range(4))
    machine[2].apic_mode = machine[3].apic_mode = ApicMode.X2APIC
    machine[3].configure(id=7)
    return machine


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
    shot = machine.signal(to(9)).returns(1)
    expect("acceptors", shot.acceptors(), [1 + order.index(1)])


@clause("dest.aliased")
def test_aliased_id_under_32bit_ids_reaches_the_first_created(machines):
    machine = machines(vcpu_ids=(0, 5, 1), x2apic_api=USE_32BIT_IDS)
    for index in (1, 2):
        machine[index].configure(id=9)
    machine.signal(to(9)).returns(1).accepted_by(1)


@clause("dest.flat")
@deviation("silent-xapic-reached")
@pytest.mark.parametrize("index", [1, 3], ids="to-{}".format)
def test_xapic_without_logical_id_is_not_reached_by_one(machine, index):
    for cpu in machine.cpus:
        cpu.configure(ldr=0)
    machine[0].apic_mode = machine[2].apic_mode = ApicMode.X2APIC
    shot = machine.signal(Message(destination=1 << index, destination_mode=LOGICAL))
    shot.blocked_or_unmatched().reached_nobody()
