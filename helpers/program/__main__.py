# SPDX-License-Identifier: GPL-2.0-only
"""Write the suite, or chosen tests, as one C program without Python.

python -m helpers.program -o msi_test.c                     the whole suite
python -m helpers.program -o msi_test.c -k smi --kernel=7.3 some tests, recorded in a booted kernel
python -m helpers.program --selftest=kvm_signal_msi         a directory for tools/testing/selftests
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.program.collect import record
from helpers.program.selftest import write_directory
from helpers.program.source import Case, Source, program
from helpers.record.tape import Tape
from helpers.report.results import replace_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the tests, write the program, and return the exit code."""
    listed = sys.argv[1:] if arguments is None else list(arguments)
    given, options = _parser().parse_known_args(listed)
    if not (given.output or given.selftest):
        print("error: name the file to write, such as -o msi_test.c", file=sys.stderr)
        return 2
    if given.output and not (directory := Path(given.output).parent).is_dir():
        print(f"error: {directory}: no such directory", file=sys.stderr)
        return 2
    chosen = any(Path(each.split("::")[0]).exists() for each in options)
    tapes = record(options if chosen else [*options, "suites/"])
    text, summary = written(tapes, shlex.join(["python", "-m", "helpers.program", *listed]))
    if not text:
        print("error: no test was recorded", file=sys.stderr)
        return 1
    try:
        if given.selftest:
            write_directory(Path(given.selftest), text)
        else:
            replace_file(Path(given.output), text)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{given.selftest or given.output}: {summary}")
    return 0


def written(tapes: Mapping[str, Tape], command: str) -> tuple[str, str]:
    """Return the text of a program of all tapes, and a summary. No text if no test has C."""
    source = Source()
    cases = [Case(nodeid, tape) for nodeid, tape in tapes.items()]
    for case in cases:
        source.add(case)
    if not source.tests:
        return "", ""
    reasons = Counter(source.left_out.values()).most_common()
    lines = [f"{len(source.tests)} tests, {len(source.left_out)} left out"]
    lines += [f"  {count} left out: {reason}" for reason, count in reasons]
    return program(source, cases, command), "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.program",
        description="Write the suite, or chosen tests, as one C program without Python.",
        epilog="All other arguments are pytest's: files, -k, --clause, --kernel=7.3.",
    )
    parser.add_argument("-o", dest="output", metavar="FILE", help="write this C file")
    parser.add_argument(
        "--selftest", metavar="DIR", help="write a directory for the kernel's selftests"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
