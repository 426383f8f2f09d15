# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that lacks a part is judged by the tests that do not need the part.

The other tests are skipped, and the summary counts them by the part.
"""

from __future__ import annotations

import re

import pytest

from tests.copy_of_the_suite import ROOT, run_pytest
from tests.lacking import PARTS

NAMES = {
    "ioapic": "the kernel has no IOAPIC (KVM_CAP_PIT2 is 0)",
    "smm": "the kernel has no SMM (KVM_CAP_X86_SMM is 0)",
    "synic": "the kernel has no SynIC (KVM_CAP_HYPERV_SYNIC is 0)",
    "x2apic": "the kernel offers no x2APIC (KVM_GET_SUPPORTED_CPUID)",
}


def test_every_part_has_a_name():
    assert NAMES.keys() == PARTS.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_tests_of_a_missing_part_are_counted_and_the_others_pass(part):
    lacking = ["-p", "tests.lacking", f"--lacking={part}"]
    run = run_pytest(ROOT, "suites", "-q", "-n", "2", "--timeout=60", *lacking)
    assert run.exit_code == 0, run.output
    counted = re.search(rf"^(\d+) not judged: {re.escape(NAMES[part])}$", run.output, re.MULTILINE)
    assert counted, run.output
    assert 0 < int(counted[1]) < run.outcomes["passed"] / 2
