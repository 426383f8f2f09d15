# SPDX-License-Identifier: GPL-2.0-only
"""Named topologies, for the sweep and for the command line."""

from __future__ import annotations

from helpers.apic.topology import Topology

_CLUSTER = "dfr=0x0fffffff"


def topology_of(text: str) -> Topology:
    """Return the topology of this name or text form. Raises ValueError."""
    return TOPOLOGIES.get(text) or Topology.parse(text)


TOPOLOGIES = {
    name: Topology.parse(text)
    for name, text in {
        "no-irqchip": "none 0",
        "no-vcpu": "full",
        "xapic-flat": "0/ldr=0x01000000 1/ldr=0x02000000 2/ldr=0x04000000 5/ldr=0x80000000",
        "xapic-flat-split": "split 0/ldr=0x10000000 3/ldr=0x08000000 254/ldr=0x01000000",
        "xapic-cluster": f"split 0/{_CLUSTER}/ldr=0x11000000 1/{_CLUSTER}/ldr=0x12000000 "
        f"2/{_CLUSTER}/ldr=0x21000000 3/{_CLUSTER}/ldr=0x28000000 9/{_CLUSTER}/ldr=0xe4000000",
        "xapic-flat-and-cluster": "0/ldr=0x01000000 1/ldr=0x12000000 "
        f"2/{_CLUSTER}/ldr=0x11000000 3/{_CLUSTER}/ldr=0x12000000",
        "xapic-odd-dfr": "0/ldr=0x01000000 1/dfr=0x7fffffff/ldr=0x12000000 "
        "2/dfr=0x7fffffff/ldr=0x21000000",
        "xapic-no-logical-id": "0 1 2",
        "xapic-disabled": "0/ldr=0x01000000 1/sw-disabled/ldr=0x02000000 "
        "2/disabled/ldr=0x04000000 3 4/ldr=0x10000000",
        "xapic-all-software-disabled": "0/sw-disabled/ldr=0x01000000 1/sw-disabled/ldr=0x02000000",
        "xapic-all-disabled": "0/disabled 1/disabled",
        "xapic-aliased-ids": "0/ldr=0x01000000 1/id=0x2/ldr=0x02000000 2/ldr=0x04000000 "
        "3/ldr=0x08000000",
        "xapic-aliased-logical-ids": "0/ldr=0x01000000 1/ldr=0x01000000 2/ldr=0x06000000 "
        "3/ldr=0x04000000",
        "xapic-wrapped-ids": "0/ldr=0x01000000 1/ldr=0x02000000 256/ldr=0x04000000",
        "xapic-32bit": "x2apic_api=1 0/ldr=0x01000000 1/ldr=0x02000000 256/ldr=0x04000000 "
        "2/id=0x1/ldr=0x08000000",
        "x2apic": "0/x2apic 1/x2apic 2/x2apic 17/x2apic 18/x2apic",
        "x2apic-32bit": "split x2apic_api=3 0/x2apic 1/x2apic 6/x2apic 255/x2apic 300/x2apic",
        "x2apic-32bit-quirk": "x2apic_api=1 0/x2apic 1/x2apic 17/x2apic 300/x2apic",
        "x2apic-disabled": "split x2apic_api=2 0/x2apic 1/x2apic/sw-disabled 2/disabled 3/x2apic "
        "4 5/sw-disabled/ldr=0x01000000",
        "mixed": "0/ldr=0x01000000 1/ldr=0x02000000 2/x2apic 3/x2apic 18/x2apic",
        "mixed-32bit": "split x2apic_api=3 0/ldr=0x01000000 1/ldr=0x02000000 2/x2apic 300/x2apic",
    }.items()
}
