# SPDX-License-Identifier: GPL-2.0-only
"""Recorded tests as C programs without Python: reproducers, and the suite as one program."""
