# SPDX-License-Identifier: GPL-2.0-only
"""Damaged files in the cache: each is made or fetched again, or the one line of an error.

The archive is a directory; scripts stand in for apt. test_emulators.py damages an emulator.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.cache import cache_directory, cached, is_intact, seal
from helpers.kernels import foreign
from helpers.kernels.locate import resolve
from helpers.kernels.packages import Archive, KernelError
from tests.copy_of_the_suite import ROOT, Suite
from tests.damage import DAMAGES, cut_off, emptied, overwritten
from tests.kernel_files import RELEASE, bzimage, kvm_modules

PROBED = """
@clause("return.count")
def test_it(machine):
    machine.signal(Message(destination=1)).returns(1).accepted_by(1)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_directory()


# --- what is assembled and compiled ---------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["bin", "so", "program"])
def test_damaged_output_is_made_again(cache, suffix, damage):
    made = []

    def make(output: Path) -> None:
        made.append(output)
        output.write_bytes(b"the output" * 9)

    first = cached("probe", b"source", suffix, make)
    assert cached("probe", b"source", suffix, make) == first
    damage(first)
    assert cached("probe", b"source", suffix, make) == first
    assert first.read_bytes() == b"the output" * 9
    assert len(made) == 2
    assert list(cache.iterdir()) == [first]


def test_run_mends_a_damaged_guest_and_libraries(suite: Suite, cache):
    suite.add(PROBED)
    assert suite.run().outcomes == {"passed": 1}
    files = {file: file.read_bytes() for file in cache.iterdir()}
    for file, damage in zip(files, [emptied, cut_off, overwritten, cut_off], strict=True):
        damage(file)
    assert suite.run().outcomes == {"passed": 1}
    assert {file: file.read_bytes() for file in cache.iterdir()} == files


# --- packages -------------------------------------------------------------------------------------

APT_GET = """
case "$*" in
*indextargets*) echo "Debian {archive}/debian" ;;
*" update") [ -e {archive}/names ] || exit 0
    echo update >> {archive}/log; cp {archive}/names "$lists/Packages" ;;
*download*) cat {archive}/uris ;;
esac
"""
APT_CACHE = 'grep linux- "$lists/Packages" || true'
LISTS = 'for option; do case $option in *Lists=*) lists="${option#*=}" ;; esac; done'
NAME = f"linux-image-{RELEASE}-amd64"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an archive with one kernel."""
    release = f"{RELEASE}-amd64"
    tree, directory = tmp_path / "package", tmp_path / "archive"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/System.map").write_bytes(random.Random(20).randbytes(16 << 10))
    kvm_modules(tree / f"lib/modules/{release}/kernel/arch/x86/kvm", release)
    bzimage(tree / f"boot/vmlinuz-{release}", release)
    (tree / "DEBIAN").mkdir()
    fields = f"Package: {NAME}\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(fields)
    directory.mkdir()
    package = directory / "kernel.deb"
    subprocess.run(["dpkg-deb", "--build", tree, package], check=True, capture_output=True)
    content = package.read_bytes()
    uri = f"'{package.as_uri()}' kernel.deb {len(content)}"
    (directory / "uris").write_text(f"{uri} SHA256:{hashlib.sha256(content).hexdigest()}\n")
    (directory / "names").write_text(NAME)
    scripts = {"apt-get": APT_GET.format(archive=directory), "apt-cache": APT_CACHE}
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh -e\n{LISTS}\n{script}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    return directory


def updates(archive: Path) -> int:
    return len((archive / "log").read_text().split())


@pytest.fixture
def part(archive, cache) -> Path:
    """The directory that a kernel is fetched to, in which an interrupted run left things."""
    part = cache / f"kernels/{RELEASE}-amd64.part"
    part.mkdir(parents=True)
    shutil.copy(archive / "kernel.deb", part)
    return part


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["boot/vmlinuz-*", "lib/**/kvm.ko", "lib/**/kvm-amd.ko", ".sums"])
def test_damaged_kernel_is_fetched_again(archive, place, damage, capsys):
    kernel = resolve(RELEASE)
    unpacked = kernel.vmlinuz.parents[1]
    [file] = unpacked.glob(place)
    content = file.read_bytes()
    damage(file)
    capsys.readouterr()
    assert resolve(RELEASE) == kernel
    assert file.read_bytes() == content
    assert "again: the cache has damaged files" in capsys.readouterr().err
    assert is_intact(unpacked)
    assert updates(archive) == 1


@pytest.mark.usefixtures("archive")
def test_kernel_that_lacks_a_file_is_fetched_again():
    kernel = resolve(RELEASE)
    kernel.vmlinuz.unlink()
    assert resolve(RELEASE).vmlinuz.exists()


def test_damaged_kernel_stays_if_there_is_no_other(archive):
    kernel = resolve(RELEASE)
    cut_off(kernel.vmlinuz)
    (archive / "kernel.deb").unlink()
    with pytest.raises(KernelError, match=r"^could not fetch '.*No such file") as raised:
        resolve(RELEASE)
    assert "\n" not in str(raised.value)
    assert kernel.modules.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_package_is_fetched_again(part, damage):
    damage(part / "kernel.deb")
    assert resolve(RELEASE).vmlinuz.exists()
    assert not part.exists()


@pytest.mark.parametrize("damage", [overwritten, lambda file: file.write_bytes(bytes(99999))])
def test_damaged_begin_of_a_package_is_fetched_again(part, damage):
    (part / "kernel.deb").rename(part / "kernel.deb.part")
    damage(part / "kernel.deb.part")
    assert resolve(RELEASE).vmlinuz.exists()


def test_package_that_was_half_unpacked_is_unpacked_whole(part):
    (part / "unpacked/boot").mkdir(parents=True)
    (part / "unpacked/boot/vmlinuz-1").touch()
    assert not resolve(RELEASE).vmlinuz.with_name("vmlinuz-1").exists()


RESOLVE = f"""
from helpers.kernels.locate import resolve
from helpers.kernels.packages import KernelError
try:
    print(resolve({RELEASE!r}).vmlinuz)
except KernelError as reason:
    raise SystemExit(f"ERROR: {{reason}}") from None
"""
ISOLATED = ["unshare", "--user", "--map-root-user", "--mount"]


def test_two_runs_at_once_fetch_a_kernel_once(archive, cache):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RESOLVE], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = {run.communicate()[0].strip() for run in runs}
    assert said == {str(cache / f"kernels/{RELEASE}-amd64/boot/vmlinuz-{RELEASE}-amd64")}
    assert updates(archive) == 1
    assert {file.name for file in (cache / "kernels").iterdir()} == {"apt", f"{RELEASE}-amd64"}


@pytest.mark.parametrize("kilobytes", [4, 12, 24, 32])
def test_full_disk_is_one_line_and_room_mends_it(archive, cache, kilobytes):
    """The disk has room for less than the lists, or the package, or the files of the package."""
    del archive
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace to be had: unshare --user --mount fails")
    cache.mkdir(parents=True)
    steps = f"""
mount -t tmpfs -o size={kilobytes}k tmpfs {cache}
! $RESOLVE
mount -o remount,size=4m {cache}
$RESOLVE
"""
    done = subprocess.run(
        [*ISOLATED, "sh", "-ec", steps.replace("$RESOLVE", f'"{sys.executable}" -c "$0"'), RESOLVE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"vmlinuz-{RELEASE}-amd64")
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    assert "No space left on device" in line


# --- apt's lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
@pytest.mark.parametrize("name", ["Packages", "names", ".sums"])
def test_damaged_lists_are_fetched_again(archive, cache, name, damage):
    kernels = Archive().kernels()
    file = cache / "kernels/apt/lists" / name
    content = file.read_bytes()
    damage(file)
    assert Archive().kernels() == kernels == [f"{RELEASE}-amd64"]
    if name == ".sums" and damage is Path.unlink:
        return  # lists of an older version
    assert updates(archive) == 2
    assert file.read_bytes() == content


def test_lists_that_cannot_be_fetched_are_one_line(archive):
    (archive / "names").unlink()
    with pytest.raises(KernelError, match="apt-get update could fetch no list of packages"):
        resolve(RELEASE)


def test_lists_are_fetched_once(archive):
    assert Archive().kernels() == Archive().kernels()
    assert updates(archive) == 1


# --- the Python of another architecture -----------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_python_is_fetched_again(archive, damage):
    with (archive / "apt-get").open("a") as script:
        script.write('case "$*" in *install*) echo "Inst python3.11 (1 x)" ;; esac\n')
    python = Archive().fetch_python("3.11")
    [file] = python.glob("lib/**/kvm.ko")
    foreign._compiled(python)
    content = file.read_bytes()
    damage(file)
    assert Archive().fetch_python("3.11") == python
    assert file.read_bytes() == content


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_wheels_are_fetched_again(tmp_path, monkeypatch, damage):
    def download(_pinned: object, _machine: str, directory: Path) -> None:
        source = tmp_path / "made"
        source.mkdir(exist_ok=True)
        (source / "it.py").write_text("VALUE = 1\n")
        shutil.make_archive(str(directory / "it"), "zip", source)
        (directory / "it.zip").rename(directory / "it.whl")

    monkeypatch.setattr(foreign, "_download", download)
    made = foreign._wheels(Archive(), ["pytest"])
    for pattern in ("**/it.py", "**/*.pyc"):
        [file] = made.glob(pattern)
        content = file.read_bytes()
        damage(file)
        assert foreign._wheels(Archive(), ["pytest"]) == made
        assert file.read_bytes() == content
    assert len(list(made.parent.glob("wheels-*"))) == 1


# --- directories ----------------------------------------------------------------------------------


def test_directory_without_checksums_is_taken_as_it_is(tmp_path):
    assert is_intact(tmp_path)
    assert not is_intact(tmp_path / "none")


def test_links_are_left_alone(tmp_path):
    (tmp_path / "link").symlink_to("/nowhere")
    seal(tmp_path)
    assert is_intact(tmp_path)
