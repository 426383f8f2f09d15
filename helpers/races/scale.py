# SPDX-License-Identifier: GPL-2.0-only
"""The cost of a message, and of a build of KVM's map of LAPICs, by the number of vCPUs.

A C loop makes one call again and again; none of the vCPUs runs. Beside it stands the cost of an
ioctl that does nothing, KVM_CHECK_EXTENSION, in the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from helpers.apic import ApicMode, DestinationMode, Message
from helpers.guest import Machine, Mismatch, msi_of
from helpers.kvm import System, abi
from helpers.races.race import Call, Race, ioctl_call, message_call
from helpers.races.soak import available_kilobytes

_SIZES = (1, 8, 64, 255, 1024)
_MEASURED = ("one", "cluster", "all", "rebuild")

_REPEATS = 3  # The fastest one counts.
_NANOSECONDS = 20_000_000  # That a loop takes, about.
_BOTH = abi.KVM_X2APIC_API_USE_32BIT_IDS | abi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
_CLUSTER = 16
_KILOBYTES_PER_VCPU = 300  # In the kernel and in the guest, with room to spare.


@dataclass(frozen=True, slots=True)
class Point:
    """Nanoseconds per call in a VM of ``vcpus`` vCPUs.

    ``one``, ``cluster``, ``all``: a message to the last vCPU, to the cluster of vCPU 0, to all.
    ``rebuild``: a KVM_SET_LAPIC, after which KVM builds its map again. ``plain``: an ioctl that
    does nothing.
    """

    vcpus: int
    one: float
    cluster: float
    all: float
    rebuild: float
    plain: float


def sizes(most: int) -> list[int]:
    """Return numbers of vCPUs up to ``most`` (KVM_CAP_MAX_VCPUS), for which there is memory."""
    wanted = sorted({size for size in (*_SIZES, most) if size <= most})
    return [size for size in wanted if size * _KILOBYTES_PER_VCPU < available_kilobytes()]


def measure(system: System, vcpus: int) -> Point:
    """Measure in a new VM of x2APICs. Raises Mismatch if a message has a wrong return value."""
    with Machine(
        system, vcpu_ids=range(vcpus), apic_mode=ApicMode.X2APIC, x2apic_api=_BOTH
    ) as machine:
        messages = {
            Message(destination=vcpus - 1): 1,
            Message(destination=0xFFFF, destination_mode=DestinationMode.LOGICAL): min(
                vcpus, _CLUSTER
            ),
            Message(destination=0xFFFFFFFF): vcpus,
        }
        calls = [
            replace(message_call(str(each), machine.fd, msi_of(each)), expected=count)
            for each, count in messages.items()
        ]
        vcpu = machine[vcpus - 1].vcpu
        calls.append(ioctl_call("KVM_SET_LAPIC", vcpu.fd, abi.KVM_SET_LAPIC, vcpu.get_lapic()))
        calls.append(ioctl_call("KVM_CHECK_EXTENSION", machine.fd, abi.KVM_CHECK_EXTENSION, -1))
        return Point(vcpus, *(_nanoseconds(replace(call, pause=0)) for call in calls))


def _nanoseconds(call: Call) -> float:
    """Return the time of one call in the fastest of some loops."""
    first = _loop(call, 3)
    count = max(3, min(20_000, int(_NANOSECONDS / first)))
    return min(_loop(call, count) for _ in range(_REPEATS))


def _loop(call: Call, count: int) -> float:
    race = Race([[[call] * count]], [[]], rounds=1, seed=1)
    start = time.perf_counter_ns()
    race.run()
    passed = time.perf_counter_ns() - start
    for _, got in race.results(0):
        if got != call.expected:
            raise Mismatch("return value", str(call.expected), str(got), call.name)
    return passed / count


def _ratio(point: Point, first: Point, name: str) -> float:
    return float(getattr(point, name) / getattr(first, name))


def table(points: Sequence[Point]) -> Iterator[str]:
    """Yield lines: what each call costs, and how many times as much as with the fewest vCPUs."""
    first = points[0]
    for point in points:
        costs = ", ".join(
            f"{name} {getattr(point, name):,.0f} ns ({_ratio(point, first, name):.1f})"
            for name in _MEASURED
        )
        yield (
            f"{point.vcpus:,} vCPUs: {costs}, {1e9 / point.one:,.0f} messages/s to one, "
            f"plain ioctl {point.plain:,.0f} ns"
        )


# --- the plot -------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _MARGIN = 520, 260, 40
_COLORS = {"one": "#1a7f37", "cluster": "#0969da", "all": "#cf222e", "rebuild": "#8250df"}


def plot(points: Sequence[Point]) -> str:
    """Return an SVG: the cost of each call as a multiple of the first point's, both axes log."""
    most = max(_ratio(p, points[0], name) for p in points for name in _MEASURED)
    decades = max(1, math.ceil(math.log10(max(most, 1))))
    last = math.log2(max(2, points[-1].vcpus))

    def x(vcpus: int) -> float:
        return _MARGIN + math.log2(vcpus) / last * (_WIDTH - 2 * _MARGIN)

    def y(ratio: float) -> float:
        share = math.log10(max(ratio, 1)) / decades
        return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="520">']
    for exponent in range(decades + 1):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{_MARGIN} {at:.0f}H{_WIDTH - _MARGIN}" stroke="#ccc"/>')
        parts.append(f'<text x="2" y="{at + 4:.0f}" font-size="11">{10**exponent:,}</text>')
    for point in points:
        place = f'x="{x(point.vcpus):.0f}" y="{_HEIGHT - _MARGIN + 16}"'
        parts.append(f'<text {place} font-size="11" text-anchor="middle">{point.vcpus}</text>')
    for number, (name, color) in enumerate(_COLORS.items()):
        line = " ".join(f"{x(p.vcpus):.1f},{y(_ratio(p, points[0], name)):.1f}" for p in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        place = f'x="{_MARGIN + 8 + 90 * number}" y="14"'
        parts.append(f'<text {place} font-size="12" fill="{color}">{name}</text>')
    return "".join([*parts, "</svg>"])
