"""Kernels that are not running: finding, packing and booting them."""

from __future__ import annotations

import lzma
import stat
import struct

import pytest

from helpers.kernels import spec
from helpers.kernels.image import Cpio
from helpers.kernels.modules import Modules
from helpers.kernels.packages import Archive, KernelError
from tests.copy_of_the_suite import ROOT, run_pytest


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """{name: (mode, content)} of a newc archive, read as the kernel reads it."""
    found, place = {}, 0
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * i :][:8], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[place + 110 :][: name_size - 1].decode()
        place += -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[place : place + size])
        place += -(-size // 4) * 4


def test_archive_holds_what_was_added():
    archive = Cpio()
    archive.add("/a/b/c", stat.S_IFREG | 0o644, b"content")
    archive.add("/a/link", stat.S_IFLNK | 0o777, b"b/c")
    found = entries(archive.finish())
    assert list(found) == ["a", "a/b", "a/b/c", "a/link"]
    assert found["a/b/c"] == (stat.S_IFREG | 0o644, b"content")
    assert stat.S_ISDIR(found["a/b"][0])


def test_archive_holds_a_path_once(tmp_path):
    (tmp_path / "file").write_text("content")
    archive = Cpio()
    for _ in range(2):
        archive.add_path(tmp_path)
    assert list(entries(archive.finish())).count(f"{tmp_path}/file".strip("/")) == 1


def module(depends: str = "") -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=it\0"


@pytest.fixture
def modules(tmp_path):
    """kvm-amd needs kvm and ccp, kvm needs irqbypass; ccp is built in, kvm is compressed."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "modules.builtin").write_text("kernel/drivers/ccp.ko\n")
    (tmp_path / "kernel/kvm-amd.ko").write_bytes(module("kvm,ccp"))
    (tmp_path / "kernel/kvm.ko.xz").write_bytes(lzma.compress(module("irqbypass")))
    (tmp_path / "kernel/irqbypass.ko").write_bytes(module())
    return Modules(tmp_path)


def test_dependencies_come_first(modules):
    assert list(modules.closure(["kvm_amd"])) == ["irqbypass", "kvm", "kvm_amd"]


def test_modules_are_uncompressed(modules):
    assert modules.closure(["kvm"])["kvm"] == module("irqbypass")


def test_module_that_is_not_there_is_named(modules):
    with pytest.raises(KeyError, match="virtio_console"):
        modules.closure(["virtio_console"])


def bzimage(path, release: str):
    """A file with no more than a bzImage's header."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    path.write_bytes(head[:0x300] + release.encode() + b" (somebody) #1\0")
    return path


def test_image_with_its_modules_beside_it(tmp_path):
    image = bzimage(tmp_path / "bzImage", "6.99.0-test")
    (tmp_path / "lib/modules/6.99.0-test").mkdir(parents=True)
    assert spec.resolve(str(image)).modules == tmp_path / "lib/modules/6.99.0-test"


def test_build_tree(tmp_path):
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    bzimage(tmp_path / "arch/x86/boot/bzImage", "6.99.0-tree")
    assert spec.resolve(str(tmp_path)).release == "6.99.0-tree"


def nothing(path):
    return path / "nowhere"


def no_tree(path):
    return path


def no_image(path):
    (path / "vmlinux").write_bytes(b"\x7fELF" + bytes(0x1000))
    return path / "vmlinux"


def no_modules(path):
    return bzimage(path / "bzImage", "6.99.0-none")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nothing, "no such file or directory"),
        (no_tree, "no built x86 kernel tree"),
        (no_image, "no bzImage"),
        (no_modules, "lib/modules/6.99.0-none"),
    ],
)
def test_kernel_that_cannot_be_booted_says_why(tmp_path, make, says):
    with pytest.raises(KernelError, match=says):
        spec.resolve(str(make(tmp_path)))


def test_version_without_apt_says_what_else_can_be_given(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match="a bzImage or a kernel build tree"):
        Archive()


@pytest.mark.timeout(900)
def test_packaged_kernel_is_judged_in_qemu():
    run = run_pytest(ROOT, "suites/test_flags.py", "--kernel=6.12", "--timeout=300")
    assert run.exit_code == 0, run.output
    assert run.lines_with("clauses, Linux 6.12.")
    assert run.outcomes["passed"] > 80
