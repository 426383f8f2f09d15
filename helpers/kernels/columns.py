# SPDX-License-Identifier: GPL-2.0-only
"""Turn --kernel, --kvm-modules and --kvm-param into boots, and the columns tested on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.kernels.locate import BootFiles, resolve
from helpers.kernels.modules import Modules, parameters, vermagic
from helpers.kernels.packages import KernelError

VIRTIO = ("virtio_pci", "virtio_console")
"""Modules that every guest needs, for the channel to its worker."""


@dataclass(frozen=True)
class Column:
    """One kernel under test: a booted kernel with one set of KVM modules.

    ``modules`` are loaded in this order: (name, uncompressed module, parameters). None are loaded
    for a KVM that is built in. ``options`` are the command-line options that ask for this column
    alone.
    """

    label: str
    modules: Sequence[tuple[str, bytes, str]]
    options: Sequence[str]


@dataclass
class Boot:
    """A kernel to boot, and its columns, tested one after the other.

    ``modules`` are loaded for all columns. ``command_line`` is appended to the kernel's.
    """

    kernel: BootFiles
    modules: dict[str, bytes]
    command_line: str = ""
    columns: list[Column] = field(default_factory=list)


def boots(
    specs: Sequence[str], directories: Sequence[str], settings: Sequence[str], vendor: str
) -> list[Boot]:
    """Return the boots of a run; fetch the kernels that are not here. Raises KernelError.

    ``specs``, ``directories`` and ``settings`` are the values of --kernel, --kvm-modules and
    --kvm-param. ``vendor`` is kvm_amd or kvm_intel.
    """
    chosen = dict(map(_setting, settings))
    sets = [_module_set(text, vendor) for text in directories]
    made = [_boot(spec, sets, chosen, vendor) for spec in dict.fromkeys(specs)]
    releases = {boot.kernel.release for boot in made}
    for given in sets:
        if given.release not in releases:
            raise KernelError(
                f"--kvm-modules={given.path} is built for {given.release}, which no --kernel of "
                f"this run is ({', '.join(sorted(releases))})"
            )
    labels = [column.label for boot in made for column in boot.columns]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise KernelError(f"two kernels of this run would be called {', '.join(twice)}")
    return made


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals) or " " in text:
        raise KernelError(f"--kvm-param={text}: give NAME=VALUE, such as vector_hashing=N")
    return name, value


# --- --kvm-modules --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ModuleSet:
    """The KVM modules of a directory of --kvm-modules, and the kernel that they are built for."""

    path: Path
    release: str
    modules: dict[str, bytes]


def _module_set(text: str, vendor: str) -> _ModuleSet:
    """Read kvm.ko and the vendor module of one build. Raises KernelError if there are several."""
    if not text:
        raise KernelError("--kvm-modules= is empty: give the directory of kvm.ko")
    path = Path(text).expanduser().resolve()
    found = Modules(path)
    for name in ("kvm", vendor):
        if not found.files(name):
            raise KernelError(f"--kvm-modules={path}: no {_file(name)} in it")
    files = [*found.files("kvm"), *found.files(vendor)]
    if len(files) > 2 or files[0].parent != files[1].parent:
        listed = ", ".join(str(file.relative_to(path)) for file in files)
        raise KernelError(
            f"--kvm-modules={path} has modules of several builds: {listed}; name the directory "
            "of one build"
        )
    modules = {name: found[name] for name in ("kvm", vendor)}
    built_for = {name: vermagic(module) for name, module in modules.items()}
    if len(set(built_for.values())) > 1:
        each = ", ".join(f"{_file(name)} for {magic!r}" for name, magic in built_for.items())
        raise KernelError(f"--kvm-modules={path} has modules of different builds: {each}")
    return _ModuleSet(path, built_for["kvm"].partition(" ")[0], modules)


def _file(module: str) -> str:
    return f"{module.replace('_', '-')}.ko"


# --- --kernel -------------------------------------------------------------------------------------


def _boot(spec: str, sets: Sequence[_ModuleSet], settings: dict[str, str], vendor: str) -> Boot:
    kernel = resolve(spec)
    own = Modules(kernel.modules)
    kvm = ("kvm", vendor)
    try:
        shared = own.closure([*VIRTIO, *kvm])
    except KeyError as missing:
        raise KernelError(f"no module {missing} below {own.directory}") from None
    stock = {name: shared.pop(name) for name in kvm if name in shared}
    boot = Boot(kernel, shared)
    asks = [f"--kernel={spec}", *(f"--kvm-param={name}={settings[name]}" for name in settings)]
    fitting = [given for given in sets if given.release == kernel.release]
    if fitting and len(stock) < len(kvm):
        raise KernelError(f"KVM is built into {kernel.release}: it cannot take --kvm-modules")
    if not stock:  # KVM is built in
        boot.command_line = " ".join(
            f"{name if '.' in name else f'kvm.{name}'}={value}" for name, value in settings.items()
        )
    for given in fitting:
        modules = _with_parameters(given.modules, settings)
        options = [*asks, f"--kvm-modules={given.path}"]
        boot.columns.append(Column(given.path.name, modules, options))
    if not fitting:
        label = kernel.release if Path(spec).expanduser().exists() else spec
        boot.columns.append(Column(label, _with_parameters(stock, settings), asks))
    return boot


# --- --kvm-param ----------------------------------------------------------------------------------


def _with_parameters(
    modules: dict[str, bytes], settings: dict[str, str]
) -> list[tuple[str, bytes, str]]:
    """Give each setting, PARAMETER or MODULE.PARAMETER, to the modules that have the parameter."""
    given: dict[str, list[str]] = {name: [] for name in modules}
    for setting, value in settings.items():
        wanted, _, parameter = setting.rpartition(".")
        owners = [name for name, module in modules.items() if parameter in parameters(module)]
        owners = [name for name in owners if wanted in ("", name)]
        if modules and not owners:
            known = " and ".join(modules)
            raise KernelError(f"--kvm-param={setting}: {known} have no such parameter")
        for owner in owners:
            given[owner].append(f"{parameter}={value}")
    return [(name, content, " ".join(given[name])) for name, content in modules.items()]
