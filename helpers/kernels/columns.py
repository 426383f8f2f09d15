# SPDX-License-Identifier: GPL-2.0-only
"""Turn --kernel, --cpu, --kvm-modules and --kvm-param into boots, and columns to test on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.kernels.emulators.interface import Emulator
from helpers.kernels.locate import BootFiles, resolve
from helpers.kernels.modules import Modules, parameters, vermagic
from helpers.kernels.packages import KernelError
from helpers.kernels.parameters import Choices, other_values, owned, short
from helpers.spec.architectures import X86_64


@dataclass(frozen=True)
class Column:
    """One kernel under test: a booted kernel with one set of KVM modules and parameters.

    ``modules`` are loaded in this order: {name: uncompressed module}. None are loaded for a KVM
    that is built in. ``settings`` are the parameters that were asked for. ``options`` are the
    command-line options that ask for this column alone. ``is_tried`` marks a column of
    --kvm-param=matrix, which a kernel need not have.
    """

    label: str
    modules: Mapping[str, bytes]
    settings: Mapping[str, str]
    options: Sequence[str]
    is_tried: bool = False

    @property
    def command_line(self) -> str:
        """The settings of modules that are built in, for the kernel's command line."""
        settings = self.settings.items()
        builtin = (each for each in settings if each[0].partition(".")[0] not in self.modules)
        return " ".join(map("=".join, builtin))

    def beside(self, found: Mapping[str, str]) -> list[Column]:
        """Return the columns of --kvm-param=matrix; ``found`` are the kernel's parameters."""
        return [
            Column(
                f"{self.label} {short(name, value)}",
                self.modules,
                {**self.settings, name: value},
                [*self.options, f"--kvm-param={name}={value}"],
                is_tried=True,
            )
            for name, value in other_values(found, self.settings).items()
        ]


@dataclass
class Boot:
    """A kernel to boot, and its columns, tested one after the other.

    ``modules`` are loaded for all columns. ``command_line`` is appended to the kernel's.
    """

    kernel: BootFiles
    emulator: Emulator
    modules: dict[str, bytes]
    command_line: str = ""
    columns: list[Column] = field(default_factory=list)

    @property
    def patience(self) -> float:
        """How much longer than Debian's kernels in QEMU a boot or a test may take."""
        return self.emulator.patience * self.kernel.slowness

    def directory(self, column: Column) -> int:
        """Return the number of the first column with the same modules."""
        return next(n for n, each in enumerate(self.columns) if each.modules == column.modules)


def boots(
    specs: Sequence[str],
    directories: Sequence[str],
    choices: Choices,
    emulators: Sequence[Emulator],
    cpus: Sequence[str] = (),
    config: str | None = None,
) -> list[Boot]:
    """Return the boots of a run; fetch the kernels that are not here. Raises KernelError.

    ``specs``, ``directories``, ``cpus`` and ``config`` are the values of --kernel, --kvm-modules,
    --cpu and --config.
    """
    made: list[Boot] = []
    sets: list[_ModuleSet] = []
    for emulator in emulators:
        own = [_module_set(text, emulator.vendor) for text in directories]
        sets += own
        for spec in dict.fromkeys(specs):
            for boot in _boots(spec, own, choices.besides(emulator.judged), emulator, config):
                boot.columns = [_on_cpu(column, emulator, cpus) for column in boot.columns]
                made.append(boot)
    releases = {boot.kernel.release for boot in made}
    for given in sets:
        if given.release not in releases:
            raise KernelError(
                f"--kvm-modules={given.path} is built for {given.release}, which no --kernel of "
                f"this run is ({', '.join(sorted(releases))})"
            )
    labels = [
        column.label for boot in made if not boot.emulator.parallel for column in boot.columns
    ]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise KernelError(f"two kernels of this run would be called {', '.join(twice)}")
    return made


def _on_cpu(column: Column, emulator: Emulator, cpus: Sequence[str]) -> Column:
    """Return a column as it is called and asked for where --cpu has these values."""
    asks = [f"--cpu={emulator.cpu}"] if cpus else []
    label = column.label
    if len(set(cpus)) > 1:
        kernel, space, settings = label.partition(" ")
        label = f"{kernel}-{emulator.cpu}{space}{settings}"
    return replace(column, label=label, options=[*column.options[:1], *asks, *column.options[1:]])


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
    if nothing := [name for name, magic in built_for.items() if not magic]:
        raise KernelError(f"--kvm-modules={path}: {_file(nothing[0])} is no kernel module")
    if len(set(built_for.values())) > 1:
        each = ", ".join(f"{_file(name)} for {magic!r}" for name, magic in built_for.items())
        raise KernelError(f"--kvm-modules={path} has modules of different builds: {each}")
    return _ModuleSet(path, built_for["kvm"].partition(" ")[0], modules)


def _file(module: str) -> str:
    return f"{module.replace('_', '-')}.ko"


# --- --kernel -------------------------------------------------------------------------------------


def _boots(
    spec: str,
    sets: Sequence[_ModuleSet],
    choices: Choices,
    emulator: Emulator,
    config: str | None,
) -> Sequence[Boot]:
    """Return the boots of a kernel: one, or if KVM is built in, one for each command line."""
    kernel = resolve(spec, emulator.architecture, config)
    own = Modules(kernel.modules)
    kvm = emulator.kvm
    try:
        shared = own.closure([*emulator.modules, *kvm])
    except KeyError as missing:
        raise KernelError(f"no module {missing} below {own.directory}") from None
    stock = {name: shared.pop(name) for name in kvm if name in shared}
    fitting = [given for given in sets if given.release == kernel.release]
    if fitting and len(stock) < len(kvm):
        raise KernelError(f"KVM is built into {kernel.release}: it cannot take --kvm-modules")
    columns = [
        Column(given.path.name, given.modules, {}, [f"--kvm-modules={given.path}"])
        for given in fitting
    ]
    if not columns:
        label = kernel.release if Path(spec).expanduser().exists() else spec
        columns = [Column(label, stock, {}, [])]
    builtin = {name: own.builtin_parameters(name) for name in kvm if name not in stock}
    made: dict[str, Boot] = {}
    asks = [f"--kernel={spec}"]
    asks += [f"--config={config}"] * bool(config)
    asks += [f"--arch={emulator.architecture.name}"] * (emulator.architecture is not X86_64)
    for column in (each for stem in columns for each in _chosen(stem, choices, builtin)):
        line = column.command_line
        boot = made.setdefault(line, Boot(kernel, emulator, shared, line))
        boot.columns.append(replace(column, options=[*asks, *column.options]))
    return list(made.values())


def _chosen(
    column: Column, choices: Choices, builtin: Mapping[str, set[str] | None]
) -> Iterator[Column]:
    """Yield the column with each combination of the values of --kvm-param."""
    modular = {name: parameters(module) for name, module in column.modules.items()}
    for chosen, named in choices.combinations():
        asks = [f"--kvm-param={name}={value}" for name, value in chosen.items()]
        yield replace(
            column,
            label=f"{column.label} {named}".strip(),
            settings=owned(chosen, {**builtin, **modular}, column.label),
            options=[*asks, *column.options],
        )
