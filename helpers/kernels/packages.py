"""Debian's packaged kernels: listed, fetched with signatures checked, unpacked, never installed.

apt does it, with a configuration of its own: this machine's mirror, every suite that has kernels,
its lists in a cache directory. Works for any user.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.guest.assemble import cache_directory

SUITES = {
    "debian": (
        *("bullseye", "bookworm", "bookworm-backports"),
        *("trixie", "trixie-backports", "sid"),
    ),
    "debian-security": ("bullseye-security", "bookworm-security", "trixie-security"),
}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LISTS_KEEP = 24 * 3600  # seconds
_KERNEL = re.compile(r"linux-(?:image|binary)-(\d+\.\d+\.\d+\S*-amd64)")
_OTHER_FLAVOURS = ("cloud", "rt", "unsigned")


class KernelError(Exception):
    """A kernel that cannot be had or booted; the message is one line and says how to mend it."""


class Archive:
    """Debian's archive, through apt. One process at a time: the others wait."""

    def __init__(self) -> None:
        if not shutil.which("apt-get"):
            raise KernelError(
                "packaged kernels come through apt, which this machine does not have: "
                "give a bzImage or a kernel build tree to --kernel"
            )
        self.directory = cache_directory() / "kernels"
        self._apt = self.directory / "apt"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._apt.mkdir(parents=True, exist_ok=True)
        with open(self._apt / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _command(self, tool: str, *arguments: str) -> list[str]:
        options = {
            "Dir::Etc::SourceList": self._apt / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self._apt / "lists",
            "Dir::Cache": self._apt / "cache",
            "APT::Sandbox::User": "root",
        }
        return [tool, *(f"-o{name}={value}" for name, value in options.items()), *arguments]

    def _update(self) -> None:
        """Fetch the package lists, unless they are of today."""
        stamp = self._apt / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_KEEP:
            return
        sources = [
            f"deb [signed-by={_KEYRING}] {uri} {suite} main\n"
            for uri in _mirrors()
            for suite in SUITES.get(uri.rstrip("/").rpartition("/")[2], ())
        ]
        if not sources:
            raise KernelError("apt's sources on this machine name no Debian mirror")
        (self._apt / "sources.list").write_text("".join(sources))
        for needed in ("lists/partial", "cache/archives/partial"):
            (self._apt / needed).mkdir(parents=True, exist_ok=True)
        _run(self._command("apt-get", "-q", "update"))
        stamp.touch()

    def _packages(self) -> set[str]:
        self._update()
        return set(_run(self._command("apt-cache", "pkgnames", "linux-")).split())

    def kernels(self) -> list[str]:
        """The names of all kernels, such as ``6.12.107+deb13-amd64``, oldest first."""
        with self._locked():
            packages = self._packages()
        names = {found[1] for package in packages if (found := _KERNEL.fullmatch(package))}
        plain = [name for name in names if not set(_OTHER_FLAVOURS) & set(name.split("-"))]
        return sorted(plain, key=_numbers)

    def newest(self, version: str) -> str:
        """The newest kernel of a version, ``6.12``, or the one of that full name."""
        names = self.kernels()
        # A newer kernel rebuilt for an older release is not what is asked for.
        own = [name for name in names if ".deb11." not in name]
        matching = [name for name in own if re.match(rf"{re.escape(version)}(?![0-9])", name)]
        if not matching:
            series = sorted({".".join(name.split(".")[:2]) for name in names}, key=_numbers)
            raise KernelError(f"no packaged kernel {version}; there are {', '.join(series)}")
        return matching[-1]

    def fetch(self, name: str) -> Path:
        """Where the kernel is unpacked; fetched first when it is not there yet."""
        unpacked = self.directory / name
        with self._locked():
            if unpacked.exists():
                return unpacked
            wanted = {f"linux-{part}-{name}" for part in ("image", "binary", "modules", "base")}
            packages = wanted & self._packages()
            with tempfile.TemporaryDirectory(dir=self.directory) as work:
                command = self._command("apt-get", "download", *sorted(packages))
                if subprocess.run(command, cwd=work, check=False).returncode:
                    raise KernelError(f"apt could not fetch {', '.join(sorted(packages))}")
                for package in Path(work).glob("*.deb"):
                    _run(["dpkg-deb", "-x", str(package), f"{work}/unpacked"])
                Path(work, "unpacked").rename(unpacked)
        return unpacked


def _mirrors() -> list[str]:
    """The URIs of the Debian archives that this machine's apt uses."""
    listed = _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"])
    return sorted(
        {uri for line in listed.splitlines() for o, uri in [line.split()] if o == "Debian"}
    )


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise KernelError(f"{command[0]} failed: {said[-1]}")
    return done.stdout
