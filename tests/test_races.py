# SPDX-License-Identifier: GPL-2.0-only
"""Races: what they notice, and what they do about a thread that does not end."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from dataclasses import replace
from functools import partial

import pytest

from helpers.apic import Message
from helpers.apic.model import REFERENCE
from helpers.guest import GuestError, Machine, Mismatch, layout, msi_of
from helpers.kvm import System
from helpers.races import pairs, race, teardown, traffic
from helpers.races.pairs import PAIRS, Pair, RaceMachines
from helpers.races.race import SIGNAL_EVENT, Call, Race, message_call
from helpers.races.soak import Soak, Work
from helpers.races.streams import VCPUS
from helpers.races.traffic import Account, Sender, Stream, Traffic, expect_complete
from helpers.races.writers import SENDERS, WRITERS, Change
from tests.copy_of_the_suite import ROOT, run_pytest


@pytest.fixture(scope="module")
def system():
    with System() as opened:
        yield opened


@pytest.fixture
def machine(system):
    with Machine(system, vcpu_ids=range(VCPUS)) as made:
        yield made


# --- races ----------------------------------------------------------------------------------------


def run_pair(system, *names, rounds=4):
    with RaceMachines(system) as machines, machines.machine(names) as machine:
        pair = Pair(machine, names, REFERENCE, vector_hashing=True, rounds=rounds, seed=1)
        pair.run()
        return pair


@pytest.fixture
def forget(monkeypatch):
    """Return a function that has a writer announce changes, and leave out its calls."""

    def do(name):
        real = WRITERS[name]

        def changes(machine, index):
            return [Change([], change.on) for change in real(machine, index)]

        monkeypatch.setitem(WRITERS, name, changes)

    return do


@pytest.mark.parametrize("name", WRITERS)
def test_change_that_was_lost_is_noticed(system, forget, name):
    forget(name)
    other = "routes" if name != "routes" else "line"
    with pytest.raises(Mismatch, match=r"return value: expected .*, after round .*") as caught:
        run_pair(system, *((name, other) if name != "routes" else (other, name)))
    (note,) = caught.value.__notes__
    assert note.startswith("seed 1\nthread 0, phase 0: ")


def test_change_that_only_the_effect_shows_is_noticed(system, monkeypatch):
    # Each message has the return value of the model, and reaches another vCPU.
    monkeypatch.setattr(pairs, "_PHYSICAL", (1,))
    monkeypatch.setattr(pairs, "_LOGICAL", ())
    outcomes = pairs._outcomes.__wrapped__  # without the cache

    def swapped(topology, *arguments):
        return tuple(replace(each, accepted=(0,)) for each in outcomes(topology, *arguments))

    monkeypatch.setattr(pairs, "_outcomes", swapped)
    with pytest.raises(Mismatch, match=r"IRR of vCPU 0: expected 0x80, got nothing"):
        run_pair(system, "svr", "svr")


def test_call_that_fails_is_noticed(system, monkeypatch):
    def changes(machine, index):
        real = WRITERS["id"](machine, index)
        broken = [replace(call, fd=machine.fd) for call in real[0].calls]
        return [Change(broken, real[0].on), real[1]]

    monkeypatch.setitem(WRITERS, "ldr", changes)
    with pytest.raises(Mismatch, match=r"^result of KVM_SET_LAPIC\(.*: expected success, got -1 "):
        run_pair(system, "ldr", "id")


def test_machine_of_a_failed_race_serves_no_other(system, forget):
    forget("id")
    with RaceMachines(system) as machines:
        with pytest.raises(Mismatch), machines.machine(("id", "ldr")) as first:
            Pair(first, ("id", "ldr"), REFERENCE, vector_hashing=True, rounds=4, seed=1).run()
        with machines.machine(("ldr", "svr")) as second:
            assert second is not first
        with machines.machine(("ldr", "svr")) as third:
            assert third is second


def test_rounds_are_counted(system):
    assert run_pair(system, "id", "ldr", rounds=6).rounds == 6


def test_every_writer_meets_every_writer_and_every_sender():
    met = {frozenset(names) for names in PAIRS}
    assert met == {frozenset((a, b)) for a in (*WRITERS, *SENDERS) for b in WRITERS}


def test_thread_that_does_not_end_is_given_up(machine, monkeypatch):
    monkeypatch.setattr(race, "SECONDS", 1)
    event = machine.vm.eventfd()
    fcntl.fcntl(event, fcntl.F_SETFL, 0)
    os.write(event, struct.pack("Q", 2**64 - 2))  # The next write blocks.
    stuck = [[Call("stuck", event, 0, what=SIGNAL_EVENT)]]
    message = [[message_call("message", machine.fd, msi_of(Message()))]]
    with pytest.raises(GuestError, match="thread 1 of the race did not end in 1 s"):
        Race([message, stuck], [[]], rounds=1, seed=1).run()
    os.read(event, 8)
    os.read(event, 8)


# --- traffic --------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(traffic, "PATIENCE", 0.2)


def account_of(machine, *streams):
    return Traffic(machine, "NONE", [Sender(streams)]).run(20)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("overlaps", [False, True])
def test_message_to_another_vcpu_is_lost_and_misdirected(machine, overlaps):
    account = account_of(machine, Stream(Message(0x41, 2), (1,), overlaps=overlaps))
    assert account.lost == 1
    assert account.misdirected >= 1
    with pytest.raises(
        Mismatch, match=r"lost, repeated, misdirected: expected 0, 0, 0, got 1, 0, "
    ):
        expect_complete(account)


@pytest.mark.usefixtures("impatient")
def test_message_taken_twice_is_noticed(machine):
    run = Traffic(machine, "NONE", [Sender([Stream(Message(0x41, 1), (1,))])])
    machine.send(Message(0x41, 1))
    machine[1].step()  # The guest takes a message before the sender has sent one.
    assert run.run(20).repeated == 1


@pytest.mark.usefixtures("impatient")
def test_eoi_that_is_missing_is_noticed(machine):
    account = account_of(machine, Stream(Message(0x41, 1), (1,), exits=True))
    assert account.taken == account.sent == 1
    with pytest.raises(Mismatch) as caught:
        expect_complete(account)
    assert caught.value.__notes__[0].endswith("1 sent, 1 taken, the last is 1, 0 EOIs")


def test_wrong_return_value_is_noticed(machine):
    with pytest.raises(Mismatch, match="return value: expected 1, got 3, of <Message"):
        account_of(machine, Stream(Message(0x41, 0xFF), (1,)))


def test_unexpected_exit_is_noticed(machine):
    loop = layout.PROBE + layout.ENTRY64
    machine.memory[loop : loop + 2] = b"\xe6\x55"  # out %al, $0x55
    with pytest.raises(GuestError, match=r"vCPU .: unexpected 2 of KVM_RUN"):
        account_of(machine, Stream(Message(0x41, 1), (1,)))


def test_accounts_add_up():
    account = Account(1, 2, 3, 4, 5, 6, ["a"])
    account.add(Account(10, 20, 30, 40, 50, 60, ["b"]))
    assert account == Account(11, 22, 33, 44, 55, 66, ["a", "b"])


# --- teardown -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", teardown.ENDINGS)
def test_what_remains_of_a_vm_is_noticed(monkeypatch, ending):
    monkeypatch.setattr(teardown, "_RELEASE", 0.1)
    monkeypatch.setattr(teardown, "remains_of", lambda pid: [f"thread kvm-pit/{pid}"])
    with pytest.raises(Mismatch, match=r"ended VM: expected nothing, got thread kvm-pit/\d+, of"):
        teardown.end_one(ending, 1)


def test_child_without_a_vm_is_an_error(monkeypatch):
    def broken(*_, **__):
        raise OSError

    monkeypatch.setattr(teardown, "Machine", broken)
    with pytest.raises(GuestError, match="the child made no VM: status 1"):
        teardown.end_one("closed", 1)


def test_child_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(teardown, "_END", 0.5)
    monkeypatch.setattr(teardown, "_close_all", lambda *_: teardown.time.sleep(60))
    with pytest.raises(Mismatch, match="end of the process: expected an end, got none"):
        teardown.end_one("closed", 1)


# --- --soak and --seed ----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--soak=0", "--soak=x", "--soak=inf", "--seed=-1", "--seed=x"])
def test_option_that_is_no_number_is_refused(option):
    run = run_pytest(ROOT, "suites/test_races.py", option)
    assert run.exit_code == 4
    (line,) = run.lines_with("ERROR")
    name, _, value = option.partition("=")
    assert re.search(f"{name} wants .*, not '{value}'", line)


def test_soak_says_what_it_did():
    run = run_pytest(ROOT, "suites/test_races.py", "-k", "soak", "--soak=0.03", "--seed=5")
    assert run.outcomes["passed"] == 1, run.output
    lines = "\n".join(run.lines_with("soaked: "))
    assert "seed 5" in lines
    assert "0 lost, 0 repeated, 0 misdirected" in lines
    assert re.search(r"[\d,]+ messages/s to running guests, [\d,]+/s in a plain C loop", lines)


def steps_of(soak, monkeypatch, seed, count):
    """Return the first ``count`` steps of a soak, which does nothing else than to choose them."""
    steps = []
    for name in ("_race", "_traffic", "_teardown"):
        monkeypatch.setattr(soak, name, partial(lambda *step: steps.append(step), name))

    def show(*_):
        if len(steps) == count:
            raise StopIteration

    with pytest.raises(StopIteration):
        soak.run(seed, 1000, show)
    return [(name, seed) for name, _, seed in steps]


def test_same_seed_is_the_same_step(system, monkeypatch):
    def soak():
        return Soak(system, REFERENCE, vector_hashing=True, in_service=True)

    first = steps_of(soak(), monkeypatch, seed=0, count=10)
    assert len({name for name, _ in first}) == 3
    assert steps_of(soak(), monkeypatch, seed=5, count=5) == first[5:]


def test_account_is_text():
    account = Account(1000, 990, 7, 1, 1, 1)
    work = Work(account, 3, 6, 4, 5, 2.0, 1.0, [1e6, 3e6], [7, 7], [900, 800])
    assert work.lines() == [
        "3 steps in 2 s: 6 rounds of races (4 at the same time), 5 VMs ended under fire",
        "1,000 sent, 990 taken, 7 coalesced, 1 lost, 1 repeated, 1 misdirected",
        "1,000 messages/s to running guests, 2,000,000/s in a plain C loop",
        "file descriptors 7 to 7, MemAvailable 900 to 800 KiB",
    ]
