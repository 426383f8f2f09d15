# SPDX-License-Identifier: GPL-2.0-only
"""The recorder on the real /dev/kvm: what it leaves out, and that a test does not notice it."""

from __future__ import annotations

import gc
import os
import pickle
import random
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from helpers.apic import ApicMode, DeliveryMode, Message, Register
from helpers.apic.lapic import bits
from helpers.apic.topology import MpState
from helpers.guest import Machine, expect
from helpers.guest.saved import SavedVcpu
from helpers.kvm import System, abi, recording
from helpers.program.skips import skips_of
from helpers.record import Recorder
from helpers.record.reports import packed, unpacked
from helpers.record.tape import Call, Compared, Observed, Tape, Target
from suites.common import outcome_of, try_to

SET = ("SREGS", "REGS", "LAPIC", "VCPU_EVENTS", "MP_STATE")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Recorder]:
    """Return a function that starts a recorder, which the end of the test stops."""

    def start() -> Recorder:
        made = Recorder(lambda *_: None)
        monkeypatch.setattr(recording, "active", made)
        return made

    return start


def test_machine_made_before_the_recorder_is_left_out_and_works(recorder):
    with System() as system, Machine(system) as machine:
        recorded = recorder()
        assert machine[0].take() == []
        machine[0].vcpu.enter_at_once()
        assert recorded.tape.left_out == "a file descriptor of the test's own"


def test_test_that_compares_nothing_is_left_out(recorder):
    recorded = recorder()
    with System() as system, Machine(system):
        recorded.finish()
    assert recorded.tape.left_out == "nothing was compared"


def test_register_of_the_ioapic_is_a_number(recorder):
    recorded = recorder()
    with System() as system, Machine(system) as machine:
        pins = machine.vm.get_ioapic().chip.ioapic.irr
        expect("IRR of the IOAPIC", set(bits(pins)), set())
    [owed] = [each for step in recorded.tape.steps if isinstance(step, Call) for each in step.owed]
    assert (owed.place, owed.expected, owed.show) == ("chip.ioapic.irr", "0x0", "hex")


def test_outcome_that_is_checked_keeps_its_name(recorder):
    recorded = recorder()
    with System() as system, Machine(system, vcpu_ids=()) as machine:
        expect("outcome", outcome_of(machine.vm.create_vcpu, 0), "accepted")
    [call] = [step for step in recorded.tape.steps if isinstance(step, Call) and step.subject]
    assert (call.request, call.subject, call.outcome) == (
        abi.KVM_CREATE_VCPU,
        "outcome",
        "accepted",
    )


def test_id_of_an_xapic_is_owed_as_the_test_shows_it(recorder):
    recorded = recorder()
    with System() as system, Machine(system, vcpu_ids=(0, 1)) as machine:
        expect("xAPIC ID", machine[1].lapic.xapic_id, 1)
    [owed] = [each for step in recorded.tape.steps if isinstance(step, Call) for each in step.owed]
    assert (owed.place, owed.expected, owed.show) == ("xapic_id", "1", "dec")


def test_saved_state_is_compared_by_name_and_not_by_the_values_seen(recorder):
    recorded = recorder()
    with System() as system, Machine(system, vcpu_ids=(0, 1)) as machine:
        saved = SavedVcpu.read(machine[1])
        saved.restore(machine[0])
        expect("changed", saved.differing(SavedVcpu.read(machine[0])), [])
    steps = recorded.tape.steps
    restored = [step for step in steps if isinstance(step, Call) and step.saved == 0]
    assert [step.request.name for step in restored] == [f"KVM_SET_{name}" for name in SET]
    assert [step for step in steps if isinstance(step, Compared)] == [Compared(0, 1, [], "changed")]
    assert not any(step.owed for step in steps if isinstance(step, Call))


def test_model_of_the_recording_kernel_is_a_precondition():
    tape = Tape(switches=(("moved-route-loses-eoi", False), ("one-nmi-shown", True)))
    conditions = [condition for condition, _ in skips_of(tape)]
    assert conditions == ["applies(&in_moved_route_loses_eoi)", "!applies(&in_one_nmi_shown)"]


def test_nothing_keeps_the_recorder_and_its_machines(monkeypatch):
    def recorders() -> int:
        gc.collect()
        return sum(type(each) is Recorder for each in gc.get_objects())

    before = recorders()
    monkeypatch.setattr(recording, "active", Recorder(lambda *_: None))
    with System() as system, Machine(system):
        pass
    monkeypatch.undo()
    assert recorders() == before


@pytest.mark.parametrize("state", [MpState.RUNNABLE, 77])
def test_outcome_that_no_test_checks_is_any(recorder, state):
    recorded = recorder()
    with System() as system, Machine(system) as machine:
        try_to(machine[0].vcpu.set_mp_state, state)
    assert isinstance(recorded.last, Call)
    assert (recorded.last.request, recorded.last.outcome) == (abi.KVM_SET_MP_STATE, "any")


def test_effects_of_two_machines_are_compared_and_not_the_values_seen(recorder):
    recorded = recorder()
    with System() as system, Machine(system) as one, Machine(system) as other:
        effects = [machine.signal(Message(vector=0x41)).effects() for machine in (one, other)]
        expect("effects", effects[1], effects[0])
    [step] = [each for each in recorded.tape.steps if isinstance(each, Observed) and each.machine]
    assert (step.alike, step.effects) == (0, None)


def test_text_of_a_known_deviation_that_the_test_computes_is_left_out(recorder):
    recorded = recorder()
    recorded.tape.deviations = ("smi-loses-shadow",)
    with System() as system, Machine(system) as machine:
        vector = machine[0].lapic[Register.SVR] & 0xFF
        expect("taken", f"{vector - 0xBE:#x} after 1", "0x41 after 1")
    assert recorded.tape.left_out == "taken: the test computes what shows a known deviation"


# --- on the way from a guest ----------------------------------------------------------------------


TAPE = Tape(steps=[Call(Target(0, 1), abi.KVM_GET_LAPIC, bytes(1024), abi.kvm_lapic_state)])


@pytest.mark.parametrize(
    "value", [MpState.HALTED, Register.LDR, DeliveryMode.NMI, ApicMode.X2APIC], ids=repr
)
def test_tape_arrives_as_it_was(value):
    """A tape has numbers that are members of an enumeration."""
    tape = replace(TAPE, facts=(("value", value),))
    assert unpacked(packed(tape)) == tape


@pytest.mark.parametrize("seed", range(300))
def test_damaged_tape_is_left_out(seed):
    draw = random.Random(seed)
    content = bytearray(packed(TAPE))
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    cut = content[: draw.choice((len(content), draw.randrange(len(content))))]
    arrived = unpacked(bytes(cut))
    assert arrived == TAPE or arrived.left_out.startswith("the tape was damaged on its way: ")


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


class Reaches:
    def __reduce__(self):
        return getattr, (Call, "__init__")


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (Runs(), "posix.system is no part of a tape"),
        ([TAPE, Runs()], "posix.system is no part of a tape"),
        (Reaches(), "getattr is no part of a tape"),
        (Call, "another object"),
        (7, "another object"),
    ],
)
def test_nothing_but_a_tape_is_made(sent, says):
    arrived = unpacked(zlib.compress(pickle.dumps(sent)))
    assert (arrived.steps, arrived.left_out.rpartition(": ")[2]) == ([], says)


def test_bomb_is_no_tape():
    assert unpacked(zlib.compress(bytes(1 << 27))).left_out.endswith("too large, or cut off")
