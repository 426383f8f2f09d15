# SPDX-License-Identifier: GPL-2.0-only
"""Download files whose hash apt knows, with a progress bar.

An interrupted download is resumed, where ``apt-get download`` starts again.
"""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from helpers.progress import Bar

_CHUNK = 1 << 18  # bytes
_SILENCE = 60  # seconds without data, after which a download fails


@dataclass(frozen=True)
class Download:
    """A file of apt's: a line of ``apt-get download --print-uris``. ``size`` is in bytes."""

    uri: str
    name: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, line: str) -> Download:
        """Parse ``'URI' NAME SIZE SHA256:HASH``. Raises ValueError."""
        uri, name, size, digest = line.split()
        kind, _, sha256 = digest.partition(":")
        if kind != "SHA256":
            raise ValueError(f"no SHA256 for {name}")
        return cls(uri.strip("'"), name, int(size), sha256)

    def fetch(self, directory: Path) -> Path:
        """Download the file to ``directory`` and return its path. Parts that are there are kept.

        Raises OSError, or ValueError if the hash is wrong.
        """
        whole, part = directory / self.name, directory / f"{self.name}.part"
        if whole.exists() and _sha256(whole) == self.sha256:
            return whole
        if part.exists() and part.stat().st_size > self.size:
            part.unlink()
        has_begun = part.exists()
        self._fetch_rest(part)
        if has_begun and _sha256(part) != self.sha256:  # the begin may be damaged
            part.unlink()
            self._fetch_rest(part)
        if (found := _sha256(part)) != self.sha256:
            part.unlink()
            raise ValueError(f"{self.uri} has SHA256 {found}, not {self.sha256}")
        return part.replace(whole)

    def _fetch_rest(self, part: Path) -> None:
        with part.open("ab") as file:
            request = urllib.request.Request(self.uri)
            if file.tell():
                request.add_header("Range", f"bytes={file.tell()}-")
            if file.tell() == self.size:
                return
            with urllib.request.urlopen(request, timeout=_SILENCE) as answer:
                if answer.status != 206:  # the server ignores Range
                    file.truncate(0)
                bar = Bar(self.name, self.size, begun=file.seek(0, 2), unit="MiB", scale=1 << 20)
                while content := answer.read(_CHUNK):
                    file.write(content)
                    bar.show(file.tell())
                bar.end()
            if file.tell() < self.size:
                raise OSError(f"{self.uri} was cut off")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
