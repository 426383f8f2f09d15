# SPDX-License-Identifier: GPL-2.0-only
"""The arm64 guest: machines with VGICv3 and ITSs, the stub that they run, messages sent."""

from helpers.arm64.cpu import Cpu
from helpers.arm64.its_device import ItsDevice
from helpers.arm64.machine import Machine
from helpers.arm64.sent import Sent

__all__ = ["Cpu", "ItsDevice", "Machine", "Sent"]
