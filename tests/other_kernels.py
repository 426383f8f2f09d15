# SPDX-License-Identifier: GPL-2.0-only
"""Predict a message of each kind for the kernels and parameters that are not here.

    python -m tests.other_kernels

Covers the parts of the model that only other kernels reach. No kernel is involved.
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

from helpers.apic import DeliveryMode, Message
from helpers.apic.model import REFERENCE, Model, Switches
from helpers.apic.topologies import TOPOLOGIES
from helpers.apic.topology import Topology
from helpers.sweep.plan import to_each_class

EVENTS = Topology.parse("0/smm 1/nmi-masked")
GENERATIONS = [replace(REFERENCE, **{each.name: False}) for each in fields(Switches)]


def main() -> None:
    """Predict for every switch of the model off, with and without kvm.vector_hashing."""
    Model(Topology.parse("x2apic_api=1 0")).predict(Message(address_hi_reserved=1))
    for topology, switches in product([*TOPOLOGIES.values(), EVENTS], [REFERENCE, *GENERATIONS]):
        for vector_hashing in (True, False):
            model = Model(replace(topology, vector_hashing=vector_hashing), switches)
            for delivery_mode in DeliveryMode:
                for message in to_each_class(model, delivery_mode):
                    model.predict(message)


if __name__ == "__main__":
    main()
