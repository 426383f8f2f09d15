# SPDX-License-Identifier: GPL-2.0-only
"""The known deviations of a test decide what the outcome means."""

from __future__ import annotations

import pytest

from helpers.guest import Mismatch
from helpers.spec import KERNEL_LOG, Deviation
from helpers.verdicts.judge import Judgement, explanation, judge
from helpers.verdicts.kernel import Kernel

KERNEL = Kernel("6.1.0", (6, 1), "kvm_amd", "", {}, {})
SHOWS = (("return value", "1", "0"),)
ALWAYS = Deviation("always", "S.", SHOWS, "e")
OLD = Deviation("old", "S.", SHOWS, before="6.3", fixed="abc")
OLDER = Deviation("older", "S.", SHOWS, before="5.11", fixed="abc")
HOST = Deviation("host", "S.", SHOWS, "e", vendor="kvm_amd")
OTHER_HOST = Deviation("other-host", "S.", SHOWS, "e", vendor="kvm_pvm")
OTHER = Deviation("other", "S.", (("return value", "1", "2"),), "e")

SHOWN = Mismatch("return value", "1", "0")

WARNS = Deviation("warns", "S.", ((KERNEL_LOG, "no complaint", "WARNING in kvm_f"),), "e")


@pytest.mark.parametrize(
    "known, deviation",
    [
        ([ALWAYS], "always"),
        ([OLD], "old"),
        ([HOST], "host"),
        ([OLDER, OTHER_HOST, OTHER, OLD, ALWAYS], "old"),
    ],
    ids=["every", "version", "host", "first-that-explains"],
)
def test_known_mismatch_is_xfailed(known, deviation):
    note = f"known deviation {deviation}: S."
    assert judge(known, KERNEL, SHOWN) == Judgement("xfailed", deviation, note=note)
    assert explanation(known, KERNEL, SHOWN) in known


@pytest.mark.parametrize(
    "known", [[], [OLDER], [OTHER_HOST], [OTHER]], ids=["none", "version", "host", "mismatch"]
)
def test_unknown_mismatch_stays_a_failure(known):
    judgement = judge(known, KERNEL, SHOWN)
    assert (judgement.outcome, judgement.deviation, judgement.backport) == ("", "", False)
    assert all(entry.id in judgement.note for entry in known)
    assert explanation(known, KERNEL, SHOWN) is None


def test_other_error_is_no_mismatch():
    assert judge([ALWAYS], KERNEL, AssertionError("return value: 0")) == Judgement()
    assert explanation([ALWAYS], KERNEL, OSError("0")) is None


@pytest.mark.parametrize("known", [[], [OLDER], [OTHER_HOST]], ids=["none", "version", "host"])
def test_pass_without_a_deviation_of_this_kernel_has_no_note(known):
    assert judge(known, KERNEL, None) == Judgement()


def test_pass_in_spite_of_a_deviation_of_the_version_is_a_backport():
    note = "the known deviation old (before Linux 6.3) did not occur: "
    note += "the kernel has a backport of abc (6.3)"
    assert judge([OLDER, OLD], KERNEL, None) == Judgement("", "old", backport=True, note=note)


def test_pass_in_spite_of_a_deviation_of_every_kernel_is_noted():
    note = "the known deviation always (every kernel so far) did not occur"
    assert judge([ALWAYS], KERNEL, None) == Judgement("", "always", backport=True, note=note)


def test_pass_in_spite_of_a_deviation_of_the_host_is_a_failure():
    judgement = judge([HOST], KERNEL, None)
    assert judgement[:3] == ("failed", "host", False)
    assert "correct the entry in helpers/spec/deviations.toml" in judgement.note


@pytest.mark.parametrize(
    "error, outcome",
    [
        (Mismatch(KERNEL_LOG, "no complaint", "WARNING in kvm_f"), "xfailed"),
        (Mismatch(KERNEL_LOG, "no complaint", "WARNING in kvm_f, WARNING in kvm_g"), ""),
        (Mismatch(KERNEL_LOG, "no complaint", "WARNING in kvm_g"), ""),
    ],
    ids=["known", "known-and-other", "other"],
)
def test_known_warning_of_the_kernel_is_xfailed(error, outcome):
    assert judge([WARNS], KERNEL, error).outcome == outcome


def test_silence_proves_nothing_where_a_warning_is_logged_once():
    assert judge([WARNS], KERNEL, None).backport
    assert judge([WARNS], KERNEL, None, muted=True) == Judgement()
    assert judge([WARNS, ALWAYS], KERNEL, None, muted=True).deviation == "always"
