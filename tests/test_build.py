# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are built from a source tree: the configurations, and the tree's way to a boot."""

from __future__ import annotations

import os

import pytest

from helpers.kernels import columns
from helpers.kernels.build import CONFIGS, unset
from helpers.kernels.emulators.qemu import Qemu
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import Choices
from tests.kernel_files import MAKE_OPTIONS, RELEASE, builtin_modules, bzimage

MAKE = f"""\
#!/bin/sh -e
{MAKE_OPTIONS}mkdir -p $built/arch/x86/boot
if [ "$fragment" ]; then cp $fragment $built/.config; fi
cp bzImage $built/arch/x86/boot
cp modules.builtin $built
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree, and a make that copies the image from the tree."""
    tree = tmp_path / "linux"
    (tree / "virt/kvm").mkdir(parents=True)
    bzimage(tree / "bzImage")
    builtin_modules(tree, "kvm", "kvm-amd")
    tool = tmp_path / "tools/make"
    tool.parent.mkdir()
    tool.write_text(MAKE)
    for name in ("make", "flex", "bison", "bc", "gcc", "ld"):
        (tool.parent / name).write_text(MAKE if name == "make" else "#!/bin/sh\n")
        (tool.parent / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tree


def boots(tree, config):
    choices = Choices.parse([])
    return columns.boots([str(tree)], [], choices, [Qemu.software()], config=config)


@pytest.mark.parametrize("config", CONFIGS)
def test_source_tree_is_built_outside_the_tree(tree, config, capsys):
    before = sorted(tree.rglob("*"))
    (boot,) = boots(tree, config)
    assert sorted(tree.rglob("*")) == before
    assert (boot.kernel.release, boot.kernel.vmlinuz.parents[3].name) == (RELEASE, config)
    (column,) = boot.columns
    assert column.options == [f"--kernel={tree}", f"--config={config}"]
    said = capsys.readouterr()
    assert (said.out, f"building {tree} ({config}; log: " in said.err) == ("", True)


def test_kernel_with_checks_of_its_own_is_given_time(tree):
    (minimal,), (debug,) = boots(tree, "minimal"), boots(tree, "debug")
    assert debug.patience == 3 * minimal.patience == 3


def test_source_that_does_not_build_names_the_log(tree):
    (tree / "bzImage").unlink()
    with pytest.raises(KernelError, match=r"^the build failed: .*bzImage.*; log: \S+/debug\.log$"):
        boots(tree, "debug")


@pytest.fixture
def fragments():
    return CONFIGS["minimal"]


@pytest.fixture
def configuration(fragments):
    return "".join(file.read_text() for file in fragments)


@pytest.mark.parametrize("config", CONFIGS)
def test_fragments_demand_what_they_set_themselves(config):
    configuration = "".join(file.read_text() for file in CONFIGS[config])
    assert unset(configuration, CONFIGS[config]) == []


@pytest.mark.parametrize(
    "state", ["# CONFIG_KVM_AMD is not set", "CONFIG_KVM_AMD=m", "CONFIG_KVM_AMD_SEV=y", ""]
)
def test_option_that_is_not_built_in_is_missing(fragments, configuration, state):
    config = configuration.replace("CONFIG_KVM_AMD=y", state)
    assert unset(config, fragments) == ["KVM_AMD"]


def test_option_that_only_some_versions_have_is_not_demanded(fragments, configuration):
    config = configuration.replace("CONFIG_KVM_SMM=y", "")
    assert unset(config, fragments) == []


def test_debug_configuration_demands_checks_of_the_kernels_own(configuration):
    missing = unset(configuration, CONFIGS["debug"])
    assert {"KASAN", "PROVE_LOCKING", "PROVE_RCU", "DEBUG_ATOMIC_SLEEP"} <= set(missing)
