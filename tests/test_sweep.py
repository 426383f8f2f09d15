"""The sweep: what it leaves out, what it finds, and its options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from helpers.apic import DeliveryMode, Message
from helpers.apic.model import REFERENCE, Model
from helpers.apic.topologies import TOPOLOGIES
from helpers.apic.topology import Topology
from helpers.guest import Mismatch, build
from helpers.guest.sender import combinations, windows
from helpers.kvm import System
from helpers.sweep.engine import SmallestCase, Sweep, aims, one_of_each
from helpers.verdicts.kernel import running_kernel
from tests.copy_of_the_suite import ROOT, run_pytest

EVERY_TOPOLOGY = pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as opened:
        yield opened


def on_this_kernel(topology):
    return replace(topology, smm=running_kernel().has_smm)


# --- one of each kind -----------------------------------------------------------------------------


def addressed(model, aim):
    """Whom an aim addresses, and whether it may miss them."""
    route = model.route(aim.message())
    present = [slot for slot in route.slots if slot is not None]
    may_miss = route.one and len(present) < len(route.slots)
    return str((present, may_miss, route.delivery_mode, route.nobody))


@EVERY_TOPOLOGY
@pytest.mark.parametrize("mode", [DeliveryMode.LOWEST_PRIORITY, DeliveryMode.NMI])
def test_whoever_can_be_addressed_is(topology, mode):
    model = Model(topology)
    every = {addressed(model, aim) for aim in aims(topology, mode)}
    assert {addressed(model, aim) for aim in one_of_each(model, mode)} == every


def test_exhaustive_is_every_message():
    assert sum(1 for _ in aims(TOPOLOGIES["xapic-flat"], DeliveryMode.NMI)) == 256 * 2 * 2


# --- what it finds --------------------------------------------------------------------------------


def test_old_kernels_model_is_noticed_and_reduced(system):
    switches = replace(REFERENCE, aliased_ids_all_receive=False)
    topology = on_this_kernel(TOPOLOGIES["xapic-aliased-ids"])
    with closing(Sweep(system, topology, switches)) as sweep, pytest.raises(SmallestCase) as found:
        sweep.run(DeliveryMode.FIXED, exhaustive=False)
    case = found.value
    assert len(case.topology.vcpus) == 2
    assert case.message == Message(destination=case.message.destination)
    assert case.expected != case.actual


@pytest.mark.parametrize("mode", DeliveryMode, ids=lambda mode: mode.name)
def test_state_that_a_message_did_not_make_is_noticed(system, mode):
    with closing(Sweep(system, on_this_kernel(TOPOLOGIES["xapic-flat"]), REFERENCE)) as sweep:
        sweep.machine[3].configure(tpr=0x10)
        with pytest.raises(Mismatch, match=r"effect on vCPU 3: .* got .*changed TPR"):
            sweep.run(mode, exhaustive=False)


@EVERY_TOPOLOGY
def test_topology_is_made_as_it_is_written(system, topology):
    with build(system, topology) as machine:
        seen = topology if topology.irqchip != "none" else replace(topology, vcpus=())
        assert replace(machine.topology(), smm=topology.smm) == seen
        assert Topology.parse(str(topology)) == topology


def test_topology_that_cannot_be_made_is_refused(system):
    with pytest.raises(ValueError, match=r"vCPU 0/init=1 cannot be made: it becomes 0$"):
        build(system, Topology.parse("0/init=1"))


# --- floods ---------------------------------------------------------------------------------------


def test_combinations_are_all_values_of_the_bits():
    assert sorted(combinations(0x8101)) == [0, 1, 0x100, 0x101, 0x8000, 0x8001, 0x8100, 0x8101]


def test_windows_are_the_lowest_and_the_highest_bits():
    assert windows(0xFFFFF) == [0x3FFF, 0xFFFC0]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        (["--topology=0"], "--topology and --message go together"),
        (["--message=vector=1"], "--topology and --message go together"),
        (["--topology=0/x", "--message=vector=1"], "--topology: vCPU '0/x': 'x' is none of"),
        (["--topology=0", "--message=vector=256"], "--message: vector 0x100 does not fit data"),
    ],
    ids=["topology-alone", "message-alone", "bad-topology", "bad-message"],
)
def test_bad_case_is_one_line(options, said):
    run = run_pytest(ROOT, "suites/test_sweep.py", *options)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {said}" in run.output


def test_exhaustive_sweep_is_a_test_for_each_topology_and_delivery_mode():
    listed = [ROOT, "suites/test_sweep.py", "--collect-only", "-q"]
    assert "test_every_message" not in run_pytest(*listed).output
    output = run_pytest(*listed, "--exhaustive").output
    assert output.count("::test_every_message[") == len(TOPOLOGIES) * len(DeliveryMode)


def test_case_is_sent_alone():
    options = ["--topology=xapic-flat", "--message=destination=0xff"]
    run = run_pytest(ROOT, "suites/test_sweep.py::test_given_message", "-q", *options)
    assert "1 passed" in run.output
