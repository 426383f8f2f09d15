# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--kernel``: run the tests in booted kernels, report them as if run here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.guest.assemble import AssemblyError
from helpers.kernels import emulators
from helpers.kernels.boot import Guest, Images, slots
from helpers.kernels.build import CONFIGS
from helpers.kernels.columns import Boot, boots
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import MATRIX, Choices
from helpers.kernels.run import BootedRun, Reports
from helpers.spec.architectures import ARCHITECTURES, X86_64, Architecture, running
from helpers.spec.kernels import DEFAULT_KERNEL, REFERENCE_KERNELS
from helpers.spec.parameters import PARAMETERS
from helpers.verdicts.session import CANNOT_RUN, VERDICTS, is_parallel, judges_suites

REFERENCES = "references"
"""The value of --kernel that stands for all reference kernels."""


class Hooks:
    """The hooks that other plugins can implement."""

    @pytest.hookspec(firstresult=True)
    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str] | None:
        """Return the node ids of the tests that a column runs, in order; None for all.

        ``column`` is the label of a kernel under test, ``items`` are the collected tests.
        """

    @pytest.hookspec(firstresult=True)
    def pytest_kvm_launcher(self, session: pytest.Session) -> Callable[[Boot], Guest] | None:
        """Return the function that boots a guest in place of one that runs pytest; or None."""

    @pytest.hookspec(firstresult=True)
    def pytest_kvm_program(self, report: pytest.TestReport) -> bytes | None:
        """Return a program that does what a failed test did; None if there is none."""

    @pytest.hookspec(firstresult=True)
    def pytest_kvm_run_program(self, program: bytes) -> str | None:
        """Run such a program in the guest, where the test failed. Return the outcome."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add pytest_kvm_column_tests."""
    pluginmanager.add_hookspecs(Hooks)


_EACH: dict[str, Any] = {"action": "append", "default": []}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kernel, --arch, --cpu, --config, --kvm-modules, --kvm-param and --maxfail-each."""
    group = parser.getgroup("kernels")
    group.addoption(
        "--arch",
        choices=ARCHITECTURES,
        default=(running() or X86_64).name,
        help="judge KVM of this architecture, by the tests for it; arm64 on another machine needs "
        "--kernel, which boots an arm64 kernel in software emulation; default: this machine's",
    )
    group.addoption(
        "--kernel",
        metavar="SPEC",
        **_EACH,
        help="test this kernel, booted in an emulator: a version such as 6.12 (Debian's newest "
        "package of that series), a package's full version, a bzImage, a kernel build tree, or "
        f"'{REFERENCES}' ({', '.join(REFERENCE_KERNELS)}); repeat it for several kernels in one "
        "report; with -n N, N of them at a time",
    )
    group.addoption(
        "--cpu",
        choices=emulators.CPUS,
        **_EACH,
        help="boot the kernels on this processor: amd (QEMU's SVM, without AVIC), intel (Bochs's "
        "VMX, with APICv on and off; the first use builds Bochs, which takes minutes) or host "
        "(this machine's own, whose KVM must nest); repeat it for several in one report; default: "
        "host where it nests, else amd",
    )
    group.addoption(
        "--maxfail-each",
        metavar="NUM",
        type=_count,
        default=0,
        help="leave a booted kernel after NUM failures, and go on with the others",
    )
    _add_build_options(group)


def _count(text: str) -> int:
    """Return the value of an option that counts."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _add_build_options(group: pytest.OptionGroup) -> None:
    """Add the options for what is built and loaded."""
    group.addoption(
        "--config",
        choices=CONFIGS,
        help="build each --kernel, a kernel source tree, outside the tree with this configuration: "
        "minimal (all that the tests need) or debug (with KASAN, lockdep and other checks of the "
        "kernel's own)",
    )
    group.addoption(
        "--kvm-modules",
        metavar="DIR",
        **_EACH,
        help="test the kvm.ko and kvm-amd.ko or kvm-intel.ko below DIR, built for a --kernel of "
        "the run; repeat it for several sets, each on the same boot",
    )
    group.addoption(
        "--kvm-param",
        metavar="NAME=VALUE[,VALUE]",
        **_EACH,
        help="set a parameter of KVM's modules in all booted kernels: vector_hashing=N or "
        "kvm_amd.avic=1; several values (Y,N) make a column each, several such options a column "
        f"for each combination; '{MATRIX}' adds a column for the other value of each of these "
        f"switches that the booted kernel has and can turn: {', '.join(PARAMETERS)}; KVM is "
        "reloaded for a column, or booted if it is built in",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Find the kernels, and take the run over from pytest-xdist."""
    option = config.option
    if hasattr(config, "workerinput") or option.collectonly:
        return
    architecture = ARCHITECTURES[option.arch]
    _check(config, architecture)
    is_default = not option.kernel and judges_suites(config) and not _has_kvm()
    if not (is_default or option.kernel):
        others = (option.cpu, option.config, option.kvm_modules, option.kvm_param)
        if any(others) or option.program is not None:
            raise pytest.UsageError(
                "--cpu, --config, --kvm-modules, --kvm-param and --program are for kernels that "
                "are booted: name one by --kernel, such as --kernel=6.12"
            )
        return
    if option.usepdb or option.trace:
        raise pytest.UsageError("--pdb and --trace cannot reach into a booted kernel")
    option.kernel = [DEFAULT_KERNEL] if is_default else list(expand(option.kernel))
    capture = config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():  # apt shows its progress
            choices = Choices.parse(option.kvm_param)
            chosen = emulators.chosen(option.cpu, architecture)
            for emulator in chosen:
                emulator.require()
            found = boots(
                option.kernel, option.kvm_modules, choices, chosen, option.cpu, option.config
            )
    except KernelError as reason:
        text = f"no /dev/kvm on this machine, and: {reason}" if is_default else str(reason)
        if is_default:
            config.stash[CANNOT_RUN] = text
        raise pytest.UsageError(text) from None
    wanted = option.numprocesses if isinstance(option.numprocesses, int) else None
    option.numprocesses, option.dist, option.tx = None, "no", []
    booted = BootedKernels(found, slots(wanted, found), choices.matrix, is_default)
    config.pluginmanager.register(booted, "kvm-booted-kernels")


def _has_kvm() -> bool:
    """Return whether to judge this machine, which a machine of no known kind refuses later."""
    return Path("/dev/kvm").exists() or running() is None


def _check(config: pytest.Config, architecture: Architecture) -> None:
    """Raise UsageError for what an architecture cannot do, here or at all."""
    option = config.option
    if architecture is not (running() or X86_64):
        if architecture is X86_64:
            raise pytest.UsageError("--arch=x86_64 needs an x86-64 machine")
        if not option.kernel and judges_suites(config):
            raise pytest.UsageError(
                f"--arch={architecture.name} needs a kernel to boot on this machine, such as "
                f"--kernel={DEFAULT_KERNEL}"
            )
    if architecture is not X86_64:
        given = {name: getattr(option, name, None) for name in _X86_ONLY}
        for name in (name for name, value in given.items() if value not in (None, [], False)):
            raise pytest.UsageError(
                f"--{name.replace('_', '-')} is for x86-64: --arch={architecture.name} does not "
                "have it"
            )


_X86_ONLY = (
    *("cpu", "config", "kvm_modules", "kvm_param"),
    *("program", "reproducers", "record", "exhaustive"),
)


def expand(specs: Sequence[str]) -> Iterator[str]:
    """Replace REFERENCES by the reference kernels."""
    for spec in specs:
        yield from REFERENCE_KERNELS if spec == REFERENCES else [spec]


class BootedKernels:
    """The plugin of a run over booted kernels, on the host."""

    def __init__(
        self,
        boots: list[Boot],
        slots: int,
        matrix: bool,
        is_default: bool,
    ) -> None:
        self.boots = boots
        self.slots = slots
        self.matrix = matrix
        self.is_default = is_default
        self.failed: dict[Any, bool] = {}
        self.refused: Mapping[str, str] = {}
        self.columns = {
            column.label: boot
            for boot in boots
            if not boot.emulator.parallel
            for column in boot.columns
        }

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Make the columns known to the reports, in order."""
        for label, boot in self.columns.items():
            session.config.stash[VERDICTS].tally(label).tree = boot.kernel.tree

    def pytest_report_header(self) -> list[str]:
        lines = [
            f"kernel under test: {label}, on Linux {boot.kernel.release} in {boot.emulator.name}"
            for label, boot in self.columns.items()
        ]
        if self.matrix:
            lines.append("more columns: the switches that a booted kernel has (--kvm-param=matrix)")
        if self.is_default:
            lines.insert(0, f"no /dev/kvm here: judging Debian's kernel {DEFAULT_KERNEL} instead")
        return lines

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests in guests, in place of pytest's own loop."""
        config = session.config
        if session.testsfailed and not config.option.continue_on_collection_errors:
            return None  # pytest's own loop reports the collection errors
        if reporter := config.pluginmanager.getplugin("terminalreporter"):
            reporter.showfspath = False  # tests of several files run at a time
        try:
            launch = self._launcher(session)
        except (AssemblyError, KernelError) as reason:
            raise pytest.UsageError(str(reason)) from None

        reports = Reports(session, config.stash[VERDICTS], len(self.columns))
        run = BootedRun(reports, self.boots, launch, self.slots, matrix=self.matrix)
        self.refused = run.refused
        run.run()
        return True

    def _launcher(self, session: pytest.Session) -> Callable[[Boot], Guest]:
        """Return the function that boots a guest. Raises AssemblyError and KernelError."""
        launcher: Callable[[Boot], Guest] | None
        launcher = session.config.hook.pytest_kvm_launcher(session=session)
        if launcher is not None:
            return launcher
        images = _images(session.config)
        threaded = sorted({str(item.path) for item in session.items if is_parallel(item)})
        return lambda boot: Guest(boot, images.of(boot, threaded if boot.emulator.parallel else ()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[getattr(report, "id", report.nodeid)] = True  # as pytest 9.2 keys them

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Remember failures for --lf, and fail for every kernel that could not be judged."""
        if last_failed := session.config.pluginmanager.getplugin("lfplugin"):
            # pytest forgets a failure when the same id passes on another kernel.
            last_failed.lastfailed.update(self.failed)
        if any(tally.broken for tally in session.config.stash[VERDICTS].tallies.values()):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for label, reason in self.refused.items():
            terminalreporter.write_line(f"{label} is no column: {reason}")


def _images(config: pytest.Config) -> Images:
    # Descriptors need no capturing: the console takes what is written to them.
    argv = ["-u", "-m", "pytest", "-p", "helpers.kernels.worker", "--capture=sys"]
    argv += map(str, config.invocation_params.args)
    environ = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
    # Plugins give their workers data by pytest-xdist's hook, such as a random seed.
    worker: dict[str, object] = {"workerid": "guest"}
    if configure := getattr(config.hook, "pytest_configure_node", None):
        configure(node=SimpleNamespace(config=config, workerinput=worker))
    return Images(argv, environ, worker, ARCHITECTURES[config.option.arch])
