# SPDX-License-Identifier: GPL-2.0-only
"""The speed of a sweep, compared with a C loop that only sends the same messages.

``tox -e benchmarks`` measures. A plain run of tests/ executes each benchmark once.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.apic import DeliveryMode, Message
from helpers.apic.model import REFERENCE
from helpers.apic.topologies import TOPOLOGIES
from helpers.guest import Machine, msi_of
from helpers.kvm import System, abi
from helpers.sweep.engine import Sweep
from helpers.sweep.plan import to_every_destination

SOURCE = Path(__file__).with_name("plain_loop.c")
ROUNDS = 3
FIXED = DeliveryMode.FIXED
MAX_RATIO = 4
"""Limit of the time of a sweep, as a multiple of the time of the plain loop."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Callable[[int, abi.kvm_msi, int], None]:
    """The C loop: send a message with each vector, ``rounds`` times."""
    library = tmp_path_factory.mktemp("plain") / "plain_loop.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
    loop = ctypes.CDLL(str(library)).plain_loop
    loop.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]

    def send(fd: int, msi: abi.kvm_msi, rounds: int) -> None:
        data = ctypes.byref(msi, abi.kvm_msi.data.offset)
        loop(fd, abi.KVM_SIGNAL_MSI.number, ctypes.byref(msi), data, rounds)

    return send


@pytest.fixture(scope="module")
def system():
    with System() as opened:
        yield opened


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    """The time of the fastest round, by name of the measured loop."""
    return {}


@pytest.mark.benchmark(group="every fixed message to xapic-flat, 2^20")
def test_plain_loop(benchmark, system, plain, seconds):
    topology = TOPOLOGIES["xapic-flat"]
    messages = [
        msi_of(replace(message, trigger_mode=trigger_mode, level=level))
        for message in to_every_destination(topology, FIXED)
        for trigger_mode in (0, 1)
        for level in (0, 1)
    ]
    sweep = Sweep(system, topology, REFERENCE)

    def loop() -> None:
        for msi in messages:
            plain(sweep.machine.fd, msi, 1)

    benchmark.pedantic(loop, rounds=ROUNDS)
    sweep.close()
    seconds["plain"] = _fastest(benchmark)


@pytest.mark.benchmark(group="every fixed message to xapic-flat, 2^20")
def test_sweep(benchmark, system, seconds):
    sweep = Sweep(system, TOPOLOGIES["xapic-flat"], REFERENCE)
    sent = benchmark.pedantic(sweep.run, (FIXED,), {"exhaustive": True}, rounds=ROUNDS)
    sweep.close()
    assert sent == 1 << 20
    if not benchmark.disabled:
        ratio = _fastest(benchmark) / seconds["plain"]
        benchmark.extra_info["messages a second"] = round(sent / _fastest(benchmark))
        benchmark.extra_info["times the plain loop"] = round(ratio, 2)
        assert ratio <= MAX_RATIO


def _fastest(benchmark) -> float:
    return 0 if benchmark.disabled else benchmark.stats.stats.min


@pytest.mark.benchmark(group="256 messages, by the number of vCPUs")
@pytest.mark.parametrize("vcpus", [1, 8, 64, 255], ids="{}-vcpus".format)
@pytest.mark.parametrize("to", ["one", "all"])
def test_cost_of_a_message(benchmark, system, plain, vcpus, to):
    with Machine(system, vcpu_ids=range(vcpus)) as machine:
        msi = msi_of(Message(destination=vcpus - 1 if to == "one" else 0xFF))
        benchmark.pedantic(plain, (machine.fd, msi, 1), rounds=100, warmup_rounds=5)
