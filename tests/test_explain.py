# SPDX-License-Identifier: GPL-2.0-only
"""``python -m helpers.apic explain``: the printed text, the command line, invalid input."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys

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
        3  redirection_hint       0x1                 1: one processor of the destination
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
     10:8  delivery_mode          0x0 FIXED           delivery mode
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
     [msi.address-hi-ignored] api.rst, KVM_SIGNAL_MSI
  2. KVM compares the destination with each LAPIC: there is no map, the destination is a broadcast,
     or logical IDs are mixed or overlap.
     here: mixed or overlapping logical IDs: 0x3 is vCPU 0
     [dest.broadcast dest.mixed-modes dest.aliased errata.alias-8bit] Intel SDM vol. 3, "Physical
     Destination Mode"; arch/x86/kvm/lapic.c kvm_apic_match_dest(); 5b84b0291702, 2970052481b9,
     2bf934aadcac (6.3); x86/errata.rst, x2APIC
  3. Vector hashing chooses candidate number vector mod n of n candidates.
     here: 0x30 mod 1 is 0: vCPU 0
     [dest.lowest-priority dest.redirection-hint dest.vector-hashing] Intel SDM vol. 3, "Lowest
     Priority Delivery Mode"; Intel SDM vol. 3, "Message Address Register Format";
     arch/x86/kvm/lapic.c kvm_vector_to_index(); 52004014f7c6 (4.5)
  4. A software-enabled LAPIC accepts a fixed interrupt: IRR is set, TMR is set for level and
     cleared for edge.
     here: vCPU 0
     [message.vector message.trigger-mode] Intel SDM vol. 3, "Message Data Register Format"; Intel
     SDM vol. 3, "Message Data Register Format", "Interrupt Acceptance for Fixed Interrupts"

outcome on the reference kernel: returns 1
  vCPU 0 accepts the message: IRR SET {0x30}
  no change on vCPU 1, 2
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
        ("no-smm no-vector-hashing", "lowest priority by round robin, no SMM"),
        ("300/disabled", "vCPU 0: vCPU ID 300, LAPIC disabled in IA32_APIC_BASE"),
        (
            "0/id=5/dfr=0x0fffffff",
            "vCPU 0: vCPU ID 0, xAPIC with ID 0x5, no logical ID, DFR cluster, enabled",
        ),
        (
            "1/bsp/tpr=0x20/isr=0x41/eoi-suppressed/nmi-masked/shadow/smm",
            "vCPU 0: vCPU ID 1, xAPIC with ID 0x1, no logical ID, DFR flat, enabled, the BSP, EOI "
            "broadcasts\n        suppressed, TPR 0x20, NMIs masked, in an interrupt shadow, in "
            "SMM, ISR {0x41}",
        ),
        (
            "0/ap",
            "vCPU 0: vCPU ID 0, xAPIC with ID 0x0, no logical ID, DFR flat, enabled, not the BSP",
        ),
        (
            "0/x2apic/unmapped/smi=1/nmi=2/irr=0x41+3/arb_prio=4",
            "vCPU 0: vCPU ID 0, x2APIC, logical ID 0x00000001, enabled, not in KVM's map of LAPICs "
            "yet, 2 NMIs\n        pending, SMI pending, IRR {0x03 0x41}, lowest-priority messages "
            "received: 4",
        ),
    ],
)
def test_topology_is_put_into_words(capsys, topology, line):
    assert f"  {line}\n" in explained(capsys, MESSAGE, topology)


def test_error_is_an_outcome(capsys):
    shown = explained(capsys, MESSAGE, "0 1", "--flags", "0x80000000")
    assert "flags 0x80000000: EINVAL" in shown
    assert shown.endswith(
        "outcome on the reference kernel: returns -1 EINVAL\n  no change on vCPU 0, 1\n"
    )


def test_flags_devid_and_padding_are_shown(capsys):
    pad = "0000000000000000000000ff"
    shown = explained(capsys, MESSAGE, "0", "--flags=1", "--devid=0x10", "--pad", pad)
    assert f"  flags 0x1, devid 0x10, pad {pad}\n" in shown
    assert f"here: devid 0x10, padding {pad}\n" in shown


def test_acceptance_without_a_change_is_shown(capsys):
    shown = explained(capsys, "vector=0x41 destination=0xff", "0/irr=0x41 1/sw-disabled 2")
    assert shown.endswith(
        "returns 2\n  vCPU 0 accepts the message: no change\n"
        "  vCPU 2 accepts the message: IRR SET {0x41}\n  no change on vCPU 1\n"
    )


def test_rule_that_applies_to_several_vcpus_stands_once(capsys):
    shown = explained(capsys, "vector=0x41 destination=0xff", "0 1/sw-disabled 2")
    assert shown.count("A software-enabled LAPIC accepts") == 1
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
    # The text form of a vCPU is never broken.
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
    "arguments, expected",
    [
        (["vectr=1", "0"], "message: no field 'vectr'; the fields are vector destination "),
        (["vector=1", "0/halt"], "vCPU '0/halt': 'halt' is none of disabled xapic x2apic "),
        (["vector=1", "0", "--flags=-1"], "flags: -1 does not fit 32 bits"),
        (["vector=1", "0", "--devid=x"], "devid: 'x' is not a number"),
        (["vector=1", "0", "--pad=00"], "pad: '00' is not 12 bytes in hex"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, expected):
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {expected}")
    assert err.count("\n") == 1


def test_unknown_switch_is_answered_with_all(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", "vector=1", "0", "--without=nmis"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'nmis'" in error
    assert all(name in error for name in Switches.__slots__)


# --- as a command ---------------------------------------------------------------------------------


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "helpers.apic", *arguments]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False
    )


def test_command_runs():
    assert python("explain", MESSAGE, TOPOLOGY).stdout == EXPLAINED


@pytest.mark.parametrize(
    "text", ["fee0300c:0:441", "ap-reset-hold", "xapic-aliased-logical-ids", *Switches.__slots__]
)
def test_help_describes_the_input(text):
    assert text in python("explain", "--help").stdout
