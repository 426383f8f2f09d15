# SPDX-License-Identifier: GPL-2.0-only
"""The emulators that boot kernels: --cpu, how Bochs starts a kernel, and how Bochs is built."""

from __future__ import annotations

import re
import struct
import tarfile

import pytest

from helpers.kernels import columns, emulators
from helpers.kernels.emulators import bochs, bochs_build
from helpers.kernels.emulators.bochs import MEMORY, REAL_MODE, STACK, Bochs
from helpers.kernels.emulators.interface import MemoryFiles
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import Choices
from tests.damage import DAMAGES
from tests.kernel_files import RELEASE, builtin_modules, bzimage, kvm_modules, module

# --- --cpu ----------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path):
    """A kernel whose KVM is modules, for AMD and Intel."""
    modules = tmp_path / "lib/modules" / RELEASE
    for vendor in ("kvm-amd", "kvm-intel"):
        kvm_modules(modules / "kernel/arch/x86/kvm", names=f"kvm {vendor}")
    (modules / "ccp.ko").write_bytes(module())
    builtin_modules(modules)
    return str(bzimage(tmp_path / "bzImage"))


def labels(kernel, *cpus, settings=()):
    """The columns of --cpu, in order, with the options that ask for each."""
    found = columns.boots([kernel], [], Choices.parse(settings), emulators.chosen(cpus), cpus)
    return {
        column.label.removeprefix(RELEASE).strip(): column.options[1:]
        for boot in found
        for column in boot.columns
    }


def test_intel_is_judged_with_and_without_apicv(kernel):
    assert labels(kernel, "intel") == {
        "enable_apicv=1": ["--cpu=intel", "--kvm-param=enable_apicv=1"],
        "enable_apicv=0": ["--cpu=intel", "--kvm-param=enable_apicv=0"],
    }


@pytest.mark.parametrize("name", ["enable_apicv", "kvm_intel.enable_apicv"])
def test_given_setting_of_apicv_is_the_only_one(kernel, name):
    given = f"{name}=0"
    assert labels(kernel, "intel", settings=[given]) == {
        "": ["--cpu=intel", f"--kvm-param={given}"]
    }


def test_kernel_with_both_kvms_built_in_takes_a_boot_for_each_setting_of_apicv(tmp_path):
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    builtin_modules(modules, "kvm", "kvm-amd", "kvm-intel")
    (modules / "modules.builtin.modinfo").write_text("kvm_intel.parmtype=enable_apicv:bool\0")
    kernel = str(bzimage(tmp_path / "bzImage"))
    found = columns.boots([kernel], [], Choices.parse([]), emulators.chosen(["intel"]), ["intel"])
    lines = ["kvm_intel.enable_apicv=1", "kvm_intel.enable_apicv=0"]
    assert [(boot.emulator.parallel, boot.command_line) for boot in found] == [
        (parallel, line) for parallel in (False, True) for line in lines
    ]


def test_columns_of_several_processors_name_theirs(kernel):
    found = list(labels(kernel, "amd", "intel"))
    assert found == ["-amd", "-intel enable_apicv=1", "-intel enable_apicv=0"]


def test_matrix_adds_the_setting_of_apicv_by_itself(kernel):
    assert list(labels(kernel, "intel", settings=["matrix"])) == [""]


def test_processor_is_the_machines_own_where_its_kvm_nests(monkeypatch):
    monkeypatch.setattr(Qemu, "nested", lambda: None)
    assert [each.cpu for each in emulators.chosen([])] == ["amd"]
    with pytest.raises(KernelError, match="--cpu=host needs a KVM that nests"):
        emulators.chosen(["host"])
    own = Qemu("host", "QEMU", (), "kvm_intel")
    monkeypatch.setattr(Qemu, "nested", lambda: own)
    assert emulators.chosen([]) == emulators.chosen(["host"]) == [own]


def test_cpu_without_a_kernel_to_boot_is_an_error(suite):
    suite.add("def test_it(): pass")
    run = suite.run("--cpu=intel")
    assert run.lines_with(
        "--cpu, --config, --kvm-modules, --kvm-param and --program are for kernels"
    )


# --- Bochs ----------------------------------------------------------------------------------------


def test_kernel_is_in_memory_as_a_boot_loader_leaves_it():
    vmlinuz = bytearray(0x1000)
    vmlinuz[0x1F1] = 3  # sectors of the real-mode part, besides the first
    vmlinuz[0x800:] = b"\x90" * 0x800
    real_mode, protected_mode, place = bochs.loaded(bytes(vmlinuz), "quiet", 5000)
    assert protected_mode == b"\x90" * 0x800
    assert real_mode[STACK:] == b"quiet\0"
    assert struct.unpack_from("<II", real_mode, 0x218) == (place, 5000)
    assert struct.unpack_from("<I", real_mode, 0x228) == (REAL_MODE + STACK,)
    assert real_mode[0x210] == 0xFF
    assert real_mode[0x211] & 0x80
    assert place % 4096 == 0
    assert place + 5000 <= MEMORY << 20


def test_option_rom_is_one_that_a_bios_calls():
    rom = bochs.option_rom()
    assert rom[:3] == b"\x55\xaa\x01"
    assert len(rom) == 512
    assert sum(rom) % 256 == 0


@pytest.mark.parametrize("parallel", [False, True])
def test_parallel_tests_get_two_processors(kernel, tmp_path, monkeypatch, parallel):
    monkeypatch.setattr(bochs_build, "build", lambda: tmp_path)
    boot = columns.boots([kernel], [], Choices.parse([]), [Bochs(parallel=parallel)])[0]
    with MemoryFiles() as files:
        command = boot.emulator.command(boot.kernel, "panic=-1", b"", "console", files)
        with open(command[-1]) as file:
            assert f"count={1 + parallel}," in file.read()


# --- building -------------------------------------------------------------------------------------


def test_edits_say_what_they_mend():
    for edit in bochs_build.edits().values():
        assert edit.old != edit.new
        assert len(edit.why) > 40


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive with a source of Bochs whose configure script is ``configure``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bochs_build, "edits", dict)
    packages = tmp_path / "packages"
    for name in bochs_build.FILES:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(b"\x55\xaa" * 9)
    source = tmp_path / "bochs.tar"

    def make(configure):
        script = tmp_path / "configure"
        script.write_text(f"#!/bin/sh\n{configure}\n")
        script.chmod(0o755)
        with tarfile.open(source, "w") as tar:
            tar.add(script, "bochs/configure")

    monkeypatch.setattr(bochs_build.Archive, "fetch_packages", lambda *_: packages)
    monkeypatch.setattr(bochs_build.Archive, "fetch_source", lambda *_: source)
    return make


BUILDS = "printf 'bochs:\\n\\tcp /bin/true bochs\\n' > Makefile"


def test_emulator_is_built_once(archive):
    archive(BUILDS)
    made = bochs_build.build()
    files = {file.name for file in made.iterdir()} - {".sums"}
    assert files == {"bochs", "BIOS-bochs-latest", "vgabios.bin"}
    archive("exit 1")
    assert bochs_build.build() == made


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["bochs", "vgabios.bin"])
def test_damaged_emulator_is_built_again(archive, file, damage):
    archive(BUILDS)
    made = bochs_build.build()
    content = (made / file).read_bytes()
    damage(made / file)
    assert bochs_build.build() == made
    assert (made / file).read_bytes() == content


@pytest.mark.parametrize(
    "configure, says",
    [
        ("echo checking; echo 'configure: error: no C++ compiler' >&2; exit 1", "no C++ compiler"),
        ("printf 'bochs:\\n\\techo x.cc:1: error: no type; exit 1\\n' > Makefile", "no type"),
    ],
    ids=["configure", "make"],
)
def test_build_that_fails_leaves_nothing(archive, tmp_path, configure, says):
    archive(configure)
    with pytest.raises(KernelError, match=f"Bochs does not build: .*{re.escape(says)}"):
        bochs_build.build()
    assert [file.name for file in (tmp_path / "cache/kvm-signal-msi/emulators").iterdir()] == [
        "bochs.lock"
    ]


def test_missing_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bochs_build.shutil, "which", lambda tool: tool == "gcc" or None)
    says = "g++ and make not found: --cpu=intel builds an emulator with them"
    with pytest.raises(KernelError, match=f"^{re.escape(says)}"):
        bochs_build.build()
