# SPDX-License-Identifier: GPL-2.0-only
"""The program as a directory of tools/testing/selftests in a kernel tree."""

from __future__ import annotations

from pathlib import Path

_SPDX = "# SPDX-License-Identifier: GPL-2.0-only\n"
FILES = {
    # selftests: Documentation/dev-tools/kselftest.rst, "Contributing new tests".
    "Makefile": _SPDX
    + "CFLAGS += -O2 -Wall $(KHDR_INCLUDES)\n\nTEST_GEN_PROGS := msi_test\n\ninclude ../lib.mk\n",
    "config": "CONFIG_KVM=m\nCONFIG_KVM_AMD=m\nCONFIG_KVM_INTEL=m\nCONFIG_KVM_SMM=y\n",
    "settings": "timeout=300\n",
    ".gitignore": _SPDX + "msi_test\n",
}
"""By name, the files beside msi_test.c."""


def write_directory(directory: Path, program: str) -> None:
    """Write the program and the files that selftests need. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {**FILES, "msi_test.c": program}.items():
        (directory / name).write_text(content)
