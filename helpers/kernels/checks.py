# SPDX-License-Identifier: GPL-2.0-only
"""Check what a guest says before the schedule hears it; worker.py lists the messages.

A corrupted kernel can make its worker say anything. Each function raises Garbage for what no worker
says in the state of its guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

import pytest

from helpers.kernels.frames import Garbage
from helpers.kernels.schedule import GuestState
from helpers.verdicts.kernel import Kernel
from helpers.verdicts.plain import fits
from helpers.verdicts.reports import Carried, Verdict, verdict_of

_TEXTS = {"release": str, "vendor": str, "cpu": str, "capabilities": dict, "parameters": dict}


def check_message(
    message: Sequence[Any], guest: GuestState, collected: Sequence[str] | None
) -> None:
    """Check a message, up to the content of a test's reports.

    ``collected`` are the tests that the guest has said to have collected.
    """
    kind, *arguments = message if message and isinstance(message[0], str) else ("nothing",)
    is_owed = _OWED.get(kind)
    if is_owed is None:
        raise Garbage("a message of no known kind")
    if (collected is not None) is (kind == "ready") and kind != "failed":
        raise Garbage(f"'{kind}' out of turn")
    if not is_owed(arguments, guest, collected or ()):
        raise Garbage(f"'{kind}' with wrong content, or out of turn")


def check_kernel(facts: Mapping[str, Any]) -> Kernel:
    """Return the kernel that a guest runs on."""
    try:
        kernel = Kernel(**facts)
    except TypeError:
        raise Garbage("'column' without a kernel") from None
    version, capabilities, parameters = kernel.version, kernel.capabilities, kernel.parameters
    if not (
        all(isinstance(getattr(kernel, name), kind) for name, kind in _TEXTS.items())
        and isinstance(version, tuple)
        and [type(number) for number in version] == [int, int]
        and _all(str, [*capabilities, *parameters, *parameters.values()])
        and _all(int, capabilities.values())
    ):
        raise Garbage("'column' without a kernel")
    return kernel


def check_reports(
    test: str, clause: str, reports: Iterable[Mapping[str, Any]], decode: Callable[..., Any]
) -> list[pytest.TestReport]:
    """Return the reports of a test. ``decode`` is pytest_report_from_serializable.

    ``clause`` is the id of the test's clause; empty for a test that judges no kernel.
    """
    try:
        decoded = [decode(data=data) for data in reports]
        first, *others, last = (report.when for report in decoded)
        is_owed = (first, last) == ("setup", "teardown") and set(others) <= {"call"}
        is_owed = is_owed and all(_is_report_of(test, clause, report) for report in decoded)
    except Exception as error:
        # pytest's decoder fails in many ways on what no pytest encoded.
        raise Garbage(f"reports that pytest cannot decode: {type(error).__name__}") from None
    if not is_owed:
        raise Garbage("reports that are not those of the test")
    return decoded


def _is_report_of(test: str, clause: str, report: Any) -> bool:
    verdict = verdict_of(report)
    return (
        isinstance(report, pytest.TestReport)
        and report.nodeid == test
        and report.outcome in ("passed", "failed", "skipped")
        and _is_time(report.duration)
        and _is_time(report.start)
        and isinstance(report.keywords, dict)
        and isinstance(report.location, tuple | list)
        and len(report.location) == 3
        and all(len(pair) == 2 for pair in report.user_properties)
        and all(_all(str, pair) and len(pair) == 2 for pair in report.sections)
        and isinstance(getattr(report, "wasxfail", ""), str)
        and (not report.skipped or hasattr(report, "wasxfail") or _is_skip(report.longrepr))
        and _all(str, [report.longreprtext])
        and (verdict is None if not clause else _is_on(clause, verdict))
        and all(carried.is_sound(report) for carried in Carried.known)
    )


def _is_time(seconds: object) -> bool:
    """Return whether seconds are those of a clock, or a difference of two such."""
    return isinstance(seconds, int | float) and abs(seconds) < 1 << 33


def _is_skip(longrepr: object) -> bool:
    return isinstance(longrepr, tuple | list) and len(longrepr) == 3


def _is_on(clause: str, verdict: Verdict | None) -> bool:
    return (
        verdict is not None
        and verdict.clause == clause
        and all(map(fits, verdict, get_type_hints(Verdict).values()))
    )


def _all(kind: type, values: Iterable[object]) -> bool:
    return all(isinstance(value, kind) for value in values)


# --- what a guest in a state may say --------------------------------------------------------------


def _is_text(arguments: Sequence[Any], _guest: GuestState, _collected: Sequence[str]) -> bool:
    return len(arguments) == 1 and isinstance(arguments[0], str)


def _is_collection(arguments: Sequence[Any], _guest: GuestState, _: Sequence[str]) -> bool:
    return len(arguments) == 1 and isinstance(arguments[0], list) and _all(str, arguments[0])


def _is_load(arguments: Sequence[Any], guest: GuestState, _: Sequence[str]) -> bool:
    is_waited_for = not (guest.sent or guest.is_complete)
    return is_waited_for and len(arguments) == 1 and isinstance(arguments[0], dict)


def _is_refusal(arguments: Sequence[Any], guest: GuestState, collected: Sequence[str]) -> bool:
    is_waited_for = not (guest.sent or guest.is_complete)
    return is_waited_for and _is_text(arguments, guest, collected)


def _is_beginning(arguments: Sequence[Any], guest: GuestState, collected: Sequence[str]) -> bool:
    is_next = bool(guest.sent) and not guest.running
    return is_next and len(arguments) == 1 and _test(arguments[0], collected) == guest.sent[0]


def _is_end(arguments: Sequence[Any], guest: GuestState, collected: Sequence[str]) -> bool:
    return (
        bool(guest.running)
        and len(arguments) == 2
        and _test(arguments[0], collected) == guest.running
        and isinstance(arguments[1], list)
        and _all(dict, arguments[1])
    )


def _is_finish(arguments: Sequence[Any], guest: GuestState, _: Sequence[str]) -> bool:
    return not arguments and guest.is_complete and not guest.sent


def _test(number: object, collected: Sequence[str]) -> str:
    """Return the node id of a test; empty for a number that is none."""
    is_one = isinstance(number, int) and 0 <= number < len(collected)
    return collected[number] if is_one else ""  # type: ignore[call-overload]


_OWED: dict[str, Callable[[Sequence[Any], GuestState, Sequence[str]], bool]] = {
    "ready": _is_collection,
    "column": _is_load,
    "unlike": _is_refusal,
    "failed": _is_text,
    "begin": _is_beginning,
    "reproduce": _is_end,
    "ended": _is_end,
    "done": _is_finish,
}
