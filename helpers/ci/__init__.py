# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel's CI reads and gives: KTAP, KCIDB, properties of JUnit, logs, lists of tests."""
