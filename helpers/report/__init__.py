# SPDX-License-Identifier: GPL-2.0-only
"""The outputs of a run that people keep: the HTML report, result files, comparisons."""
