# SPDX-License-Identifier: GPL-2.0-only
"""Kernels booted in Bochs: ``tox -e intel``. The first test builds Bochs, which takes minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.copy_of_the_suite import ROOT, run_pytest
from tests.test_booted_kernels import processes, until

pytestmark = pytest.mark.timeout(1800)


def test_one_report_has_columns_of_amd_and_intel(tmp_path):
    found = f"--results={tmp_path}"
    cpus = ("--cpu=amd", "--cpu=intel")
    run = run_pytest(ROOT, "suites/test_capability.py", "--kernel=6.12", *cpus, found)
    assert run.exit_code == 0, run.output
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    parameters = {name: each["kernel"]["parameters"] for name, each in results.items()}
    apicv = {name: parameters[name].get("kvm_intel.enable_apicv") for name in parameters}
    assert apicv == {
        "6.12-amd": None,
        "6.12-intel enable_apicv=1": "Y",
        "6.12-intel enable_apicv=0": "N",
    }
    verdicts = [each["results"] for each in results.values()]
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_program_is_judged_as_python_is(tmp_path):
    program, suite = tmp_path / "msi_test.c", "suites/test_flags.py"
    command = [sys.executable, "-m", "helpers.program", "-o", str(program), suite]
    subprocess.run(command, cwd=ROOT, check=True)
    booted = (suite, "--kernel=6.12", "--cpu=intel", "--kvm-param=enable_apicv=1", "-rA")
    python, c = (run_pytest(ROOT, *booted, *more) for more in ([], [f"--program={program}"]))
    assert (python.exit_code, c.exit_code) == (0, 0), python.output + c.output
    assert "kvm_intel" in c.output
    passed = set(c.lines_with("PASSED suites"))
    assert len(passed) > 80
    assert passed <= set(python.lines_with("PASSED suites"))


DYING = """
import os, pathlib, signal
from helpers.verdicts import parallel

@clause("msi.pad")
def test_before(): pass

@clause("msi.pad")
def test_panic(): pathlib.Path("/proc/sysrq-trigger").write_text("c")

@clause("msi.pad")
def test_between(): pass

@clause("msi.pad")
def test_hang(): os.kill(os.getpid(), signal.SIGSTOP)

@clause("msi.pad")
def test_after(): pass

@clause("msi.pad")
@parallel
def test_two_processors(): assert os.cpu_count() == 2
"""


def test_kernel_that_dies_costs_the_test_that_ran(suite):
    suite.add(DYING)
    run = suite.run(
        "--kernel=6.12", "--cpu=intel", "--kvm-param=enable_apicv=1", "--timeout=5", "-rA"
    )
    passed = {line.split("::")[1] for line in run.lines_with("PASSED suites")}
    failed = {line.split("::")[1].split()[0] for line in run.lines_with("FAILED suites")}
    assert passed == {"test_before", "test_between", "test_after", "test_two_processors"}
    assert failed == {"test_panic", "test_hang"}
    assert run.lines_with("the kernel died in this test")
    assert run.lines_with("Kernel panic - not syncing: sysrq triggered crash")
    assert run.lines_with("no sign of life for too long: the kernel hangs in this test")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_interrupted_run_leaves_no_process(suite, sent):
    suite.add("import time\n@clause('msi.pad')\ndef test_it(): time.sleep(600)")
    mark = f"MARK={suite.path}"
    command = [sys.executable, "-m", "pytest", "suites", "--kernel=6.12", "--cpu=intel", "-q"]
    environment = os.environ | {"MARK": str(suite.path)}
    with subprocess.Popen(command, cwd=suite.path, env=environment, stdout=subprocess.PIPE) as run:
        until(lambda: "bochs" in processes(mark))
        run.send_signal(sent)
        run.communicate(timeout=60)
    until(lambda: not processes(mark))
