"""``python -m helpers.apic``: what it prints, what it predicts, and what it says of bad input."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.apic import Message
from helpers.apic.__main__ import main
from helpers.apic.explain import WIDTH, command, explain
from helpers.apic.model import Model, Switches
from helpers.apic.topology import Topology
from tests.copy_of_the_suite import ROOT
from tests.test_topology import topologies

MESSAGE = "vector=0x30 destination=3 destination_mode=logical redirection_hint=1"
TOPOLOGY = "split x2apic_api=2 0/ldr=0x01000000 1/ldr=0x02000000/sw-disabled 2/x2apic/halted"

EXPLAINED = """\
message: vector=0x30 destination=3 destination_mode=logical redirection_hint=1
  address_lo 0xfee0300c
    31:20  address_base           0xfee               0xfee in a message of a real device
    19:12  destination_7_0        0x3                 destination bits 7:0
     11:4  address_reserved_11_4  0x0                 reserved (extended destination ID)
        3  redirection_hint       0x1                 1: to one of the destination's processors
        2  destination_mode       0x1 LOGICAL         0 physical, 1 logical
      1:0  address_ignored_1_0    0x0                 ignored
  address_hi 0x00000000
     31:8  destination_31_8       0x0                 destination bits 31:8
      7:0  address_hi_reserved    0x0                 must be zero with 32-bit IDs
  data 0x00000030
    31:16  data_reserved_31_16    0x0                 reserved
       15  trigger_mode           0x0 EDGE            0 edge, 1 level
       14  level                  0x0                 1 assert; ignored for edge
    13:11  data_reserved_13_11    0x0                 reserved
     10:8  delivery_mode          0x0 FIXED           how it is delivered
      7:0  vector                 0x30                vector
  flags 0x0, devid 0x0, pad 0

topology: split x2apic_api=2 0/ldr=0x1000000 1/sw-disabled/ldr=0x2000000 2/x2apic/halted
  split irqchip, 8-bit destination IDs, 0xff is no broadcast to x2APICs
  lowest priority by vector hashing, SMM
  vCPU 0: vCPU ID 0, xAPIC with ID 0x0, logical ID 0x01, DFR flat, enabled
  vCPU 1: vCPU ID 1, xAPIC with ID 0x1, logical ID 0x02, DFR flat, software-disabled
  vCPU 2: vCPU ID 2, x2APIC, logical ID 0x00000004, enabled, HALTED

rules that applied:
  1. address_hi is ignored without 32-bit IDs.
     here: destination 0x3
     [msi.address-hi-ignored] api.rst 4.71
  2. Each LAPIC is asked by its own rule: the destination is a broadcast, or IDs are aliased or
     mixed.
     here: mixed or overlapping logical IDs: 0x3 is vCPU 0
     [dest.broadcast dest.mixed-modes dest.aliased errata.alias-8bit] Intel SDM vol. 3, 11.6.2;
     lapic.c kvm_apic_match_dest
  3. Of n candidates, number vector mod n.
     here: 0x30 mod 1 is 0: vCPU 0
     [dest.lowest-priority dest.redirection-hint dest.vector-hashing] lapic.c kvm_vector_to_index;
     52004014f7c6 (4.5)
  4. A software-enabled LAPIC sets IRR, and TMR for level.
     here: vCPU 0
     [message.vector message.trigger-mode] Intel SDM vol. 3, 11.8.4

outcome on the reference kernel: returns 1
  vCPU 0 accepts it: IRR SET {0x30}
  nothing happens on vCPU 1, 2
"""


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


# --- explain --------------------------------------------------------------------------------------


def test_all_is_explained(capsys):
    assert explained(capsys, MESSAGE, TOPOLOGY) == EXPLAINED


def test_words_are_a_message_too(capsys):
    assert explained(capsys, "fee0300c:0:30", TOPOLOGY) == EXPLAINED


@pytest.mark.parametrize(
    "topology, line",
    [
        ("none 0", "no in-kernel irqchip"),
        ("x2apic_api=1", "full irqchip, 32-bit destination IDs, 0xff is a broadcast to x2APICs"),
        ("no-smm no-vector-hashing", "lowest priority by going round, no SMM"),
        ("300/disabled", "vCPU 0: vCPU ID 300, LAPIC disabled in IA32_APIC_BASE"),
        (
            "0/id=5/dfr=0x0fffffff",
            "vCPU 0: vCPU ID 0, xAPIC with ID 0x5, no logical ID, DFR cluster, enabled",
        ),
        (
            "0/x2apic/unmapped/smi=1/nmi=2/irr=0x41+3/arb_prio=4",
            "vCPU 0: vCPU ID 0, x2APIC, logical ID 0x00000001, enabled, not yet in the kernel's map"
            " of LAPICs,\n        2 NMIs pending, SMI pending, IRR {0x03 0x41}, chosen 4 times for "
            "lowest priority",
        ),
    ],
)
def test_topology_is_put_into_words(capsys, topology, line):
    assert f"  {line}\n" in explained(capsys, MESSAGE, topology)


def test_error_is_an_outcome(capsys):
    shown = explained(capsys, MESSAGE, "0 1", "--flags", "0x80000000")
    assert "flags 0x80000000: EINVAL" in shown
    assert shown.endswith(
        "outcome on the reference kernel: returns -1 EINVAL\n  nothing happens on vCPU 0, 1\n"
    )


def test_flags_devid_and_padding_are_shown(capsys):
    pad = "0000000000000000000000ff"
    shown = explained(capsys, MESSAGE, "0", "--flags=1", "--devid=0x10", "--pad", pad)
    assert f"  flags 0x1, devid 0x10, pad {pad}\n" in shown
    assert f"here: devid 0x10, padding {pad}\n" in shown


def test_acceptance_without_a_change_is_told_from_none(capsys):
    shown = explained(capsys, "vector=0x41 destination=0xff", "0/irr=0x41 1/sw-disabled 2")
    assert shown.endswith(
        "returns 2\n  vCPU 0 accepts it: nothing changes\n"
        "  vCPU 2 accepts it: IRR SET {0x41}\n  nothing happens on vCPU 1\n"
    )


def test_rule_that_applies_to_several_vcpus_stands_once(capsys):
    shown = explained(capsys, "vector=0x41 destination=0xff", "0 1/sw-disabled 2")
    assert shown.count("A software-enabled LAPIC sets IRR") == 1
    assert "here: vCPU 0; vCPU 2\n" in shown


def test_switches_are_turned_off(capsys):
    arguments = ["vector=0x41 destination=2", "0 1/id=2 2"]
    assert "reference kernel: returns 2" in explained(capsys, *arguments)
    without = ["--without=aliased_ids_all_receive", "--without=nmis_are_counted"]
    assert (
        "the reference kernel without aliased_ids_all_receive, nmis_are_counted: returns 1"
    ) in explained(capsys, *arguments, *without)


words = st.integers(0, 2**32 - 1)


@given(words, words, words, topologies, st.booleans())
def test_lines_are_not_too_long(address_lo, address_hi, data, topology, on):
    message = Message.decode(address_lo, address_hi, data)
    model = Model(topology, Switches(aliased_ids_all_receive=on))
    lines = explain(model, message, flags=0, devid=0, pad=bytes(12)).splitlines()
    # A vCPU's text form is never broken.
    assert not [line for line in lines if len(line) > WIDTH and len(line.split()) > 2]


def test_words_of_a_topology_are_not_broken(capsys):
    words = [f"{id}/sw-disabled/ap-reset-hold" for id in range(100)]
    shown = explained(capsys, MESSAGE, " ".join(words)).split()
    assert set(words) <= set(shown)


PARAMETERS = (
    st.tuples(words, words, st.binary(min_size=12, max_size=12)),
    st.just((0, 0, bytes(12))),
)


@given(words, words, words, topologies, st.one_of(PARAMETERS))
def test_command_says_the_same_again(address_lo, address_hi, data, topology, parameters):
    message = Message.decode(address_lo, address_hi, data)
    flags, devid, pad = parameters
    line = command(topology, message, flags, devid, pad)
    python, _, module, *arguments = shlex.split(line)
    assert (python, module) == ("python", "helpers.apic")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        assert main(arguments) == 0
    expected = explain(Model(topology), message, flags=flags, devid=devid, pad=pad)
    assert printed.getvalue() == f"{expected}\n"


def test_command_is_short_for_a_plain_message():
    line = command(Topology.parse("0 1"), Message(destination=1), 0, 0, bytes(12))
    assert line == "python -m helpers.apic explain 'vector=0x41 destination=1' '0 1'"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["vectr=1", "0"], "message: 'vectr' is no field; there are vector destination "),
        (["vector=1", "0/halt"], "vCPU '0/halt': 'halt' is none of disabled xapic x2apic "),
        (["vector=1", "0", "--flags=-1"], "flags: -1 does not fit 32 bits"),
        (["vector=1", "0", "--devid=x"], "devid: 'x' is not a number"),
        (["vector=1", "0", "--pad=00"], "pad: '00' is not 12 bytes in hex"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, said):
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_unknown_switch_is_answered_with_all(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", "vector=1", "0", "--without=nmis"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "invalid choice: 'nmis'" in said
    assert all(name in said for name in Switches.__slots__)


# --- predict --------------------------------------------------------------------------------------


def predict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *lines: str
) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code, the predictions, and what is said on standard error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code = main(["predict"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def predicts(monkeypatch, capsys):
    """``predicts(case, ...)``: what comes of them; a case is an object, or a line."""

    def run(*cases: Any) -> tuple[int, list[dict[str, Any]], str]:
        lines = [case if isinstance(case, str) else json.dumps(case) for case in cases]
        return predict(monkeypatch, capsys, *lines)

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
    "line, said",
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes in column 2"),
        ("", "not JSON: Expecting value in column 1"),
        ("[]", "a case: [] is not an object"),
        ({"message": "vector=1"}, "a case needs a topology"),
        ({"topology": "0"}, "a case needs a message"),
        (having(topolgy=1), "a case: 'topolgy' is none of topology message flags devid pad "),
        (having(topology="0/x"), "vCPU '0/x': 'x' is none of disabled "),
        (having(topology=0), "topology: 0 is not text"),
        (having(message=1), "message: 1 is not an object"),
        (having(message={"vectr": 1}), "message: 'vectr' is no field; there are vector "),
        (having(message={"vector": 1.5}), "vector: 1.5 is not a number"),
        (having(message={"vector": True}), "vector: True is not a number"),
        (having(message={"delivery_mode": None}), "delivery_mode: None is none of fixed "),
        (having(message={"data": 1, "vector": 1}), "message: 'vector' is none of address_lo "),
        (having(message={"data": 1 << 32}), "data: 4294967296 does not fit 32 bits"),
        (having(flags=-1), "flags: -1 does not fit 32 bits"),
        (having(pad=0), "pad: 0 is not text"),
        (having(pad="0"), "pad: '0' is not 12 bytes in hex"),
        (having(switches=["nmis_are_counted"]), 'switches: ["nmis_are_counted"] is not an object'),
        (having(switches={"nmis": False}), "switches: 'nmis' is none of aliased_ids_all_receive "),
        (having(switches={"nmis_are_counted": 0}), "nmis_are_counted: 0 is neither true nor false"),
        (having(capabilities={"split": 1}), "capabilities: 'split' is none of x2apic_api smm "),
        (having(capabilities={"smm": 1}), "smm: 1 is neither true nor false"),
        (having(recorded={"return": 1}), "recorded: 'return' is none of result errno effects"),
        (having(recorded={"effects": {"0": {"irr": [1]}}}), "effects on vCPU 0: 'irr' is none of "),
    ],
)
def test_line_that_makes_no_sense_ends_it(predicts, line, said):
    code, predictions, err = predicts(CASE, line, CASE)
    assert code == 2
    assert len(predictions) == 1
    assert err.startswith(f"error: line 2: {said}")
    assert err.count("\n") == 1


def test_nothing_to_predict_is_an_error(predicts):
    assert predicts() == (
        2,
        [],
        "error: no case on standard input; --help says how one is written\n",
    )


# --- as a command ---------------------------------------------------------------------------------


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "helpers.apic", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_commands_run():
    assert python("explain", MESSAGE, TOPOLOGY).stdout == EXPLAINED
    done = python("predict", stdin=json.dumps(CASE | {"recorded": {"result": 1}}))
    assert (done.returncode, json.loads(done.stdout)["agrees"]) == (1, False)


@pytest.mark.parametrize("name, described", [("explain", "fee0300c:0:441"), ("predict", "agrees")])
def test_help_describes_the_input(name, described):
    assert described in python(name, "--help").stdout


def test_reader_that_goes_away_is_no_error():
    line = f"yes '{json.dumps(CASE)}' | {sys.executable} -m helpers.apic predict | head -1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
