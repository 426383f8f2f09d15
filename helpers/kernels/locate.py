# SPDX-License-Identifier: GPL-2.0-only
"""Find the kernel that --kernel names: a packaged version, a bzImage, or a kernel build tree."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.kernels.build import SLOWNESS, built
from helpers.kernels.packages import Archive, KernelError
from helpers.spec.architectures import ARM64, X86_64, Architecture

_CHOICES = "give a version such as 6.12, a bzImage, or a kernel build tree"


@dataclass(frozen=True, slots=True)
class BootFiles:
    """A kernel to boot: its image, the directory its modules are below, and its build tree.

    ``slowness``: how much longer than in Debian's kernels a boot or a test may take.
    """

    release: str
    vmlinuz: Path
    modules: Path
    tree: Path | None = None
    slowness: float = 1


def resolve(spec: str, architecture: Architecture = X86_64, config: str | None = None) -> BootFiles:
    """Return the files of a kernel; fetch a packaged one that is not here. Raises KernelError.

    With ``config``, the value of --config, the kernel is built from the source tree that is named.

    A path is a build tree with its image, such as arch/x86/boot/bzImage, or an image with its
    modules in lib/modules/RELEASE beside the image, one level up, or in /lib/modules.
    """
    if not spec:
        raise KernelError(f"--kernel= is empty: {_CHOICES}")
    path = Path(spec).expanduser()
    if config:
        if not path.is_dir():
            raise KernelError(f"--config={config} builds a source tree, which {spec} is not")
        return replace(_of_tree(built(path.resolve(), config)), slowness=SLOWNESS[config])
    if path.is_dir():
        return _of_tree(path, architecture)
    if path.is_file():
        return _of_image(path, architecture)
    if not spec[:1].isdigit():
        raise KernelError(f"--kernel={spec}: no such file or directory; {_CHOICES}")
    return _of_package(*Archive.of(architecture).fetch_newest(spec))


def _of_tree(tree: Path, architecture: Architecture = X86_64) -> BootFiles:
    image = tree / architecture.image
    if not image.exists():
        kind = Path(architecture.image).parts[1]
        raise KernelError(f"{tree} is no built {kind} kernel tree: it has no {architecture.image}")
    release = _RELEASES[architecture](image)
    return BootFiles(release, image.resolve(), tree.resolve(), tree.resolve())


def _of_image(image: Path, architecture: Architecture) -> BootFiles:
    release = _RELEASES[architecture](image)
    image = image.resolve()
    above = (image.parent, image.parent.parent, Path("/"))
    places = (place / "lib/modules" / release for place in above)
    modules = next(filter(Path.is_dir, places), None)
    if modules is None:
        raise KernelError(
            f"no modules for {image.name}: looked for lib/modules/{release} beside the image, one "
            "level up, and in /"
        )
    return BootFiles(release, image, modules)


def _of_package(name: str, unpacked: Path) -> BootFiles:
    places = [unpacked / prefix / "lib/modules" / name for prefix in ("", "usr")]
    for modules in filter(Path.is_dir, places):
        for image in (unpacked / "boot" / f"vmlinuz-{name}", modules / "vmlinuz"):
            if image.exists():
                return BootFiles(name, image, modules)
    raise KernelError(f"the packages of {name} lack its image or its modules: remove {unpacked}")


def _release_of_bzimage(image: Path) -> str:
    """Return what ``uname -r`` says on the kernel.

    Source: Documentation/arch/x86/boot.rst, "Details of Header Fields", kernel_version.
    """
    with image.open("rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] != b"HdrS" or len(head) < 0x210:
        raise KernelError(f"{image} is no bzImage (a vmlinux cannot be booted)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    release = head[0x200 + offset :].partition(b"\0")[0].partition(b" ")[0]
    if not re.fullmatch(rb"\d[\w.+~-]*", release):
        raise KernelError(f"{image} is a damaged bzImage: it does not name its release")
    return release.decode()


def _release_of_arm64(image: Path) -> str:
    """Return what ``uname -r`` says on the kernel.

    Source: Documentation/arch/arm64/booting.rst, "Call the kernel image", the header. Only the
    banner names the release.
    """
    content = image.read_bytes()
    if content[56:60] != b"ARM\x64":
        raise KernelError(f"{image} is no arm64 Image, or a compressed one")
    banner = re.search(rb"Linux version (\d[\w.+~-]*) \(", content)
    if banner is None:
        raise KernelError(f"{image} is a damaged arm64 Image: it does not name its release")
    return banner[1].decode()


_RELEASES = {X86_64: _release_of_bzimage, ARM64: _release_of_arm64}
