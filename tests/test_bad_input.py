# SPDX-License-Identifier: GPL-2.0-only
"""Bad input is one clear line and an exit code that is not 0; nothing is lost or left behind.

The table of options and files that are nonsense, damaged or not writable. Elsewhere:

    damaged caches, a full cache, two runs that fetch     test_damaged_cache.py
    a damaged emulator, and one that does not build       test_emulators.py
    foreign and hostile result files (--compare)          test_compare.py
    garbage and hostile values from a guest               test_channel.py, test_carried.py
    hostile text in the HTML report                       test_report.py, test_report_matrix.py
    kernels and modules that do not fit or boot           test_kernels.py, test_booted_kernels.py
    parameters of modules                                 test_parameters.py
    a full disk for --ktap, lists of tests                test_ktap.py, test_lists.py
    no gcc, a cache that cannot be written                test_guest.py, test_untestable.py
    no QEMU, no apt                                       test_booted_kernels.py, test_kernels.py
"""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.kernels.locate import resolve
from helpers.kernels.modules import Modules
from helpers.kernels.packages import KernelError
from tests.copy_of_the_suite import ROOT, Suite, run_pytest

HOLDS = "@clause('msi.flags')\ndef test_it():\n    pass\n"
GARBAGE = random.Random(20).randbytes(5000)


@pytest.fixture(scope="module")
def holding(tmp_path_factory) -> Suite:
    """A suite of one test that passes, beside files that are none of its own."""
    suite = Suite(tmp_path_factory.mktemp("bad") / "suite")
    suite.add(HOLDS)
    (suite.path / "garbage").write_bytes(GARBAGE)
    (suite.path / "empty").touch()
    (suite.path / "garbage.c").write_bytes(GARBAGE)
    (suite.path / "directory").mkdir()
    (suite.path / "modules").mkdir()
    (suite.path / "modules/kvm.ko").write_bytes(b"\x7fELF" + GARBAGE)
    (suite.path / "modules/kvm-amd.ko").touch()
    return suite


def left_behind(suite: Suite) -> set[str]:
    return {file.name for file in suite.path.iterdir()} - {"__pycache__"}


NONSENSE = [
    (["--clause="], "--clause=: no clause matches"),
    (["--clause=nonsense"], "--clause=nonsense: no clause matches"),
    (["--compare="], "--compare= is empty: name a file"),
    (["--compare=directory"], "--compare=directory is a directory"),
    (["--compare=empty"], "--compare=empty: not JSON"),
    (["--compare=garbage"], "--compare=garbage: not JSON"),
    (["--generate=0"], "--generate wants minutes, a number above 0, not '0'"),
    (["--generate=nan"], "--generate wants minutes, a number above 0, not 'nan'"),
    (["--html="], "--html= is empty: name a file"),
    (["--html=/proc/no/report.html"], "--html=/proc/no/report.html: No such file or directory"),
    (["--html=directory"], "--html=directory: Is a directory"),
    (["--html=garbage/report.html"], "--html=garbage/report.html: File exists"),
    (["--hypothesis-seed=x"], "--hypothesis-seed wants a number, not 'x'"),
    (["--junitxml="], "--junitxml= is empty: name a file"),
    (["--junitxml=/proc/no/x.xml"], "--junitxml=/proc/no/x.xml: No such file or directory"),
    (["--junitxml=directory"], "--junitxml must be a filename, given: directory"),
    (["--kcidb="], "--kcidb= is empty: name a file"),
    (["--kcidb=/proc/no/x"], "--kcidb=/proc/no/x cannot be written: no directory /proc/no"),
    (["--kcidb=directory"], "--kcidb=directory cannot be written: it is no file"),
    (["--kcidb=k", "--kcidb-build=x"], "--kcidb-build=x: an id is ORIGIN:NAME"),
    (["--kcidb=k", "--kcidb-checkout=x"], "--kcidb-checkout=x: an id is ORIGIN:NAME"),
    (["--kcidb=k", "--kcidb-origin=a b"], "--kcidb-origin=a b: a name is of a-z, 0-9 and _"),
    (["--kcidb=k", "--kcidb-url=x"], "--kcidb-url=x: no URL"),
    (["--kcidb-origin=x"], "--kcidb-origin is for a report: add --kcidb=FILE"),
    (["--kernel=directory"], "directory is no built x86 kernel tree"),
    (["--kernel=empty"], "empty is no bzImage"),
    (["--kernel=garbage"], "garbage is no bzImage"),
    (["--kernel=6.12", "--kvm-modules=modules"], "kvm.ko is no kernel module"),
    (["--kernel=6.12", "--kvm-modules=garbage"], "no kvm.ko in it"),
    (["--kernel=6.12", "--kvm-param=="], "--kvm-param==: give NAME=VALUE"),
    (["--ktap="], "--ktap= is empty: name a file"),
    (["--ktap=/proc/no/x"], "--ktap=/proc/no/x cannot be written: No such file or directory"),
    (["--ktap=directory"], "--ktap=directory cannot be written: Is a directory"),
    (["--logs="], "--logs= is empty: name a file"),
    (["--logs=/proc/no/x"], "--logs=/proc/no/x cannot be made: No such file or directory"),
    (["--logs=garbage"], "--logs=garbage cannot be made: File exists"),
    (["--message=x"], "--topology and --message go together"),
    (["--message=x", "--topology=0"], "--message: message: 'x' is neither FIELD=VALUE nor"),
    (["--message=data=0", "--topology=x"], "--topology: topology: 'x' is neither a vCPU"),
    (["--program=garbage"], "--program are for kernels that are booted"),
    (["--reproducers="], "--reproducers= is empty: name a file"),
    (["--reproducers=/proc/no/x"], "--reproducers=/proc/no/x cannot be made: No such file"),
    (["--reproducers=garbage"], "--reproducers=garbage cannot be made: File exists"),
    (["--results="], "--results= is empty: name a file"),
    (["--results=/proc/no/a.json"], "--results=/proc/no/a.json: cannot make the directory"),
    (["--results=garbage/a.json"], "--results=garbage/a.json: cannot make the directory garbage"),
    (["--seed=x"], "--seed wants a number below 2^31, not 'x'"),
    (["--soak=-1"], "--soak wants minutes, a number above 0, not '-1'"),
    (["--tests="], "--tests= is empty: name a file"),
    (["--tests=directory"], "--tests=directory cannot be read: Is a directory"),
    (["--tests=empty"], "--tests=empty names no test"),
    (["--tests=garbage"], "--tests=garbage cannot be read: not text"),
    (["-o", "minversion=99.0"], "pytest.ini: 'minversion' requires pytest-99.0, actual"),
]


@pytest.mark.timeout(600)  # the package lists may have to be fetched
@pytest.mark.parametrize("options, says", NONSENSE, ids=[" ".join(row[0]) for row in NONSENSE])
def test_nonsense_is_one_line_and_leaves_nothing(holding, options, says):
    before = left_behind(holding)
    run = holding.run(*options)
    [line] = [line for line in run.output.splitlines() if line]
    assert line.startswith("ERROR: ")
    assert says in line
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert left_behind(holding) == before


@pytest.mark.timeout(600)  # the package lists may have to be fetched
def test_program_that_does_not_compile_is_named(holding):
    run = holding.run("--kernel=6.12", "--program=garbage.c")
    (line,) = run.lines_with("ERROR: ")
    assert line.startswith("ERROR: --program=garbage.c: it does not compile: ")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


REFUSED = {
    "--arch=nonsense": "argument --arch: invalid choice: 'nonsense'",
    "--clauses=x": "argument --clauses: ignored explicit argument 'x'",
    "--config=nonsense": "argument --config: invalid choice: 'nonsense'",
    "--cpu=nonsense": "argument --cpu: invalid choice: 'nonsense'",
    "--exhaustive=x": "argument --exhaustive: ignored explicit argument 'x'",
    "--exit-codes=nonsense": "argument --exit-codes: invalid choice: 'nonsense'",
    "--list=x": "argument --list: ignored explicit argument 'x'",
    "--maxfail-each=-1": "argument --maxfail-each: '-1' is no number",
    "--nonsense": "unrecognized arguments: --nonsense",
    "--scale=0": "argument --scale: ignored explicit argument '0'",
}


@pytest.mark.parametrize("option, says", REFUSED.items(), ids=REFUSED)
def test_nonsense_that_argparse_refuses_is_named(holding, option, says):
    run = holding.run(option)
    assert run.lines_with(f"error: {says}")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR


def test_each_option_of_the_suite_was_given_nonsense(holding):
    def options(*arguments: str) -> set[str]:
        return set(re.findall(r"^  (--[a-z-]+)", holding.run("--help", *arguments).output, re.M))

    tried = [option for options, _ in NONSENSE for option in options]
    names = {option.partition("=")[0] for option in [*tried, *REFUSED]}
    assert options() - options("--noconftest") - names == set()


# --- kernels and modules --------------------------------------------------------------------------


def bzimage(version: bytes) -> bytes:
    """Return the head of a bzImage with this version."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    return bytes(head[:0x300]) + version


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "no bzImage"),
        (bzimage(b"6.12")[:0x207], "no bzImage"),
        (bzimage(b""), "damaged bzImage: it does not name its release"),
        (bzimage(b" \0"), "damaged bzImage"),
        (bzimage(b"\xff\xfe\0"), "damaged bzImage"),
        (bzimage(b"../../etc\0"), "damaged bzImage"),
    ],
    ids=["empty", "cut-off", "no-version", "blank", "binary", "path"],
)
def test_damaged_kernel_is_one_line(tmp_path, content, says):
    (tmp_path / "bzImage").write_bytes(content)
    with pytest.raises(KernelError, match=says) as raised:
        resolve(str(tmp_path / "bzImage"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
@pytest.mark.parametrize("content", [b"", GARBAGE, gzip.compress(GARBAGE)[:100]], ids=len)
def test_damaged_module_is_one_line(tmp_path, suffix, content):
    if suffix == ".gz" and not content:
        pytest.skip("an empty .gz is the compression of nothing")
    (tmp_path / f"kvm.ko{suffix}").write_bytes(content)
    with pytest.raises(KernelError, match="cannot be read") as raised:
        Modules(tmp_path)["kvm"]
    assert "\n" not in str(raised.value)


# --- the disk -------------------------------------------------------------------------------------

ISOLATED = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def mounted() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run pytest where ``mount`` has been run, which other processes do not see."""
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace to be had: unshare --user --mount fails")

    def run(suite: Suite, mount: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = f'{mount}\n"$0" -m pytest suites -p no:benchmark "$@"'
        return subprocess.run(
            [*ISOLATED, "sh", "-ec", command, sys.executable, *arguments],
            cwd=suite.path,
            env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


FULL = """
mount -t tmpfs -o size=64k tmpfs small
echo the older report > small/{0}
trap 'echo; ls -A small; cat small/{0}' EXIT
"""


@pytest.mark.parametrize("option, name", [("--html", "a.html"), ("--junitxml", "a.xml")])
def test_full_disk_keeps_the_older_report(suite, mounted, option, name):
    suite.add("""
@clause('msi.flags')
@pytest.mark.parametrize("number", range(300))
def test_it(number):
    assert not number, "x" * 1000
""")
    (suite.path / "small").mkdir()
    done = mounted(suite, FULL.format(name), f"{option}=small/{name}")
    assert f"small/{name} not written: No space left on device" in done.stdout
    assert "enerated" not in done.stdout
    assert "Traceback" not in done.stdout
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert done.stdout.splitlines()[-2:] == [name, "the older report"]


def test_full_disk_for_one_report_costs_no_other(suite, mounted):
    suite.add(HOLDS)
    (suite.path / "small").mkdir()
    full = FULL.format("a.xml") + "cat /dev/zero > small/.zero 2> /dev/null || true"
    options = ["--html=a.html", "--results=a.json", "--kcidb=a.kcidb", "--ktap=a.ktap"]
    done = mounted(suite, full, "--junitxml=small/a.xml", *options)
    assert "small/a.xml not written: No space left on device" in done.stdout
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert all((suite.path / option.partition("=")[2]).stat().st_size for option in options)


@pytest.mark.parametrize("option", ["--html", "--junitxml"])
def test_device_is_written_and_never_replaced(suite, option):
    suite.add(HOLDS)
    link = suite.path / "link"
    link.symlink_to("/dev/full")
    run = suite.run(f"{option}=link")
    assert run.lines_with("link not written: No space left on device")
    assert run.exit_code == pytest.ExitCode.INTERNAL_ERROR
    assert link.is_char_device()


@pytest.mark.parametrize("option", ["--html", "--junitxml"])
def test_link_to_a_report_stays_a_link(suite, option):
    suite.add(HOLDS)
    (suite.path / "report").write_text("the older report")
    (suite.path / "link").symlink_to("report")
    assert suite.run(f"{option}=link").exit_code == 0
    assert (suite.path / "link").is_symlink()
    assert (suite.path / "report").read_text() != "the older report"


def test_full_disk_keeps_the_older_results(suite, mounted):
    suite.add(HOLDS)
    (suite.path / "small").mkdir()
    full = FULL.format("a.json") + "cat /dev/zero > small/.zero 2> /dev/null || true"
    done = mounted(suite, full, "--results=small/a.json")
    assert "small/a.json not written: No space left on device" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert done.stdout.splitlines()[-3:] == [".zero", "a.json", "the older report"]


READ_ONLY = 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD"'


def test_checkout_that_cannot_be_written_is_judged(suite, mounted):
    suite.add(HOLDS)
    done = mounted(suite, READ_ONLY)
    assert "1 passed" in done.stdout.splitlines()[-1], done.stdout
    assert done.returncode == 0


def test_report_in_a_checkout_that_cannot_be_written_is_one_line(suite, mounted):
    suite.add(HOLDS)
    done = mounted(suite, READ_ONLY, "--html=report.html")
    assert done.stdout.strip() == "ERROR: --html=report.html: Read-only file system"
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


# --- the machine ----------------------------------------------------------------------------------


def test_nothing_calls_sudo():
    sources = [*(ROOT / "helpers").rglob("*.py"), *(ROOT / "suites").rglob("*.py")]
    assert not [path for path in sources if re.search(r"""["']sudo["']""", path.read_text())]


# --- the cache ------------------------------------------------------------------------------------

BUILT = ["probe", "race", "sender", "traffic"]
"""The assembled guest, and the libraries that are compiled from C."""

PROBED = """
@clause("return.count")
def test_it(machine):
    machine.signal(Message(destination=1)).returns(1).accepted_by(1)
"""


def test_run_needs_no_room_in_the_cache(suite, mounted):
    suite.add(PROBED)
    (suite.path / "small").mkdir()
    full = "mount -t tmpfs -o size=64k tmpfs small; export XDG_CACHE_HOME=$PWD/small\n"
    full += "cat /dev/zero > small/.zero 2> /dev/null || true; trap 'ls -AR small' EXIT"
    done = mounted(suite, full)
    assert "1 passed" in done.stdout
    assert done.returncode == 0
    assert done.stdout.splitlines()[-5:] == [
        *("small:", ".zero", "kvm-signal-msi", "", "small/kvm-signal-msi:")
    ]


def test_two_runs_at_once_share_a_checkout_and_an_empty_cache(suite, tmp_path):
    suite.add(PROBED)
    cache = str(tmp_path / "cache")

    def run(name: str):
        return run_pytest(
            suite.path, "suites", f"--results={name}.json", remember=True, XDG_CACHE_HOME=cache
        )

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(run, "ab")
    assert (first.outcomes, second.outcomes) == ({"passed": 1}, {"passed": 1}), first.output
    files = [file.name for file in (tmp_path / "cache/kvm-signal-msi").iterdir()]
    assert sorted(name.partition("-")[0] for name in files) == BUILT
    assert (suite.path / "a.json").read_text() == (suite.path / "b.json").read_text()
