# SPDX-License-Identifier: GPL-2.0-only
"""The sweep of the message space, generated sequences, and the options of pytest for both."""
