# SPDX-License-Identifier: GPL-2.0-only
"""The sweep: the faults that it finds, and its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import EINVAL

import pytest

from helpers.apic import DeliveryMode, Message
from helpers.apic.model import REFERENCE
from helpers.apic.topologies import TOPOLOGIES
from helpers.apic.topology import Topology
from helpers.guest import Cpu, Mismatch, build
from helpers.guest.sender import combinations, windows
from helpers.kvm import KvmError, System, abi
from helpers.sweep.engine import Sweep
from helpers.sweep.smallest import SmallestCase
from helpers.verdicts.kernel import running_kernel
from tests.copy_of_the_suite import ROOT, run_pytest

EVERY_TOPOLOGY = pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as opened:
        yield opened


def on_this_kernel(topology):
    return replace(topology, smm=running_kernel().has_smm)


# --- faults ---------------------------------------------------------------------------------------


def test_old_kernels_model_is_noticed_and_reduced(system):
    switches = replace(REFERENCE, aliased_ids_all_receive=False)
    topology = on_this_kernel(TOPOLOGIES["xapic-aliased-ids"])
    with Sweep(system, topology, switches) as sweep, pytest.raises(SmallestCase) as found:
        sweep.run(DeliveryMode.FIXED, exhaustive=False)
    case = found.value
    assert len(case.topology.vcpus) == 2
    assert case.message == Message(destination=case.message.destination)
    assert case.expected != case.actual


@pytest.mark.parametrize("delivery_mode", DeliveryMode, ids=lambda each: each.name)
def test_state_that_a_message_did_not_make_is_noticed(system, delivery_mode):
    with Sweep(system, on_this_kernel(TOPOLOGIES["xapic-flat"]), REFERENCE) as sweep:
        sweep.machine[3].configure(tpr=0x10)
        with pytest.raises(Mismatch, match=r"effect on vCPU 3: .* got .*changed TPR"):
            sweep.run(delivery_mode, exhaustive=False)


@EVERY_TOPOLOGY
def test_topology_is_made_as_it_is_written(system, topology):
    with build(system, topology) as machine:
        seen = topology if topology.irqchip != "none" else replace(topology, vcpus=())
        assert replace(machine.topology(), smm=topology.smm) == seen
        assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    "text",
    [
        "boot=1 0/ap 1/bsp",
        "0/ap 1",
        "0 1/nmi=1/nmi-masked",
        "0 1/shadow/tpr=0x40/isr=0x61",
        "split 0 1/x2apic/eoi-suppressed/tpr=0x55",
    ],
)
def test_state_is_made_as_it_is_written(system, text):
    with build(system, Topology.parse(text)) as machine:
        assert str(replace(machine.topology(), smm=True)) == str(Topology.parse(text))


def test_topology_that_kvm_refuses_is_refused(system, monkeypatch):
    def refuse(*_: object) -> None:
        raise KvmError(abi.KVM_SET_VCPU_EVENTS, EINVAL)

    monkeypatch.setattr(Cpu, "set_events", refuse)
    with pytest.raises(ValueError, match=r"^topology 0/nmi=1 cannot be made: KVM_SET_VCPU_EVENTS"):
        build(system, Topology.parse("0/nmi=1"))


def test_topology_that_cannot_be_made_is_refused(system):
    with pytest.raises(ValueError, match=r"vCPU 0/init=1 cannot be made: it becomes 0$"):
        build(system, Topology.parse("0/init=1"))


# --- values of a word -----------------------------------------------------------------------------


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
