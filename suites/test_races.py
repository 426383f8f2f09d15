# SPDX-License-Identifier: GPL-2.0-only
"""What only time shows: writers and senders in threads, guests that run, VMs that end under fire.

Clauses: race.settled, race.once, split.eoi-exit, race.teardown.

A verdict is about the state after the threads have stopped: the order of their calls decides
nothing. ``--seed=N`` varies the pauses between the calls, and

    pytest suites/test_races.py --soak=10 -n auto

runs all of it in random order for ten minutes.
"""

import pytest

from helpers.races.pairs import PAIRS, Pair, RaceMachines
from helpers.races.soak import Soak
from helpers.races.streams import OPERATIONS, VCPUS, edge_senders, level_senders
from helpers.races.teardown import ENDINGS, end_one
from helpers.races.traffic import Traffic, expect_complete
from helpers.verdicts import clause, parallel
from suites import each
from suites.common import NEEDS_IN_SERVICE

ROUNDS = 8
MILLISECONDS = 15

pytestmark = parallel
EACH_GUEST = pytest.mark.parametrize("operation", OPERATIONS, ids=("spins", "halts", "exits"))


@pytest.fixture(scope="module")
def race_machines(system):
    """Machines that serve one race after another."""
    with RaceMachines(system) as made:
        yield made


@clause("race.settled")
@pytest.mark.parametrize("names", PAIRS, ids="-x-".join)
def test_messages_do_what_the_final_state_says(race_machines, switches, kernel, race_seed, names):
    with race_machines.machine(names) as machine:
        Pair(
            *(machine, names, switches),
            vector_hashing=kernel.vector_hashing,
            rounds=ROUNDS,
            seed=race_seed,
        ).run()


@clause("race.once")
@each.apic_mode
@EACH_GUEST
def test_each_message_is_taken_once(machines, apic_mode, operation):
    machine = machines(vcpu_ids=range(VCPUS), apic_mode=apic_mode)
    expect_complete(Traffic(machine, operation, edge_senders(machine)).run(MILLISECONDS))


@clause("split.eoi-exit")
@NEEDS_IN_SERVICE
@each.apic_mode
@EACH_GUEST
def test_each_level_triggered_message_has_one_eoi(machines, apic_mode, operation):
    machine = machines(irqchip="split", vcpu_ids=range(VCPUS), apic_mode=apic_mode)
    expect_complete(Traffic(machine, operation, level_senders(machine)).run(MILLISECONDS))


@clause("race.teardown")
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_remains_of_a_vm_that_ends_under_fire(race_seed, ending):
    for number in range(2):
        end_one(ending, race_seed + number)


@clause("race.once")
@pytest.mark.only_with("soak")
def test_soak(system, switches, kernel, soaking):
    in_service = kernel.vendor != "kvm_pvm"
    hashing = kernel.vector_hashing
    soaking.run(Soak(system, switches, vector_hashing=hashing, in_service=in_service))
