# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel owes: each comparison of a test, as the value of a step on the tape.

A comparison has two values, and does not say where the actual value comes from. The recorder takes
the value for that of the fields read since the last step, or for the outcome of the last step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from helpers.apic import DeliveryMode
from helpers.apic.effect import Effect
from helpers.kvm import abi
from helpers.kvm.ioctl import errno_name, show_result
from helpers.record.forms import FORMS, form_of, number_of
from helpers.record.tape import Call, Compared, Observed, Owed, Run, Signal, Step, Take, Tape
from helpers.spec import DEVIATIONS

Texts = tuple[str, str]
"""The actual and the expected value as a failure shows them."""


class Seen(NamedTuple):
    """A field that the test has read, of a step."""

    owed: list[Owed]
    place: str
    value: int


@dataclass(slots=True)
class Checks:
    """Writes what is owed to ``tape``.

    ``explains`` tells which known deviation is the reason for a mismatch. ``ends``: the first
    mismatch ends the test, and comparisons before it need not be on the tape. ``seen`` are the
    fields read since the last comparison, ``last`` is the last step. ``judged``: a kernel that
    behaves otherwise would not pass.
    """

    explains: Callable[[str, str, str], str | None]
    ends: bool = False
    tape: Tape = field(default_factory=Tape)
    seen: list[Seen] = field(default_factory=list)
    last: Step | None = None
    judged: bool = False
    _injections: list[tuple[Any, Observed]] = field(default_factory=list)
    _effects: list[tuple[list[Effect], Observed]] = field(default_factory=list)
    _acceptors: tuple[list[int], Observed] | None = None

    def leave_out(self, reason: str) -> None:
        """Note that no list of steps stands for the test, and why. The first reason counts."""
        self.tape.left_out = self.tape.left_out or reason

    @property
    def sends_smi(self) -> bool:
        """Whether the test has sent an SMI, which a kernel without SMM does not deliver."""
        return any(
            DeliveryMode(injection.message.delivery_mode) is DeliveryMode.SMI
            for injection, _ in self._injections
        )

    def injected(self, injection: Any, step: Observed) -> None:
        """Note the injection that ``step`` recorded."""
        step.vcpus = len(injection.after)
        self._acceptors = None
        self._injections.append((injection, step))

    def irqfd_raised(self, step: Observed, gsi: int, effects: list[Effect]) -> None:
        """Note that ``step`` was a signal of an irqfd, which has effects and no return value."""
        step.inner.append(Signal(step.machine, gsi))
        step.vcpus = len(effects)
        self._effects.append((effects, step))

    def effects_read(self, injection: Any, effects: list[Effect]) -> None:
        """Note that the test may compare the effects of an injection."""
        if step := self._step_of(injection):
            self._effects.append((effects, step))

    def acceptors_read(self, injection: Any, acceptors: list[int]) -> None:
        """Note that the test asks which vCPUs changed."""
        if step := self._step_of(injection):
            self._acceptors = (acceptors, step)

    def return_checked(self, injection: Any, expected: str) -> None:
        """Note the return value that is owed of an injection."""
        if step := self._step_of(injection):
            step.returns.append(expected)
            self.judged = True

    def effects_checked(self, injection: Any, effects: Sequence[Effect]) -> None:
        """Note the effects that are owed of an injection."""
        if step := self._step_of(injection):
            step.effects = list(effects)
            self.judged = True

    def tolerates(self, subject: str, expected: str, actual: str) -> bool:
        """Return whether the test goes on after a mismatch, since a known deviation explains it.

        What the deviation entails is tolerated, too: a test on its own ends at the first mismatch.
        """
        if not self.tape.shown and (shown := self.explains(subject, expected, actual)):
            self.tape.shown.append(shown)
        return bool(self.tape.shown)

    def expected(self, subject: str, actual: Any, wanted: Any, texts: Texts) -> None:
        """Note a comparison: the actual and the expected value, and the two as text.

        The comparison concerns the fields read since the last step; else the outcome of that step.
        """
        self.judged = True
        seen, self.seen = self.seen, []
        matched = actual == wanted
        if seen and _fields_owe(seen, subject, wanted, texts):
            return
        if self._outcome_owed(subject, actual, wanted, texts):
            return
        if matched and self.ends:
            return
        if not (seen and matched):
            self.leave_out(f"{subject}: the test computes the value")
            return
        if any(DEVIATIONS[id].concerns(subject, texts[1]) for id in self.tape.deviations):
            self.leave_out(f"{subject}: the test computes what shows a known deviation")
            return
        for owed, place, value in seen:
            form = "vectors" if _is_form_of("vectors", place) else _FORMS_OF.get(place, "hex")
            owed.append(Owed(f"{subject}: {place}", place, FORMS[form](value), form))

    def _outcome_owed(self, subject: str, actual: Any, wanted: Any, texts: Texts) -> bool:
        """Note that the outcome of the last step is owed."""
        step = self.last
        if isinstance(step, Call):
            return _call_owes(step, subject, actual, wanted, texts)
        if isinstance(step, Run) and isinstance(actual, int) and actual == step.exit_reason:
            step.exit_reason, step.port = int(wanted), -1
            return True
        if isinstance(step, Take):
            return _take_owes(step, subject, actual, wanted)
        if isinstance(step, Compared) and isinstance(actual, list):
            step.expected, step.subject = list(wanted), subject
            return True
        if isinstance(step, Observed):
            return self._injection_owes(step, subject, actual, wanted)
        return False

    def _injection_owes(self, step: Observed, subject: str, actual: Any, wanted: Any) -> bool:
        if self._acceptors and isinstance(actual, list):
            if self._acceptors[0] == actual:
                self._acceptors[1].acceptors = list(wanted)
                self._acceptors[1].subject = subject
                return True
        elif self._acceptors and type(actual) is int and len(self._acceptors[0]) == actual:
            self._acceptors[1].count, self._acceptors[1].subject = wanted, subject
            return True
        for effects, of in self._effects:
            if actual is effects:
                same = (other.machine for each, other in self._effects if wanted is each)
                of.alike = next(same, None)
                of.effects = list(wanted) if of.alike is None else None
                return True
        injection = next((i for i, each in reversed(self._injections) if each is step), None)
        if injection is None or type(actual) not in (int, str):
            return False
        if actual == injection.returned or (actual == injection.result and actual >= 0):
            step.returns.append(str(wanted))
            return True
        if actual == injection.result == -1:
            step.returns.append("-1")
            return True
        return False

    def _step_of(self, injection: Any) -> Observed | None:
        return next((step for each, step in reversed(self._injections) if each is injection), None)


def _fields_owe(seen: Sequence[Seen], subject: str, wanted: Any, texts: Texts) -> bool:
    """Note that one field, which has the value that is compared, is owed."""
    found = [(each, form_of(each.value, texts[0])) for each in seen]
    shown = [(each, form) for each, form in found if _is_form_of(form, each.place)]
    is_one = len({(id(each.owed), each.place) for each, _ in shown}) == 1
    if not is_one or number_of(wanted) is None:
        return False
    (owed, place, _), form = shown[-1]
    owed.append(Owed(subject, place, texts[1], form or "dec"))
    return True


def _call_owes(step: Call, subject: str, actual: Any, wanted: Any, texts: Texts) -> bool:
    """Note the owed outcome of an ioctl. Return False if ``actual`` is not that outcome."""
    status = abi.kvm_irq_level.from_buffer_copy(step.output).status if _is_line(step) else None
    outcome = errno_name(step.errno) if step.result < 0 else "accepted"
    if isinstance(actual, tuple) and actual == (step.result, step.errno):
        step.outcome = errno_name(wanted[1]) if wanted[0] == -1 else str(wanted[0])
    elif isinstance(actual, str) and actual in (outcome, show_result(step.result, step.errno)):
        step.outcome = str(wanted).removeprefix("-1 ")
    elif type(actual) is int and status is not None and actual == status:
        step.owed.append(Owed(subject, "status", texts[1]))
        return True
    elif type(actual) is int and actual == step.result and step.request in _WITH_RESULT:
        step.outcome = str(int(wanted))
    else:
        return False
    step.subject = subject
    return True


def _is_form_of(form: str | None, place: str) -> bool:
    """Return whether a value in this form is all of the value: sets are compared as a whole."""
    return form is not None and bool(_SETS.fullmatch(place)) == (form == "vectors")


def _is_line(step: Call) -> bool:
    return step.request == abi.KVM_IRQ_LINE_STATUS and bool(step.output)


_SETS = re.compile(r"vectors .*|\d+\.(isr|tmr|irr)")
"""Places that are sets of vectors: those of a LAPIC page, and of a record of the guest's log."""

_FORMS_OF = {"interrupt.shadow": "bool"}
"""By place, the form that shows what a test can owe. AMD does not tell STI from MOV SS."""

_WITH_RESULT = {abi.KVM_SIGNAL_MSI, abi.KVM_CHECK_EXTENSION, abi.KVM_GET_API_VERSION}
"""Requests whose return value says more than that the call succeeded."""


def _take_owes(step: Take, subject: str, actual: Any, wanted: Any) -> bool:
    """Note the owed vectors. Return False if ``actual`` is not what the guest took."""
    if isinstance(actual, list) and actual == step.vectors and not (actual == [] == step.exits):
        step.vectors, step.subject = list(wanted), subject
    elif isinstance(actual, list) and step.exits is not None and actual == step.exits:
        step.exits, step.subject = list(wanted), subject
    elif step.exits is not None and actual == (step.exits[-1] if step.exits else None):
        step.exits, step.subject = [] if wanted is None else [wanted], subject
        step.last_exit = True
    elif type(actual) is int and actual == wanted == len(step.vectors):
        pass
    else:
        return False
    return True
