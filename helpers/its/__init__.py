# SPDX-License-Identifier: GPL-2.0-only
"""The Interrupt Translation Service: messages, commands, registers, and the model."""

from helpers.its.message import Message

__all__ = ["Message"]
