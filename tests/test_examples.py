# SPDX-License-Identifier: GPL-2.0-only
"""The files of examples/: their schemas, and their commands in a clean copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.cache import cache_directory
from tests.copy_of_the_suite import ROOT, Suite

yaml = pytest.importorskip("yaml")

EXAMPLES = ROOT / "examples"
HOLDS = "@clause('msi.flags')\ndef test_it():\n    pass\n"
OPTIONS = subprocess.run(
    [sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout


def read(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


def commands() -> dict[str, str]:
    """Return each pytest command in the examples: {file: command}."""
    container = (EXAMPLES / "Containerfile").read_text()
    words = [json.loads(line) for line in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)", container, re.M)]
    return {
        "Containerfile": shlex.join(words[0] + words[1]),
        "github.yml": read("github.yml")["jobs"]["conformance"]["steps"][-2]["run"],
        "gitlab-ci.yml": read("gitlab-ci.yml")["kvm-signal-msi"]["script"][0],
        "lava.yaml": read("lava.yaml")["run"]["steps"][1].partition(" &&")[0],
        "tuxrun.sh": re.findall(r"pytest suites/[^\"]*", (EXAMPLES / "tuxrun.sh").read_text())[0],
    }


@pytest.fixture
def clean(suite: Suite) -> Suite:
    """A suite of one test, with .venv/bin/pytest."""
    suite.add(HOLDS)
    for directory in (".venv/bin", "bin"):
        (suite.path / directory).mkdir(parents=True)
    script(suite.path / ".venv/bin/pytest", f'exec {sys.executable} -m pytest "$@"')
    return suite


def script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def shell(suite: Suite, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a CI's shell does. The programs of bin/ take the place of others."""
    environ = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=suite.path,
        env=environ | {"PATH": f"{suite.path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "schema, name",
    [("vendor.github-workflows", "github.yml"), ("vendor.gitlab-ci", "gitlab-ci.yml")],
)
def test_workflow_satisfies_its_schema(schema, name):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*command, EXAMPLES / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_lava_definition_has_what_lava_requires():
    definition = read("lava.yaml")
    assert definition["metadata"]["format"] == "Lava-Test Test Definition 1.0"
    assert definition["metadata"].keys() >= {"name", "description", "os", "scope"}
    assert all(
        isinstance(step, str) for part in ("install", "run") for step in definition[part]["steps"]
    )


def test_kernelci_entry_names_its_job_and_its_definition():
    entry = read("kernelci.yaml")
    [job] = entry["jobs"]
    assert entry["scheduler"][0]["job"] == job
    assert (ROOT / entry["jobs"][job]["params"]["testdef"]).exists()


def is_known(option: str) -> bool:
    shown = option.replace("--junitxml", "--junit-xml")
    return bool(re.search(rf"(?<!\S){shown}\b", OPTIONS))


@pytest.mark.parametrize("name", commands())
def test_options_are_those_of_the_suite(name):
    options = [word.partition("=")[0] for word in shlex.split(commands()[name]) if word[:1] == "-"]
    lacking = [option for option in options if not is_known(option)]
    if lacking == ["--ktap"]:
        pytest.skip("this suite has no --ktap")
    assert lacking == []


@pytest.mark.parametrize("name", ["github.yml", "Containerfile"])
def test_command_judges_and_reports(clean, name):
    command = commands()[name].replace("/venv/bin", ".venv/bin").replace("/out/", "")
    done = shell(clean, command.replace("..venv", ".venv"))
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert (clean.path / "report.html").exists()
    assert (clean.path / "junit.xml").exists()


@pytest.mark.timeout(600)  # the kernel may have to be fetched
def test_gitlab_judges_a_packaged_kernel_with_its_cache_in_the_project(clean):
    job = read("gitlab-ci.yml")["kvm-signal-msi"]
    (clean.path / ".cache").mkdir()
    cache_directory().mkdir(parents=True, exist_ok=True)
    (clean.path / ".cache/kvm-signal-msi").symlink_to(cache_directory())
    variables = "\n".join(f"export {name}={value}" for name, value in job["variables"].items())
    script = "\n".join(job["script"]).replace("/tmp/venv", ".venv")
    done = shell(clean, f"CI_PROJECT_DIR=$PWD\n{variables}\n{script}")
    assert done.returncode == 0, done.stdout
    assert "kernel under test: 6.12, on Linux 6.12." in done.stdout
    assert "1 passed" in done.stdout
    reports = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    assert all((clean.path / file).exists() for file in reports)


def packages() -> set[str]:
    """Return the Debian packages that the examples and the README install."""
    texts = [file.read_text() for file in EXAMPLES.iterdir()]
    texts.append((ROOT / "README.md").read_text())
    installed = re.findall(r"apt-get install ([^&\n]*)", "\n".join(texts))
    words = {word for line in installed for word in line.split() if word[0] != "-" and word != "\\"}
    return words | set(read("lava.yaml")["install"]["deps"])


def test_packages_exist():
    listed = subprocess.run(
        ["apt-cache", "show", *sorted(packages())], capture_output=True, text=True, check=False
    )
    if not listed.stdout:
        pytest.skip("no lists of packages to look them up in: apt-get update")
    assert packages() <= set(re.findall(r"^Package: (\S+)", listed.stdout, re.M))


@pytest.mark.parametrize("test, result", [("pass", "pass"), ("assert False", "fail")])
def test_lava_is_told_the_verdict(clean, test, result):
    if "--ktap" not in OPTIONS:
        pytest.skip("this suite has no --ktap")
    clean.add(HOLDS.replace("pass", test))
    script(clean.path / "bin/lava-test-case", 'echo "told: $@"')
    steps = "\n".join(read("lava.yaml")["run"]["steps"]).replace("/tmp/venv", ".venv")
    done = shell(clean, steps)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"told: kvm-signal-msi --result {result}"


def test_tuxrun_is_given_the_kernel_and_the_command(clean):
    script(clean.path / "bin/tuxrun", 'printf "%s\\n" "$@"')
    program = shlex.quote(str(EXAMPLES / "tuxrun.sh"))
    done = shell(clean, f"{program} bzImage modules.tar.xz rootfs.ext4.xz")
    assert done.stdout.splitlines()[:4] == ["--device", "qemu-x86_64", "--kernel", "bzImage"]
    assert done.stdout.splitlines()[-1].startswith("cd /suite && python3 -m pytest suites/")
    assert "usage: tuxrun.sh BZIMAGE" in shell(clean, program).stderr


@pytest.mark.parametrize("heading", ["The suite in", "What is tested"])
def test_readme_has_a_row_for_each_example(heading):
    text = (EXAMPLES / "README.md").read_text().partition(f"# {heading}")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([^`]+)`", text, re.M)) == sorted(
        file.name for file in EXAMPLES.iterdir() if file.name != "README.md"
    )
