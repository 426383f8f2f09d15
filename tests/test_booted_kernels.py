# SPDX-License-Identifier: GPL-2.0-only
"""Kernels booted in QEMU: what a run reports, and what becomes of guests that die."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.kernels import oops
from helpers.kernels.oops import last_words
from helpers.kernels.packages import Archive
from helpers.report.results import read
from tests.ci_outputs import check_ktap, kcidb_of, statuses
from tests.copy_of_the_suite import ROOT, run_pytest
from tests.kernel_files import RELEASE, builtin_modules, bzimage, kvm_modules

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


# --- booted kernels -------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_packaged_kernel_is_judged_in_qemu():
    run = run_pytest(ROOT, "suites", "--kernel=6.12", "--timeout=300", "-q")
    assert run.exit_code == 0, run.output
    assert run.lines_with("clauses, Linux 6.12.")
    assert run.outcomes.keys() <= {"passed", "xfailed", "skipped"}
    assert run.outcomes["passed"] > 1000
    assert not run.lines_with("no passing test: dest.round-robin")  # KVM was reloaded for it


DYING = """
import os, pathlib, signal, time
from helpers.kernels import insmod
from helpers.kernels.init import MODULES

@clause("msi.pad")
def test_before(): pass

@clause("msi.pad")
def test_oops():
    insmod.unload("kvm_amd")
    module = MODULES.joinpath("0/kvm_amd").read_bytes()
    module = module.replace(bytes.fromhex("f30f1efa"), bytes.fromhex("0f0b1efa"))  # endbr64, ud2
    child = os.fork()
    if not child:
        insmod.load(module[:-1])  # no signature, which is better than a wrong one
        os._exit(0)
    os.waitpid(child, 0)

@clause("msi.pad")
def test_between(): pass

@clause("msi.pad")
def test_hang(): os.kill(os.getpid(), signal.SIGSTOP)

@clause("msi.pad")
@pytest.mark.timeout(1)
def test_slow(): time.sleep(600)

@clause("msi.pad")
def test_after(): pass
"""


@pytest.mark.timeout(900)
def test_kernel_that_dies_costs_the_test_that_ran(suite):
    suite.add(DYING)
    suite.write("list", "suites/test_it.py  # all\n")
    files = ["--tests=list", "--ktap=run.ktap", "--kcidb=run.json", "--logs=logs"]
    run = suite.run("--kernel=6.12", "--timeout=5", "-rA", *files)
    passed = [line.split("::")[1] for line in run.lines_with("PASSED suites")]
    assert sorted(passed) == ["test_after", "test_before", "test_between"]
    assert run.lines_with("FAILED suites/test_it.py::test_oops")
    assert run.lines_with("TIMED OUT suites/test_it.py::test_hang")
    assert run.lines_with("TIMED OUT suites/test_it.py::test_slow - timed out after 1 s")
    assert run.lines_with("the kernel died in this test")
    assert run.lines_with("Kernel panic - not syncing: Fatal exception")
    assert run.lines_with("no sign of life for too long: the kernel hangs in this test")
    assert run.exit_code == pytest.ExitCode.TESTS_FAILED
    text = (suite.path / "run.ktap").read_text()
    check_ktap(text)
    assert re.search("not ok . test_hang # TIMEOUT 20 seconds", text)
    assert "Kernel panic - not syncing: Fatal exception" in text
    found = statuses(kcidb_of(suite.path / "run.json"), "6.12")
    assert {found["test_oops"], found["test_hang"], found[""]} == {"FAIL"}
    log = (suite.path / "logs/6.12/test_it.test_oops.log").read_text()
    assert "--- console\n" in log
    assert "Linux version 6.12" in log.partition("--- console\n")[2]


PARAMETERS = """
from helpers.kvm import System
from helpers.verdicts import needs_parameter

leaked = []

@clause("msi.pad")
def test_first(pytestconfig):
    if pytestconfig.option.kvm_param == ["avic=1,0"]:
        leaked.append(System())  # an open file keeps the module

@clause("msi.pad")
@needs_parameter("kvm.vector_hashing", "N")
def test_needs_n(kernel): assert not kernel.vector_hashing

@clause("msi.pad")
@needs_parameter("kvm_amd.avic", "Y")
def test_needs_avic(): pass

@clause("msi.pad")
def test_last(): pass
"""


@pytest.mark.timeout(600)
def test_parameters_are_columns_of_one_boot(suite):
    suite.add(PARAMETERS)
    options = ["--kvm-param=matrix", "--results=found", "--junitxml=found.xml", "-v", "-rs"]
    run = suite.run("--kernel=6.12", *options)
    found = {
        file.stem: {
            name.partition("::")[2]: outcome for name, outcome in read(file).verdicts.items()
        }
        for file in (suite.path / "found").iterdir()
    }
    every = dict.fromkeys(["test_first", "test_needs_n", "test_last"], "passed")
    every["test_needs_avic"] = "skipped"
    assert found == {
        "6.12": every,
        "6.12 vector_hashing=N": every,
        "6.12 nested=0": every,
        "6.12 vgif=0": every,
    }
    verdicts = run.lines_with("suites/test_it.py::")
    assert [line.split("::")[1].split()[0] for line in verdicts[:4]] == [
        "test_first",
        "test_last",
        "test_needs_n",
        "test_needs_avic",
    ]
    assert run.lines_with("kvm_amd.avic=N, not Y: a reload did not change it")
    assert run.lines_with("6.12 avic=Y is no column: kvm_amd.avic=Y reads back N")
    assert 'tests="16"' in (suite.path / "found.xml").read_text()
    assert run.exit_code == pytest.ExitCode.OK


@pytest.mark.timeout(600)
def test_kernel_without_the_parameter_asked_for_is_not_judged(suite):
    suite.add(PARAMETERS)
    run = suite.run("--kernel=6.12", "--kvm-param=avic=1,0", "-rs")
    assert run.lines_with("6.12 avic=1 could not be judged: kvm_amd.avic=1 reads back N")
    assert run.outcomes == {"passed": 2, "skipped": 2}
    assert run.lines_with("vector_hashing=Y, not N: kvm_amd cannot be unloaded: Resource temp")
    assert run.lines_with("kvm_amd.avic=N, not Y: --kvm-param sets it")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


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
    files = ["--ktap=run.ktap", "--kcidb=run.json", "--results=found"]
    run = suite.run("--kernel=6.1", "--kernel=6.12", "--maxfail-each=3", *files)
    assert run.outcomes == {"failed": 3, "passed": 102}
    assert run.lines_with("6.1 left after --maxfail-each, 95 tests not run")
    assert len(read(suite.path / "found/6.1.json").verdicts) == 5
    assert len(read(suite.path / "found/6.12.json").verdicts) == 100
    text = (suite.path / "run.ktap").read_text()
    check_ktap(text)
    assert text.count(" # SKIP not run: --maxfail-each\n") == 95
    content = kcidb_of(suite.path / "run.json")
    assert [*statuses(content, "6.1").values()].count("MISS") == 95
    assert set(statuses(content, "6.12").values()) == {"PASS"}


@pytest.mark.timeout(600)
def test_modules_that_do_not_load_are_never_replaced_by_others(suite, tmp_path):
    name = Archive().newest("6.12")
    suite.add(SENT)
    broken = kvm_modules(tmp_path / "broken", release=name)
    run = suite.run("--kernel=6.12", f"--kvm-modules={broken}")
    (line,) = run.lines_with("broken could not be judged")
    assert "kvm cannot be loaded: Exec format error" in line
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


def kernel_with_kvm(path):
    """A bzImage that does not boot, of a kernel with KVM and virtio built in."""
    modules = path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    builtin_modules(modules, "kvm", "kvm_amd")
    return bzimage(path / "bzImage")


@pytest.mark.timeout(600)
def test_kernel_that_does_not_boot_is_one_line(suite, tmp_path):
    suite.add(SENT)
    image = kernel_with_kvm(tmp_path)
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
    monkeypatch.setattr(oops, "DECODE_SECONDS", 0.2)
    assert last_words(OOPS, tree).splitlines() == OOPS


HANGING = {
    "silent": (b"\xeb\xfe", "nothing on its console for 4 s"),  # jmp to itself
    "talking": (b"\xeb\x7e", "not up after 8 s"),  # jmp to TALKING
}
"""The instruction at the entry of a kernel that hangs, and what is reported."""
TALKING = b"\xba\xf8\x03\xb0\x2e\xee\xeb\xfd"
"""``mov dx, COM1; mov al, '.'; out dx, al``, and a jmp to the out."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", HANGING)
def test_boot_that_hangs_is_ended(suite, tmp_path, kind):
    suite.add(SENT)
    suite.prepare(
        "from helpers.kernels import schedule\n"
        "schedule.SILENT_SECONDS, schedule.BOOT_SECONDS = 4, 8\n"
    )
    entry, says = HANGING[kind]
    image = kernel_with_kvm(tmp_path)
    code = bytearray(image.read_bytes()) + bytes(0x10000)
    code[0x200:0x202], code[0x280 : 0x280 + len(TALKING)] = entry, TALKING
    struct.pack_into("<H", code, 0x206, 0x202)  # a boot protocol that knows of an initramfs
    image.write_bytes(code)
    run = suite.run(f"--kernel={image}")
    (line,) = run.lines_with("6.99.0-test could not be judged")
    assert says in line
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "sent",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
    ids=["ctrl-c", "terminate", "kill"],
)
def test_interrupted_run_leaves_no_process(suite, sent):
    suite.add("import time\n@clause('msi.pad')\ndef test_it(): time.sleep(600)")
    mark = f"MARK={suite.path}"
    command = [sys.executable, "-m", "pytest", "suites", "--kernel=6.12", "-q"]
    environment = os.environ | {"MARK": str(suite.path)}
    with subprocess.Popen(
        command, cwd=suite.path, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        until(lambda: any("qemu" in name for name in processes(mark)))
        run.send_signal(sent)
        output, _ = run.communicate(timeout=60)
    until(lambda: not processes(mark))
    if sent != signal.SIGKILL:
        assert "no test came to a verdict" in output
        assert run.returncode == pytest.ExitCode.INTERRUPTED


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
