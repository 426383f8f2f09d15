# SPDX-License-Identifier: GPL-2.0-only
"""--kvm-param, and tests that need a parameter: columns, parts of columns, reasons."""

from __future__ import annotations

import pytest

from helpers.kernels import columns
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import (
    Choices,
    given_to,
    other_values,
    part_of,
    reads_as,
    settings_of,
)
from helpers.spec.parameters import PARAMETERS
from helpers.verdicts.session import Verdicts
from helpers.verdicts.tally import Tally
from tests.kernel_files import (
    RELEASE,
    builtin_modules,
    bzimage,
    kvm_modules,
    modular_kernel,
)

# --- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([], [""]),
        (["a=1"], [""]),
        (["a=1,2"], ["a=1", "a=2"]),
        (["a=1", "m.b=Y,N"], ["b=Y", "b=N"]),
        (["a=1,2", "b=3,4"], ["a=1 b=3", "a=1 b=4", "a=2 b=3", "a=2 b=4"]),
        (["matrix", "a=1,2"], ["a=1", "a=2"]),
    ],
)
def test_values_are_multiplied(texts, labels):
    choices = Choices.parse(texts)
    assert [label for _, label in choices.combinations()] == labels
    assert choices.matrix == ("matrix" in texts)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([""], "--kvm-param=: give NAME=VALUE, such as vector_hashing=N, or matrix"),
        (["vector_hashing"], "--kvm-param=vector_hashing: give NAME=VALUE"),
        (["=N"], "--kvm-param==N: give NAME=VALUE"),
        (["a=1 b=2"], "--kvm-param=a=1 b=2: give NAME=VALUE"),
        (["a="], "--kvm-param=a=: a value is empty"),
        (["a=1,"], "--kvm-param=a=1,: a value is empty"),
        (["a=1,2,1"], "--kvm-param=a=1,2,1: a value is given twice"),
        (["a=Y,1"], "--kvm-param=a=Y,1: a value is given twice"),
        (["a=1", "a=2"], "--kvm-param=a=2: a is given twice; a=A,B makes a column of each"),
        (["matrix", "matrix"], "--kvm-param=matrix: matrix is given twice"),
    ],
)
def test_nonsense_is_refused(texts, says):
    with pytest.raises(KernelError) as error:
        Choices.parse(texts)
    assert str(error.value).startswith(says)


# --- columns --------------------------------------------------------------------------------------


@pytest.fixture
def modular(tmp_path):
    """The value of --kernel for a kernel whose KVM is modules."""
    return modular_kernel(tmp_path / "boot")


@pytest.fixture
def builtin(tmp_path):
    """The value of --kernel for a kernel whose KVM is built in."""
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    builtin_modules(modules, "kvm", "kvm-amd")
    lists = ["kvm.parmtype=vector_hashing:bool", "kvm_amd.parmtype=npt:bool"]
    (modules / "modules.builtin.modinfo").write_text("\0".join([*lists, ""]))
    return str(bzimage(tmp_path / "bzImage"))


def boots(kernel, *settings, modules=()):
    return columns.boots([kernel], modules, Choices.parse(settings), [Qemu.software()])


def test_values_are_columns_of_a_boot(modular):
    [boot] = boots(modular, "vector_hashing=Y,N", "npt=0")
    assert [column.label for column in boot.columns] == [
        f"{RELEASE} vector_hashing=Y",
        f"{RELEASE} vector_hashing=N",
    ]
    last = boot.columns[1]
    assert last.settings == {"kvm.vector_hashing": "N", "kvm_amd.npt": "0"}
    asks = ["--kvm-param=vector_hashing=N", "--kvm-param=npt=0"]
    assert last.options == [f"--kernel={modular}", *asks]
    assert given_to("kvm", last.settings) == "vector_hashing=N"


def test_modules_that_columns_share_are_packed_once(modular, tmp_path):
    sets = [kvm_modules(tmp_path / name) for name in ("first", "second")]
    with (tmp_path / "second/kvm.ko").open("ab") as file:
        file.write(b"another build")
    [boot] = boots(modular, "vector_hashing=Y,N", modules=sets)
    assert [boot.directory(column) for column in boot.columns] == [0, 0, 2, 2]
    assert boot.columns[3].label == "second vector_hashing=N"


def test_kvm_that_is_built_in_takes_a_boot_for_each_value(builtin):
    found = boots(builtin, "kvm_amd.npt=0,1", "vector_hashing=N")
    assert [boot.command_line for boot in found] == [
        "kvm_amd.npt=0 kvm.vector_hashing=N",
        "kvm_amd.npt=1 kvm.vector_hashing=N",
    ]
    assert [[column.label for column in boot.columns] for boot in found] == [
        [f"{RELEASE} npt=0"],
        [f"{RELEASE} npt=1"],
    ]


@pytest.mark.parametrize("kind", ["modular", "builtin"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["no_such=1"], f"no_such: {{}} of {RELEASE} have no such parameter"),
        (["kvm.npt=1"], f"kvm.npt: {{}} of {RELEASE} have no such parameter"),
        (["npt=0", "kvm_amd.npt=1"], "kvm_amd.npt: kvm_amd.npt is given twice"),
    ],
)
def test_parameters_that_cannot_be_had_say_why(request, kind, settings, says):
    with pytest.raises(KernelError, match=says.format("kvm and kvm_amd")):
        boots(request.getfixturevalue(kind), *settings)


# --- what a booted kernel has ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "asked", "matches"),
    [
        ("Y", "Y", True),
        ("Y", "1", True),
        ("N", "off", True),
        ("256", "0x100", True),
        ("-1", "-1", True),
        ("N", "Y", False),
        ("0", "1", False),
        ("N", "-1", False),
        ("Y", "force", True),  # nx_huge_pages=force reads back Y
    ],
)
def test_parameter_reads_back(found, asked, matches):
    assert reads_as(found, asked) is matches


def test_parameters_of_the_matrix_are_in_the_kernel_and_not_set():
    assert {"kvm.vector_hashing", "kvm_amd.avic", "kvm_intel.enable_apicv"} < PARAMETERS.keys()
    found = {"kvm.vector_hashing": "Y", "kvm_amd.avic": "0", "kvm_amd.vgif": "1", "kvm.other": "Y"}
    assert other_values(found, {"kvm_amd.vgif": "1"}) == {
        "kvm.vector_hashing": "N",
        "kvm_amd.avic": "1",
    }


def test_columns_of_the_matrix_stand_beside_their_kernels(modular):
    [boot] = boots(modular, "npt=0,1", "matrix")
    [tried] = boot.columns[1].beside({"kvm.vector_hashing": "Y"})
    assert (tried.label, tried.is_tried) == (f"{RELEASE} npt=1 vector_hashing=N", True)
    assert tried.settings == {"kvm_amd.npt": "1", "kvm.vector_hashing": "N"}
    options = [f"--kernel={modular}", "--kvm-param=npt=1", "--kvm-param=kvm.vector_hashing=N"]
    assert tried.options == options
    assert boot.directory(tried) == 0


def test_added_column_is_reported_behind_its_kernel(pytestconfig):
    verdicts = Verdicts(pytestconfig)
    verdicts.tallies = {name: Tally(name) for name in ("6.1", "6.12")}
    verdicts.insert("6.1 avic=Y", "6.1")
    verdicts.insert("6.1 vgif=0", "6.1 avic=Y")
    assert list(verdicts.tallies) == ["6.1", "6.1 avic=Y", "6.1 vgif=0", "6.12"]
    verdicts.log.close()


# --- tests that need a parameter ------------------------------------------------------------------

HASHING, AVIC = {"kvm.vector_hashing": "N"}, {"kvm_amd.avic": "Y"}


@pytest.mark.parametrize(
    ("needs", "settings", "modules", "part"),
    [
        (HASHING, {}, ["kvm", "kvm_amd"], "kvm.vector_hashing=N"),
        (HASHING | AVIC, {}, ["kvm", "kvm_amd"], "kvm.vector_hashing=N kvm_amd.avic=Y"),
        ({"kvm.vector_hashing": "Y"}, {}, ["kvm", "kvm_amd"], ""),
        ({"kvm.vector_hashing": "Y"} | AVIC, {}, ["kvm", "kvm_amd"], "kvm_amd.avic=Y"),
        (HASHING, {"kvm.vector_hashing": "Y"}, ["kvm", "kvm_amd"], ""),
        (HASHING, {"kvm_amd.avic": "N"}, ["kvm", "kvm_amd"], "kvm.vector_hashing=N"),
        (HASHING, {}, [], ""),
        (HASHING, {}, ["kvm_amd"], ""),
        ({"kvm_intel.vnmi": "N"}, {}, ["kvm", "kvm_amd"], ""),
        ({}, {}, ["kvm", "kvm_amd"], ""),
    ],
    ids=[
        "default",
        "two",
        "suited",
        "half-suited",
        "set",
        "other-set",
        "built-in",
        "half-built-in",
        "not-there",
        "none",
    ],
)
def test_part_of_a_test(needs, settings, modules, part):
    found = {"kvm.vector_hashing": "Y", "kvm_amd.avic": "N"}
    assert part_of(needs, found, settings, modules) == part
    assert settings_of(part).items() <= needs.items()


def test_without_a_booted_kernel_the_reason_names_the_command(suite):
    suite.add("""
from helpers.verdicts import needs_parameter

HASHING = running_kernel().parameters["kvm.vector_hashing"]

@clause("msi.pad")
@needs_parameter("kvm.vector_hashing", HASHING)
def test_suited(): pass

@clause("msi.pad")
@needs_parameter("kvm.vector_hashing", "other")
def test_other(): pass

@clause("msi.pad")
@needs_parameter("kvm.no_such", "Y")
def test_nothing(): pass
""")
    run = suite.run("-rs")
    assert run.outcomes == {"passed": 1, "skipped": 2}
    assert run.lines_with("not other: pytest --kernel=6.12 reloads KVM for this test")
    assert run.lines_with("the kernel has no parameter kvm.no_such")
