# SPDX-License-Identifier: GPL-2.0-only
"""An arm64 vCPU in a thread of its own, inside KVM_RUN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from helpers.arm64 import layout
from helpers.arm64.cpu import Cpu
from helpers.guest.expect import expect
from helpers.guest.running import Running
from helpers.kvm import abi


class RunningArm64(Running):
    """A vCPU in KVM_RUN, until its handler has read an INTID, or a kick."""

    def __init__(self, cpu: Cpu) -> None:
        super().__init__(cpu.index, cpu.vcpu, None)
        self._cpu = cpu

    def takes(self, lpi: int) -> None:
        """Wait for an exit; raise Mismatch unless the handler has read ``lpi``."""
        self.wait_for(lambda: self.left, "KVM_RUN to return")
        self._join()
        mmio = self._vcpu.kvm_run.u.mmio
        place = int(mmio.phys_addr) - layout.EXITS
        expect("exit", (self._exit, place), (abi.KVM_EXIT_MMIO, layout.EXIT_TAKEN))
        self._cpu.taken.append(self._cpu.data)
        expect("INTID", self._cpu.data, lpi)


@contextlib.contextmanager
def running(cpu: Cpu, operation: str) -> Iterator[RunningArm64]:
    """Run ``cpu`` in a thread, in ``operation``: WFI or SPIN. Finish the operation at the end."""
    cpu.begin(operation, value=len(cpu.taken))
    with RunningArm64(cpu) as thread:
        yield thread
    cpu.run_to(layout.EXIT_DONE)
