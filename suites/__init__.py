# SPDX-License-Identifier: GPL-2.0-only
"""Tests that judge the kernel, a file per area."""
