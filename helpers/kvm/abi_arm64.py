# SPDX-License-Identifier: GPL-2.0-only
"""The part of the KVM uapi of arm64 that the suite uses: arch/arm64/include/uapi/asm/kvm.h.

``tests/test_abi_arm64.py`` compiles the header of a cross compiler and compares.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint32

from helpers.kvm.abi import Request, ioc


class kvm_vcpu_init(ctypes.Structure):
    _fields_ = [("target", c_uint32), ("features", c_uint32 * 7)]


KVM_VGIC_V3_ADDR_TYPE_DIST = 2
KVM_VGIC_V3_ADDR_TYPE_REDIST = 3
KVM_VGIC_ITS_ADDR_TYPE = 4
KVM_DEV_ARM_VGIC_GRP_ADDR = 0
KVM_DEV_ARM_VGIC_GRP_DIST_REGS = 1
KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_DEV_ARM_VGIC_GRP_REDIST_REGS = 5
KVM_DEV_ARM_VGIC_GRP_ITS_REGS = 8
KVM_DEV_ARM_VGIC_CTRL_INIT = 0
KVM_DEV_ARM_ITS_SAVE_TABLES = 1
KVM_DEV_ARM_ITS_RESTORE_TABLES = 2
KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES = 3
KVM_DEV_ARM_ITS_CTRL_RESET = 4
KVM_ARM_VCPU_PSCI_0_2 = 2

KVM_ARM_VCPU_INIT = Request("KVM_ARM_VCPU_INIT", ioc(1, 0xAE, ctypes.sizeof(kvm_vcpu_init)))
KVM_ARM_PREFERRED_TARGET = Request(
    "KVM_ARM_PREFERRED_TARGET", ioc(2, 0xAF, ctypes.sizeof(kvm_vcpu_init))
)

_CORE = 0x6030_0000_0010_0000
"""KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE. Registers are numbered by 32-bit words."""
CORE_PC = _CORE | 0x40
CORE = {"pc": CORE_PC, "pstate": _CORE | 0x42, "sp": _CORE | 0x3E}
CORE |= {f"x{number}": _CORE | 2 * number for number in range(31)}
"""The ids of the core registers, for KVM_GET_ONE_REG."""
