# SPDX-License-Identifier: GPL-2.0-only
"""The sweep of the message space, made-up sequences, and the options of pytest for both."""
