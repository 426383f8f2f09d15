"""Kernels that are not running: finding, packing and booting them."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import lzma
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from helpers.kernels import bisect, columns, frames, loop, spec
from helpers.kernels.boot import VIRTIO
from helpers.kernels.download import Download
from helpers.kernels.image import Cpio
from helpers.kernels.loop import last_words
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


# --- columns --------------------------------------------------------------------------------------


def kvm_modules(path, release="6.99.0-test"):
    """A directory with modules built for a kernel, so far as their .modinfo says."""
    path.mkdir(parents=True)
    magic = f"vermagic={release} SMP mod_unload \0".encode()
    (path / "kvm.ko").write_bytes(b"\0parmtype=vector_hashing:bool\0" + magic)
    (path / "kvm-amd.ko").write_bytes(b"\0parmtype=npt:bool\0depends=kvm,ccp\0" + magic)
    return str(path)


@pytest.fixture
def kernel(tmp_path):
    """What to give to --kernel for a kernel with stock modules."""
    kvm_modules(tmp_path / "boot/lib/modules/6.99.0-test")
    (tmp_path / "boot/lib/modules/6.99.0-test/ccp.ko").write_bytes(module())
    return str(bzimage(tmp_path / "boot/bzImage", "6.99.0-test"))


def boots(*arguments):
    return columns.boots(*arguments, virtio=(), vendor="kvm_amd")


def test_module_sets_share_a_boot(tmp_path, kernel):
    sets = [kvm_modules(tmp_path / name) for name in ("first", "second")]
    (boot,) = boots([kernel], sets, [])
    assert list(boot.modules) == ["ccp"]
    assert [column.label for column in boot.columns] == ["first", "second"]
    assert boot.columns[1].options == [f"--kernel={kernel}", f"--kvm-modules={sets[1]}"]


def test_parameter_goes_to_the_module_that_has_it(kernel):
    (boot,) = boots([kernel], [], ["vector_hashing=N", "kvm_amd.npt=0"])
    given = {name: parameters for name, _, parameters in boot.columns[0].modules}
    assert given == {"kvm": "vector_hashing=N", "kvm_amd": "npt=0"}


def test_parameter_of_a_built_in_kvm_goes_to_the_command_line(tmp_path):
    image = bzimage(tmp_path / "bzImage", "6.99.0-test")
    modules = tmp_path / "lib/modules/6.99.0-test"
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("arch/x86/kvm/kvm.ko\narch/x86/kvm/kvm-amd.ko\n")
    (boot,) = boots([str(image)], [], ["vector_hashing=N"])
    assert (boot.command_line, boot.columns[0].modules) == ("kvm.vector_hashing=N", [])


@pytest.mark.parametrize(
    ("directories", "settings", "says"),
    [
        (["other"], [], "is built for 6.98.0-other, which no --kernel of this run is"),
        (["mine", "deep/mine"], [], "two kernels of this run would be called mine"),
        (["nowhere"], [], r"no kvm\.ko in it"),
        ([], ["vector_hashing"], "give NAME=VALUE"),
        ([], ["no_such=1"], "kvm and kvm_amd have no such parameter"),
    ],
    ids=["other-release", "same-name", "no-modules", "no-value", "no-parameter"],
)
def test_columns_that_cannot_be_had_say_why(tmp_path, kernel, directories, settings, says):
    kvm_modules(tmp_path / "other", release="6.98.0-other")
    for name in ("mine", "deep/mine"):
        kvm_modules(tmp_path / name)
    with pytest.raises(KernelError, match=says):
        boots([kernel], [str(tmp_path / name) for name in directories], settings)


@pytest.mark.timeout(600)  # the package lists may have to be fetched
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kvm-modules=here"], "name one by --kernel"),
        (["--kernel=6.12", "--pdb"], "cannot reach into a booted kernel"),
        (["--kernel=nonsense"], "no such file or directory; give a version such as 6.12"),
        (["--kernel=4.4"], "no packaged kernel 4.4; there are 5.10, 6.1"),
    ],
)
def test_nonsense_is_one_line(options, says):
    run = run_pytest(ROOT, "suites/test_flags.py", *options)
    (line,) = run.lines_with(says)
    assert (line.startswith("ERROR: "), run.exit_code) == (True, pytest.ExitCode.USAGE_ERROR)


# --- without /dev/kvm -----------------------------------------------------------------------------

WITHOUT_KVM = "from helpers.kernels import plugin\nplugin._has_kvm = lambda: False\n"


def test_without_kvm_and_qemu_it_says_what_to_install(suite, tmp_path):
    suite.add("def test_it(): pass")
    suite.prepare(WITHOUT_KVM)
    run = suite.run(PATH=str(tmp_path))
    (line,) = run.lines_with("ERROR: ")
    assert "no /dev/kvm on this machine, and: qemu-system-x86_64 not found" in line
    assert "apt-get install qemu-system-x86" in line


@pytest.mark.timeout(600)
def test_without_kvm_the_default_kernel_is_judged(suite):
    suite.add("@clause('msi.pad')\ndef test_it(kernel): assert kernel.version == (6, 12)")
    suite.prepare(WITHOUT_KVM)
    run = suite.run()
    assert run.outcomes["passed"] == 1, run.output
    assert run.lines_with("no /dev/kvm here: judging Debian's kernel 6.12 instead")


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
    found = bisect.between(NAMES, "7.0.4+deb13-amd64", "6.1.0-56-amd64")
    assert found == ["6.1.0-56-amd64", *NAMES[3:]]


@pytest.mark.parametrize("change", range(1, len(NAMES)))
@pytest.mark.parametrize(("was", "now"), [("passes", "fails"), ("fails", "passes")])
def test_bisection_finds_the_neighbours(change, was, now):
    tried = []

    def verdict(name):
        tried.append(name)
        return was if NAMES.index(name) < change else now

    assert bisect.search(NAMES, verdict) == (NAMES[change - 1], NAMES[change], was, now)
    assert len(tried) <= 5


def test_bisection_without_a_change_says_so():
    with pytest.raises(KernelError, match=r"passes on both 6\.1.* and 7\.0"):
        bisect.search(NAMES, lambda _: "passes")


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 7, 1000])
def test_messages_arrive_however_they_are_cut(size):
    messages = [("run", [1, 2, 3]), ("end",), ("ended", 7, [{"a": ("b", None, 1.5)}])]
    stream = b"".join(frames.pack(*message) for message in messages)
    unpacker = frames.Unpacker()
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert [message for piece in pieces for message in unpacker.feed(piece)] == messages


# --- booted kernels -------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_packaged_kernel_is_judged_in_qemu():
    run = run_pytest(ROOT, "suites", "--kernel=6.12", "--timeout=300", "-q")
    assert run.exit_code == 0, run.output
    assert run.lines_with("clauses, Linux 6.12.")
    assert run.outcomes.keys() <= {"passed", "xfailed", "skipped"}
    assert run.outcomes["passed"] > 1000


DYING = """
import os, pathlib, signal

@clause("msi.pad")
def test_before(): pass

@clause("msi.pad")
def test_panic(): pathlib.Path("/proc/sysrq-trigger").write_text("c")

@clause("msi.pad")
def test_between(): pass

@clause("msi.pad")
def test_hang(): os.kill(os.getpid(), signal.SIGSTOP)

@clause("msi.pad")
def test_after(): pass
"""


@pytest.mark.timeout(900)
def test_kernel_that_dies_costs_the_test_that_ran(suite):
    suite.add(DYING)
    run = suite.run("--kernel=6.12", "--timeout=5", "-rA")
    passed = [line.split("::")[1] for line in run.lines_with("PASSED suites")]
    failed = [line.split("::")[1].split()[0] for line in run.lines_with("FAILED suites")]
    assert (sorted(passed), sorted(failed)) == (
        ["test_after", "test_before", "test_between"],
        ["test_hang", "test_panic"],
    )
    assert run.lines_with("Kernel panic - not syncing: sysrq triggered crash")
    assert run.lines_with("no sign of life for too long: the kernel hangs in this test")
    assert run.exit_code == pytest.ExitCode.TESTS_FAILED


SENT = "@clause('msi.pad')\ndef test_it(kernel): pass"


@pytest.mark.timeout(600)
def test_each_kernel_has_its_column_and_failures_are_remembered(suite):
    suite.add("@clause('msi.pad')\ndef test_it(kernel): assert kernel.version != (6, 1)")
    here = "-ocache_dir=.pytest_cache"  # under tox pytest has it elsewhere
    kernels = ("--kernel=6.1", "--kernel=6.12")
    run = run_pytest(suite.path, "suites", *kernels, "-v", here, remember=True)
    assert run.lines_with("[6.1]")[0].split()[-2] == "FAILED"
    assert run.lines_with("[6.12]")[0].split()[-2] == "PASSED"
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert "test_it" in (suite.path / ".pytest_cache/v/cache/lastfailed").read_text()


@pytest.mark.timeout(600)
def test_kernel_that_fails_often_is_left_for_the_others(suite):
    suite.add(
        "@pytest.mark.parametrize('n', range(100))\n"
        "@clause('msi.pad')\ndef test_it(kernel, n): assert kernel.version != (6, 1) or n < 2"
    )
    run = suite.run("--kernel=6.1", "--kernel=6.12", "--maxfail-each=3")
    failed, passed = run.outcomes["failed"], run.outcomes["passed"]
    (line,) = run.lines_with("left after --maxfail-each")
    assert line == f"6.1 left after --maxfail-each, {200 - failed - passed} tests not run"
    assert passed == 102
    assert 3 <= failed < 60


@pytest.mark.timeout(600)
def test_modules_that_do_not_load_are_never_replaced_by_others(suite, tmp_path):
    name = Archive().newest("6.12")
    suite.add(SENT)
    broken = kvm_modules(tmp_path / "broken", release=name)
    run = suite.run("--kernel=6.12", f"--kvm-modules={broken}")
    (line,) = run.lines_with("broken could not be judged")
    assert "kvm cannot be loaded: Exec format error" in line
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


@pytest.mark.timeout(600)
def test_kernel_that_does_not_boot_is_one_line(suite, tmp_path):
    suite.add(SENT)
    image = bzimage(tmp_path / "bzImage", "6.99.0-test")
    (tmp_path / "lib/modules/6.99.0-test").mkdir(parents=True)
    (tmp_path / "lib/modules/6.99.0-test/modules.builtin").write_text(BUILT_IN)
    run = suite.run(f"--kernel={image}")
    assert len(run.lines_with("6.99.0-test could not be judged: the kernel died")) == 1
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


OOPS = ["BUG: kernel NULL pointer dereference", "RIP: 0010:kvm_set_msi+0x4/0x20 [kvm]"]


@pytest.fixture(params=["in-tree", "out-of-tree"])
def build_tree(request, tmp_path):
    """A function that makes a build tree whose decoder writes ``line`` in place of an offset."""
    tree, sources = tmp_path / "tree", tmp_path / "sources"
    tree.mkdir()
    if request.param == "in-tree":
        sources = tree
    else:
        (tree / "source").symlink_to(sources)

    def make(line):
        (sources / "scripts").mkdir(parents=True)
        decoder = sources / "scripts/decode_stacktrace.sh"
        decoder.write_text(f"#!/bin/sh\necho \"$@\"\nsed 's|+0x4/0x20.*| ({line})|'\n")
        decoder.chmod(0o755)
        return tree

    return make


def test_oops_is_decoded_by_its_build_tree(build_tree):
    tree = build_tree("arch/x86/kvm/irq_comm.c:42")
    (tree / "vmlinux").touch()
    arguments, *oops = last_words(OOPS, tree).splitlines()
    assert oops == [OOPS[0], "RIP: 0010:kvm_set_msi (arch/x86/kvm/irq_comm.c:42)"]
    assert arguments == f"{tree}/vmlinux auto {tree}"


def test_oops_without_debug_info_keeps_its_offsets(build_tree):
    tree = build_tree("??:?")
    (tree / "vmlinux").touch()
    assert last_words(OOPS, tree).splitlines() == OOPS


def test_oops_of_a_tree_without_vmlinux_is_shown_as_it_is(build_tree):
    assert last_words(OOPS, build_tree("arch/x86/kvm/irq_comm.c:42")).splitlines() == OOPS


def test_oops_whose_decoder_hangs_is_shown_as_it_is(build_tree, tmp_path, monkeypatch):
    tree = build_tree("arch/x86/kvm/irq_comm.c:42")
    (tree / "vmlinux").touch()
    decoder = next(tmp_path.glob("*/scripts/decode_stacktrace.sh"))
    decoder.write_text("#!/bin/sh\nsleep 100 & sleep 100\n")
    monkeypatch.setattr(loop, "DECODE_SECONDS", 0.2)
    assert last_words(OOPS, tree).splitlines() == OOPS


HANGING = {
    "silent": (b"\xeb\xfe", "nothing on its console for 4 s"),  # jmp here
    # mov dx, COM1; mov al, '.'; out dx, al; jmp to the out
    "talking": (b"\xeb\x7e", "not up after 8 s"),
}
TALKING = b"\xba\xf8\x03\xb0\x2e\xee\xeb\xfd"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", HANGING)
def test_boot_that_hangs_is_ended(suite, tmp_path, kind):
    suite.add(SENT)
    limits = "from helpers.kernels import loop\nloop.SILENT_SECONDS, loop.BOOT_SECONDS = 4, 8\n"
    suite.prepare(limits)
    entry, says = HANGING[kind]
    image = bzimage(tmp_path / "bzImage", "6.99.0-test")
    code = bytearray(image.read_bytes()) + bytes(0x10000)
    code[0x200:0x202], code[0x280 : 0x280 + len(TALKING)] = entry, TALKING
    struct.pack_into("<H", code, 0x206, 0x202)  # a boot protocol that knows of an initramfs
    image.write_bytes(code)
    (tmp_path / "lib/modules/6.99.0-test").mkdir(parents=True)
    (tmp_path / "lib/modules/6.99.0-test/modules.builtin").write_text(BUILT_IN)
    run = suite.run(f"--kernel={image}")
    (line,) = run.lines_with("6.99.0-test could not be judged")
    assert says in line
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


BUILT_IN = "".join(f"kernel/{name}.ko\n" for name in (*VIRTIO, "kvm", "kvm_amd"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_interrupted_run_leaves_no_process(suite, sent):
    suite.add("import time\n@clause('msi.pad')\ndef test_it(): time.sleep(600)")
    mark = f"MARK={suite.path}"
    command = [sys.executable, "-m", "pytest", "suites", "--kernel=6.12", "-q"]
    environment = os.environ | {"MARK": str(suite.path)}
    with subprocess.Popen(command, cwd=suite.path, env=environment) as run:
        until(lambda: any("qemu" in name for name in processes(mark)))
        run.send_signal(sent)
        run.wait(60)
    until(lambda: not processes(mark))


def processes(mark):
    """The names of the processes with ``mark`` in their environment."""
    names = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                names.append((process / "comm").read_text().strip())
    return names


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
