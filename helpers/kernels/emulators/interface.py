# SPDX-License-Identifier: GPL-2.0-only
"""What boots a kernel: the interface of QEMU and Bochs, which qemu.py and bochs.py implement."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from helpers.kernels.locate import BootFiles
from helpers.kvm.closing import Closing
from helpers.spec.architectures import Architecture


class MemoryFiles(Closing):
    """Files of an emulator that are in memory: nothing to clean up."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def add(self, content: bytes) -> str:
        """Return the path of a new file, for a process that inherits ``descriptors``."""
        file = os.memfd_create("emulator", 0)
        self.descriptors.append(file)
        with open(file, "wb", closefd=False) as stream:
            stream.write(content)
        return path_of(file)

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def path_of(file: int) -> str:
    """Return the path of a file descriptor, in the process that has it."""
    return f"/proc/self/fd/{file}"


class Emulator(Protocol):
    """Boots kernels on one kind of processor.

    architecture  that of the kernels
    cpu           the value of --cpu
    name          the emulator and the processor, for the report's header
    vendor        the KVM module for the processor
    kvm           the modules that KVM consists of, where it is not built in
    console       the console that the kernel writes to
    modules       the modules that the kernel needs for the channel to the worker
    parallel      True if only tests with the mark of that name run here, False if only others do,
                  None if all tests do
    memory        MiB of this machine's memory that a guest takes
    patience      how much longer than in QEMU a boot or a test may take
    judged        the values of KVM's parameters that are judged without --kvm-param: {name: values}
    command_line  parameters of the kernel, besides those of every guest
    """

    @property
    def architecture(self) -> Architecture: ...
    @property
    def cpu(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def vendor(self) -> str: ...
    @property
    def kvm(self) -> Sequence[str]: ...
    @property
    def console(self) -> str: ...
    @property
    def modules(self) -> Sequence[str]: ...
    @property
    def parallel(self) -> bool | None: ...
    @property
    def memory(self) -> int: ...
    @property
    def patience(self) -> float: ...
    @property
    def judged(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def command_line(self) -> Sequence[str]: ...

    def require(self) -> None:
        """Make the emulator, if that is possible. Raises KernelError where it is missing."""

    def channel(self) -> tuple[int, int]:
        """Return both ends of a new channel; the emulator's end is its standard input."""

    def command(
        self, kernel: BootFiles, command_line: str, image: bytes, console: str, files: MemoryFiles
    ) -> list[str]:
        """Return the emulator's command.

        ``image`` is the initramfs, ``console`` the path of a file for what the kernel says.
        """
