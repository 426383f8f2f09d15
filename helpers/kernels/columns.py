"""What --kernel, --kvm-modules and --kvm-param ask for: columns, and the boots that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.kernels.locate import BootFiles, resolve
from helpers.kernels.modules import Modules, parameters, release
from helpers.kernels.packages import KernelError


@dataclass(frozen=True)
class Column:
    """One kernel under test: a booted kernel with one set of kvm modules.

    ``modules`` are what to load for it, in order: (name, uncompressed module, parameters);
    ``options`` are those of the command line that ask for this column alone.
    """

    label: str
    modules: Sequence[tuple[str, bytes, str]]
    options: Sequence[str]


@dataclass
class Boot:
    """A kernel to boot and the columns it serves, one after the other.

    ``modules`` are those all columns share; ``command_line`` is added to the kernel's.
    """

    kernel: BootFiles
    modules: dict[str, bytes]
    command_line: str = ""
    columns: list[Column] = field(default_factory=list)


def boots(
    specs: Sequence[str],
    directories: Sequence[str],
    settings: Sequence[str],
    virtio: Sequence[str],
    vendor: str,
) -> list[Boot]:
    """The boots of a run, fetched if need be. Raises KernelError.

    ``specs``, ``directories`` and ``settings`` are the values of --kernel, --kvm-modules and
    --kvm-param; ``virtio`` are the modules any guest needs, ``vendor`` is kvm_amd or kvm_intel.
    """
    chosen = dict(_setting(text) for text in settings)
    paths = [Path(text).expanduser().resolve() for text in directories]
    sets = [_module_set(path, vendor) for path in paths]
    made = [_boot(spec, sets, chosen, virtio, vendor) for spec in dict.fromkeys(specs)]
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


@dataclass(frozen=True)
class _ModuleSet:
    """What is in a directory of --kvm-modules, and the kernel that it is built for."""

    path: Path
    release: str
    modules: dict[str, bytes]


def _module_set(path: Path, vendor: str) -> _ModuleSet:
    found = Modules(path)
    if missing := [name for name in ("kvm", vendor) if name not in found]:
        raise KernelError(f"--kvm-modules={path}: no {missing[0].replace('_', '-')}.ko in it")
    modules = {name: found[name] for name in ("kvm", vendor)}
    return _ModuleSet(path, release(modules["kvm"]), modules)


def _boot(
    spec: str,
    sets: Sequence[_ModuleSet],
    settings: dict[str, str],
    virtio: Sequence[str],
    vendor: str,
) -> Boot:
    kernel = resolve(spec)
    own = Modules(kernel.modules)
    kvm = ("kvm", vendor)
    try:
        shared = own.closure([*virtio, *kvm])
    except KeyError as missing:
        raise KernelError(f"no module {missing} below {own.directory}") from None
    stock = {name: shared.pop(name) for name in kvm if name in shared}
    boot = Boot(kernel, shared)
    asks = [
        f"--kernel={spec}",
        *(f"--kvm-param={name}={value}" for name, value in settings.items()),
    ]
    mine = [given for given in sets if given.release == kernel.release]
    if mine and len(stock) < len(kvm):
        raise KernelError(f"KVM is built into {kernel.release}: it cannot take --kvm-modules")
    if not stock:
        boot.command_line = _command_line(settings)
    for given in mine:
        modules = _with_parameters(given.modules, settings)
        options = [*asks, f"--kvm-modules={given.path}"]
        boot.columns.append(Column(given.path.name, modules, options))
    if not mine:
        boot.columns.append(Column(_label(spec, kernel), _with_parameters(stock, settings), asks))
    return boot


def _label(spec: str, kernel: BootFiles) -> str:
    return kernel.release if Path(spec).expanduser().exists() else spec


def _with_parameters(
    modules: dict[str, bytes], settings: dict[str, str]
) -> list[tuple[str, bytes, str]]:
    given: dict[str, list[str]] = {name: [] for name in modules}
    for setting, value in settings.items():
        wanted, _, parameter = setting.rpartition(".")
        owners = [
            name
            for name, content in modules.items()
            if wanted in ("", name) and parameter in parameters(content)
        ]
        if modules and not owners:
            raise KernelError(
                f"--kvm-param={setting}: {' and '.join(modules)} have no such parameter"
            )
        for owner in owners:
            given[owner].append(f"{parameter}={value}")
    return [(name, content, " ".join(given[name])) for name, content in modules.items()]


def _command_line(settings: dict[str, str]) -> str:
    """The settings, for a KVM that is built in."""
    spelled = {name if "." in name else f"kvm.{name}": value for name, value in settings.items()}
    return " ".join(f"{name}={value}" for name, value in spelled.items())
