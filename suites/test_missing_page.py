# SPDX-License-Identifier: GPL-2.0-only
"""Messages to a vCPU that waits for a page of its memory, as while a guest is migrated by postcopy.

Clauses: guest.missing-page.

KVM halts the vCPU, has a worker fetch the page, and lets the vCPU take messages meanwhile. A vCPU
that masks interrupts waits for the page inside the page fault instead.
"""

import pytest

from helpers.guest import expect
from helpers.guest.missing import MissingPage
from helpers.verdicts import clause
from suites import each
from suites.common import expect_logged, to
from suites.names import FIXED, LOWEST, NMI

ADDRESS = 0x4000_0000

NEEDS_HALT = pytest.mark.skipif(
    "kernel.vendor == 'kvm_pvm'", reason="kvm_pvm waits for a page inside the page fault"
)


@pytest.fixture
def machine(machines):
    """Two vCPUs, which the test alone uses."""
    return machines(vcpu_ids=range(2))


@pytest.fixture
def page(machine):
    """A missing page at ADDRESS."""
    with MissingPage(machine.vm, ADDRESS) as page:
        yield page


@pytest.fixture
def running(machine, page):
    """vCPU 1 inside KVM_RUN, asleep until the page arrives to which it writes."""
    with machine[1].storing(ADDRESS) as running:
        page.wait_for_access()
        running.wait_until_asleep()
        yield running


@clause("guest.missing-page")
@NEEDS_HALT
@each.delivery_mode(FIXED, LOWEST, NMI)
def test_vcpu_takes_a_message_while_a_page_is_missing(machine, page, running, delivery_mode):
    for count in (1, 2):
        expect("return value", machine.send(to(1, delivery_mode=delivery_mode)), 1)
        running.wait_until_taken(count)
    expect("left KVM_RUN", running.left, False)
    page.supply()
    running.finish()
    expect_logged(machine[1], *[2 if delivery_mode is NMI else 0x41] * 2)


@clause("guest.missing-page")
def test_page_that_arrives_wakes(machine, page, running):
    page.supply()
    running.finish()
    expect_logged(machine[1])
