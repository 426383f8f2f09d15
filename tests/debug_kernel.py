# SPDX-License-Identifier: GPL-2.0-only
"""A kernel with KASAN and lockdep: ``tox -e debug``. The first test builds it, in half an hour."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from helpers.cache import cache_directory
from helpers.kernels.edits import Edit
from helpers.kernels.packages import Archive
from helpers.spec.kernels import REFERENCE_KERNELS
from tests.copy_of_the_suite import ROOT, run_pytest

pytestmark = pytest.mark.timeout(7200)

SOURCE = f"linux-source-{REFERENCE_KERNELS[-1]}"


@pytest.fixture(scope="module")
def tree():
    """The source of the newest reference kernel, unpacked for these tests alone."""
    directory = cache_directory() / "debug-kernel"
    tree = directory / SOURCE
    if not tree.exists():
        (packed,) = Archive().fetch_packages(SOURCE, [SOURCE]).glob("usr/src/*.tar.xz")
        part = directory / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        subprocess.run(["tar", "-C", part, "-xf", packed], check=True)
        (part / SOURCE).rename(tree)
    return tree


def judge(tree, *arguments):
    return run_pytest(ROOT, *arguments, f"--kernel={tree}", "--config=debug")


def test_whole_suite_finds_no_error_of_the_kernel(tree):
    run = judge(tree, "suites/")
    assert run.exit_code == 0, run.output


BROKEN = {
    "map-is-one-entry-short": (
        "arch/x86/kvm/lapic.c",
        Edit("kvm_recalculate_apic_map", "((u64)max_id + 1)", "(u64)max_id"),
        "suites/test_large_ids.py",
        "BUG: KASAN: slab-out-of-bounds in kvm_recalculate",
    ),
    "routes-read-without-srcu": (
        "virt/kvm/irqchip.c",
        Edit(
            "kvm_set_irq",
            "idx = srcu_read_lock(&kvm->irq_srcu); i = kvm_irq_map_gsi(kvm, irq_set, irq); "
            "srcu_read_unlock(&kvm->irq_srcu, idx);",
            "(void)idx; i = kvm_irq_map_gsi(kvm, irq_set, irq);",
        ),
        "suites/test_routing.py",
        "WARNING: suspicious RCU usage",
    ),
    "irqfd-update-sleeps": (
        "virt/kvm/eventfd.c",
        Edit(
            "irqfd_update",
            "n_entries = kvm_irq_map_gsi(",
            "might_sleep(); n_entries = kvm_irq_map_gsi(",
        ),
        "suites/test_routing.py",
        "BUG: sleeping function called from invalid context",
    ),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_error_is_its_tests(tree, defect):
    name, edit, tests, logged = BROKEN[defect]
    file = tree / name
    whole = file.read_text()
    try:
        file.write_text(edit.apply({name: whole})[1])
        run = judge(tree, tests)
    finally:
        file.write_text(whole)
    assert run.exit_code == 1, run.output
    assert run.outcomes["passed"] > 0
    assert run.lines_with(logged), run.output
