# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin behind ``--record``: each report of a test has the tape of the test.

The process that runs a test records it: this one, a worker of pytest-xdist, or a booted kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator

import pytest

from helpers.guest import GuestError, Mismatch
from helpers.kvm import KvmError, recording
from helpers.record.recorder import Recorder
from helpers.record.reports import attach
from helpers.record.tape import Tape
from helpers.spec import DEVIATIONS
from helpers.verdicts.judge import explanation
from helpers.verdicts.kernel import CAPABILITIES, running_kernel
from helpers.verdicts.session import clause_of, deviations_of, needs_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --record, for the tools that need tapes."""
    parser.addoption("--record", action="store_true", help=argparse.SUPPRESS)


def pytest_configure(config: pytest.Config) -> None:
    """Record where the tests run: options come to workers and guests, too."""
    if config.option.record or config.option.reproducers:
        config.pluginmanager.register(Recording(config.option.record), "kvm-recording")


_SMM = "KVM_CAP_X86_SMM"
_HASHING = "kvm.vector_hashing"
_CHOOSING = ("KVM_CAP_MAX_VCPU_ID", "KVM_CAP_MAX_VCPUS", _SMM)
"""Capabilities by which tests that ask for the kernel choose vCPUs and messages."""


class Recording:
    """Records each test that runs in this process.

    ``tolerates``: a test goes on after a mismatch that a known deviation explains, so that the tape
    has the whole test. The verdict is then of no use.
    """

    def __init__(self, tolerates: bool) -> None:
        self.tolerates = tolerates

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        known = deviations_of(item) if self.tolerates else []

        def explains(subject: str, expected: str, actual: str) -> str | None:
            entry = explanation(known, running_kernel(), Mismatch(subject, expected, actual))
            return entry.id if entry else None

        recording.active = Recorder(explains, ends=not self.tolerates)
        _describe(item, recording.active.tape)
        try:
            return (yield)
        finally:
            recording.active = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        try:
            yield
            if recording.active and self.tolerates:
                recording.active.finish()
                _complete(recording.active)
                _note_model(item, recording.active.tape)
        except Mismatch:
            raise  # the tape has what is owed
        except (KvmError, GuestError):
            if recording.active:
                recording.active.ended_by_error()
            raise
        except Exception as error:
            recording.leave_out(f"the test fails by {type(error).__name__}")
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call" and recording.active:
            attach(report, recording.active.tape)
        return report


def _describe(item: pytest.Item, tape: Tape) -> None:
    """Note what the marks of a test say."""
    clause = clause_of(item)
    tape.clause = clause.id if clause else ""
    tape.deviations = tuple(entry.id for entry in deviations_of(item))
    marks = item.iter_markers("skipif")
    tape.preconditions = tuple((mark.args[0], mark.kwargs["reason"]) for mark in marks)
    tape.needs = tuple(needs_of(item).items())
    if "kernel" in getattr(item, "fixturenames", ()):
        tape.facts = _facts(*_CHOOSING)


def _complete(recorder: Recorder) -> None:
    """Note the capabilities by which a test that has ended chose what to do."""
    asked = recorder.capabilities_asked()
    names = [name for name, value in CAPABILITIES.items() if value in asked]
    tape = recorder.tape
    if recorder.sends_smi:
        names.append(_SMM)
    tape.facts = tuple(dict([*tape.facts, *_facts(*names)]).items())


def _note_model(item: pytest.Item, tape: Tape) -> None:
    """Note by what the model differs from kernel to kernel, if the test asks the model."""
    switches = getattr(item, "funcargs", {}).get("switches")
    if switches is None:
        return
    named = [(entry.id, entry.switch.name) for entry in DEVIATIONS.values() if entry.switch]
    tape.switches = tuple((id, not getattr(switches, name)) for id, name in named)
    if hashing := running_kernel().parameters.get(_HASHING):
        tape.needs = (*tape.needs, (_HASHING, hashing))


def _facts(*names: str) -> tuple[tuple[str, int], ...]:
    capabilities = running_kernel().capabilities
    return tuple((name, capabilities[name]) for name in names)
