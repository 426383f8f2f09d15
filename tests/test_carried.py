# SPDX-License-Identifier: GPL-2.0-only
"""What a report carries from a guest: values of other types reach no output, and no markup."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from markupsafe import escape

from helpers.ci.ended import Reports
from helpers.ci.kcidb import Given, Run, Source
from helpers.ci.logs_plugin import log_of
from helpers.kernels.checks import check_reports
from helpers.kernels.frames import Garbage
from helpers.races.scale import Point, plot
from helpers.report.html import Writer, drawing
from helpers.report.html_plugin import _phase_of
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import Tally
from tests.test_channel import TESTS, changed, report


def vcpu(irr: list[int]) -> dict[str, Any]:
    registers = dict.fromkeys(("ID", "SVR", "LDR", "DFR", "TPR", "PPR"), 0)
    vectors = {"IRR": irr, "ISR": [], "TMR": [0x41]}
    return {
        "registers": registers,
        "vectors": vectors,
        "pending": ["NMI"],
        "mp_state": "RUNNABLE",
    }


def carried() -> dict[str, Any]:
    """Return what a report carries, whole."""
    change = {"index": 0, "effect": "IRR SET {0x41}", "before": vcpu([]), "after": vcpu([0x41])}
    sent = {"words": (0xFEE01000, 0, 0x41), "flags": 1, "devid": 7, "pad": "01"}
    sent |= {"returned": "1", "vcpus": [change], "vcpus_left_out": 1, "changed_left_out": 0}
    compared = {"subject": "return value", "expected": "1", "actual": "0"}
    details = {"mismatch": compared, "error": "", "sent": [sent], "sent_in_all": "13"}
    details |= {"prediction": "the model", "trace": ["KVM_RUN(fd 3) = 0"], "irqchips": ["full"]}
    verdict = Verdict("msi.pad", note="a note", repeat="pytest")._asdict()
    return {
        "kvm_details": details,
        "kvm_verdict": verdict,
        "kvm_ioctls": ["KVM_RUN(fd 3) = 0"],
        "kvm_kernel_log": ["a line"],
        "duration": 0.5,
        "start": 1.5,
        "user_properties": [("plot", "<svg></svg>")],
    }


def decoded(data: dict[str, Any]) -> Any:
    """Take the place of pytest_report_from_serializable."""
    return data["report"]


def shown(attributes: dict[str, Any], writer: Writer) -> str:
    """Give a report to each output, and return what they make of it. Raises Garbage."""
    made = report(TESTS[0], "call", "failed", "E   fails")
    vars(made).update(attributes)
    reports = [report(TESTS[0], "setup", "passed"), made, report(TESTS[0], "teardown", "passed")]
    check_reports(TESTS[0], "msi.pad", [{"report": each} for each in reports], decoded)
    writer.add_cell(_phase_of(made), "")
    collected = Reports()
    ended = [end for each in reports if (end := collected.add(each))]
    kcidb = Run(Given("mine"), "1", 0)
    build = kcidb.add_kernel(Tally("k"), Source())
    kcidb.add(ended[-1], Tally("k"), build, None)
    json.dumps(kcidb.document(), allow_nan=False)
    return log_of(ended[-1], "k")


def test_report_shows_what_it_carries():
    writer = Writer()
    texts = shown(carried(), writer) + writer.resources([])
    for text in ("IRR SET {0x41}", "the model", "a line", "KVM_RUN(fd 3) = 0"):
        assert text in texts


def test_mutated_values_of_a_report_reach_no_output():
    chance = random.Random(20)
    garbage = 0
    writer = Writer()  # compiles the templates
    for _ in range(3000):
        attributes = carried()
        name = chance.choice(list(attributes))
        try:
            shown(attributes | {name: changed(chance, attributes[name])}, writer)
        except Garbage:
            garbage += 1
    assert garbage > 2000


@pytest.mark.parametrize(
    "value",
    [
        '<svg onload="x"></svg>',
        "<script>x</script>",
        '<svg><a href="x">y</a></svg>',
        "<svg",
        "&lt;",
    ],
)
def test_drawing_is_lines_and_texts(value):
    assert drawing(value) == escape(value)


def test_plot_of_the_suite_is_a_drawing():
    points = [Point(2**n, 1.0, 1.0 + n, 2.0, 3.0, 4.0) for n in range(3)]
    assert drawing(plot(points)) == plot(points)
