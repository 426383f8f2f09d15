"""``--kernel``: the run's tests in kernels booted in QEMU, reported as if they had run here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.guest.assemble import AssemblyError
from helpers.kernels.boot import VIRTIO, Images, Processor, require_qemu
from helpers.kernels.columns import Boot, boots
from helpers.kernels.loop import Judging, slots
from helpers.kernels.packages import KernelError
from helpers.verdicts.kernel import is_x86_64
from helpers.verdicts.session import VERDICTS, judges_suites

DEFAULT_KERNEL = "6.12"


class Hooks:
    """For other plugins."""

    @pytest.hookspec(firstresult=True)
    def pytest_kvm_column_tests(
        self, column: str, items: Mapping[str, pytest.Item]
    ) -> Sequence[str] | None:
        """Which of the collected tests the kernel of this label runs, in order, by node id."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add pytest_kvm_column_tests."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --kernel, --kvm-modules, --kvm-param and --maxfail-each."""
    group = parser.getgroup("kernels")
    group.addoption(
        "--kernel",
        metavar="SPEC",
        action="append",
        default=[],
        help="judge this kernel, booted in QEMU: a version such as 6.12 (Debian's newest package "
        "of it, or one by its full name), a bzImage, or a kernel build tree; repeat it for several "
        "kernels in one report; with -n N, N of them at a time",
    )
    group.addoption(
        "--kvm-modules",
        metavar="DIR",
        action="append",
        default=[],
        help="judge kvm.ko and kvm-amd.ko or kvm-intel.ko of DIR, built for a --kernel of the run; "
        "repeat it for several sets, each on the same boot",
    )
    group.addoption(
        "--kvm-param",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a parameter of KVM's modules in all booted kernels: vector_hashing=N",
    )
    group.addoption(
        "--maxfail-each",
        metavar="NUM",
        type=int,
        default=0,
        help="leave a booted kernel after NUM failures, and go on with the others",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Find the kernels, and take the run over from pytest-xdist."""
    option = config.option
    if hasattr(config, "workerinput") or option.collectonly:
        return
    default = not option.kernel and judges_suites(config) and not _has_kvm()
    if not default and not option.kernel:
        if option.kvm_modules or option.kvm_param:
            raise pytest.UsageError(
                "--kvm-modules and --kvm-param are for kernels that are booted: name one by "
                "--kernel, such as --kernel=6.12"
            )
        return
    if option.usepdb or option.trace:
        raise pytest.UsageError("--pdb and --trace cannot reach into a booted kernel")
    if default:
        option.kernel = [DEFAULT_KERNEL]
    processor = Processor.best()
    try:
        require_qemu()
        found = _find(config, processor)
    except KernelError as reason:
        no_kvm = "no /dev/kvm on this machine, and: " if default else ""
        raise pytest.UsageError(f"{no_kvm}{reason}") from None
    wanted = option.numprocesses if isinstance(option.numprocesses, int) else None
    option.numprocesses, option.dist, option.tx = None, "no", []
    booted = BootedKernels(found, processor, slots(wanted), default)
    config.pluginmanager.register(booted, "kvm-booted-kernels")


def _has_kvm() -> bool:
    """Whether the suite can be run here; other machines than x86-64 have their own message."""
    return Path("/dev/kvm").exists() or not is_x86_64()


def _find(config: pytest.Config, processor: Processor) -> list[Boot]:
    option = config.option
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # apt shows its progress
        return boots(option.kernel, option.kvm_modules, option.kvm_param, VIRTIO, processor.vendor)


class BootedKernels:
    """A run over booted kernels, where the report is written."""

    def __init__(
        self, boots: Sequence[Boot], processor: Processor, slots: int, is_default: bool
    ) -> None:
        self.boots = boots
        self.processor = processor
        self.slots = slots
        self.is_default = is_default
        self.failed: dict[object, bool] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Announce the columns, in order."""
        for boot in self.boots:
            for column in boot.columns:
                session.config.stash[VERDICTS].tally(column.label)

    def pytest_report_header(self) -> list[str]:
        lines = [
            f"kernel under test: {column.label}, on Linux {boot.kernel.release} in QEMU "
            f"({self.processor.name})"
            for boot in self.boots
            for column in boot.columns
        ]
        if self.is_default:
            lines.insert(0, f"no /dev/kvm here: judging Debian's kernel {DEFAULT_KERNEL} instead")
        return lines

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """In place of pytest's own loop."""
        config = session.config
        if session.testsfailed and not config.option.continue_on_collection_errors:
            return None  # pytest's own says so
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter:
            reporter.showfspath = False  # tests come from several files at once
        # Descriptors need no capturing: what is written to them ends on the console.
        argv = ["-u", "-m", "pytest", "-p", "helpers.kernels.worker", "--capture=sys"]
        argv += map(str, config.invocation_params.args)
        environ = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
        try:
            images = Images(argv, environ, _worker_input(config))
        except AssemblyError as reason:
            raise pytest.UsageError(str(reason)) from None
        judging = Judging(
            session, self.boots, images, self.processor, self.slots, session.config.stash[VERDICTS]
        )
        judging.run()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[getattr(report, "id", report.nodeid)] = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Remember failures for --lf, and fail for every kernel that could not be judged."""
        if last_failed := session.config.pluginmanager.getplugin("lfplugin"):
            last_failed.lastfailed.update(self.failed)  # the same id may pass on the next kernel
        if any(tally.broken for tally in session.config.stash[VERDICTS].tallies.values()):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR


def _worker_input(config: pytest.Config) -> dict[str, object]:
    """What plugins tell their workers, by pytest-xdist's hook: the seed of a random order."""
    given: dict[str, object] = {"workerid": "guest"}
    node = SimpleNamespace(config=config, workerinput=given)
    if configure := getattr(config.hook, "pytest_configure_node", None):
        configure(node=node)
    return given
