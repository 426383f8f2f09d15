# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU in KVM_RUN takes the LPI without an exit by the host.

Clauses: arm.wakes.
"""

import pytest

from helpers.arm64.running import running
from helpers.its import Message
from helpers.verdicts import clause, parallel
from suites.arm64.common import FIRST, HISTORY, ON_1, deliver_before, expect_taken

EACH = pytest.mark.parametrize("event", [FIRST, ON_1], ids=["vcpu0", "vcpu1"])


@clause("arm.wakes")
@parallel
@HISTORY
@EACH
def test_waiting_vcpu_wakes(machine, event, again):
    deliver_before(machine, again)
    with running(machine[event.vcpu], "WFI") as thread:
        thread.wait_until_asleep()
        machine.send(event.message)
        thread.takes(event.lpi)


@clause("arm.wakes")
@parallel
@HISTORY
@EACH
def test_spinning_vcpu_is_interrupted(machine, event, again):
    deliver_before(machine, again)
    with running(machine[event.vcpu], "SPIN") as thread:
        machine.send(event.message)
        thread.takes(event.lpi)


@clause("arm.wakes")
@parallel
@HISTORY
def test_message_of_another_vcpu_does_not_wake(machine, again):
    deliver_before(machine, again)
    with running(machine[0], "WFI") as thread:
        thread.wait_until_asleep()
        machine.send(ON_1.message)
        thread.wait_until_asleep()
        machine.send(FIRST.message)
        thread.takes(FIRST.lpi)
    expect_taken(machine, ON_1.pending)


@clause("arm.wakes")
@parallel
@EACH
def test_blocked_message_does_not_wake(machine, event):
    with running(machine[event.vcpu], "WFI") as thread:
        thread.wait_until_asleep()
        machine.send(Message(3, 0))
        thread.wait_until_asleep()
        machine.send(event.message)
        thread.takes(event.lpi)
