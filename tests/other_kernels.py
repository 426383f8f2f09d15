"""The sweep's messages, predicted for the kernels and parameters that this machine does not have.

    python -m tests.other_kernels

What the sweep and the generated sequences do on those, but for the kernel.
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

from helpers.apic import DeliveryMode
from helpers.apic.model import REFERENCE, Model, Switches
from helpers.apic.topologies import TOPOLOGIES
from helpers.sweep.plan import to_each_class

GENERATIONS = [replace(REFERENCE, **{each.name: False}) for each in fields(Switches)]


def main() -> None:
    """Predict one message of each kind for every generation, and for kvm.vector_hashing=N."""
    for topology, switches in product(TOPOLOGIES.values(), [REFERENCE, *GENERATIONS]):
        for hashing in (True, False):
            model = Model(replace(topology, vector_hashing=hashing), switches)
            for mode in DeliveryMode:
                for message in to_each_class(model, mode):
                    model.predict(message)


if __name__ == "__main__":
    main()
