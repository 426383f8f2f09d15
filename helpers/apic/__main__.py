# SPDX-License-Identifier: GPL-2.0-only
"""The model on the command line.

python -m helpers.apic explain MESSAGE TOPOLOGY    explain one message, rule by rule
python -m helpers.apic predict                     predict many messages, a line of JSON each
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from helpers.apic import message, predict, topology
from helpers.apic.explain import explain, wrapped
from helpers.apic.message import Message, number_of, padding_of
from helpers.apic.model import REFERENCE, Model, Switches
from helpers.apic.topologies import TOPOLOGIES, topology_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 if a record disagrees with the model, 2 for invalid input."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "predict":
            return predict.run(sys.stdin, sys.stdout)
        print(_explained(given))
    except ValueError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.apic",
        description="Predict what KVM_SIGNAL_MSI returns and does. No KVM is needed.",
        epilog="Each command has a --help with the format of its input.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    named = "\n".join(wrapped("Named topologies: ", " ".join(TOPOLOGIES)))
    one = commands.add_parser(
        "explain",
        help="explain one message, rule by rule",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Print what a message does to a VM, and the rules that decide.",
        epilog=f"{message.__doc__}\n{topology.__doc__}\n{named}",
    )
    one.add_argument("message", help="the message in a text form (see below), in quotes")
    one.add_argument("topology", help="the VM in text form, in quotes, or by name (see below)")
    one.add_argument("--flags", default="0", help="flags of struct kvm_msi")
    one.add_argument("--devid", default="0", help="devid of struct kvm_msi")
    one.add_argument("--pad", default="00" * 12, help="pad of struct kvm_msi, 12 bytes in hex")
    one.add_argument(
        "--without",
        metavar="SWITCH",
        action="append",
        default=[],
        choices=[each.name for each in fields(Switches)],
        help="predict for a kernel with this switch off, one of %(choices)s; may be repeated",
    )
    commands.add_parser(
        "predict",
        help="predict many messages and compare them with records",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=predict.__doc__,
    )
    return parser


def _explained(given: argparse.Namespace) -> str:
    switches = replace(REFERENCE, **dict.fromkeys(given.without, False))
    return explain(
        Model(topology_of(given.topology), switches),
        Message.parse(given.message),
        flags=number_of("flags", given.flags),
        devid=number_of("devid", given.devid),
        pad=padding_of(given.pad),
    )


if __name__ == "__main__":
    sys.exit(main())
