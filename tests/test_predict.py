# SPDX-License-Identifier: GPL-2.0-only
"""``python -m helpers.apic predict``: predictions, records that disagree, invalid input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from helpers.apic.__main__ import main
from tests.copy_of_the_suite import ROOT
from tests.test_explain import python


@pytest.fixture
def predicts(monkeypatch, capsys):
    """``predicts(case, ...)`` returns the exit code, the predictions, and standard error.

    A case is an object, or a line of text.
    """

    def run(*cases: Any) -> tuple[int, list[dict[str, Any]], str]:
        lines = [case if isinstance(case, str) else json.dumps(case) for case in cases]
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = main(["predict"])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


CASE = {"topology": "0 1/sw-disabled/halted", "message": "vector=0x41 destination=1"}


def having(**changes: Any) -> dict[str, Any]:
    return CASE | changes


@pytest.mark.parametrize(
    "case, result, error, effects",
    [
        (CASE, 0, None, {}),
        (having(message="vector=65 destination=0"), 1, None, {"0": {"irr_set": [0x41]}}),
        (having(message={"vector": "0x41", "destination": 0}), 1, None, {"0": {"irr_set": [0x41]}}),
        (
            having(message={"address_lo": "0xfee00000", "data": 65}),
            1,
            None,
            {"0": {"irr_set": [65]}},
        ),
        (
            having(message={"destination": 1, "delivery_mode": "INIT"}),
            1,
            None,
            {"1": {"init": 1, "mp_state": ["HALTED", "INIT_RECEIVED"]}},
        ),
        (
            having(topology="0/irr=2/tmr=1", message={"vector": 1, "delivery_mode": "fixed"}),
            1,
            None,
            {"0": {"irr_set": [1], "tmr_cleared": [1]}},
        ),
        (having(flags=2), -1, "EINVAL", {}),
        (having(flags="0x1", devid=3, pad="00" * 11 + "01"), 0, None, {}),
        (having(topology="full"), -1, "EPERM", {}),
        (
            having(topology="0/nmi=1", message="delivery_mode=nmi"),
            1,
            None,
            {"0": {"nmi": 1}},
        ),
        (
            having(
                topology="0/nmi=1",
                message="delivery_mode=nmi",
                switches={"nmis_are_counted": False, "remrd_ends_reset_hold": True},
            ),
            1,
            None,
            {},
        ),
        (
            having(message="delivery_mode=smi", topology="0", capabilities={"smm": False}),
            0,
            None,
            {},
        ),
        (
            having(
                message="address_hi_reserved=1", topology="0", capabilities={"x2apic_api": "0x3"}
            ),
            -1,
            "EINVAL",
            {},
        ),
        (
            having(
                message="vector=1 destination=0xff redirection_hint=1",
                topology="0 1",
                capabilities={"vector_hashing": False},
            ),
            1,
            None,
            {"0": {"irr_set": [1]}},
        ),
    ],
)
def test_case_is_predicted(predicts, case, result, error, effects):
    code, [prediction], err = predicts(case)
    assert (code, err) == (0, "")
    del prediction["clauses"]
    assert prediction == {"result": result, "errno": error, "effects": effects}


def test_capabilities_may_turn_on_what_the_text_turned_off(predicts):
    case = having(topology="no-smm 0", message="delivery_mode=smi", capabilities={"smm": True})
    _, [prediction], _ = predicts(case)
    assert prediction["effects"] == {"0": {"smi": 1}}


def test_clauses_are_named_once(predicts):
    _, [prediction], _ = predicts(having(topology="0 1", message="destination=0xff"))
    assert prediction["clauses"] == [
        "msi.address-hi-ignored",
        "dest.broadcast",
        "dest.mixed-modes",
        "dest.aliased",
        "errata.alias-8bit",
        "message.vector",
        "message.trigger-mode",
    ]


NMI_TO_1 = having(message="destination=1 delivery_mode=nmi")


@pytest.mark.parametrize(
    "recorded, agrees",
    [
        ({"result": 1}, True),
        ({"result": 0}, False),
        ({"result": -1, "errno": "EPERM"}, False),
        ({"errno": None}, True),
        ({"result": 1, "errno": None, "effects": {"1": {"nmi": 1}}}, True),
        ({"effects": {"1": {"nmi": 1, "irr_set": []}, "0": {}}}, True),
        ({"effects": {"1": {"nmi": 1, "irr_set": [2]}}}, False),
        ({"effects": {"1": {"nmi": 1}, "0": {"nmi": 1}}}, False),
        ({"effects": {"1": {"nmi": 1, "registers": ["TPR"]}}}, False),
        ({"effects": {}}, False),
        ({}, True),
    ],
)
def test_record_agrees_or_not(predicts, recorded, agrees):
    code, [prediction], _ = predicts(NMI_TO_1 | {"recorded": recorded})
    assert prediction["agrees"] is agrees
    assert code == (0 if agrees else 1)


def test_one_disagreement_among_many_is_enough(predicts):
    wrong, right = ({"recorded": {"result": result}} for result in (0, 1))
    code, predictions, _ = predicts(NMI_TO_1 | wrong, NMI_TO_1 | right, NMI_TO_1)
    assert code == 1
    assert [prediction.get("agrees") for prediction in predictions] == [False, True, None]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes in column 2"),
        ("", "not JSON: Expecting value in column 1"),
        ("[]", "case: [] is not an object"),
        ({"message": "vector=1"}, "case: topology is missing"),
        ({"topology": "0"}, "case: message is missing"),
        (having(topolgy=1), "case: 'topolgy' is none of topology message flags devid pad "),
        (having(topology="0/x"), "vCPU '0/x': 'x' is none of disabled "),
        (having(topology=0), "topology: 0 is not text"),
        (having(message=1), "message: 1 is not an object"),
        (having(message={"vectr": 1}), "message: no field 'vectr'; the fields are vector "),
        (having(message={"vector": 1.5}), "vector: 1.5 is not a number"),
        (having(message={"vector": True}), "vector: True is not a number"),
        (having(message={"delivery_mode": None}), "delivery_mode: None is neither one of fixed "),
        (having(message={"data": 1, "vector": 1}), "message: 'vector' is none of address_lo "),
        (having(message={"data": 1 << 32}), "data: 4294967296 does not fit 32 bits"),
        (having(flags=-1), "flags: -1 does not fit 32 bits"),
        (having(pad=0), "pad: 0 is not text"),
        (having(pad="0"), "pad: '0' is not 12 bytes in hex"),
        (having(switches=["nmis_are_counted"]), 'switches: ["nmis_are_counted"] is not an object'),
        (
            having(switches={"nmis": False}),
            "switches: 'nmis' is none of aliased_ids_all_receive ",
        ),
        (having(switches={"nmis_are_counted": 0}), "nmis_are_counted: 0 is not true or false"),
        (having(capabilities={"split": 1}), "capabilities: 'split' is none of x2apic_api smm "),
        (having(capabilities={"smm": 1}), "smm: 1 is not true or false"),
        (having(recorded={"return": 1}), "recorded: 'return' is none of result errno effects"),
        (
            having(recorded={"effects": {"0": {"irr": [1]}}}),
            "effects on vCPU 0: 'irr' is none of ",
        ),
    ],
)
def test_invalid_line_ends_the_command(predicts, line, expected):
    code, predictions, err = predicts(CASE, line, CASE)
    assert code == 2
    assert len(predictions) == 1
    assert err.startswith(f"error: line 2: {expected}")
    assert err.count("\n") == 1


def test_nothing_to_predict_is_an_error(predicts):
    assert predicts() == (
        2,
        [],
        "error: no case on standard input; --help describes a case\n",
    )


# --- as a command ---------------------------------------------------------------------------------


def test_command_runs():
    done = python("predict", stdin=json.dumps(CASE | {"recorded": {"result": 1}}))
    assert (done.returncode, json.loads(done.stdout)["agrees"]) == (1, False)


def test_help_describes_a_case():
    assert "agrees" in python("predict", "--help").stdout


def test_closed_pipe_is_not_an_error():
    line = f"yes '{json.dumps(CASE)}' | {sys.executable} -m helpers.apic predict | head -1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
