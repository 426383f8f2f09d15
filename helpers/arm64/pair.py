# SPDX-License-Identifier: GPL-2.0-only
"""A machine and its model, which take the same commands and messages and are compared."""

from __future__ import annotations

from collections import deque

from helpers.arm64.machine import Machine
from helpers.arm64.sent import show
from helpers.guest.expect import Mismatch
from helpers.its import Message, commands
from helpers.its.model import Its, Model, Setting


class Pair:
    """A machine whose tables are empty, and the model of it. ``steps`` has the latest steps."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.model = Model.of(len(machine.cpus), [its.address for its in machine.itss])
        self.steps: deque[str] = deque(maxlen=40)
        self.count = 0

    def __str__(self) -> str:
        return "\n".join(self.steps)

    def its(self, number: int) -> Its:
        """Return the model of an ITS."""
        return self.model.itss[number]

    def note(self, step: str) -> None:
        """Note a step, for the text of a mismatch."""
        self.count += 1
        self.steps.append(f"{self.count}: {step}")

    def _mismatch(self, subject: str, expected: str, actual: str) -> Mismatch:
        mismatch = Mismatch(subject, expected, actual)
        mismatch.add_note(f"after\n{self}")
        return mismatch

    # --- comparing --------------------------------------------------------------------------------

    def signal(self, message: Message) -> None:
        """Send a message to both. Raises Mismatch."""
        self.note(f"message {message}")
        predicted, sent = self.model.signal(message), self.machine.signal(message)
        if sent.returned != predicted.returned:
            raise self._mismatch("return value", predicted.returned, sent.returned)
        self.compare()

    def compare(self) -> None:
        """Compare the pending LPIs. Raises Mismatch."""
        expected, actual = self.model.pending_lpis(), self.machine.pending()
        if actual is not None and actual != expected:
            raise self._mismatch("pending", show(expected), show(actual))

    def take(self) -> None:
        """Have all vCPUs take what they can, and compare. Raises Mismatch."""
        self.note("take")
        expected, actual = self.model.take(), self.machine.step_all()
        ranks = [(vcpu, self.model.setting(lpi).priority) for vcpu, lpi in actual]
        if ranks != sorted(ranks):
            raise self._mismatch("order of (vCPU, priority)", str(sorted(ranks)), str(ranks))
        actual += self.machine.step_all()
        if sorted(actual) != sorted(expected):
            raise self._mismatch("taken", show(expected), show(actual))
        self.compare()

    # --- commands ---------------------------------------------------------------------------------

    def mapd(self, number: int, devid: int, bits: int) -> None:
        self.note(f"its {number}: MAPD {devid:#x}, {bits} bits")
        self.machine.itss[number].map_device(devid, bits)
        self.model.mapd(self.its(number), devid, bits)

    def command(self, name: str, number: int, *operands: int) -> None:
        """Execute a command other than MAPD. ``name`` is the function of the ITS and the model."""
        self.note(f"its {number}: {name} {' '.join(map(hex, operands))}")
        self.machine.itss[number].command(getattr(commands, name)(*operands))
        getattr(self.model, name)(self.its(number), *operands)

    # --- registers and memory ---------------------------------------------------------------------

    def configure(self, lpi: int, setting: Setting) -> None:
        """Write the configuration table."""
        self.note(f"LPI {lpi}: enabled {setting.enabled}, priority {setting.priority:#x}")
        self.machine.configure_lpi(lpi, *setting)
        self.model.table[lpi] = setting

    def enable_its(self, number: int, enabled: bool) -> None:
        self.note(f"its {number}: enabled {enabled}")
        self.machine.itss[number].enabled = enabled
        self.its(number).enabled = enabled

    def enable_lpis(self, vcpu: int, enabled: bool) -> None:
        self.note(f"vCPU {vcpu}: LPIs enabled {enabled}")
        self.machine[vcpu].lpis_enabled = enabled
        self.model.vcpus[vcpu].lpis_enabled = enabled

    def mask(self, vcpu: int, masked: bool) -> None:
        """Have the guest set or clear PSTATE.I. Clearing takes what is pending."""
        self.note(f"vCPU {vcpu}: masked {masked}")
        self.machine[vcpu].operate("MASK" if masked else "UNMASK")
        self.model.vcpus[vcpu].masked = masked

    def replace_machine(self, machine: Machine) -> None:
        """Go on with a machine that was restored from the state of this one."""
        self.note("save and restore")
        self.machine = machine
        # A restored redistributor has read the whole configuration table.
        self.model.known = dict(self.model.table)
        for vcpu in self.model.vcpus:
            vcpu.masked = False
