# SPDX-License-Identifier: GPL-2.0-only
"""The tape of one test: its steps in order, and what the kernel owes after each step.

A step is data. helpers/record writes a tape while the test runs, helpers/program makes C of it.
Machines are numbered in the order of KVM_CREATE_VM, vCPUs in the order of KVM_CREATE_VCPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from helpers.apic.effect import Effect
from helpers.kvm import abi

SYSTEM = -1
"""The number that stands for /dev/kvm in place of a machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """A file descriptor: /dev/kvm, a VM or a vCPU (``vcpu`` is its index, -1 for the VM)."""

    machine: int
    vcpu: int = -1


@dataclass(frozen=True, slots=True)
class Owed:
    """A value that the kernel owes: that of ``place``, named ``subject`` in a failure.

    ``expected`` is the text of the value in a failure, as helpers.guest.expect shows it. ``show``
    names the form in which the actual value becomes text: a key of helpers.record.forms.FORMS.
    """

    subject: str
    place: str
    expected: str
    show: str = "dec"


@dataclass(slots=True)
class Call:
    """An ioctl. ``argument`` is a number, or the bytes of a structure of type ``struct``.

    ``output`` is the structure after the call. ``outcome`` is what the kernel owes: "accepted",
    "refused" (any errno), "any" of the two, the name of an errno, or a return value. ``subject``
    names the outcome in a failure; "" if no check asked. ``saved`` is the number of the Save that
    has the argument, -1 for an argument of the test's own. ``owed`` are values of the structure
    that KVM wrote; a place is a field.
    """

    target: Target
    request: abi.Request
    argument: int | bytes = 0
    struct: type[ctypes.Structure] | None = None
    result: int = 0
    errno: int = 0
    output: bytes = b""
    outcome: str = "accepted"
    subject: str = ""
    saved: int = -1
    owed: list[Owed] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """A KVM_RUN, repeated after a signal, that ends by ``exit_reason`` (and at I/O port ``port``).

    ``immediate``: the vCPU executes no instruction, whatever the exit. ``window``: with
    request_interrupt_window set.
    """

    target: Target
    exit_reason: int = -1
    port: int = -1
    immediate: bool = False
    window: bool = False
    owed: list[Owed] = field(default_factory=list)


@dataclass(slots=True)
class Take:
    """KVM_RUN until the guest takes no further interrupt, or a read of the log (``runs`` False).

    ``vectors`` are owed in this order. ``exits`` are the vectors of KVM_EXIT_IOAPIC_EOI, None if
    such an exit is an error; with ``last_exit`` the last of them alone is owed. A place of
    ``owed`` is a record's number and field, such as ``0.isr``.
    """

    target: Target
    runs: bool = True
    vectors: list[int] = field(default_factory=list)
    exits: list[int] | None = None
    last_exit: bool = False
    subject: str = "vectors taken"
    owed: list[Owed] = field(default_factory=list)


@dataclass(slots=True)
class Write:
    """The host writes ``content`` at guest-physical ``address``."""

    machine: int
    address: int
    content: bytes


@dataclass(slots=True)
class Copy:
    """The host copies guest memory from another machine, which has it at the same address."""

    machine: int
    source: int
    address: int
    size: int


@dataclass(slots=True)
class Memory:
    """The host gives the VM ``size`` bytes of memory; ``guest``: with the probe and its tables."""

    machine: int
    address: int
    size: int
    guest: bool = False


@dataclass(slots=True)
class Snapshots:
    """The host reads the state of ``vcpus`` vCPUs, all, with which the next step is compared."""

    machine: int
    vcpus: int


@dataclass(slots=True)
class Save:
    """The host keeps the latest answers of KVM_GET_* for a vCPU. Saves are numbered in order."""

    target: Target
    number: int


@dataclass(slots=True)
class Compared:
    """The Saves numbered ``one`` and ``other`` are compared.

    ``expected`` are the owed names of what differs, as helpers.guest.saved names it; None if no
    check asked.
    """

    one: int
    other: int
    expected: list[str] | None = None
    subject: str = ""


@dataclass(slots=True)
class Observed:
    """The steps ``inner``, which inject a message, between two reads of all vCPUs.

    ``returns`` is the owed outcome as Injection shows it ("> 0", "1", "-1 EINVAL",
    "0 or -1 EPERM"). ``effects`` are owed of the vCPUs in order, None if no check asked.
    ``alike`` is a machine whose vCPUs have just changed in the same way; None if these effects are
    owed in any case. ``acceptors`` and ``count`` are owed of the vCPUs that changed.
    """

    machine: int
    vcpus: int = 0
    inner: list[Step] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)
    effects: list[Effect] | None = None
    alike: int | None = None
    acceptors: list[int] | None = None
    count: int | None = None
    subject: str = "return value"


@dataclass(slots=True)
class Signal:
    """An eventfd is written; KVM_IRQFD of ``gsi`` before and after it."""

    machine: int
    gsi: int


@dataclass(slots=True)
class SendEach:
    """Messages that differ in a word: ``content`` with each of ``values`` or-ed into ``word``."""

    machine: int
    content: bytes
    word: str
    values: Sequence[int]
    returns: int


@dataclass(slots=True)
class Block:
    """Steps that make a machine, or set up one of its vCPUs: the same steps for many tests."""

    machine: int
    vcpu: int = -1
    steps: list[Step] = field(default_factory=list)


Step = (
    Call
    | Run
    | Take
    | Write
    | Copy
    | Memory
    | Snapshots
    | Save
    | Compared
    | Observed
    | Signal
    | SendEach
    | Block
)


@dataclass(slots=True)
class Tape:
    """All that a test did.

    ``left_out`` says why the steps do not stand for the test, if so. ``reusable``: Machine.reset()
    returns each machine of the test to its power-on state. ``clause`` is the id of the clause.
    ``deviations`` are the ids of known deviations that the test names; ``shown`` those that the
    recording kernel showed. ``preconditions`` are the conditions of skipif marks, each with its
    reason; ``needs`` the module parameters that it needs. ``facts`` are capabilities by
    which the test chose what to do. ``switches`` are the deviations by which the model differs from
    kernel to kernel, for a test that asks the model, each with whether the recording kernel has it.
    """

    steps: list[Step] = field(default_factory=list)
    left_out: str = ""
    reusable: bool = False
    clause: str = ""
    deviations: tuple[str, ...] = ()
    shown: list[str] = field(default_factory=list)
    preconditions: tuple[tuple[str, str], ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, int], ...] = ()
    switches: tuple[tuple[str, bool], ...] = ()
