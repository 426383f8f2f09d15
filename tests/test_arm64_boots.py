# SPDX-License-Identifier: GPL-2.0-only
"""--arch: which tests a run collects, what arm64 lacks, and an arm64 kernel that is booted."""

from __future__ import annotations

import json
import re
import shutil
from email.message import Message
from urllib.error import HTTPError

import pytest

from helpers.arm64 import layout
from helpers.kernels import columns, foreign, packages
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.locate import resolve
from helpers.kernels.packages import Archive, Gone, KernelError
from helpers.kernels.parameters import Choices
from helpers.spec.architectures import ARCHITECTURES, ARM64, X86_64
from tests.copy_of_the_suite import ROOT, run_pytest

TOOLS = ("qemu-system-aarch64", "aarch64-linux-gnu-as")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]
RELEASE = "6.12.9+deb13-cloud-arm64"


# --- which tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_tests_of_the_architecture_are_collected(architecture):
    run = run_pytest(ROOT, "suites", "--collect-only", "-q", f"--arch={architecture}")
    tests = run.lines_with("::")
    assert len(tests) > 300
    are_of_arm64 = {test.startswith("suites/arm64/") for test in tests}
    assert are_of_arm64 == {architecture == "arm64"}


@pytest.mark.parametrize("clause, owner", [("arm.pad", ARM64), ("msi.pad", X86_64)])
def test_clause_has_one_architecture(clause, owner):
    assert [each for each in ARCHITECTURES.values() if each.owes(clause)] == [owner]


# --- bad input ------------------------------------------------------------------------------------

BAD = {
    "no-kernel": (["suites", "--arch=arm64"], "needs a kernel to boot on this machine"),
    "no-arch": (["suites/arm64", "--kernel=6.12"], "judges arm64: add --arch=arm64"),
    "clause": (["suites", "--clause=arm.pad"], "no clause of x86_64 matches"),
} | {
    option.partition("=")[0]: (
        ["suites", "--arch=arm64", "--kernel=6.12", option],
        f"{option.partition('=')[0]} is for x86-64: --arch=arm64 does not have it",
    )
    for option in (
        "--cpu=amd",
        "--kvm-modules=/tmp",
        "--kvm-param=halt_poll_ns=0",
        "--program",
        "--reproducers=made",
        "--record",
        "--exhaustive",
    )
}


@pytest.mark.parametrize("arguments, said", BAD.values(), ids=BAD)
def test_what_an_architecture_cannot_do_is_one_line(arguments, said):
    run = run_pytest(ROOT, *arguments)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    (line,) = run.lines_with("ERROR: ")
    assert said in line


def test_missing_qemu_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install qemu-system-arm"):
        Qemu.arm64().require()


def test_python_that_debian_lacks_is_one_line(archive):
    with pytest.raises(KernelError, match=r"--arch=arm64 needs Python 3.11 or 3.13 here.*not 3.12"):
        archive.fetch_python("3.12")


def test_wheel_that_does_not_exist_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(KernelError, match="pip has no nonsense==1 for aarch64: ") as failure:
        foreign._download(["nonsense==1"], "aarch64", tmp_path)
    assert "\n" not in str(failure.value)


# --- packages -------------------------------------------------------------------------------------

PACKAGES = [
    "linux-image-5.10.0-32-cloud-arm64",
    "linux-image-5.10.0-46-cloud-arm64",
    "linux-image-5.10.0-47-arm64",
    "linux-image-5.10.0-47-rt-arm64",
    "linux-image-6.1.0-0.deb11.52-cloud-arm64",
    "linux-binary-7.3.4+deb13-cloud-arm64",
    "linux-modules-7.3.4+deb13-cloud-arm64",
    "linux-binary-unsigned-7.3.4+deb13-cloud-arm64",
]


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """The archive of arm64's kernels, with PACKAGES."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archive = Archive.of(ARM64)
    names = archive.directory / "apt/lists/names"
    names.parent.mkdir(parents=True)
    names.write_text("\n".join(PACKAGES))
    return archive


def test_kernels_are_of_the_cloud_flavour(archive):
    assert archive.kernels() == [
        "5.10.0-32-cloud-arm64",
        "5.10.0-46-cloud-arm64",
        "7.3.4+deb13-cloud-arm64",
    ]


def test_kernel_that_is_gone_is_passed_over(archive, monkeypatch):
    def unpacked(self, name, _packages):
        if "-46-" in name:
            raise Gone(name)
        return self.directory / name

    monkeypatch.setattr(packages.Archive, "_unpacked", unpacked)
    for _ in range(2):
        assert archive.fetch_newest("5.10")[0] == "5.10.0-32-cloud-arm64"
        assert archive.newest("5.10") == "5.10.0-32-cloud-arm64"  # not asked for again
    assert archive.newest("7.3") == "7.3.4+deb13-cloud-arm64"


@pytest.mark.parametrize("code, kind", [(404, Gone), (503, KernelError)])
def test_only_a_missing_file_is_gone(monkeypatch, tmp_path, code, kind):
    def fetch(_self, _directory):
        raise HTTPError("http://it", code, "made up", Message(), None)

    monkeypatch.setattr(packages.Download, "fetch", fetch)
    with pytest.raises(KernelError, match="could not fetch 'http://it'") as failure:
        packages._download("'http://it' it.deb 1 SHA256:00", tmp_path)
    assert failure.type is kind


# --- images ---------------------------------------------------------------------------------------


def image(release=RELEASE, magic=b"ARM\x64"):
    return bytes(56) + magic + bytes(100) + f"Linux version {release} (builder) #1".encode()


@pytest.fixture
def tree(tmp_path):
    """A build tree, whose KVM and channel are built in."""
    made = tmp_path / ARM64.image
    made.parent.mkdir(parents=True)
    made.write_bytes(image())
    (tmp_path / "modules.builtin").write_text("kernel/virtio_pci.ko\nkernel/virtio_console.ko\n")
    return tmp_path


def test_tree_is_booted_on_an_arm_processor(tree):
    (boot,) = columns.boots([str(tree)], [], Choices.parse([]), [Qemu.arm64()])
    assert (boot.kernel.release, boot.modules) == (RELEASE, {})
    (column,) = boot.columns
    assert column.options == [f"--kernel={tree}", "--arch=arm64"]
    assert boot.emulator.console == "ttyAMA0"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"MZ" + bytes(600), "is no arm64 Image"),
        (image(magic=b"zimg"), "is no arm64 Image"),
        (image(release=""), "does not name its release"),
    ],
    ids=["x86", "compressed", "damaged"],
)
def test_other_image_is_one_line(tmp_path, content, said):
    file = tmp_path / "Image"
    file.write_bytes(content)
    with pytest.raises(KernelError, match=said):
        resolve(str(file), ARM64)


# --- a boot ---------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not found")
@pytest.mark.timeout(300)
def test_arm64_kernel_is_judged(tmp_path):
    run = run_pytest(
        *(ROOT, "suites/arm64/test_capability.py", "--kernel=6.12", "--arch=arm64"),
        *(f"--results={tmp_path}", f"--html={tmp_path / 'report.html'}"),
    )
    assert run.exit_code == 0, run.output
    assert run.outcomes["passed"] > 5
    assert run.lines_with("known deviation: arm-devid-capability-of-system, 1 test")
    assert not run.lines_with("no passing test: msi.")
    recorded = json.loads((tmp_path / "6.12-arm64.json").read_text())
    assert recorded["kernel"]["architecture"] == "arm64"
    assert recorded["kernel"]["vendor"] == "kvm_arm"
    assert "<td>arm64</td>" in (tmp_path / "report.html").read_text()


HANGS = """
@clause("arm.pad")
@pytest.mark.timeout(2)
def test_hangs(machine):
    while True:
        machine[0].exit()
"""


@pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not found")
@pytest.mark.timeout(300)
def test_timeout_shows_the_registers_of_the_vcpu(suite):
    suite.write("suites/arm64/__init__.py", "")
    suite.add(HANGS, "suites/arm64/test_it.py")
    for name in ("conftest.py", "common.py"):
        shutil.copy(ROOT / "suites/arm64" / name, suite.path / "suites/arm64")
    run = suite.run("--kernel=6.12", "--arch=arm64", "--logs=logs")
    assert run.lines_with("TIMED OUT")
    [log] = (suite.path / "logs").rglob("*.log")
    exits = r"vCPU with ID 0: last exit KVM_EXIT_.*\n  pc=(\w+) pstate=(\w+) x0="
    shown = re.search(exits, log.read_text())
    assert shown, log.read_text()
    assert layout.CODE <= int(shown[1], 16) < layout.CODE + 0x1000
    assert int(shown[2], 16) & 0xF == 5  # EL1h
