# SPDX-License-Identifier: GPL-2.0-only
"""A KVM that lies fails the suite, and the test made for the lie is among the failures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.copy_of_the_suite import ROOT, run_pytest
from tests.liar import LIES

CAUGHT_BY = {
    "always-1": "test_return_value.py::test_software_disabled_lapic_blocks_vectors",
    "always-0": "test_return_value.py::test_delivered_message_returns_above_0",
    "always-einval": "test_capability.py::test_advertised_ioctl_delivers",
    "flags-not-checked": "test_flags.py::test_undefined_flag_is_rejected",
    "delivers-to-all": "test_destination.py::test_physical_destination_is_one_lapic",
    "never-delivers": "test_guest.py::test_every_vector_is_taken_once",
    "delivers-twice": "test_guest.py::test_vector_is_taken_once",
    "next-vector": "test_message.py::test_vector_is_raised",
    "wrong-vcpu": "test_guest.py::test_only_the_destination_takes_it",
    "tmr-wrong": "test_message.py::test_tmr_is_the_trigger_mode",
    "writes-to-the-struct": "test_abi.py::test_structure_is_not_written",
    "null-accepted": "test_abi.py::test_unreadable_address_faults[null]",
}


UNSWEPT = {"flags-not-checked", "delivers-twice", "writes-to-the-struct", "null-accepted"}
"""Lies that the sweep cannot see.

No message of the sweep has flags, padding or a NULL pointer. A second delivery shows only when the
guest runs.
"""


@dataclass(frozen=True)
class Judgement:
    """The verdict of the suite: tests that failed, tests with an error, and all others."""

    exit_code: int
    failed: list[str]
    errors: list[str]
    others: list[str]

    def names(self, test: str) -> bool:
        """Whether ``test`` failed. Without parameters in its name, any parameters count."""
        return any(f"{nodeid}[".startswith(f"suites/{test}[") for nodeid in self.failed)


def judge(lie: str, file: Path, timeout: int) -> Judgement:
    """Run the whole suite on a KVM that lies."""
    options = ["-n", "2", "-q", "--tb=no", f"--timeout={timeout}"]
    liar = ["-p", "tests.liar", f"--lie={lie}", f"--caught={file}"]
    run = run_pytest(ROOT, "suites", *options, *liar)
    assert file.exists(), run.output
    return Judgement(run.exit_code, **json.loads(file.read_text()))


def test_every_lie_has_its_test():
    assert CAUGHT_BY.keys() == LIES.keys() - {"no-lie"}


@pytest.mark.timeout(900)
def test_suite_is_green_without_a_lie(tmp_path):
    judgement = judge("no-lie", tmp_path / "caught.json", timeout=60)
    assert (judgement.failed, judgement.errors, judgement.exit_code) == ([], [], 0)
    assert judgement.others


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lie", CAUGHT_BY)
def test_suite_sees_through(lie, tmp_path, record_property):
    judgement = judge(lie, tmp_path / "caught.json", timeout=5)
    examples = ", ".join(judgement.failed[:3])
    record_property("caught", f"{lie}: caught by {len(judgement.failed)} tests: {examples}")
    assert judgement.errors == []
    assert judgement.names(CAUGHT_BY[lie])
    assert judgement.names("test_sweep.py::test_one_message_of_each_kind") == (lie not in UNSWEPT)
    assert judgement.exit_code == pytest.ExitCode.TESTS_FAILED
