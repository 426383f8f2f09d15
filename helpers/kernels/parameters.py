# SPDX-License-Identifier: GPL-2.0-only
"""The parameters of KVM's modules: what --kvm-param asks for, and what a booted kernel has.

A setting is a parameter and its value. The command line names a parameter NAME or MODULE.NAME;
everything else in this project names it MODULE.NAME, as in {"kvm.vector_hashing": "N"}.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from helpers.kernels.packages import KernelError
from helpers.spec.parameters import PARAMETERS

MATRIX = "matrix"
"""The value of --kvm-param that stands for the other value of each of PARAMETERS."""

_OTHER = {"Y": "N", "N": "Y", "1": "0", "0": "1"}
_SWITCHES = {"y": "1", "yes": "1", "on": "1", "true": "1", "n": "0", "no": "0", "off": "0"}
_SWITCHES["false"] = "0"


@dataclass(frozen=True)
class Choices:
    """What the --kvm-param options of a run ask for.

    ``values`` are the values of each parameter, by its name on the command line. ``matrix`` is set
    by --kvm-param=matrix.
    """

    values: Mapping[str, Sequence[str]]
    matrix: bool = False

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Choices:
        """Read the values of --kvm-param. Raises KernelError."""
        values: dict[str, list[str]] = {}
        for text in texts:
            name, equals, given = text.partition("=")
            if (text != MATRIX and not (name and equals)) or " " in text:
                raise KernelError(
                    f"--kvm-param={text}: give NAME=VALUE, such as vector_hashing=N, or {MATRIX}"
                )
            if name in values:
                raise KernelError(
                    f"--kvm-param={text}: {name} is given twice; {name}=A,B makes a column of each"
                )
            values[name] = given.split(",") if equals else []
            if equals and "" in values[name]:
                raise KernelError(f"--kvm-param={text}: a value is empty")
            if len({canonical(value) for value in values[name]}) < len(values[name]):
                raise KernelError(f"--kvm-param={text}: a value is given twice")
        matrix = values.pop(MATRIX, None) is not None
        return cls(values, matrix)

    def besides(self, judged: Mapping[str, Sequence[str]]) -> Choices:
        """Return these choices, with values of the parameters that they leave open."""
        chosen = {name.rpartition(".")[2] for name in self.values}
        others = {name: judged[name] for name in judged if name not in chosen}
        return self if self.matrix else replace(self, values={**self.values, **others})

    def combinations(self) -> Iterator[tuple[dict[str, str], str]]:
        """Yield each combination of values: {name: value}, and its name among the others."""
        for chosen in product(*self.values.values()):
            settings = dict(zip(self.values, chosen, strict=True))
            several = (name for name in settings if len(self.values[name]) > 1)
            yield settings, " ".join(short(name, settings[name]) for name in several)


def short(name: str, value: str) -> str:
    """Return a setting in the name of a column."""
    return f"{name.rpartition('.')[2]}={value}"


def owned(
    settings: Mapping[str, str], known: Mapping[str, Collection[str] | None], kernel: str
) -> dict[str, str]:
    """Name each parameter MODULE.NAME, once for every module that has it. Raises KernelError.

    ``known`` are the parameters of each module. A module of unknown parameters (None) has those
    that name the module, and kvm has those that name none.
    """
    found: dict[str, str] = {}
    for name, value in settings.items():
        wanted, _, parameter = name.rpartition(".")
        owners = [
            module
            for module, has in known.items()
            if wanted in ("", module)
            and (parameter in has if has is not None else (wanted or "kvm") == module)
        ]
        if not owners:
            modules = " and ".join(known)
            raise KernelError(f"--kvm-param={name}: {modules} of {kernel} have no such parameter")
        for full in (f"{owner}.{parameter}" for owner in owners):
            if full in found:
                raise KernelError(f"--kvm-param={name}: {full} is given twice")
            found[full] = value
    return found


def canonical(value: str) -> str:
    """Return one spelling for all spellings of a number or a switch."""
    value = _SWITCHES.get(value.lower(), value)
    try:
        return str(int(value, 0))
    except ValueError:
        return value


def reads_as(found: str, asked: str) -> bool:
    """Return whether a parameter that reads ``found`` may have been set to ``asked``.

    A parameter that is no number and no switch may read back as another text.
    """
    found, asked = canonical(found), canonical(asked)
    return found == asked or not asked.lstrip("-").isdigit()


def other_values(found: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of --kvm-param=matrix, a column each, beside a column of a kernel.

    ``found`` are the parameters of the booted kernel with the column's ``settings``.
    """
    return {
        name: _OTHER[found[name]]
        for name in PARAMETERS
        if name not in settings and found.get(name) in _OTHER
    }


def part_of(
    needs: Mapping[str, str],
    found: Mapping[str, str],
    settings: Mapping[str, str],
    modules: Collection[str],
) -> str:
    """Return the part of a column that has a test: the settings for which KVM is reloaded.

    Empty if the column's parameters suit the test, or if a reload does not help: a parameter that
    --kvm-param sets, that the kernel lacks, or of a module that is built in.
    """
    unmet = {name: value for name, value in needs.items() if found.get(name) != value}
    for name in unmet:
        if name in settings or name not in found or name.partition(".")[0] not in modules:
            return ""
    return " ".join(f"{name}={value}" for name, value in unmet.items())


def settings_of(part: str) -> dict[str, str]:
    """Return the settings of a part of a column."""
    return dict(setting.split("=", 1) for setting in part.split())


def given_to(module: str, settings: Mapping[str, str]) -> str:
    """Return the settings of a module as modprobe takes them."""
    prefix = f"{module}."
    own = (name for name in settings if name.startswith(prefix))
    return " ".join(f"{name.removeprefix(prefix)}={settings[name]}" for name in own)
