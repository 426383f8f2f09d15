# SPDX-License-Identifier: GPL-2.0-only
"""helpers/kvm/abi_arm64.py, compared with the <asm/kvm.h> of a cross compiler for arm64."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess

import pytest

from helpers.kvm import abi
from helpers.kvm import abi_arm64 as arm

NUMBERS = {
    name: value.number if isinstance(value, abi.Request) else value
    for name, value in vars(arm).items()
    if name.startswith("KVM_") and isinstance(value, int | abi.Request)
}
NUMBERS["sizeof(struct kvm_vcpu_init)"] = ctypes.sizeof(arm.kvm_vcpu_init)
NUMBERS["KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.pc)"] = (
    arm.CORE_PC
)


def compiler() -> str:
    """Return the name of a compiler for arm64 that has the headers; else skip."""
    gcc = "gcc" if platform.machine() == "aarch64" else "aarch64-linux-gnu-gcc"
    if not shutil.which(gcc):
        pytest.skip(f"{gcc} not found (on Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)")
    return gcc


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The numbers of NUMBERS, as the compiler has them in the data of an object file."""
    directory = tmp_path_factory.mktemp("header")
    source, output = directory / "view.c", directory / "view.bin"
    values = ",\n".join(NUMBERS)
    head = "#include <linux/kvm.h>\n#include <stddef.h>\n"
    source.write_text(f"{head}unsigned long numbers[] = {{\n{values}\n}};\n")
    gcc = compiler()
    subprocess.run([gcc, "-c", str(source), "-o", str(directory / "view.o")], check=True)
    objcopy = gcc.replace("gcc", "objcopy")
    command = [objcopy, "-O", "binary", "-j", ".data", str(directory / "view.o"), str(output)]
    subprocess.run(command, check=True)
    content = output.read_bytes()
    return [int.from_bytes(content[i : i + 8], "little") for i in range(0, len(content), 8)]


@pytest.mark.parametrize("name", NUMBERS)
def test_number(numbers, name):
    assert NUMBERS[name] == numbers[list(NUMBERS).index(name)]


@pytest.mark.parametrize(
    "request_", [arm.KVM_ARM_VCPU_INIT, arm.KVM_ARM_PREFERRED_TARGET], ids=lambda each: each.name
)
def test_request_has_the_name_of_its_macro(request_):
    assert getattr(arm, request_.name) is request_
