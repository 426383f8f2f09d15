# SPDX-License-Identifier: GPL-2.0-only
"""Finding, fetching, packing and bisecting kernels, and the options that name them."""

from __future__ import annotations

import hashlib
import http.server
import lzma
import stat
import sys
import threading
from typing import ClassVar

import pytest

from helpers.kernels import bisect_packages, columns, frames, locate, parameters, plugin
from helpers.kernels.boot import COMMAND_LINE
from helpers.kernels.download import Download
from helpers.kernels.emulators.interface import MemoryFiles
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.image import Cpio
from helpers.kernels.modules import Modules
from helpers.kernels.packages import Archive, KernelError, release_options
from helpers.kernels.parameters import Choices
from helpers.spec.kernels import DEFAULT_KERNEL, REFERENCE_KERNELS
from tests.copy_of_the_suite import ROOT, run_pytest
from tests.kernel_files import (
    RELEASE,
    builtin_modules,
    bzimage,
    kvm_modules,
    modular_kernel,
    module,
)


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


def test_archive_leaves_the_cache_and_environments_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for file in (".cache/kvm-signal-msi/kernel", ".cache/other", "venv/pyvenv.cfg", "file"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    archive = Cpio()
    archive.add_path(tmp_path)
    files = {name for name, (mode, _) in entries(archive.finish()).items() if stat.S_ISREG(mode)}
    assert {name.removeprefix(f"{tmp_path}/".lstrip("/")) for name in files} == {
        ".cache/other",
        "file",
    }


@pytest.fixture
def modules(tmp_path):
    """kvm-amd needs kvm and ccp, kvm needs irqbypass; ccp is built in, kvm is compressed."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "modules.builtin").write_text("kernel/drivers/ccp.ko\n")
    (tmp_path / "kernel/kvm-amd.ko").write_bytes(module("depends=kvm,ccp"))
    (tmp_path / "kernel/kvm.ko.xz").write_bytes(lzma.compress(module("depends=irqbypass")))
    (tmp_path / "kernel/irqbypass.ko").write_bytes(module())
    return Modules(tmp_path)


def test_dependencies_come_first(modules):
    assert list(modules.closure(["kvm_amd"])) == ["irqbypass", "kvm", "kvm_amd"]


def test_modules_are_uncompressed(modules):
    assert modules.closure(["kvm"])["kvm"] == module("depends=irqbypass")


def test_module_that_is_not_there_is_named(modules):
    with pytest.raises(KeyError, match="virtio_console"):
        modules.closure(["virtio_console"])


def test_image_with_its_modules_beside_it(tmp_path):
    image = bzimage(tmp_path / "bzImage")
    (tmp_path / "lib/modules" / RELEASE).mkdir(parents=True)
    assert locate.resolve(str(image)).modules == tmp_path / "lib/modules" / RELEASE


def test_build_tree(tmp_path):
    bzimage(tmp_path / "arch/x86/boot/bzImage")
    assert locate.resolve(str(tmp_path)).release == RELEASE


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
        locate.resolve(str(make(tmp_path)))


def test_empty_kernel_says_what_can_be_given():
    with pytest.raises(KernelError, match=r"^--kernel= is empty: give a version such as 6\.12"):
        locate.resolve("")


def test_version_without_apt_says_what_else_can_be_given(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match="a bzImage or a kernel build tree"):
        Archive()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("7.3.4+deb13-amd64", ["-t", "13*"]),
        ("7.2.13+deb14-amd64", []),  # sid has no release number
        ("6.1.0-56-amd64", []),
    ],
)
def test_tools_come_from_the_release_of_the_kernel(name, options):
    policy = (
        " 500 http://deb.debian.org/debian trixie/main\n     release v=13.8,o=Debian,n=trixie\n"
    )
    assert release_options(name, policy) == options


# --- columns --------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path):
    """The value of --kernel for a kernel with stock modules."""
    return modular_kernel(tmp_path / "boot")


def boots(kernels, directories, settings):
    return columns.boots(kernels, directories, Choices.parse(settings), [Qemu.software()])


def test_module_sets_share_a_boot(tmp_path, kernel):
    sets = [kvm_modules(tmp_path / name) for name in ("first", "second")]
    (boot,) = boots([kernel], sets, [])
    assert list(boot.modules) == ["ccp"]
    assert [column.label for column in boot.columns] == ["first", "second"]
    assert boot.columns[1].options == [f"--kernel={kernel}", f"--kvm-modules={sets[1]}"]


def test_parameter_goes_to_the_module_that_has_it(kernel):
    (boot,) = boots([kernel], [], ["vector_hashing=N", "kvm_amd.npt=0"])
    settings = boot.columns[0].settings
    given = {name: parameters.given_to(name, settings) for name in boot.columns[0].modules}
    assert given == {"kvm": "vector_hashing=N", "kvm_amd": "npt=0"}


def test_parameter_of_a_built_in_kvm_goes_to_the_command_line(tmp_path):
    image = bzimage(tmp_path / "bzImage")
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    builtin_modules(modules, "kvm", "kvm-amd")
    (boot,) = boots([str(image)], [], ["vector_hashing=N"])
    assert (boot.command_line, boot.columns[0].modules) == ("kvm.vector_hashing=N", {})


@pytest.mark.parametrize(
    ("directories", "settings", "says"),
    [
        (["other"], [], "is built for 6.98.0-other, which no --kernel of this run is"),
        (["mine", "deep/mine"], [], "two kernels of this run would be called mine"),
        (["nowhere"], [], r"no kvm\.ko in it"),
        ([], ["vector_hashing"], "give NAME=VALUE"),
        ([], ["no_such=1"], "kvm and kvm_amd of 6.99.0-test have no such parameter"),
    ],
    ids=["other-release", "same-name", "no-modules", "no-value", "no-parameter"],
)
def test_columns_that_cannot_be_had_say_why(tmp_path, kernel, directories, settings, says):
    kvm_modules(tmp_path / "other", release="6.98.0-other")
    for name in ("mine", "deep/mine"):
        kvm_modules(tmp_path / name)
    with pytest.raises(KernelError, match=says):
        boots([kernel], [str(tmp_path / name) for name in directories], settings)


# --- --kvm-modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "places",
    [
        ["."],
        ["arch/x86/kvm"],
        ["kernel/arch/x86/kvm"],
        [f"lib/modules/{RELEASE}/kernel/arch/x86/kvm"],
        ["arch/x86/kvm", f"debian/linux-image/lib/modules/{RELEASE}/kernel/arch/x86/kvm"],
    ],
    ids=["flat", "build-tree", "modules-of-a-kernel", "installed", "build-tree-and-package"],
)
def test_directory_of_one_build_is_taken(tmp_path, kernel, places):
    build = tmp_path / "build"
    for place in places:
        kvm_modules(build / place)
    with (build / places[0] / "kvm.ko").open("ab") as file:
        file.write(b"the first one")
    (build / places[0] / "kvm.ko.debug").touch()
    (boot,) = boots([kernel], [str(build)], [])
    assert boot.columns[0].modules["kvm"].endswith(b"the first one")


@pytest.mark.parametrize(
    ("builds", "listed"),
    [
        (
            {"a": "kvm kvm-amd", "b": "kvm kvm-amd"},
            "a/kvm.ko, b/kvm.ko, a/kvm-amd.ko, b/kvm-amd.ko",
        ),
        ({"a": "kvm kvm-amd", "b": "kvm"}, "a/kvm.ko, b/kvm.ko, a/kvm-amd.ko"),
        ({"a": "kvm", "b": "kvm-amd"}, "a/kvm.ko, b/kvm-amd.ko"),
    ],
    ids=["two-builds", "one-module-twice", "a-module-each"],
)
def test_directory_of_several_builds_is_an_error(tmp_path, kernel, builds, listed):
    for name, modules in builds.items():
        kvm_modules(tmp_path / "builds" / name, names=modules)
    with pytest.raises(KernelError) as error:
        boots([kernel], [str(tmp_path / "builds")], [])
    assert str(error.value) == (
        f"--kvm-modules={tmp_path}/builds has modules of several builds: {listed}; "
        "name the directory of one build"
    )


def test_compressed_copy_is_another_build(tmp_path, kernel):
    kvm_modules(tmp_path / "build")
    (tmp_path / "build/kvm.ko.xz").write_bytes(lzma.compress(module()))
    with pytest.raises(KernelError, match=r"several builds: kvm\.ko, kvm\.ko\.xz, kvm-amd\.ko;"):
        boots([kernel], [str(tmp_path / "build")], [])


def test_modules_built_for_different_kernels_are_an_error(tmp_path, kernel):
    kvm_modules(tmp_path / "build")
    kvm_modules(tmp_path / "build", release="6.98.0-other", names="kvm-amd")
    says = r"kvm\.ko for '6\.99\.0-test SMP mod_unload', kvm-amd\.ko for '6\.98\.0-other SMP mod"
    with pytest.raises(KernelError, match=f"has modules of different builds: {says}"):
        boots([kernel], [str(tmp_path / "build")], [])


def test_kernel_with_two_kvms_is_an_error(tmp_path, kernel):
    kvm_modules(tmp_path / "boot/lib/modules" / RELEASE / "updates/dkms", names="kvm")
    says = r"has several modules kvm: kernel/arch/x86/kvm/kvm\.ko, updates/dkms/kvm\.ko"
    with pytest.raises(KernelError, match=says):
        boots([kernel], [], [])


# --- options --------------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # the package lists may have to be fetched
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kvm-modules=here"], "name one by --kernel"),
        (["--config=debug"], "name one by --kernel"),
        (["--kernel=6.12", "--config=debug"], "--config=debug builds a source tree, which 6.12 is"),
        (["--kernel=suites", "--config=debug"], "/suites is no kernel tree: it has no virt/kvm"),
        (["--kernel=6.12", "--pdb"], "cannot reach into a booted kernel"),
        (["--kvm-param=matrix"], "name one by --kernel"),
        (["--kernel=6.12", "--kvm-param=x=1,2"], "kvm and kvm_amd of 6.12 have no such parameter"),
        (["--kernel="], "--kernel= is empty: give a version such as 6.12"),
        (["--kernel=6.12", "--kvm-modules="], "--kvm-modules= is empty: give the directory of"),
        (["--kernel=nonsense"], "no such file or directory; give a version such as 6.12"),
        (["--kernel=4.4"], "no packaged kernel 4.4; there are 5.10, 6.1"),
    ],
)
def test_nonsense_is_one_line(options, says):
    run = run_pytest(ROOT, "suites/test_flags.py", *options)
    (line,) = run.lines_with(says)
    assert (line.startswith("ERROR: "), run.exit_code) == (True, pytest.ExitCode.USAGE_ERROR)


def test_references_are_the_kernels_with_results():
    assert [*plugin.expand(["6.16", "references"])] == ["6.16", *REFERENCE_KERNELS]
    stems = {file.stem for file in (ROOT / "reports").glob("*.json")}
    ends = ("", "-intel", "-arm64")
    assert stems == {f"{each}{end}" for each in REFERENCE_KERNELS for end in ends}


def test_default_kernel_is_a_reference_kernel():
    assert DEFAULT_KERNEL in REFERENCE_KERNELS


def test_no_module_beside_a_script_hides_the_standard_librarys():
    files = (ROOT / "helpers/kernels").glob("*.py")
    assert not {file.stem for file in files} & sys.stdlib_module_names


# --- QEMU -----------------------------------------------------------------------------------------


def test_dead_kernel_ends_qemu_at_once(kernel):
    (boot,) = boots([kernel], [], [])
    with MemoryFiles() as files:
        command = boot.emulator.command(boot.kernel, "panic=-1", b"", "console", files)
    assert "-no-reboot" in command
    assert {"oops=panic", "panic=-1"} <= set(COMMAND_LINE)


# --- packages -------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, the first time only half of it; knows ranges."""

    requested: ClassVar[list[str]] = []

    def do_GET(self):
        begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").strip("-"))
        self.requested.append(self.headers["Range"])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        is_first = len(self.requested) == 1
        self.wfile.write(CONTENT[begin : len(CONTENT) // 2 if is_first else None])

    def log_message(self, *_):
        pass


CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def uri():
    """Where CONTENT is served."""
    Server.requested.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


def test_interrupted_download_goes_on_where_it_was(tmp_path, uri):
    file = Download(uri, "file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(OSError, match="cut off"):
        file.fetch(tmp_path)
    assert file.fetch(tmp_path).read_bytes() == CONTENT
    assert Server.requested == [None, f"bytes={len(CONTENT) // 2}-"]


def test_download_that_is_not_what_apt_knows_is_thrown_away(tmp_path, uri):
    Server.requested.append("")
    with pytest.raises(ValueError, match="SHA256"):
        Download(uri, "file", len(CONTENT), "0" * 64).fetch(tmp_path)
    assert not list(tmp_path.iterdir())


NAMES = ["6.1.0-55-amd64", "6.1.0-56-amd64", "6.12.9+deb12-amd64", "6.12.9+deb13-amd64"]
NAMES += ["6.12.10+deb13-amd64", "6.16.3+deb13-amd64", "7.0.4+deb13-amd64"]


def test_bisection_tries_each_release_once():
    found = bisect_packages.between(NAMES, "7.0.4+deb13-amd64", "6.1.0-56-amd64")
    assert found == ["6.1.0-56-amd64", *NAMES[3:]]


@pytest.mark.parametrize("change", range(1, len(NAMES)))
@pytest.mark.parametrize(("was", "now"), [("passes", "fails"), ("fails", "passes")])
def test_bisection_finds_the_neighbours(change, was, now):
    tried = []

    def verdict(name):
        tried.append(name)
        return was if NAMES.index(name) < change else now

    assert bisect_packages.search(NAMES, verdict) == (NAMES[change - 1], NAMES[change], was, now)
    assert len(tried) <= 5


def test_bisection_without_a_change_says_so():
    with pytest.raises(KernelError, match=r"passes on both 6\.1.* and 7\.0"):
        bisect_packages.search(NAMES, lambda _: "passes")


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 7, 1000])
def test_messages_arrive_however_they_are_cut(size):
    messages = [("run", [1, 2, 3]), ("end",), ("ended", 7, [{"a": ("b", None, 1.5)}])]
    stream = b"".join(frames.pack(*message) for message in messages)
    unpacker = frames.Unpacker()
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert [message for piece in pieces for message in unpacker.feed(piece)] == messages
