# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own parser of KTAP. ``python -m tests.kunit`` fetches it: 150 MB, two minutes.

tools/testing/kunit/kunit_parser.py is in Debian's package of the kernel's sources alone, which the
cache has where mutants were built.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.cache import cache_directory
from helpers.kernels.packages import Archive, KernelError

_PLACE = "tools/testing/kunit"
_LINUX = "6.12"


@dataclass(frozen=True)
class Parsed:
    """A test as the kernel's parser sees it. ``errors`` counts those of its subtests, too."""

    name: str
    status: str
    errors: int
    reason: str = ""
    log: list[str] = field(default_factory=list)
    subtests: list[Parsed] = field(default_factory=list)

    @property
    def statuses(self) -> dict[str, Any]:
        """{name: status}, or {name: statuses} for a test with subtests."""
        return {
            each.name: each.statuses if each.subtests else each.status for each in self.subtests
        }

    def __getitem__(self, name: str) -> Parsed:
        return next(each for each in self.subtests if each.name == name)


def is_here() -> bool:
    """Return whether the cache has the parser, or the sources with the parser."""
    return (cache_directory() / "kunit").exists() or bool(_sources())


def parse(text: str) -> Parsed:
    """Return what kunit_parser makes of a document; skip the test where there is no parser."""
    directory = _directory()
    sys.path.insert(0, str(directory))
    try:
        import kunit_parser  # noqa: PLC0415
        import kunit_printer  # noqa: PLC0415
    finally:
        sys.path.remove(str(directory))
    assert isinstance(kunit_parser, ModuleType)
    printer = kunit_printer.Printer(output=io.StringIO())
    return _parsed(kunit_parser.parse_run_tests(text.splitlines(keepends=True), printer))


def _parsed(test: Any) -> Parsed:
    subtests = [_parsed(each) for each in test.subtests]
    return Parsed(
        test.name, test.status.name, test.counts.errors, test.skip_reason, test.log, subtests
    )


def _directory() -> Path:
    directory = cache_directory() / "kunit"
    if not directory.exists():
        if not is_here():
            pytest.skip("kunit_parser.py is not in the cache: python -m tests.kunit fetches it")
        _unpack(_sources()[-1], directory)
    return directory


def _sources() -> list[Path]:
    return sorted((cache_directory() / "kernels").glob("*/usr/src/linux-source-*.tar.xz"))


def _unpack(source: Path, directory: Path) -> None:
    part = directory.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    command = ["tar", "-C", str(part), "--strip-components=4", "--wildcards", "-xf", str(source)]
    subprocess.run([*command, f"*/{_PLACE}/kunit_p*.py"], check=True)
    part.rename(directory)


def main() -> int:
    """Fetch the kernel's sources, and unpack the parser."""
    try:
        if not is_here():
            name = f"linux-source-{_LINUX}"
            Archive().fetch_packages(name, [name])
    except KernelError as reason:
        print(reason, file=sys.stderr)
        return 1
    print(_directory())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
