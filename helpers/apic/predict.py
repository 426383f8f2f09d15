# SPDX-License-Identifier: GPL-2.0-only
"""Predict many messages: a case per line of input, a prediction per line of output, both in JSON.

A case is an object:

  topology      the text form of a topology: "split x2apic_api=3 0 1/ldr=0x02000000"
  message       the text form of a message; or an object, of the fields of a message, or of
                address_lo, address_hi and data
  flags, devid  numbers (optional)
  pad           12 bytes in hex (optional)
  capabilities  an object of x2apic_api, smm and vector_hashing, which override the topology
                (optional)
  switches      an object of switches of the model: true (default) or false (optional)
  recorded      the outcome on a kernel: an object of result, errno and effects, each optional
                (optional)

A number may be text: "0x41". A prediction is an object:

  result    the return value
  errno     the name of the errno; null unless result is -1
  effects   an object: the index of a vCPU in the topology, and the changes on this vCPU; vCPUs
            without changes are left out
  clauses   the ids of the clauses whose rules applied
  agrees    whether the record agrees with the prediction; only if the case has a record

Changes are an object; fields without a change are left out:

  irr_set, irr_cleared, tmr_set, tmr_cleared  lists of vectors
  nmi, smi, init                              the number that became pending
  mp_state                                    a list of two names, before and after
  registers                                   names of other registers (in records only)

The exit code is 1 if a record disagrees. Invalid input ends the command with exit code 2 and the
number of the line.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TextIO

from helpers.apic.effect import Effect
from helpers.apic.message import WORDS, Message, number_of, padding_of
from helpers.apic.model import REFERENCE, Model, Outcome, Switches
from helpers.apic.topology import Topology, show_mp_state

_KEYS = ("topology", "message", "flags", "devid", "pad", "capabilities", "switches", "recorded")
_CAPABILITIES = ("x2apic_api", "smm", "vector_hashing")
_RECORDED = ("result", "errno", "effects")
_EFFECTS = tuple(each.name for each in fields(Effect))
_SWITCHES = tuple(each.name for each in fields(Switches))


def run(cases: Iterable[str], predictions: TextIO) -> int:
    """Write the prediction of each line of ``cases``; return the exit code. Raises ValueError."""
    disagree, number = False, 0
    for number, line in enumerate(cases, 1):
        try:
            prediction = predict(json.loads(line.strip()))
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg} in column {error.colno}"
            raise ValueError(f"line {number}: {reason}") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        print(json.dumps(prediction), file=predictions)
        disagree |= not prediction.get("agrees", True)
    if not number:
        raise ValueError("no case on standard input; --help describes a case")
    return int(disagree)


def predict(case: object) -> dict[str, Any]:
    """Return the prediction of one case, both as described above. Raises ValueError."""
    given = _object("case", case, _KEYS)
    for name in ("topology", "message"):
        if name not in given:
            raise ValueError(f"case: {name} is missing")
    topology = Topology.parse(_text("topology", given["topology"]))
    model = Model(
        replace(topology, **_options("capabilities", given, _CAPABILITIES)),
        replace(REFERENCE, **_options("switches", given, _SWITCHES)),
    )
    outcome = model.predict(
        _message(given["message"]),
        flags=number_of("flags", given.get("flags", 0)),
        devid=number_of("devid", given.get("devid", 0)),
        pad=padding_of(_text("pad", given.get("pad", "00" * 12))),
    )
    prediction = _prediction(outcome)
    if "recorded" in given:
        recorded = _object("recorded", given["recorded"], _RECORDED)
        prediction["agrees"] = _agrees(prediction, recorded)
    return prediction


def _message(given: object) -> Message:
    if isinstance(given, str):
        return Message.parse(given)
    values = _object("message", given)
    if set(values) & set(WORDS):
        return Message.from_words(_object("message", values, WORDS))
    return Message.from_fields(values)


def _options(kind: str, given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return capabilities or switches of a case. All but ``x2apic_api`` are true or false."""
    return {
        name: number_of(name, value) if name == "x2apic_api" else _bool(name, value)
        for name, value in _object(kind, given.get(kind, {}), known).items()
    }


def _prediction(outcome: Outcome) -> dict[str, Any]:
    clauses = [id for rule, _ in outcome.applied for id in rule.clauses]
    return {
        "result": outcome.result,
        "errno": errno.errorcode[outcome.errno] if outcome.errno else None,
        "effects": {str(i): _plain(effect) for i, effect in enumerate(outcome.effects) if effect},
        "clauses": list(dict.fromkeys(clauses)),
    }


def _plain(effect: Effect) -> dict[str, Any]:
    """Return the changes of ``effect`` as JSON values."""
    plain: dict[str, Any] = {name: getattr(effect, name) for name in _EFFECTS}
    if effect.mp_state:
        plain["mp_state"] = [show_mp_state(state) for state in effect.mp_state]
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in plain.items()
        if value
    }


def _agrees(prediction: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    if "effects" in recorded:
        recorded = {**recorded, "effects": _recorded_effects(recorded["effects"])}
    return all(prediction[name] == value for name, value in recorded.items())


def _recorded_effects(given: object) -> dict[str, dict[str, Any]]:
    """Return recorded effects in the form of a prediction: without empty changes."""
    effects = {}
    for vcpu, given_changes in _object("effects", given).items():
        changes = _object(f"effects on vCPU {vcpu}", given_changes, _EFFECTS)
        if changed := {name: value for name, value in changes.items() if value}:
            effects[vcpu] = changed
    return effects


def _object(name: str, value: object, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Return ``value``, an object whose keys are ``known``. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {json.dumps(value)} is not an object")
    for key in value:
        if known is not None and key not in known:
            raise ValueError(f"{name}: {key!r} is none of {' '.join(known)}")
    return value


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {json.dumps(value)} is not true or false")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: {json.dumps(value)} is not text")
    return value
