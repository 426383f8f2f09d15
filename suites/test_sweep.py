# SPDX-License-Identifier: GPL-2.0-only
"""The message space: every message to every topology does what the model says.

Clauses: model.swept.

    pytest suites/test_sweep.py --exhaustive -n auto

sends every message there is: 256 destinations, 256 vectors, 8 delivery modes, both destination
modes, redirection hints, trigger modes and levels. Without the option, one destination stands for
all destinations by which the model addresses the same vCPUs.
"""

from dataclasses import replace

import pytest

from helpers.apic import DeliveryMode
from helpers.apic.model import Model
from helpers.apic.topologies import TOPOLOGIES
from helpers.guest import build
from helpers.sweep.engine import Sweep
from helpers.verdicts import clause
from suites.names import EXTINT, FIXED, INIT, LOWEST, NMI, REMRD, SIPI, SMI

# INIT and SIPI come last: they leave vCPUs that cannot run again.
IN_ORDER = (REMRD, FIXED, LOWEST, EXTINT, NMI, SMI, INIT, SIPI)


@pytest.fixture
def on_this_kernel(kernel):
    """Give a topology the vector hashing, the SMM and the irqchip of the kernel under test."""

    def complete(topology):
        full = topology.irqchip == "full"
        return replace(
            topology,
            irqchip="split" if full and not kernel.has_ioapic else topology.irqchip,
            vector_hashing=kernel.vector_hashing,
            smm=kernel.has_smm,
        )

    return complete


EVERY_TOPOLOGY = pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)


@clause("model.swept")
@EVERY_TOPOLOGY
def test_one_message_of_each_kind(system, switches, on_this_kernel, topology, record_property):
    with Sweep(system, on_this_kernel(topology), switches) as sweep:
        sent = sum(sweep.run(delivery_mode, exhaustive=False) for delivery_mode in IN_ORDER)
    record_property("messages", sent)


@clause("model.swept")
@pytest.mark.only_with("exhaustive")
@pytest.mark.timeout(600)
@EVERY_TOPOLOGY
@pytest.mark.parametrize("delivery_mode", DeliveryMode, ids=lambda each: each.name)
def test_every_message(system, switches, on_this_kernel, topology, delivery_mode, record_property):
    with Sweep(system, on_this_kernel(topology), switches) as sweep:
        record_property("messages", sweep.run(delivery_mode, exhaustive=True))


@clause("model.swept")
@pytest.mark.only_with("message")
def test_given_message(system, switches, on_this_kernel, given_case):
    topology, message = on_this_kernel(given_case[0]), given_case[1]
    with build(system, topology) as machine:
        machine.signal(message).answers(Model(topology, switches).predict(message))
