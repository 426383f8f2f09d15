# SPDX-License-Identifier: GPL-2.0-only
"""The register page: a write changes its register, and no other byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.apic import LapicPage, Register, show_vectors
from helpers.apic.lapic import DFR_CLUSTER, DFR_FLAT, PAGE_SIZE, x2apic_ldr

VECTOR_REGISTERS = [Register.ISR, Register.TMR, Register.IRR]
WIDE = pytest.mark.parametrize("register", VECTOR_REGISTERS, ids=lambda register: register.name)

vectors = st.frozensets(st.integers(0, 255))


@pytest.fixture
def page() -> LapicPage:
    """A page of zeros."""
    return LapicPage()


@pytest.mark.parametrize("register", Register, ids=lambda register: register.name)
def test_register_is_read_as_written(page, register):
    page[register] = 0x89ABCDEF
    assert page[register] == 0x89ABCDEF
    assert page.raw[register : register + 4] == b"\xef\xcd\xab\x89"
    assert page.raw.count(0) == PAGE_SIZE - 4


@given(st.binary(min_size=PAGE_SIZE, max_size=PAGE_SIZE))
def test_page_keeps_its_bytes(raw):
    page = LapicPage(raw)
    for offset in range(0, PAGE_SIZE, 4):
        page[offset] = page[offset]
    assert bytes(page.raw) == raw


@pytest.mark.parametrize("size", [0, 1023, 1025, 4096])
def test_page_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match=f"1024 bytes, not {size}"):
        LapicPage(bytes(size))


@WIDE
@pytest.mark.parametrize("vector", range(256), ids="{:#04x}".format)
def test_vector_is_one_bit(page, register, vector):
    page.set_vectors(register, [vector])
    assert page.vectors(register) == {vector}
    assert page[register + vector // 32 * 16] == 1 << vector % 32
    assert page.raw.count(0) == PAGE_SIZE - 1


@given(vectors, vectors, vectors)
def test_vector_registers_do_not_touch_each_other(isr, tmr, irr):
    page = LapicPage()
    for register, content in zip(VECTOR_REGISTERS, (isr, tmr, irr), strict=True):
        page.set_vectors(register, content)
    assert (page.isr, page.tmr, page.irr) == (isr, tmr, irr)
    for register in VECTOR_REGISTERS:
        page.set_vectors(register, ())
    assert page == LapicPage()


def test_setting_vectors_clears_the_others(page):
    page.set_vectors(Register.IRR, range(256))
    page.set_vectors(Register.IRR, [0x41])
    assert page.irr == {0x41}


def test_copy_is_another_page(page):
    copy = page.copy()
    copy[Register.TPR] = 1
    assert page[Register.TPR] == 0
    assert page != copy


def test_pages_are_compared_by_content(page):
    assert page == LapicPage()
    assert page != bytes(PAGE_SIZE)


def test_id_is_in_the_top_byte(page):
    page[Register.ID] = 0x12345678
    assert page.xapic_id == 0x12


@pytest.mark.parametrize("svr, enabled", [(0xFF, False), (0x1FF, True), (0x100, True)])
def test_software_enabled_is_bit_8_of_svr(page, svr, enabled):
    page[Register.SVR] = svr
    assert page.software_enabled is enabled


@pytest.mark.parametrize(
    "x2apic_id, ldr",
    [(0, 0x1), (15, 0x8000), (16, 0x10001), (300, 0x121000), (0xFFFFF, 0xFFFF8000), (0x100001, 2)],
    ids=["0", "15", "16", "300", "0xfffff", "beyond-its-bits"],
)
def test_x2apic_ldr_is_cluster_and_bit(x2apic_id, ldr):
    assert x2apic_ldr(x2apic_id) == ldr


def test_vectors_are_shown_sorted():
    assert show_vectors([0x52, 0x41, 5]) == "{0x05 0x41 0x52}"
    assert show_vectors(()) == "{}"


@pytest.mark.parametrize(
    "dfr, model", [(DFR_FLAT, "flat"), (DFR_CLUSTER, "cluster"), (0x1FFFFFFF, "0x1fffffff")]
)
def test_repr_shows_what_matters(page, dfr, model):
    for register, value in ((Register.ID, 2 << 24), (Register.LDR, 4 << 24), (Register.DFR, dfr)):
        page[register] = value
    page[Register.SVR], page[Register.TPR], page[Register.PPR] = 0x1FF, 0x20, 0x40
    page.set_vectors(Register.ISR, [0x41])
    page.set_vectors(Register.IRR, [0x52, 0x51])
    assert repr(page) == (
        f"<LAPIC ID=0x02000000 SVR=0x1ff (enabled) LDR=0x04000000 DFR={model} TPR=0x20 PPR=0x40 "
        "ISR={0x41} IRR={0x51 0x52} TMR={}>"
    )


def test_repr_of_a_disabled_lapic_says_so(page):
    assert "(software-disabled)" in repr(page)
