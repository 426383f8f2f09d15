# SPDX-License-Identifier: GPL-2.0-only
"""SIGTERM, as timeout(1) sends it: the run must not end without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

TESTS = """
import pathlib, time

@clause("msi.pad")
def test_before(): assert False

@clause("msi.pad")
def test_long(): pathlib.Path("begun").touch(); time.sleep(600)
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("workers", [0, 1], ids="-n{}".format)
def test_terminated_run_says_what_it_found(suite, workers, whole_group):
    suite.add(TESTS)
    command = [sys.executable, "-m", "pytest", "suites", f"-n{workers}", "--html=report.html"]
    run = subprocess.Popen(
        [*command, "--results=a.json", "-p", "no:cacheprovider"],
        cwd=suite.path,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (suite.path / "begun").exists():
        assert run.poll() is None
        time.sleep(0.05)
    if whole_group:
        os.kill(run.pid, signal.SIGTERM)
        os.killpg(run.pid, signal.SIGTERM)
    else:
        run.terminate()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert "KeyboardInterrupt: SIGTERM" in output
    assert "1 failed in" in output
    assert "test_before" in (suite.path / "report.html").read_text()
    assert "a.json not written: 1 of 2 tests came to no verdict" in output
