"""The model on the command line.

python -m helpers.apic explain MESSAGE TOPOLOGY    what a message does, and by which rules
python -m helpers.apic predict                     the same of many, as JSON lines
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from helpers.apic import message, predict, topology
from helpers.apic.explain import explain
from helpers.apic.message import Message, number_of, padding_of
from helpers.apic.model import REFERENCE, Model, Switches
from helpers.apic.topologies import topology_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, 1 where a recorded case disagrees, 2 for input that makes no sense."""
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
        prog="python -m helpers.apic", description="What KVM_SIGNAL_MSI must do, by the model."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "explain",
        help="say what a message does, and by which rules",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{message.__doc__}\n{topology.__doc__}",
    )
    one.add_argument("message", help="one of its text forms, in quotes")
    one.add_argument("topology", help="its text form, in quotes")
    one.add_argument("--flags", default="0", help="of struct kvm_msi")
    one.add_argument("--devid", default="0", help="of struct kvm_msi")
    one.add_argument("--pad", default="00" * 12, help="12 bytes in hex")
    one.add_argument(
        "--without",
        metavar="SWITCH",
        action="append",
        default=[],
        choices=[each.name for each in fields(Switches)],
        help="something that the kernel in question does not do: %(choices)s",
    )
    commands.add_parser(
        "predict",
        help="predict many messages, and compare with what was recorded",
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
