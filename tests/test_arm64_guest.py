# SPDX-License-Identifier: GPL-2.0-only
"""The arm64 guest without an arm64 kernel: its assembling, its memory map, and the checks."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest

from helpers.arm64 import Sent, assemble, layout
from helpers.arm64.sent import show
from helpers.guest import Mismatch
from helpers.guest.assemble import AssemblyError
from helpers.its import Message, registers

NEEDS_BINUTILS = pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-as"), reason="binutils-aarch64-linux-gnu is not installed"
)
BRANCH = 0x14000000
"""The opcode of an unconditional branch, in bits 31:26."""


# --- assembling -----------------------------------------------------------------------------------


@NEEDS_BINUTILS
def test_stub_has_aligned_vectors_that_all_branch():
    code = assemble.stub()
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code), 4)]
    assert layout.CODE + len(code) <= layout.CONFIG
    assert all(words[0x800 // 4 + 32 * vector] & 0xFC000000 == BRANCH for vector in range(16))


@NEEDS_BINUTILS
def test_only_the_irq_vector_leads_to_the_irq_handler():
    code = assemble.stub()
    targets = []
    for vector in range(16):
        at = 0x800 + 128 * vector
        targets.append(at + 4 * (int.from_bytes(code[at : at + 3], "little")) - (1 << 28))
    targets = [target & 0xFFFFFF for target in targets]
    assert [vector for vector in range(16) if targets.count(targets[vector]) == 1] == [5]


def test_missing_assembler_is_one_line_that_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(AssemblyError) as raised:
        assemble.build()
    assert str(raised.value) == (
        "aarch64-linux-gnu-as and aarch64-linux-gnu-objcopy not found: the arm64 guest is "
        "assembled with binutils (on Debian: apt-get install binutils-aarch64-linux-gnu)"
    )


@NEEDS_BINUTILS
def test_error_of_the_assembler_is_shown(monkeypatch, tmp_path):
    source = tmp_path / "stub.S"
    source.write_text("no such instruction\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(assemble, "STUB", source)
    with pytest.raises(AssemblyError, match=r"(?s)could not build stub\.S: .*no such instruction"):
        assemble.build()


# --- the memory map -------------------------------------------------------------------------------


def test_parts_of_guest_memory_do_not_overlap():
    parts = [
        (layout.CODE, layout.CONFIG),
        (layout.CONFIG, layout.CONFIG_END),
        (layout.PENDING, layout.PENDING + 8 * layout.PENDING_SIZE),
        (layout.TABLES, layout.TABLES + 2 * layout.TABLES_SIZE),
    ]
    assert all(end <= start for (_, end), (start, _) in pairwise(parts))
    assert parts[-1][1] <= layout.RAM + layout.RAM_SIZE


def test_devices_do_not_overlap():
    frames = [(layout.GICD, 0x10000), *((its, registers.ITS_SIZE) for its in layout.ITS)]
    frames += [(layout.GICR, 8 * layout.GICR_SIZE), (layout.EXITS, 0x1000)]
    ends = [start + size for start, size in frames]
    assert all(end <= start for end, (start, _) in zip(ends, frames[1:], strict=False))


def test_a_page_of_exits_is_no_memory():
    assert not layout.RAM <= layout.EXITS < layout.RAM + layout.RAM_SIZE


# --- checks of a message --------------------------------------------------------------------------

LPI = (1, 8193)
OTHER = (0, 8192)


def sent(result: int, before=frozenset(), after=frozenset(), errno: int = 0) -> Sent:
    msi = Message().msi
    return Sent(msi, result, errno, (), (), pending_before=before, pending_after=after)


def test_expected_outcome_passes():
    sent(1, after=frozenset({LPI})).returns(1).delivered().pends(LPI)
    sent(1, frozenset({LPI}), frozenset({LPI})).pends(LPI)
    sent(0).blocked().reached_nobody()
    sent(-1, errno=22).fails(22).refused().reached_nobody()
    sent(1, before=None, after=None).pends(LPI)


FAILURES = {
    "returned-0": lambda: sent(0).delivered(),
    "returned-2": lambda: sent(2).returns(1),
    "not-an-error": lambda: sent(0).refused(),
    "other-errno": lambda: sent(-1, errno=16).fails(22),
    "error-for-blocked": lambda: sent(-1, errno=16).blocked(),
    "nothing-pends": lambda: sent(1).pends(LPI),
    "other-vcpu": lambda: sent(1, after=frozenset({(0, 8193)})).pends(LPI),
    "another-too": lambda: sent(1, after=frozenset({LPI, OTHER})).pends(LPI),
    "one-gone": lambda: sent(1, frozenset({OTHER}), frozenset({LPI})).pends(LPI),
    "reached-somebody": lambda: sent(0, after=frozenset({LPI})).reached_nobody(),
}


@pytest.mark.parametrize("check", FAILURES.values(), ids=FAILURES)
def test_unexpected_outcome_is_a_mismatch(check):
    with pytest.raises(Mismatch, match=r"of event 0x0 of device 0x1 to 0x8090040"):
        check()


def test_explanation_has_message_outcome_and_pending_lpis():
    assert sent(1, after=frozenset({LPI, OTHER})).explain().splitlines() == [
        "event 0x0 of device 0x1 to 0x8090040",
        "  returned 1",
        "  pending before: no LPI",
        f"  pending after: {show({LPI, OTHER})}",
    ]
    assert show({LPI, OTHER}) == "LPI 8192 on vCPU 0, LPI 8193 on vCPU 1"
