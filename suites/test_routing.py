"""GSI routes: not needed by a message, not changed by one, and equivalent to it."""

from errno import EINVAL
from itertools import starmap

import pytest

from helpers.apic import ApicMode, DeliveryMode, DestinationMode, Message, TriggerMode
from helpers.apic.lapic import DFR_CLUSTER, SVR_RESET
from helpers.guest import expect, msi_route
from helpers.guest.sender import combinations, signal_each
from helpers.kvm import KvmError, abi
from helpers.verdicts import clause

PHYSICAL, LOGICAL = DestinationMode
EDGE, LEVEL = TriggerMode
FIXED, LOWEST, SMI, REMRD, NMI, INIT, SIPI, EXTINT = DeliveryMode

GSI = 24
"""The first GSI behind the IOAPIC's pins."""

BOTH = pytest.mark.parametrize("irqchip", ["full", "split"])


def routes(count):
    """As many MSI routes, to vCPU 3."""
    message = Message(vector=0x31, destination=3)
    return [msi_route(gsi, message) for gsi in range(count)]


# --- no route needed ------------------------------------------------------------------------------


@clause("msi.direct")
def test_more_messages_than_routes(machine):
    limit = machine.vm.check_extension(abi.KVM_CAP_IRQ_ROUTING)
    # Vectors above 15, both trigger modes, and bits that are ignored.
    data = [word for word in combinations(0x380FF) if word & 0xFF >= 16]
    assert len(machine.cpus) * len(data) > limit
    for index in range(4):
        signal_each(machine, Message(vector=0, destination=index), "data", data, returns=1)
    expect("IRR", machine[3].lapic.irr, set(range(16, 256)))


@clause("msi.direct")
@BOTH
@pytest.mark.parametrize("table", ["absent", "empty", "one", "full"])
def test_message_with_any_routing_table(machines, irqchip, table):
    machine = machines(irqchip=irqchip, vcpu_ids=range(4))
    if table != "absent":
        limit = machine.vm.check_extension(abi.KVM_CAP_IRQ_ROUTING)
        machine.vm.set_gsi_routing(routes({"empty": 0, "one": 1, "full": limit}[table]))
    machine.signal(Message(vector=0x41, destination=1)).returns(1).accepted_by(1)


@clause("msi.direct")
@BOTH
def test_routes_are_the_same_after_messages(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=range(4))
    sent = {gsi: Message(vector=0x40 + gsi, destination=gsi % 4) for gsi in range(GSI, GSI + 8)}
    machine.vm.set_gsi_routing([msi_route(*route) for route in sent.items()])
    for vector in range(0x80, 0x100):
        machine.send(Message(vector=vector, destination=0xFF))
    for gsi, message in sent.items():
        machine.raise_line(gsi, message).returns(1).accepted_by(gsi % 4)


@clause("msi.direct")
def test_rejected_message_does_not_change_the_routes(machines):
    machine = machines(vcpu_ids=range(2))
    message = Message(vector=0x52, destination=1)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine.signal(Message(), flags=1 << 31).fails(EINVAL)
    machine.raise_line(GSI, message).returns(1).accepted_by(1)


@clause("msi.direct")
def test_full_irqchip_routes_its_pins_after_messages(machine):
    for vector in range(16, 256):
        machine.send(Message(vector=vector, destination=1))
    expect("status of IOAPIC pin 5", machine.vm.irq_line_status(5, 1) >= 0, True)
    machine.vm.irq_line_status(5, 0)


# --- rules of routes that are those of messages ---------------------------------------------------


def set_route(vm, entry, table_flags=0):
    vm.set_gsi_routing([entry], flags=table_flags)


def refused(vm, entry, table_flags=0):
    with pytest.raises(KvmError) as error:
        set_route(vm, entry, table_flags)
    expect("errno", error.value.name, "EINVAL")


@clause("routing.flags")
@pytest.mark.parametrize("bit", range(1, 32), ids="bit{}".format)
def test_undefined_flag_of_a_route_is_refused(machines, bit):
    refused(machines(vcpu_ids=()).vm, msi_route(GSI, Message(), flags=1 << bit))


@clause("routing.flags")
@pytest.mark.parametrize("bit", range(32), ids="bit{}".format)
def test_flag_of_a_table_is_refused(machines, bit):
    refused(machines(vcpu_ids=()).vm, msi_route(GSI, Message()), table_flags=1 << bit)


@clause("routing.flags")
@pytest.mark.parametrize("bit", range(8), ids="bit{}".format)
def test_address_hi_7_0_of_a_route_must_be_zero(machines, bit):
    vm = machines(vcpu_ids=(), x2apic_api=1).vm
    refused(vm, msi_route(GSI, Message(address_hi_reserved=1 << bit)))


@clause("routing.flags")
def test_address_hi_of_a_route_is_ignored_without_32bit_ids(machines):
    machine = machines(vcpu_ids=range(2))
    message = Message.decode(Message(destination=1).address_lo, 0xFFFFFFFF, 0x41)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine.raise_line(GSI, message).returns(1).accepted_by(1)


@clause("routing.flags")
def test_valid_devid_of_a_route_is_accepted_or_refused_as_of_a_message(machines):
    machine = machines(vcpu_ids=(0,))
    accepted = machine.signal(Message(), flags=1, devid=7).result > 0
    if accepted:
        machine.vm.set_gsi_routing([msi_route(GSI, Message(), flags=1, devid=7)])
    else:
        refused(machine.vm, msi_route(GSI, Message(), flags=1, devid=7))


@clause("routing.flags")
def test_gsi_above_the_limit_is_refused(machines):
    vm = machines(vcpu_ids=()).vm
    refused(vm, msi_route(vm.check_extension(abi.KVM_CAP_IRQ_ROUTING), Message()))


@clause("split.msi-routes-only")
@pytest.mark.parametrize("kind, taken", [("full", True), ("split", False)], ids=["full", "split"])
def test_irqchip_routes_are_for_a_full_irqchip(machines, kind, taken):
    vm = machines(irqchip=kind, vcpu_ids=()).vm
    entry = abi.kvm_irq_routing_entry(gsi=1, type=abi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip, entry.u.irqchip.pin = abi.KVM_IRQCHIP_IOAPIC, 1
    set_route(vm, entry) if taken else refused(vm, entry)


# --- EOI with a split irqchip ---------------------------------------------------------------------


def exit_of_eoi(machines, route, message, pins=24):
    """The vector of the KVM_EXIT_IOAPIC_EOI that ``message``'s handler causes, or None."""
    machine = machines(irqchip="none", vcpu_ids=())
    machine.vm.split_irqchip(pins)
    machine.irqchip = "split"
    machine.add_cpu(0).power_on()
    machine.vm.set_gsi_routing([msi_route(5, route)])
    machine[0].step()  # the routes are scanned on entry
    machine.signal(message).returns(1).accepted_by(0)
    return machine[0].eoi_exit()


@clause("split.eoi-exit")
@pytest.mark.parametrize("trigger", TriggerMode, ids=lambda mode: mode.name)
def test_eoi_of_a_level_route_exits(machines, trigger):
    route = Message(vector=0x61, trigger_mode=LEVEL, level=1)
    sent = Message(vector=0x61, trigger_mode=trigger)
    expect("vector of KVM_EXIT_IOAPIC_EOI", exit_of_eoi(machines, route, sent), 0x61)


@clause("split.eoi-exit")
@pytest.mark.parametrize(
    "route, sent",
    [
        (Message(vector=0x61), Message(vector=0x61, trigger_mode=LEVEL)),
        (Message(vector=0x62, trigger_mode=LEVEL), Message(vector=0x61, trigger_mode=LEVEL)),
        (Message(vector=0x61, destination=1, trigger_mode=LEVEL), Message(vector=0x61)),
    ],
    ids=["edge-route", "other-vector", "other-destination"],
)
def test_eoi_without_a_level_route_does_not_exit(machines, route, sent):
    expect("vector of KVM_EXIT_IOAPIC_EOI", exit_of_eoi(machines, route, sent), None)


@clause("split.eoi-exit")
def test_eoi_of_a_route_behind_the_pins_does_not_exit(machines):
    message = Message(vector=0x61, trigger_mode=LEVEL)
    exit_ = exit_of_eoi(machines, message, message, pins=5)
    expect("vector of KVM_EXIT_IOAPIC_EOI", exit_, None)


# --- equivalence ----------------------------------------------------------------------------------


def software_disabled(machine):
    machine[1].configure(svr=SVR_RESET)


def mixed(machine):
    for index, ldr in ((2, 0x11), (3, 0x12)):
        machine[index].configure(dfr=DFR_CLUSTER, ldr=ldr)


def one_x2apic(machine):
    machine[3].apic_mode = ApicMode.X2APIC


def plain(machine):
    pass


# In the order in which they are sent to one machine: every vector once, and INIT, which resets
# what it reaches, last.
MESSAGES = (
    Message(0x41, 1),
    Message(0x42, 1, trigger_mode=LEVEL, level=1),
    Message(0x43, 0xFF),
    Message(0x44, 9),
    Message(0x45, 6, LOGICAL),
    Message(0x46, 0x20, LOGICAL),
    Message(0x47, 0xFF, LOGICAL),
    Message(0x4A, 0xF, LOGICAL, LOWEST),
    Message(0x4E, 0xF, LOGICAL, redirection_hint=1),
    Message(0x52, 0xFF, redirection_hint=1),
    Message(3, 1),
    Message(0x55, 1, delivery_mode=EXTINT),
    Message(0x56, 2, address_base=0, address_reserved_11_4=0xFF),
    Message(0x57, 1, delivery_mode=NMI),
    Message(0x58, 0xFF, delivery_mode=NMI),
    Message(0x59, 1, delivery_mode=SMI),
    Message(0x5A, 1, delivery_mode=REMRD),
    Message(0x5B, 1, delivery_mode=INIT),
)
SETUPS = {"plain": plain, "disabled": software_disabled, "mixed": mixed, "x2apic": one_x2apic}


@pytest.fixture(params=SETUPS.values(), ids=SETUPS)
def alike(request, machines):
    """Two machines set up alike; the second one has routes to MESSAGES, from GSI on."""
    direct, routed = machines(vcpu_ids=range(4)), machines(vcpu_ids=range(4))
    for machine in (direct, routed):
        request.param(machine)
    routed.vm.set_gsi_routing(starmap(msi_route, enumerate(MESSAGES, GSI)))
    return direct, routed


def expect_same_effects(message, effects, expected):
    expect(f"effects of {message}", effects, expected, show=lambda e: "; ".join(map(str, e)))


@clause("equivalence.routes")
def test_kvm_irq_line_status_does_the_same(alike):
    direct, routed = alike
    for gsi, message in enumerate(MESSAGES, GSI):
        by_message, by_line = direct.signal(message), routed.raise_line(gsi, message)
        expect(f"status of {message}", by_line.result, by_message.result)
        expect_same_effects(message, by_line.effects(), by_message.effects())


@clause("equivalence.routes")
def test_irqfd_does_the_same(alike):
    direct, routed = alike
    for gsi, message in enumerate(MESSAGES, GSI):
        by_message = direct.signal(message)
        expect_same_effects(message, routed.raise_irqfd(gsi), by_message.effects())


@clause("equivalence.routes")
@BOTH
def test_line_set_to_0_injects_nothing(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=range(2))
    machine.vm.set_gsi_routing([msi_route(GSI, Message(destination=1))])
    expect("status", machine.vm.irq_line_status(GSI, 0), -1)
    expect("IRR", machine[1].lapic.irr, set())


@clause("equivalence.routes")
def test_guest_takes_a_routed_message_like_a_direct_one(machine):
    message = Message(vector=0x52, destination=1, trigger_mode=LEVEL)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine.send(message)
    direct = machine[1].take()
    machine.raise_line(GSI, message)
    expect("what the handler logged", machine[1].take(), direct)
