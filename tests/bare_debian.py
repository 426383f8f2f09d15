# SPDX-License-Identifier: GPL-2.0-only
"""Run the examples for Debian 12, installing steps and all, in a bare Debian 12.

    sudo python -m tests.bare_debian gitlab-ci.yml Containerfile lava.yaml

debootstrap makes a root file system for each example. /dev/kvm and /sys are this machine's, and
nothing else is shared. Takes three minutes and 2 GB for each example, whose tests are those of one
file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

ROOT = Path(__file__).resolve().parents[1]
MIRROR = "http://deb.debian.org/debian"
KVM = "/dev/kvm"
OWN_CAS = Path("/usr/local/share/ca-certificates")
"""The certificate authorities of a machine behind a proxy."""
TESTS = "suites/test_flags.py"
PASSED_ON = re.compile(r"(SSL|PIP|https?|no)_\w+", re.IGNORECASE)
"""The variables of such a machine."""


def gitlab(text: str) -> str:
    """Return the shell script of a job."""
    job = yaml.safe_load(text)["kvm-signal-msi"]
    variables = [f"export {name}={value}" for name, value in job["variables"].items()]
    return "\n".join(
        ["export CI_PROJECT_DIR=$PWD", *variables, *job["before_script"], *job["script"]]
    )


def lava(text: str) -> str:
    """Return the shell script of a test definition, with a lava-test-case that prints."""
    definition = yaml.safe_load(text)
    install, run = definition["install"], definition["run"]
    deps = f"apt-get update -q && apt-get install -y -q {' '.join(install['deps'])}"
    told = 'lava-test-case() { echo "told: $*"; [ "$3" = pass ]; }'
    return "\n".join([deps, *install["steps"], told, *run["steps"]])


def container(text: str) -> str:
    """Return the shell script that makes a container's file system, and runs its command."""
    script = ["mkdir /out"]
    words: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        step, _, rest = line.partition(" ")
        match step:
            case "RUN":
                script.append(rest)
            case "WORKDIR":
                script.append(f"mkdir -p {rest} && cd {rest}")
            case "COPY":
                source, target = rest.split()
                script.append(f"cp -r /checkout/{source} {target}")
            case "ENTRYPOINT" | "CMD":
                words += json.loads(rest)
    return "\n".join([*script, " ".join(words), "ls /out/report.html /out/junit.xml"])


SCRIPTS = {"gitlab-ci.yml": gitlab, "lava.yaml": lava, "Containerfile": container}


def run(example: str, root: Path, environment: Mapping[str, str]) -> bool:
    """Run an example in ``root``. Return whether it succeeds."""
    text = (ROOT / "examples" / example).read_text()
    script = SCRIPTS[example](text).replace("suites/", TESTS)
    subprocess.run(["git", "clone", "-q", ROOT, root / "checkout"], check=True)
    (root / "job").write_text(f"set -ex\ncd /checkout\n{script}\n")
    # Copies: a package's script may write what is mounted, as root of this machine.
    if OWN_CAS.is_dir():
        shutil.copytree(OWN_CAS, root / OWN_CAS.relative_to("/"), dirs_exist_ok=True)
    acquiring = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, check=True)
    (root / "etc/apt/apt.conf.d/90machine").write_bytes(acquiring.stdout)
    (root / "dev/kvm").touch()
    mounts = f"mount -t proc proc {root}/proc; mount -t sysfs -o ro sysfs {root}/sys; "
    mounts += f"[ ! -e {KVM} ] || mount --bind {KVM} {root}{KVM}"
    command = ["unshare", "--mount", "sh", "-ec", f"{mounts}; exec chroot {root} bash /job"]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def main(examples: list[str]) -> None:
    """Run the examples. Exit with those that fail."""
    if unknown := set(examples) - SCRIPTS.keys():
        sys.exit(f"no example for Debian 12: {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    if os.geteuid() or not shutil.which("debootstrap"):
        sys.exit("root and debootstrap are required")
    environment = {name: text for name, text in os.environ.items() if PASSED_ON.fullmatch(name)}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    environment |= {"DEBIAN_FRONTEND": "noninteractive"}
    failed = []
    for example in examples or SCRIPTS:
        with TemporaryDirectory() as directory:
            bare = ["debootstrap", "--variant=minbase", "bookworm", directory, MIRROR]
            subprocess.run(bare, check=True, stdout=subprocess.DEVNULL)
            if not run(example, Path(directory), environment):
                failed.append(example)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
