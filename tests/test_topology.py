# SPDX-License-Identifier: GPL-2.0-only
"""Topologies: the text form round-trips, and an error names the invalid word."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.apic import ApicMode
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT
from helpers.apic.topology import Irqchip, MpState, Topology, VcpuState

vectors = st.frozensets(st.integers(0, 255), max_size=4)
register = st.integers(0, 2**32 - 1)
vcpus = st.builds(
    VcpuState,
    vcpu_id=st.integers(0, 2**32 - 1) | st.integers(0, 300),
    apic_mode=st.sampled_from(ApicMode),
    software_enabled=st.booleans(),
    id=st.just(-1) | st.integers(0, 255),
    ldr=st.just(-1) | register,
    dfr=st.sampled_from([DFR_FLAT, DFR_CLUSTER]) | register,
    irr=vectors,
    tmr=vectors,
    nmi=st.integers(0, 2),
    smi=st.integers(0, 1),
    init=st.integers(0, 1),
    mp_state=st.sampled_from(MpState),
    mapped=st.booleans(),
    arb_prio=st.integers(0, 9),
    bsp=st.integers(-1, 1),
    tpr=st.integers(0, 255),
    isr=vectors,
    eoi_suppressed=st.booleans(),
    nmi_masked=st.booleans(),
    shadow=st.booleans(),
    smm=st.booleans(),
)
topologies = st.builds(
    Topology,
    vcpus=st.lists(vcpus, max_size=4, unique_by=lambda vcpu: vcpu.vcpu_id).map(tuple),
    irqchip=st.sampled_from(get_args(Irqchip)),
    x2apic_api=st.integers(0, 15),
    vector_hashing=st.booleans(),
    smm=st.booleans(),
    boot_id=st.integers(0, 300),
)


@given(vcpus)
def test_vcpu_is_read_as_written(vcpu):
    assert VcpuState.parse(str(vcpu)) == vcpu


@given(topologies)
def test_topology_is_read_as_written(topology):
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize(
    "text, topology",
    [
        ("", Topology()),
        ("none", Topology(irqchip="none")),
        ("full 0", Topology((VcpuState(0),))),
        ("split x2apic_api=3 1 0", Topology((VcpuState(1), VcpuState(0)), "split", 3)),
        ("no-smm no-vector-hashing", Topology(smm=False, vector_hashing=False)),
        ("0 x2apic_api=0x2 1", Topology((VcpuState(0), VcpuState(1)), x2apic_api=2)),
        ("300", Topology((VcpuState(300, id=44, ldr=0),))),
        ("300/x2apic", Topology((VcpuState(300, ApicMode.X2APIC, id=44, ldr=0x00121000),))),
        ("1/disabled", Topology((VcpuState(1, ApicMode.DISABLED),))),
        ("1/sw-disabled/unmapped", Topology((VcpuState(1, software_enabled=False, mapped=False),))),
        ("1/ap-reset-hold/nmi=2", Topology((VcpuState(1, mp_state=MpState(9), nmi=2),))),
        ("1/irr=0x41+66", Topology((VcpuState(1, irr=frozenset({0x41, 0x42})),))),
        ("boot=1 0/ap 1/bsp", Topology((VcpuState(0, bsp=0), VcpuState(1, bsp=1)), boot_id=1)),
        ("0/bsp 1/ap", Topology((VcpuState(0), VcpuState(1)))),
        ("1/smm/init=1/smi=1", Topology((VcpuState(1, smm=True, init=1, smi=1),))),
        ("1/nmi-masked/shadow", Topology((VcpuState(1, nmi_masked=True, shadow=True),))),
        ("1/tpr=0x20/eoi-suppressed", Topology((VcpuState(1, tpr=32, eoi_suppressed=True),))),
        (
            "1/id=5/ldr=0x2000000/dfr=0xfffffff",
            Topology((VcpuState(1, id=5, ldr=2 << 24, dfr=DFR_CLUSTER),)),
        ),
    ],
)
def test_text_is_understood(text, topology):
    assert Topology.parse(text) == topology


WORDS = (
    "disabled xapic x2apic bsp ap sw-disabled eoi-suppressed nmi-masked shadow smm runnable "
    "uninitialized init-received halted sipi-received ap-reset-hold unmapped id= ldr= dfr= tpr= "
    "nmi= smi= init= arb_prio= irr= isr= tmr="
)


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "0 spilt",
            "topology: 'spilt' is neither a vCPU (a number, then /words) nor one of none full "
            "split x2apic_api= mapped_api= boot= no-vector-hashing no-smm",
        ),
        ("x2apic_api=on", "x2apic_api: 'on' is not a number"),
        ("x2apic_api=-1", "x2apic_api: -1 does not fit 32 bits"),
        ("0 1 0/halted", "topology: two vCPUs have the vCPU ID 0"),
        ("0 1x", "vCPU '1x': '1x' is not a number"),
        ("0 1/", f"vCPU '1/': '' is none of {WORDS}"),
        ("1/halt", f"vCPU '1/halt': 'halt' is none of {WORDS}"),
        ("1/ldr", f"vCPU '1/ldr': 'ldr' is none of {WORDS}"),
        ("1/ppr=0", f"vCPU '1/ppr=0': 'ppr=0' is none of {WORDS}"),
        ("1/ldr=", "vCPU '1/ldr=': '' is not a number"),
        ("1/id=-1", "vCPU '1/id=-1': -1 does not fit 32 bits"),
        ("1/id=256", "vCPU '1/id=256': id 0x100 does not fit 8 bits"),
        ("1/smi=2", "vCPU '1/smi=2': smi 0x2 does not fit 1 bits"),
        ("1/irr=", "vCPU '1/irr=': '' is not a number"),
        ("1/irr=0x41+0x100", "vCPU '1/irr=0x41+0x100': irr: 0x100 is not a vector"),
        ("0x100000000", "vCPU '0x100000000': 0x100000000 does not fit 32 bits"),
    ],
)
def test_bad_word_is_named(text, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Topology.parse(text)


@pytest.mark.parametrize(
    "name", ["vcpu_id", "id", "ldr", "dfr", "tpr", "nmi", "smi", "init", "arb_prio", "bsp"]
)
def test_number_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} 0x100000000 does not fit"):
        VcpuState(**{"vcpu_id": 0} | {name: 1 << 32})
