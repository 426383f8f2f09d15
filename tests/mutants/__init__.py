# SPDX-License-Identifier: GPL-2.0-only
"""Kernel mutants: KVM broken by one edit each; ``python -m tests.mutants`` judges them."""
