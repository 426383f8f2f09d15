# SPDX-License-Identifier: GPL-2.0-only
"""--scale: what is measured, the table and the plot."""

from __future__ import annotations

import pytest

from helpers.guest import Mismatch
from helpers.kvm import System
from helpers.races import scale


@pytest.fixture(scope="module")
def system():
    with System() as opened:
        yield opened


POINTS = [scale.Point(1, 200, 300, 400, 1000, 100), scale.Point(64, 220, 900, 40_000, 3000, 100)]


def test_cost_is_measured(system):
    point = scale.measure(system, 2)
    assert point.vcpus == 2
    assert 0 < point.plain < point.one < point.rebuild


def test_wrong_count_is_noticed(system, monkeypatch):
    monkeypatch.setattr(scale, "_CLUSTER", 1)
    with pytest.raises(Mismatch, match=r"return value: expected 1, got 2, of <Message .* 0xffff>"):
        scale.measure(system, 2)


def test_table_has_ratios_to_the_fewest_vcpus():
    assert list(scale.table(POINTS))[1] == (
        "64 vCPUs: one 220 ns (1.1), cluster 900 ns (3.0), all 40,000 ns (100.0), "
        "rebuild 3,000 ns (3.0), 4,545,455 messages/s to one, plain ioctl 100 ns"
    )


def test_plot_has_a_line_for_each_call():
    drawn = scale.plot(POINTS)
    assert drawn.count("<polyline") == 4
    assert 'points="40.0,220.0 480.0,40.0"' in drawn  # all: 100 times as much, two decades


def test_sizes_are_those_for_which_there_is_memory(monkeypatch):
    assert scale.sizes(4) == [1, 4]
    monkeypatch.setattr(scale, "available_kilobytes", lambda: 100_000)
    assert scale.sizes(4096) == [1, 8, 64, 255]
