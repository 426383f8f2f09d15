# SPDX-License-Identifier: GPL-2.0-only
"""List, fetch and bisect Debian's kernels; build the emulator of --cpu=intel.

python -m helpers.kernels list             list the packaged kernels
python -m helpers.kernels fetch 6.12 ...   fetch kernels ahead of time
python -m helpers.kernels emulator         build the emulator of --cpu=intel ahead of time
python -m helpers.kernels bisect 6.1 7.3 -- suites/test_x.py::test_y
                                           find where a test's verdict changes
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import groupby

from helpers.kernels.bisect_packages import bisect
from helpers.kernels.emulators import bochs_build
from helpers.kernels.packages import Archive, KernelError, series
from helpers.spec.architectures import ARCHITECTURES, X86_64, running


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "list":
                _list(Archive.of(ARCHITECTURES[given.arch]))
            case "fetch":
                archive = Archive.of(ARCHITECTURES[given.arch])
                for name, place in map(archive.fetch_newest, given.version):
                    print(f"Linux {name} is in {place}")
            case "emulator":
                print(f"Bochs {bochs_build.VERSION} is in {bochs_build.build()}")
            case "bisect":
                bisect(given.first, given.last, given.pytest, ARCHITECTURES[given.arch])
    except KernelError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.kernels", description="List, fetch and bisect Debian's kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser(
        "list", help="list the packaged kernels; * marks the fetched ones"
    )
    fetch = commands.add_parser("fetch", help="fetch kernels ahead of time")
    fetch.add_argument("version", nargs="+", help="a version such as 6.12, or a kernel's full name")
    commands.add_parser("emulator", help="build the emulator of --cpu=intel ahead of time")
    search = commands.add_parser(
        "bisect",
        help="find the two neighbouring kernels between which a test's verdict changes",
        usage="%(prog)s [--arch=ARCH] FIRST LAST -- TEST [PYTEST OPTION ...]",
    )
    for command in (listing, fetch, search):
        command.add_argument(
            "--arch",
            choices=ARCHITECTURES,
            default=(running() or X86_64).name,
            help="the architecture of the kernels; default: this machine's",
        )
    search.add_argument("first", metavar="FIRST", help="a version such as 6.1")
    search.add_argument("last", metavar="LAST", help="a version such as 7.3; may be the older one")
    search.add_argument("pytest", nargs="+", metavar="TEST", help="the arguments of pytest")
    return parser


def _list(archive: Archive) -> None:
    for name, kernels in groupby(archive.kernels(), key=series):
        marked = [f"{kernel}{'*' * archive.is_fetched(kernel)}" for kernel in kernels]
        print(f"{name:6}{'  '.join(reversed(marked))}")


if __name__ == "__main__":
    sys.exit(main())
