# SPDX-License-Identifier: GPL-2.0-only
"""Races: threads that call KVM at the same time, and a verdict on the state that they leave."""
