# SPDX-License-Identifier: GPL-2.0-only
"""The recorder on the real /dev/kvm: what it leaves out, and that a test does not notice it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.apic.lapic import bits
from helpers.guest import Machine, expect
from helpers.kvm import System, recording
from helpers.record import Recorder
from helpers.record.tape import Call


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
