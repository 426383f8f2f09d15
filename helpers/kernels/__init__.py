# SPDX-License-Identifier: GPL-2.0-only
"""Kernels to judge: finding, fetching and booting them."""
