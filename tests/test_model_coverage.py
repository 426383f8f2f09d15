# SPDX-License-Identifier: GPL-2.0-only
"""The sweep and the generated sequences take every branch of the model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.copy_of_the_suite import ROOT

RULES = "helpers/apic/model.py"
SUITES = ("suites/test_sweep.py", "suites/test_generated.py")


@pytest.mark.timeout(300)
def test_every_branch_of_the_model_is_taken(tmp_path):
    coverage = [sys.executable, "-m", "coverage"]
    data = f"--data-file={tmp_path / 'coverage'}"
    run = [*coverage, "run", data, "--append", "--branch", f"--include={RULES}", "-m"]
    pytest_options = ["-q", "-p", "no:cacheprovider"]
    for command in (["pytest", *SUITES, *pytest_options], ["tests.other_kernels"]):
        subprocess.run([*run, *command], cwd=ROOT, check=True)
    report = [*coverage, "report", data, "--show-missing", "--fail-under=100"]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
