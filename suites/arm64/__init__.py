# SPDX-License-Identifier: GPL-2.0-only
"""Tests that judge an arm64 kernel: KVM_SIGNAL_MSI to a virtual ITS."""
