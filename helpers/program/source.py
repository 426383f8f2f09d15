# SPDX-License-Identifier: GPL-2.0-only
"""A whole C program of recorded tests: one test as a reproducer, or many with KTAP output."""

from __future__ import annotations

import ctypes
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from helpers.apic import Register
from helpers.apic.topology import MpState
from helpers.guest import layout
from helpers.guest.assemble import PROBE, probe
from helpers.program.prune import pruned
from helpers.program.skips import skips_of
from helpers.program.statements import NotInC, Statements
from helpers.program.text import c_identifier, string
from helpers.record.tape import Block, Memory, Observed, Run, Step, Take, Tape, Write
from helpers.spec import DEVIATIONS, Deviation
from helpers.verdicts.kernel_log import COMPLAINTS

_DIRECTORY = Path(__file__).parent
_TYPES = {1: "__u8", 2: "__u16", 4: "__u32", 8: "__u64"}
_INCLUDES = """\
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <regex.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <linux/kvm.h>
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded test. ``comment`` stands above the C function."""

    nodeid: str
    tape: Tape
    comment: str = ""

    @property
    def skips(self) -> tuple[tuple[str, str], ...]:
        """The preconditions: pairs of a C condition and the reason to skip the test."""
        return skips_of(self.tape)


@dataclass(slots=True)
class Source:
    """C functions of tests. ``left_out`` has the reason of each test that has none."""

    functions: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case) -> bool:
        """Add a test. Return False if the test is left out."""
        reason = case.tape.left_out
        functions = dict(self.functions)
        if not reason:
            try:
                statements = Statements(functions).add(case.tape.steps)
            except NotInC as missing:
                reason = str(missing)
        if reason:
            self.left_out[case.nodeid] = reason
            return False
        self.functions = functions
        self.tests[case.nodeid] = _function(c_identifier(case.nodeid), statements, case.comment)
        return True


def _function(name: str, statements: Statements, comment: str) -> str:
    names = ["m", *(f"m{number}" for number in range(2, statements.machines + 1))]
    lines = [f"static void {name}(void)", "{"]
    if statements.machines:
        lines += ["\tstruct machine " + ", ".join(f"*{each}" for each in names) + ";", ""]
    return comment + "\n".join([*lines, *statements.lines, "}"]) + "\n"


# --- parts of a program ---------------------------------------------------------------------------


@cache
def preamble() -> str:
    """Return the includes, and the guest: its constants, structures and machine code."""
    guest = [_layout(), _struct("control", layout.Control), _registers(), _probe()]
    return "\n".join([_INCLUDES, _complaint(), *guest])


def _complaint() -> str:
    *others, last = COMPLAINTS
    words = [f"\t{string(each)}" for each in (*(f"{other}|" for other in others), last)]
    lines = " \\\n".join(["#define COMPLAINT", *words])
    return f"/* A regular expression that finds complaints of the kernel. */\n{lines}\n"


def _layout() -> str:
    lines = [f"#define {name:<18} {value:#x}" for name, value in layout.defines().items()]
    return (
        "/* Guest-physical addresses, offsets and ports of the probe. */\n"
        + "\n".join(lines)
        + "\n\n/* The area of a vCPU in guest memory. */\n"
        "#define AREA(v) (AREAS + (v)->index * AREA_SIZE)\n"
    )


def _struct(name: str, struct: type[ctypes.Structure]) -> str:
    lines = [f"struct {name} {{"]
    kind: Any
    for field_name, kind, *_ in struct._fields_:
        count = kind._length_ if issubclass(kind, ctypes.Array) else 1
        array = f"[{count}]" if count > 1 else ""
        lines.append(f"\t{_TYPES[ctypes.sizeof(kind) // count]} {field_name}{array};")
    return "\n".join([*lines, "};", ""])


def _registers() -> str:
    wide = (Register.ISR, Register.TMR, Register.IRR)
    lines = [f"#define APIC_{each.name:<14} {each.value:#05x}" for each in Register]
    rows = [
        f'\t{{ {each.value:#05x}, {each + (0x80 if each in wide else 4):#05x}, "{each.name}" }},'
        for each in Register
    ]
    table = " \\\n".join(["#define REGISTERS", *rows]).removesuffix(",")
    return "\n".join(
        [
            _struct("record", layout.Record),
            "/* Registers of the local APIC, by offset; their end and name for messages. */",
            *lines,
            "",
            table,
            "",
            "#define MP_STATES " + ", ".join(f'[{each.value}] = "{each.name}"' for each in MpState),
            "",
            "#define LAPIC(v, offset) (*(__u32 *)&(v)->lapic.regs[offset])",
            "",
        ]
    )


def _probe() -> str:
    source = re.sub(r"/\*|\*/", "", PROBE.read_text())
    comment = "\n".join(f" * {line}".rstrip() for line in source.splitlines())
    code = ", ".join(f"{byte:#04x}" for byte in probe())
    lines = textwrap.wrap(code, 90)
    body = "\n".join(f"\t{line}" for line in lines)
    return (
        f"/*\n * The code that all vCPUs run, at PROBE:\n *\n{comment}\n */\n"
        f"static const unsigned char probe[{len(probe())}] = {{\n{body}\n}};\n"
    )


def part(name: str) -> str:
    """Return a file of C that all programs share."""
    return (_DIRECTORY / name).read_text().split("\n", 1)[1]


def deviation(entry: Deviation) -> str:
    """Return the definition of a known deviation."""
    fields = {"id": string(entry.id)}
    for name in ("since", "before"):
        if version := getattr(entry, name):
            major, minor = version.split(".")
            fields[name] = str(int(major) * 100 + int(minor))
    if entry.vendor:
        fields["vendor"] = string(entry.vendor)
    if entry.parameter:
        parameter, _, value = entry.parameter.partition("=")
        fields |= {"parameter": string(parameter), "value": string(value)}
    if entry.is_of_host:
        fields["of_host"] = "1"
    head = "\n".join(f"\t.{name} = {value}," for name, value in fields.items())
    shows = "\n".join(f"\t\t{{ {', '.join(map(string, each))} }}," for each in entry.shows)
    name = c_identifier(entry.id)
    return (
        f"static const struct deviation {name} = {{\n{head}\n\t.shows = {{\n{shows}\n\t}},\n}};\n"
    )


def program(source: Source, cases: Sequence[Case], command: str) -> str:
    """Return the program of all tests in ``source``, in the order of ``cases``."""
    included = [case for case in cases if case.nodeid in source.tests]
    ids = [each for case in included for each in (*case.tape.deviations, *dict(case.tape.switches))]
    known = {id: DEVIATIONS[id] for id in ids}
    most = max((len(entry.shows) for entry in known.values()), default=0)
    table = _Table()
    for case in included:
        table.add(case)
    shared = [preamble(), part("runtime.c"), f"enum {{ MAX_SHOWS = {most + 1} }};\n\n"]
    rest = "\n".join(
        [
            *map(deviation, known.values()),
            *(_skip(name, conditions) for conditions, name in table.skips.items()),
            "/* ------------------------------------------------------------- the tests */\n",
            *source.functions.values(),
            *(source.tests[case.nodeid] for case in included),
            *table.known,
            f"\nenum {{ NR_TESTS = {len(included)} }};\n",
            "static const struct test tests[NR_TESTS] = {",
            *table.rows,
            "};\n",
            _left_out(source),
            *map(part, ("main.c", "guest.c", "options.c")),
        ]
    )
    used = "\n".join([*shared, part("judge.c")])
    return "\n".join([_head(command, len(included)) + pruned(used, rest), rest])


@dataclass(slots=True)
class _Table:
    """The rows of the table of tests, the lists of their known deviations, their preconditions."""

    rows: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    skips: dict[tuple[tuple[str, str], ...], str] = field(default_factory=dict)

    def add(self, case: Case) -> None:
        tape = case.tape
        if case.skips:
            self.skips.setdefault(case.skips, f"skip_{len(self.skips)}")
        known = "NULL"
        if tape.deviations:
            known = f"known_{len(self.known)}"
            ids = ", ".join(f"&{c_identifier(each)}" for each in tape.deviations)
            self.known.append(
                f"static const struct deviation *const {known}[] = {{ {ids}, NULL }};"
            )
        fields = [string(shown_id(case.nodeid)), string(tape.clause), c_identifier(case.nodeid)]
        fields += [self.skips.get(case.skips, "NULL"), known, str(int(tape.reusable))]
        self.rows.append(f"\t{{ {', '.join(fields)} }},")


def _left_out(source: Source) -> str:
    rows = [
        f"\t{{ {string(shown_id(name))}, {string(reason)} }},"
        for name, reason in source.left_out.items()
    ]
    head = "static const struct { const char *name, *reason; } left_out[] = {"
    return "\n".join([head, *rows, "\t{ NULL, NULL }", "};\n"])


def reproducer(case: Case, about: str) -> str:
    """Return a program of one test. ``about`` is text for the comment at its head.

    Raises NotInC for a test that has no C.
    """
    functions: dict[str, str] = {}
    if case.tape.left_out:
        raise NotInC(case.tape.left_out)
    steps = case.tape.steps if _runs(case.tape.steps) else _without_guest(case.tape.steps)
    test = _function("test", Statements(functions).add(steps), "")
    body = "\n".join([*functions.values(), test])
    needs = "enum { MAX_SHOWS = 1 };\n\n"
    shared = "\n".join([preamble(), part("runtime.c"), needs, part("judge.c")])
    main = part("one.c").split("\n", 2)[2]
    lines = "\n".join(f" * {line}".rstrip() for line in about.splitlines())
    head = f"// SPDX-License-Identifier: GPL-2.0-only\n/*\n{lines}\n */\n"
    return "\n".join([head + pruned(shared, body + main), body, main])


def _runs(steps: Iterable[Step]) -> bool:
    """Return whether a step enters the guest."""
    return any(
        isinstance(step, (Run, Take))
        or (isinstance(step, Block) and _runs(step.steps))
        or (isinstance(step, Observed) and _runs(step.inner))
        for step in steps
    )


def _without_guest(steps: Iterable[Step]) -> list[Step]:
    """Return the steps for a guest that never runs: its memory stays empty."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step, Block):
            found.append(replace(step, steps=_without_guest(step.steps)))
        elif isinstance(step, Memory):
            found.append(replace(step, guest=False))
        elif not isinstance(step, Write):
            found.append(step)
    return found


def shown_id(nodeid: str) -> str:
    """Return the node id of a test below suites/."""
    return nodeid.removeprefix("suites/")


def _skip(name: str, conditions: Sequence[tuple[str, str]]) -> str:
    tests = "\n".join(
        f"\tif ({condition})\n\t\treturn {string(reason)};" for condition, reason in conditions
    )
    return f"static const char *{name}(void)\n{{\n{tests}\n\treturn NULL;\n}}\n"


def _head(command: str, count: int) -> str:
    return f"""\
// SPDX-License-Identifier: GPL-2.0-only
/*
 * {count} conformance tests of KVM_SIGNAL_MSI, as ioctls.
 *
 * Made by "{command}": each test is the list of the
 * ioctls that the test of this name called, and of what the kernel owes.
 *
 * gcc -O2 -static -o msi_test msi_test.c && ./msi_test
 */
"""
