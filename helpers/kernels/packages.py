# SPDX-License-Identifier: GPL-2.0-only
"""List, fetch and unpack Debian's packaged kernels, and other packages. Nothing is installed.

apt fetches them and checks their signatures, with a configuration of its own: this machine's
mirrors, every suite that has kernels, package lists in the cache directory. Any user can do so.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

from helpers.cache import cache_directory, is_intact, seal
from helpers.kernels.download import Download
from helpers.spec.architectures import X86_64, Architecture
from helpers.spec.kernels import DEBIAN_SUITES

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NOT_FOUND = 404
_LISTS_AGE = 24 * 3600  # seconds after which package lists are fetched anew
# Left out: kernels rebuilt for an older Debian, whose source is the same, and -rt-.
_LEFT_OUT = r"(?!\S*(?:-rt-|\.deb11\.))"
# The Debian release that has a version of Python.
_PYTHONS = {"3.11": "bookworm", "3.13": "trixie"}


class KernelError(Exception):
    """A kernel cannot be fetched or booted. The message is one line and says what to do."""


class Gone(KernelError):
    """The archive lists a package, and no longer has its file."""


class Archive:
    """Debian's archive, through apt. Processes take turns. Methods raise KernelError.

    What is fetched is in the directory ``name`` of the cache. ``suites`` are those to look in, by
    archive. ``kinds`` are "deb" for packages and "deb-src" for their sources. ``instead`` says what
    to do on a machine without an archive. ``architecture`` is that of the packages.
    """

    def __init__(
        self,
        name: str = "kernels",
        suites: Mapping[str, Sequence[str]] = DEBIAN_SUITES,
        kinds: Sequence[str] = ("deb",),
        instead: str = "give a bzImage or a kernel build tree to --kernel",
        architecture: Architecture = X86_64,
    ) -> None:
        if not shutil.which("apt-get"):
            raise KernelError(
                f"packages come through apt, which this machine does not have: {instead}"
            )
        self.directory = cache_directory() / name
        self._apt = self.directory / "apt"
        self._lists = self._apt / "lists"
        self._suites = suites
        self._kinds = kinds
        self._instead = instead
        self.architecture = architecture

    @classmethod
    def of(cls, architecture: Architecture) -> Archive:
        """Return the archive of an architecture's kernels. Raises KernelError."""
        name = "kernels" if architecture is X86_64 else f"kernels-{architecture.name}"
        return cls(name, architecture=architecture)

    @property
    def _names(self) -> Path:
        return self._lists / "names"

    @contextmanager
    def _packages(self) -> Iterator[set[str]]:
        """Lock the archive. Yield the names of all packages that start with linux-."""
        with writing(self.directory):
            self._apt.mkdir(parents=True, exist_ok=True)
            with open(self._apt / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (self._names.exists() and is_intact(self._lists)):
                    # apt takes damaged lists for those that it has fetched.
                    shutil.rmtree(self._lists, ignore_errors=True)
                    self._update("-oAPT::Update::Error-Mode=any")
                elif time.time() - self._names.stat().st_mtime >= _LISTS_AGE:
                    self._update()
                yield set(self._names.read_text().split())

    def _forget(self, packages: Set[str]) -> None:
        """Leave packages out until the lists are fetched anew."""
        with self._packages() as known:
            age = self._names.stat().st_mtime
            self._names.write_text("\n".join(sorted(known - packages)))
            os.utime(self._names, (age, age))
            seal(self._lists)

    def _run(self, tool: str, *arguments: str) -> str:
        """Run one of apt's tools on this archive; return its output."""
        options = {
            "Dir::Etc::SourceList": self._apt / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self._lists,
            "Dir::Cache": self._apt / "cache",
            "APT::Sandbox::User": "root",
        }
        if not self.architecture.is_running:
            options |= {
                "Dir::State::status": "/dev/null",
                "APT::Architecture": self.architecture.debian,
                "APT::Architectures": self.architecture.debian,
            }
        return _run(tool, *(f"-o{name}={value}" for name, value in options.items()), *arguments)

    def _update(self, *options: str) -> None:
        """Fetch the lists. Without ``options``, apt leaves those that it cannot fetch as old."""
        sources = [
            f"{kind} [signed-by={_KEYRING}] {uri} {suite} main\n"
            for uri in _mirrors()
            for suite in self._suites.get(uri.rstrip("/").rpartition("/")[2], ())
            for kind in self._kinds
        ]
        if not sources:
            raise KernelError(
                "apt's sources on this machine name no Debian mirror, so there are no packages: "
                + self._instead
            )
        (self._apt / "sources.list").write_text("".join(sources))
        for needed in ("lists/partial", "cache/archives/partial"):
            (self._apt / needed).mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "-q", *options, "update")
        names = self._run("apt-cache", "pkgnames", "linux-")
        if not names:
            raise KernelError("apt-get update could fetch no list of packages")
        self._names.write_text(names)
        seal(self._lists)

    def kernels(self) -> list[str]:
        """Return the names of all kernels, such as ``6.12.107+deb13-amd64``, oldest first."""
        name = rf"linux-(?:image|binary)-{_LEFT_OUT}(\d+\.\d+\.\d+{self.architecture.flavour})"
        kernel = re.compile(name)
        with self._packages() as packages:
            names = {found[1] for package in packages if (found := kernel.fullmatch(package))}
        # The modules of newer kernels are a separate package, and some archives lack it.
        split = {name for name in names if f"linux-binary-{name}" in packages}
        lacking = {name for name in split if f"linux-modules-{name}" not in packages}
        return sorted(names - lacking, key=numbers)

    def is_fetched(self, name: str) -> bool:
        """Return whether a kernel is in the cache directory."""
        return (self.directory / name).exists()

    def newest(self, version: str) -> str:
        """Return the newest kernel of a version such as ``6.12``, or the kernel of that name."""
        return self.matching(version)[-1]

    def matching(self, version: str) -> list[str]:
        """Return all kernels of a version, oldest first, or the kernel of that name."""
        names = self.kernels()
        matching = [name for name in names if re.match(rf"{re.escape(version)}(?![0-9])", name)]
        if not matching:
            known = ", ".join(dict.fromkeys(map(series, names)))
            what = "" if self.architecture is X86_64 else f"{self.architecture.name} "
            raise KernelError(f"no packaged {what}kernel {version}; there are {known}")
        return matching

    def fetch_newest(self, version: str) -> tuple[str, Path]:
        """Return name and directory of the newest kernel of a version that can be fetched."""
        while True:
            name = self.newest(version)
            try:
                return name, self.fetch(name)
            except Gone:
                # Debian's archive lists kernels of old releases that it does not keep.
                print(f"Linux {name} is gone from the archive", file=sys.stderr, flush=True)
                shutil.rmtree(self.directory / f"{name}.part", ignore_errors=True)
                self._forget(self._parts(name))

    def fetch(self, name: str) -> Path:
        """Return the directory of an unpacked kernel; fetch the kernel if need be.

        The terminal shows the progress. An interrupted fetch is resumed.
        """
        with self._packages() as packages:
            return self._unpacked(name, sorted(self._parts(name) & packages))

    @staticmethod
    def _parts(name: str) -> set[str]:
        """Return the packages that a kernel may consist of."""
        return {f"linux-{part}-{name}" for part in ("image", "binary", "modules", "base")}

    def fetch_python(self, version: str) -> Path:
        """Return the directory of an unpacked Python, such as 3.11, and its libraries."""
        if version not in _PYTHONS:
            raise KernelError(
                f"--arch={self.architecture.name} needs Python {' or '.join(_PYTHONS)} here, which "
                f"Debian has for a booted kernel as well, not {version}"
            )
        name = f"python{version}"
        wanted = (f"{name}-minimal", f"lib{name}-stdlib")
        with self._packages():
            if is_intact(self.directory / name):
                return self.directory / name
            needed = self._with_dependencies("-t", _PYTHONS[version], *wanted)
            return self._unpacked(name, needed)

    def _with_dependencies(self, *arguments: str) -> list[str]:
        """Return packages, with versions, that apt-get would install on an empty system."""
        simulated = ("install", "-s", "-q", "--no-install-recommends")
        # Packages that are installed here are listed, too.
        listed = self._run("apt-get", *simulated, "-oDir::State::status=/dev/null", *arguments)
        packages = re.findall(r"^Inst (?!linux-)(\S+) \((\S+)", listed, re.MULTILINE)
        return [f"{each}={version}" for each, version in packages]

    def fetch_sources(self, name: str) -> Path:
        """Return the directory of a kernel's unpacked sources, headers and build tools."""
        with self._packages():
            headers = self._control(f"linux-headers-{name}")
            needed = re.findall(r"\blinux-(?:headers|kbuild)-[^\s,]+", headers["Depends"])
            source = f"linux-source-{series(name)}={headers['Version']}"
            needed = [headers["Package"], *needed, source]
            return self._unpacked(f"{name}-sources", needed, is_edited=True)

    def fetch_tools(self, name: str) -> Path:
        """Return a directory with the compiler of a kernel and all libraries of its build tools."""
        with self._packages():
            release = release_options(name, self._run("apt-cache", "policy"))
            needed = self._with_dependencies(*release, f"linux-headers-{name}")
            return self._unpacked(f"{name}-tools", needed, is_edited=True)

    def fetch_packages(self, name: str, packages: Sequence[str]) -> Path:
        """Return the directory ``name`` of unpacked packages."""
        with self._packages():
            return self._unpacked(name, packages)

    def fetch_source(self, package: str, version: str) -> Path:
        """Return the archive of upstream's source of a package."""
        with self._packages():
            listed = self._run("apt-get", "source", "-qq", "--print-uris", "--only-source", package)
            wanted = re.compile(rf" {re.escape(f'{package}_{version}')}\D\S*\.orig\.tar")
            found = next(filter(wanted.search, listed.splitlines()), None)
            if found is None:
                raise KernelError(f"the archive has no source of {package} {version}")
            return _download(found, self.directory)

    def compiler(self, name: str) -> str:
        """Return the compiler of a kernel and its modules, such as ``gcc-12``."""
        with self._packages():
            depends = self._control(f"linux-headers-{name}")["Depends"]
        return next(iter(re.findall(r"\bgcc-\d+", depends)), "gcc")

    def _control(self, package: str) -> dict[str, str]:
        """Return a package's fields in the archive: {name: value}."""
        shown = self._run("apt-cache", "show", package)
        fields = (line.partition(": ") for line in shown.split("\n\n")[0].splitlines())
        return {name: value for name, _, value in fields}

    def _unpacked(self, name: str, packages: Sequence[str], is_edited: bool = False) -> Path:
        """Return the directory of unpacked packages, whose files change if it ``is_edited``."""
        unpacked = self.directory / name
        if is_intact(unpacked):
            return unpacked
        what = f"Linux {name}" if name[0].isdigit() else name
        why = " again: the cache has damaged files" * unpacked.exists()
        print(f"fetching {what}{why}", file=sys.stderr, flush=True)
        work = self.directory / f"{name}.part"
        work.mkdir(exist_ok=True)
        listed = self._run("apt-get", "download", "--print-uris", *packages)
        for line in listed.splitlines():
            _download(line, work)
        shutil.rmtree(work / "unpacked", ignore_errors=True)
        for package in work.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(work / "unpacked"))
        if not is_edited:
            seal(work / "unpacked")
        shutil.rmtree(unpacked, ignore_errors=True)
        (work / "unpacked").rename(unpacked)
        shutil.rmtree(work)
        return unpacked


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Raise KernelError for what a disk raises, such as one that is full."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"{directory} cannot be written: {error.strerror}") from None


def _download(line: str, directory: Path) -> Path:
    """Fetch what a line of apt-get's --print-uris names. Raises KernelError."""
    try:
        return Download.parse(line).fetch(directory)
    except (OSError, ValueError) as error:
        kind = Gone if isinstance(error, HTTPError) and error.code == _NOT_FOUND else KernelError
        raise kind(f"could not fetch {line.split(maxsplit=1)[0]}: {error}") from None


def _mirrors() -> list[str]:
    """Return the URIs of the Debian archives that this machine's apt uses."""
    listed = _run("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)")
    return sorted(set(re.findall(r"^Debian (\S+)$", listed, re.MULTILINE)))


def release_options(name: str, policy: str) -> list[str]:
    """Return apt-get's options that prefer the Debian release in which a kernel was built.

    ``policy`` is what ``apt-cache policy`` prints. A kernel of sid was built with the newest
    packages, which apt-get prefers by itself.
    """
    built_in = re.search(r"(?<=\+deb)\d+", name)
    return ["-t", f"{built_in[0]}*"] if built_in and f"v={built_in[0]}." in policy else []


def series(name: str) -> str:
    """Return the stable series of a kernel's name, such as ``6.12``."""
    return ".".join(name.split(".")[:2])


def numbers(name: str) -> list[int]:
    """Return the numbers in a kernel's name, by which names are sorted."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise KernelError(f"{command[0]} failed: {said[-1]}")
    return done.stdout
