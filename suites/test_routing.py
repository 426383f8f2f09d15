# SPDX-License-Identifier: GPL-2.0-only
"""GSI routes: a message needs none and changes none, and a route to the same message does the same.

Clauses: msi.direct, routing.flags, split.msi-routes-only, split.eoi-exit, equivalence.routes.

KVM_SIGNAL_MSI exists because devices can have more messages than KVM has GSI routes. User space
moves between the two ways at run time, so a route, raised by an ioctl or an irqfd, must have the
same effects as KVM_SIGNAL_MSI with the route's message.
"""

from errno import EINVAL
from itertools import starmap

import pytest

from helpers.apic import ApicMode, Message
from helpers.apic.lapic import SVR_RESET
from helpers.guest import expect, irqchip_route, msi_route
from helpers.guest.sender import combinations, signal_each
from helpers.kvm import abi
from helpers.verdicts import clause
from suites import each
from suites.common import (
    NEEDS_IOAPIC,
    expect_same_effects,
    make_irqchip,
    mix_models,
    outcome_of,
    to,
    with_address_hi,
)
from suites.names import EXTINT, INIT, LEVEL, LOGICAL, LOWEST, NMI, REMRD, SMI, USE_32BIT_IDS

GSI = 24
"""The first GSI behind the IOAPIC's pins."""


def routes(count):
    """Return ``count`` MSI routes, from GSI 0 on, to vCPU 3."""
    message = to(3, vector=0x31)
    return [msi_route(gsi, message) for gsi in range(count)]


# --- msi.direct: no route needed ------------------------------------------------------------------


@clause("msi.direct")
def test_more_messages_than_routes(machine):
    limit = machine.vm.check_extension(abi.KVM_CAP_IRQ_ROUTING)
    # Vectors above 15, both trigger modes, three ignored bits.
    data = [word for word in combinations(0x380FF) if word & 0xFF >= 16]
    assert len(machine.cpus) * len(data) > limit
    for index in range(4):
        signal_each(machine, to(index, vector=0), "data", data, returns=1)
    expect("IRR", machine[3].lapic.irr, set(range(16, 256)))


@clause("msi.direct")
@each.irqchip
@pytest.mark.parametrize("table", ["absent", "empty", "one", "full"])
def test_message_with_any_routing_table(machines, irqchip, table):
    machine = machines(irqchip=irqchip, vcpu_ids=range(4))
    if table != "absent":
        limit = machine.vm.check_extension(abi.KVM_CAP_IRQ_ROUTING)
        machine.vm.set_gsi_routing(routes({"empty": 0, "one": 1, "full": limit}[table]))
    machine.signal(to(1)).returns(1).accepted_by(1)


@clause("msi.direct")
@each.irqchip
def test_routes_are_the_same_after_messages(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=range(4))
    sent = {gsi: to(gsi % 4, vector=0x40 + gsi) for gsi in range(GSI, GSI + 8)}
    machine.vm.set_gsi_routing([msi_route(*route) for route in sent.items()])
    for vector in range(0x80, 0x100):
        machine.send(to(0xFF, vector=vector))
    for gsi, message in sent.items():
        machine.raise_line(gsi, message).returns(1).accepted_by(gsi % 4)


@clause("msi.direct")
def test_rejected_message_does_not_change_the_routes(machines):
    machine = machines(vcpu_ids=range(2))
    message = to(1, vector=0x52)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine.signal(to(0), flags=1 << 31).fails(EINVAL)
    machine.raise_line(GSI, message).returns(1).accepted_by(1)


@clause("msi.direct")
@NEEDS_IOAPIC
def test_full_irqchip_routes_its_pins_after_messages(machine):
    for vector in range(16, 256):
        machine.send(to(1, vector=vector))
    expect("status of IOAPIC pin 5", machine.vm.irq_line_status(5, 1) >= 0, True)
    machine.vm.irq_line_status(5, 0)


# --- routing.flags: a route obeys the rules of a message ------------------------------------------


def expect_route(vm, entry, outcome, table_flags=0):
    """Raise Mismatch unless a table with this entry is "accepted", or refused with an errno."""
    expect("outcome", outcome_of(vm.set_gsi_routing, [entry], flags=table_flags), outcome)


@clause("routing.flags")
@each.bit(range(1, 32))
def test_undefined_flag_of_a_route_is_refused(machines, bit):
    expect_route(machines(vcpu_ids=()).vm, msi_route(GSI, to(0), flags=1 << bit), "EINVAL")


@clause("routing.flags")
@each.bit(range(32))
def test_flag_of_a_table_is_refused(machines, bit):
    vm = machines(vcpu_ids=()).vm
    expect_route(vm, msi_route(GSI, to(0)), "EINVAL", table_flags=1 << bit)


@clause("routing.flags")
@each.bit(range(8))
def test_address_hi_7_0_of_a_route_must_be_zero(machines, bit):
    vm = machines(vcpu_ids=(), x2apic_api=USE_32BIT_IDS).vm
    expect_route(vm, msi_route(GSI, to(0, address_hi_reserved=1 << bit)), "EINVAL")


@clause("routing.flags")
def test_address_hi_of_a_route_is_ignored_without_32bit_ids(machines):
    machine = machines(vcpu_ids=range(2))
    message = with_address_hi(0xFFFFFFFF)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine.raise_line(GSI, message).returns(1).accepted_by(1)


@clause("routing.flags")
def test_valid_devid_of_a_route_is_accepted_or_refused_as_of_a_message(machines):
    machine = machines(vcpu_ids=(0,))
    injection = machine.signal(to(0), flags=abi.KVM_MSI_VALID_DEVID, devid=7)
    route = msi_route(GSI, to(0), flags=abi.KVM_MSI_VALID_DEVID, devid=7)
    expect_route(machine.vm, route, "accepted" if injection.result > 0 else "EINVAL")


@clause("routing.flags")
def test_gsi_above_the_limit_is_refused(machines):
    vm = machines(vcpu_ids=()).vm
    limit = vm.check_extension(abi.KVM_CAP_IRQ_ROUTING)
    expect_route(vm, msi_route(limit, to(0)), "EINVAL")


@clause("split.msi-routes-only")
@pytest.mark.parametrize(
    "irqchip, outcome", [("full", "accepted"), ("split", "EINVAL")], ids=["full", "split"]
)
def test_irqchip_routes_are_for_a_full_irqchip(machines, irqchip, outcome):
    vm = machines(irqchip=irqchip, vcpu_ids=()).vm
    entry = irqchip_route(1, abi.KVM_IRQCHIP_IOAPIC, 1)
    expect_route(vm, entry, outcome)


# --- split.eoi-exit -------------------------------------------------------------------------------


def exit_of_eoi(machines, route, message, pins=24):
    """Return the vector of the KVM_EXIT_IOAPIC_EOI that ``message``'s handler causes, or None.

    ``route`` is that of IOAPIC pin 5, where the IOAPIC has so many.
    """
    machine = machines(irqchip="none", vcpu_ids=())
    make_irqchip(machine, "split", pins)
    machine.vm.set_gsi_routing([msi_route(5, route)])
    machine[0].step()  # KVM scans the routes when a vCPU is entered.
    machine.signal(message).returns(1).accepted_by(0)
    return machine[0].eoi_exit()


@clause("split.eoi-exit")
@each.trigger_mode
def test_eoi_of_a_level_route_exits(machines, trigger_mode):
    route = to(0, vector=0x61, trigger_mode=LEVEL, level=1)
    sent = to(0, vector=0x61, trigger_mode=trigger_mode)
    expect("vector of KVM_EXIT_IOAPIC_EOI", exit_of_eoi(machines, route, sent), 0x61)


@clause("split.eoi-exit")
@pytest.mark.parametrize(
    "route, sent",
    [
        (to(0, vector=0x61), to(0, vector=0x61, trigger_mode=LEVEL)),
        (to(0, vector=0x62, trigger_mode=LEVEL), to(0, vector=0x61, trigger_mode=LEVEL)),
        (to(1, vector=0x61, trigger_mode=LEVEL), to(0, vector=0x61)),
    ],
    ids=["edge-route", "other-vector", "other-destination"],
)
def test_eoi_without_a_level_route_does_not_exit(machines, route, sent):
    expect("vector of KVM_EXIT_IOAPIC_EOI", exit_of_eoi(machines, route, sent), None)


@clause("split.eoi-exit")
def test_eoi_of_a_route_behind_the_pins_does_not_exit(machines):
    message = to(0, vector=0x61, trigger_mode=LEVEL)
    vector = exit_of_eoi(machines, message, message, pins=5)
    expect("vector of KVM_EXIT_IOAPIC_EOI", vector, None)


# --- equivalence.routes: a route does what a message does -----------------------------------------


def software_disabled(machine):
    machine[1].configure(svr=SVR_RESET)


def one_x2apic(machine):
    machine[3].apic_mode = ApicMode.X2APIC


def plain(machine):
    pass


# Sent to one machine, in this order. Each vector stands once, since sending a pending vector again
# shows no effect. INIT is last, since it resets its target.
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
SETUPS = {"plain": plain, "disabled": software_disabled, "mixed": mix_models, "x2apic": one_x2apic}


@pytest.fixture(params=SETUPS.values(), ids=SETUPS)
def alike(request, machines):
    """Two machines set up alike. The second has routes to MESSAGES, from GSI on."""
    direct, routed = machines(vcpu_ids=range(4)), machines(vcpu_ids=range(4))
    for machine in (direct, routed):
        request.param(machine)
    routed.vm.set_gsi_routing(starmap(msi_route, enumerate(MESSAGES, GSI)))
    return direct, routed


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
@each.irqchip
def test_line_set_to_0_injects_nothing(machines, irqchip):
    machine = machines(irqchip=irqchip, vcpu_ids=range(2))
    machine.vm.set_gsi_routing([msi_route(GSI, to(1))])
    expect("status", machine.vm.irq_line_status(GSI, 0), -1)
    expect("IRR", machine[1].lapic.irr, set())


@clause("equivalence.routes")
def test_guest_takes_a_routed_message_like_a_direct_one(machine):
    message = to(1, vector=0x52, trigger_mode=LEVEL)
    machine.vm.set_gsi_routing([msi_route(GSI, message)])
    machine[1].step()  # Both interrupt the guest at the same instruction.
    machine.send(message)
    direct = machine[1].take()
    machine.raise_line(GSI, message)
    expect("what the handler logged", machine[1].take(), direct)
