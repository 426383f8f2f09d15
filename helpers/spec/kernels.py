"""The kernels of kernels.toml, and the Debian suites that have packages of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helpers.spec.table import SpecError, read

_FILE = Path(__file__).with_name("kernels.toml")


@dataclass(frozen=True, slots=True)
class SupportedKernel:
    """A kernel that the suite is known to work on. ``id`` is its version, such as 6.12."""

    id: str
    reference: bool = False
    default: bool = False


@dataclass(frozen=True, slots=True)
class DebianArchive:
    """An archive on Debian's mirrors. ``id`` is the last part of its URI."""

    id: str
    suites: tuple[str, ...]


def default_of(kernels: dict[str, SupportedKernel]) -> str:
    """Return the version of the default kernel. Raises SpecError unless there is exactly one."""
    versions = [version for version, kernel in kernels.items() if kernel.default]
    if len(versions) != 1:
        raise SpecError(f"{_FILE.name}: {len(versions)} kernels are the default, not one")
    return versions[0]


SUPPORTED_KERNELS = read(_FILE, SupportedKernel, "kernel")
REFERENCE_KERNELS = tuple(id for id, kernel in SUPPORTED_KERNELS.items() if kernel.reference)
DEFAULT_KERNEL = default_of(SUPPORTED_KERNELS)
DEBIAN_SUITES = {
    id: archive.suites for id, archive in read(_FILE, DebianArchive, "archive").items()
}
