# SPDX-License-Identifier: GPL-2.0-only
"""helpers/kvm/abi.py, compared with the <linux/kvm.h> that the C compiler sees."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.kvm import abi

STRUCTS = {name: aggregate for name, aggregate in vars(abi).items() if name.startswith("kvm_")}
REQUESTS = {name: value for name, value in vars(abi).items() if isinstance(value, abi.Request)}
CONSTANTS = {
    name: value
    for name, value in vars(abi).items()
    if name.startswith("KVM") and isinstance(value, int)
}

NEW = (
    "KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST",
    "KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST",
)
"""Constants that some supported distributions do not have in their headers."""

Aggregate = type[ctypes.Structure] | type[ctypes.Union]


def members(
    aggregate: Aggregate, path: str, start: int = 0
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the path, offset and size of each field, nested structures included."""
    for name, member, *_ in aggregate._fields_:
        offset = start + getattr(aggregate, name).offset
        yield f"{path}.{name}", (offset, ctypes.sizeof(member))
        if issubclass(member, (ctypes.Structure, ctypes.Union)):
            yield from members(member, f"{path}.{name}", offset)


FIELDS = {
    path: place
    for name, aggregate in STRUCTS.items()
    for path, place in members(aggregate, name)
    if path != "kvm_run.u"  # anonymous in C
}


def in_c(path: str) -> tuple[str, str]:
    """Return the C names of structure and field. C has an anonymous union, and ``fail_entry``."""
    name, _, field = path.partition(".")
    if name == "kvm_run":
        field = field.removeprefix("u.")
        field = field.replace("hardware_entry", "fail_entry.hardware_entry")
    return f"struct {name}", field


def compiler_view(header: str, directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the numbers of each name, from a compiled program; missing macros are left out."""
    lines = [f"#include <{header}>", "#include <stddef.h>", "#include <stdio.h>"]
    lines += ['#define SAY(name, a, b) printf(name " %llu %llu\\n", a + 0ULL, b + 0ULL)']
    lines += ["int main(void) {"]
    lines += [f'SAY("{name}", sizeof(struct {name}), 0);' for name in STRUCTS]
    for path in FIELDS:
        struct, field = in_c(path)
        size = f"sizeof((({struct} *)0)->{field})"
        lines.append(f'SAY("{path}", offsetof({struct}, {field}), {size});')
    lines.append('SAY("head of kvm_run", offsetof(struct kvm_run, kvm_valid_regs), 0);')
    for name in (*REQUESTS, *CONSTANTS):
        lines += [f"#ifdef {name}", f'SAY("{name}", {name}, 0);', "#endif"]
    lines += ["return 0; }"]
    program = directory / "view.c"
    program.write_text("\n".join(lines))
    if not shutil.which("gcc"):
        raise RuntimeError("gcc not found: the ABI is compared with the C compiler's view")
    command = ["gcc", str(program), "-o", str(directory / "view")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gcc cannot compile with <{header}>: {done.stderr}")
    output = subprocess.run([directory / "view"], capture_output=True, text=True, check=True).stdout
    rows = (line.rsplit(" ", 2) for line in output.splitlines())
    return {name: (int(first), int(second)) for name, first, second in rows}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """The installed <linux/kvm.h>, compiled."""
    try:
        return compiler_view("linux/kvm.h", tmp_path_factory.mktemp("header"))
    except RuntimeError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.mark.parametrize("name", [name for name in STRUCTS if name != "kvm_run"])
def test_size(header, name):
    assert ctypes.sizeof(STRUCTS[name]) == header[name][0]


@pytest.mark.parametrize("path", FIELDS)
def test_offset_and_size(header, path):
    assert FIELDS[path] == header[path]


def test_kvm_run_ends_with_the_exit_union(header):
    assert ctypes.sizeof(abi.kvm_run) == header["head of kvm_run"][0]


@pytest.mark.parametrize("name", REQUESTS)
def test_ioctl_number(header, name):
    assert REQUESTS[name].number == header[name][0]


@pytest.mark.parametrize("name", REQUESTS)
def test_request_has_the_name_of_its_macro(name):
    assert REQUESTS[name].name == name


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(header, name):
    if name in NEW and name not in header:
        pytest.skip(f"{name} is not in this header")
    assert CONSTANTS[name] == header[name][0]


def test_exits_have_the_names_of_their_macros():
    by_constant = {CONSTANTS[name]: name for name in abi.EXIT_NAMES.values()}
    assert by_constant == abi.EXIT_NAMES


def test_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"^gcc not found"):
        compiler_view("linux/kvm.h", tmp_path)


def test_missing_header_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"gcc cannot compile with <linux/no-such.h>"):
        compiler_view("linux/no-such.h", tmp_path)
