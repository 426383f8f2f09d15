"""What --kernel names: a packaged version, a bzImage, or a kernel build tree."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from helpers.kernels.packages import Archive, KernelError


@dataclass(frozen=True, slots=True)
class BootFiles:
    """A kernel to boot: its image, the directory its modules are below, and its build tree."""

    release: str
    vmlinuz: Path
    modules: Path
    tree: Path | None = None


def resolve(spec: str) -> BootFiles:
    """The files of a kernel, fetched if need be. Raises KernelError.

    A path is a build tree (arch/x86/boot/bzImage in it) or an image, with its modules in
    lib/modules/RELEASE beside it or one level up, or in /lib/modules.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _of_tree(path)
    if path.is_file():
        return _of_image(path)
    if not spec[:1].isdigit():
        raise KernelError(
            f"--kernel={spec}: no such file or directory; give a version such as 6.12, a bzImage, "
            "or a kernel build tree"
        )
    archive = Archive()
    name = archive.newest(spec)
    return _of_package(name, archive.fetch(name))


def _of_tree(tree: Path) -> BootFiles:
    image = tree / "arch/x86/boot/bzImage"
    if not image.exists():
        raise KernelError(f"{tree} is no built x86 kernel tree: it has no arch/x86/boot/bzImage")
    return BootFiles(_release(image), image.resolve(), tree.resolve(), tree.resolve())


def _of_image(image: Path) -> BootFiles:
    release = _release(image)
    image = image.resolve()
    places = [image.parent, image.parent.parent, Path("/")]
    found = [m for place in places for m in (place / "lib/modules" / release,) if m.is_dir()]
    if not found:
        raise KernelError(
            f"no modules for {image.name}: looked for lib/modules/{release} beside it, one level "
            "up, and in /"
        )
    return BootFiles(release, image, found[0])


def _of_package(name: str, unpacked: Path) -> BootFiles:
    places = [unpacked / prefix / "lib/modules" / name for prefix in ("", "usr")]
    for modules in filter(Path.is_dir, places):
        for image in (unpacked / "boot" / f"vmlinuz-{name}", modules / "vmlinuz"):
            if image.exists():
                return BootFiles(name, image, modules)
    raise KernelError(f"the packages of {name} lack its image or its modules: remove {unpacked}")


def _release(image: Path) -> str:
    """What ``uname -r`` will say (Documentation/arch/x86/boot.rst, kernel_version)."""
    with image.open("rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] != b"HdrS":
        raise KernelError(f"{image} is no bzImage (vmlinux will not do)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    return head[0x200 + offset :].split(b"\0", 1)[0].split()[0].decode()
