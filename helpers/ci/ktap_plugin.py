# SPDX-License-Identifier: GPL-2.0-only
"""The plugin behind ``--ktap``: writes KTAP while the tests run, to a file or standard output."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import pytest

from helpers.ci import ktap
from helpers.ci.ended import Ended
from helpers.ci.outputs import Output, to_stderr
from helpers.ci.watch import Missing, Watch
from helpers.verdicts.session import CANNOT_RUN


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --ktap."""
    parser.getgroup("kernel CI").addoption(
        "--ktap",
        metavar="FILE",
        help="write KTAP to this file while the tests run; - is standard output, and pytest's own "
        "words go to standard error",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int, int]:
    """Write the document around the whole run, so that it is complete however the run ends."""
    path = config.option.ktap
    if not path or config.option.collectonly or hasattr(config, "workerinput"):
        return (yield)
    with Output("--ktap", path) as output, to_stderr(path):
        plugin = KtapPlugin(config, output)
        config.pluginmanager.register(plugin.watch, "kvm-ktap-watch")
        config.pluginmanager.register(plugin, "kvm-ktap")
        code: int = pytest.ExitCode.INTERRUPTED
        refused: pytest.UsageError | None = None
        try:
            code = yield
        except pytest.UsageError as error:
            refused = error
            raise
        finally:
            plugin.finish(code, refused)
        if output.problem and code == pytest.ExitCode.OK:
            return pytest.ExitCode.INTERNAL_ERROR
        return code


class KtapPlugin:
    """Listens to a run, and writes the document."""

    def __init__(self, config: pytest.Config, output: Output) -> None:
        self.config = config
        self.output = output
        self.ktap = ktap.Ktap(output.write)
        self.watch = Watch(config, [self])

    def begin(self, watch: Watch) -> None:
        self.ktap.begin(watch.plan, may_grow="matrix" in self.config.option.kvm_param)
        for tally in watch.verdicts.tallies.values():
            if tally.kernel:
                self.ktap.note(f"kernel under test: {tally.kernel}")
        for file, reason in watch.uncollectable.items():
            self.ktap.uncollectable(file, reason)

    def add_column(self, column: str, files: Mapping[str, Sequence[str]]) -> None:
        self.ktap.add_column(column, files)

    def ended(self, ended: Ended) -> None:
        self.ktap.add(ended)

    def finish(self, code: int, refused: pytest.UsageError | None) -> None:
        """Write what is left. ``code`` is the exit code of a run that was not ``refused``."""
        if not self.ktap.is_begun:
            reason = str(refused or self.watch.stopped or "no test was collected")
            self.ktap.refuse(reason, is_skip=CANNOT_RUN in self.config.stash)
            return
        missing = self.watch.missing

        def line(column: str, nodeid: str) -> ktap.Line:
            why = missing.get((column, nodeid)) or Missing("no result", False)
            directive = "SKIP" if why.is_wanted else "ERROR"
            name = nodeid.partition("::")[2]
            return ktap.Line(name, why.is_wanted, f"{directive} {why.reason}")

        self.ktap.finish(line, self._failure(code, refused))

    def _failure(self, code: int, refused: pytest.UsageError | None) -> str:
        """Return why the run is not good, whatever its results are."""
        if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return ""  # a run without any test has another document; here, all were skipped
        return str(refused or self.watch.stopped or f"pytest's exit code is {code:d}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.output.problem:
            terminalreporter.write_line(self.output.problem, red=True)
