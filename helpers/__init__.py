# SPDX-License-Identifier: GPL-2.0-only
"""What the suites are written with; see README.md for the map."""
