# SPDX-License-Identifier: GPL-2.0-only
"""Messages in VMs of 1 to KVM_CAP_MAX_VCPUS vCPUs, and what they cost.

Clauses: return.count.

    pytest suites/test_scale.py --scale --html=report.html

measures, and compares each number of vCPUs with one vCPU. The time decides no verdict.
"""

import pytest

from helpers.races.scale import measure, plot, sizes, table
from helpers.races.scale_plugin import SCALED
from helpers.verdicts import clause


@clause("return.count")
@pytest.mark.only_with("scale")
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("x2apic_offered")
def test_each_vcpu_counts_whatever_their_number(system, kernel, record_property):
    points = [measure(system, size) for size in sizes(kernel.capabilities["KVM_CAP_MAX_VCPUS"])]
    for line in table(points):
        record_property(SCALED, line)
    record_property("plot", plot(points))
