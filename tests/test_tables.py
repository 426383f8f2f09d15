# SPDX-License-Identifier: GPL-2.0-only
"""The tables of clauses and deviations are well-formed and complete."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace

import pytest

from helpers.apic import Message
from helpers.apic.lapic import x2apic_ldr
from helpers.apic.model import REFERENCE, Model, Switches
from helpers.apic.topology import Topology
from helpers.kvm import System
from helpers.spec import CLAUSES, DEVIATIONS, LEVELS, Deviation
from helpers.verdicts import clause, deviation
from helpers.verdicts.kernel import Kernel, running_kernel
from helpers.verdicts.switches import switches_of
from tests.copy_of_the_suite import ROOT, run_pytest

EACH_CLAUSE = pytest.mark.parametrize("entry", CLAUSES.values(), ids=CLAUSES)
EACH_DEVIATION = pytest.mark.parametrize("entry", DEVIATIONS.values(), ids=DEVIATIONS)
VERSION_BOUND = {id: entry for id, entry in DEVIATIONS.items() if entry.before}


def kernel(version: tuple[int, int] = (6, 12), vendor: str = "kvm_amd") -> Kernel:
    """Return a kernel of this version."""
    return Kernel("", version, vendor, "", {}, {})


# --- clauses --------------------------------------------------------------------------------------


@EACH_CLAUSE
def test_clause_is_well_formed(entry):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*", entry.id)
    assert entry.level in LEVELS
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", entry.since)
    assert entry.text.endswith(".")
    assert entry.source


def test_test_cannot_name_a_clause_that_is_not_in_the_table():
    with pytest.raises(KeyError):
        clause("msi.no-such")


# --- deviations -----------------------------------------------------------------------------------


@EACH_DEVIATION
def test_deviation_is_well_formed(entry):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.id)
    assert entry.summary.endswith(".")
    assert entry.condition


@pytest.mark.parametrize("entry", VERSION_BOUND.values(), ids=VERSION_BOUND)
def test_deviation_applies_up_to_the_version_that_fixed_it(entry):
    fixed = re.fullmatch(r".*\((\d+)\.(\d+)\)", entry.fix)
    major, minor = int(fixed[1]), int(fixed[2])
    host = entry.vendor or "kvm_amd", dict([entry.parameter.partition("=")[::2]])
    assert entry.applies((major, minor - 1), *host)
    assert entry.applies((major - 1, minor + 1), *host) != bool(entry.since)
    assert not entry.applies((major, minor), *host)
    assert not entry.applies((major + 1, 0), *host)


@EACH_DEVIATION
def test_only_deviations_of_every_kernel_apply_to_every_kernel(entry):
    versions = [(3, 5), (5, 10), (99, 0)]
    applies_to_all = all(entry.applies(version, "kvm_amd") for version in versions)
    assert applies_to_all == (not (entry.since or entry.before or entry.vendor or entry.parameter))


@pytest.mark.parametrize(
    "since, before, condition, versions",
    [
        ("6.17", "7.0", "Linux 6.17 and newer, before 7.0", [(6, 17), (6, 19)]),
        ("6.17", "", "Linux 6.17 and newer", [(6, 17), (6, 19), (7, 0)]),
        ("", "7.0", "before Linux 7.0", [(5, 10), (6, 16), (6, 17), (6, 19)]),
    ],
    ids=["between", "since", "before"],
)
def test_deviation_of_versions_applies_between_them(since, before, condition, versions):
    fixed = "abc" if before else ""
    entry = Deviation("a", "A.", (("x", "1", "0"),), "e", since, before, fixed)
    tried = [(5, 10), (6, 16), (6, 17), (6, 19), (7, 0)]
    assert [version for version in tried if entry.applies(version, "kvm_amd")] == versions
    assert entry.condition == condition


def test_deviation_of_a_host_applies_to_it_alone():
    entry = DEVIATIONS["pvm-never-in-service"]
    assert entry.applies((6, 12), "kvm_pvm")
    assert not entry.applies((6, 12), "kvm_intel")


def test_deviation_of_a_parameter_applies_where_it_is_set():
    entry = DEVIATIONS["apicv-rtc-not-coalesced"]
    assert entry.condition == "kvm_intel.enable_apicv=Y"
    for value, applies in (("Y", True), ("N", False)):
        set_to = {"kvm_intel.enable_apicv": value}
        assert entry.applies((6, 12), "kvm_intel", set_to) == applies
    assert not entry.applies((6, 12), "kvm_amd")


@pytest.mark.parametrize(
    "subject, expected, actual, explained",
    [
        ("return value", "-1 EINVAL", "1", True),
        ("return value", "-1 EINVAL", "2", False),
        ("return value", "-1 EINVAL", "-1 EPERM", False),
        ("return value", "0", "1", False),
        ("effect on vCPU 1", "-1 EINVAL", "1", False),
    ],
)
def test_deviation_explains_no_other_mismatch(subject, expected, actual, explained):
    assert DEVIATIONS["pad-not-checked"].explains(subject, expected, actual) is explained


@pytest.mark.parametrize(
    "actual, explained",
    [
        ("IRR SET {0x0f}", True),
        ("IRR SET {0x1f}", False),
        ("IRR SET {0x0f 0x10}", False),
        ("IRR SET {0x0f}, NMI pending", False),
        ("IRR SET {0x0}", False),
    ],
)
def test_question_mark_is_one_character(actual, explained):
    entry = DEVIATIONS["illegal-vector-accepted"]
    assert entry.explains("effect on vCPU 1", "nothing", actual) is explained


@EACH_DEVIATION
def test_deviation_names_the_values_of_each_mismatch(entry):
    for subject, expected, actual in entry.shows:
        assert expected != actual
        assert "*" not in subject + expected + actual
        assert all(re.search(r"[^?]", text) for text in (subject, expected, actual))


def test_test_cannot_name_a_deviation_that_is_not_in_the_table():
    with pytest.raises(KeyError):
        deviation("no-such")


# --- the suite names them all ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return {"clause": [id, ...], "deviation": [id, ...]} that the tests in suites/ name."""
    names: dict[str, list[str]] = {"clause": [], "deviation": []}
    for arch in ("x86_64", "arm64"):
        file = tmp_path_factory.mktemp("census") / "census.json"
        options = ["--collect-only", "-q", "-p", "tests.census", f"--census={file}"]
        run = run_pytest(ROOT, "suites", *options, f"--arch={arch}")
        assert run.exit_code == 0, run.output
        for table, ids in json.loads(file.read_text()).items():
            names[table] += ids
    return names


@EACH_CLAUSE
def test_clause_has_a_test_or_says_why_not(named, entry):
    assert (entry.id in named["clause"]) != bool(entry.unchecked)


@EACH_DEVIATION
def test_deviation_is_named_by_a_test(named, entry):
    assert entry.id in named["deviation"]


SWITCHES = [entry.switch for entry in DEVIATIONS.values() if entry.switch]


def test_every_switch_of_the_model_is_off_in_some_kernel():
    assert {off.name for off in SWITCHES} == {each.name for each in fields(Switches)}


@pytest.mark.parametrize("off", [off for off in SWITCHES if off.message], ids=lambda off: off.name)
def test_case_tells_whether_a_switch_is_on(off):
    topology, message = Topology.parse(off.topology), Message.parse(off.message)
    old = replace(REFERENCE, **{off.name: False})
    if off.name == "x2apics_keep_their_ids":
        # The kernels with the deviation truncate the ID to 8 bits.
        vcpu = replace(topology.vcpus[1], ldr=x2apic_ldr(44))
        topology = replace(topology, vcpus=(topology.vcpus[0], vcpu))
    if off.name == "smm_allows_init_received":
        return  # The kernels with the deviation refuse to build the topology.
    assert Model(topology, old).predict(message) != Model(topology).predict(message)


def test_backport_leaves_a_switch_on():
    if running_kernel().version < (6, 11):
        pytest.skip("this machine's kernel behaves differently from the reference kernel")
    applying = [each for each in DEVIATIONS.values() if each.applies((6, 1), "kvm_amd")]
    off = {each.switch.name for each in applying if each.switch and not each.switch.message}
    if not running_kernel().has_smm:
        off.add("smm_allows_init_received")  # Its case cannot be built.
    expected = replace(REFERENCE, **dict.fromkeys(off, False))
    with System() as system:
        assert switches_of(kernel((6, 1)), system) == expected
