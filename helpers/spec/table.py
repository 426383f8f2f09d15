# SPDX-License-Identifier: GPL-2.0-only
"""Read TOML tables into dataclasses.

An entry that does not fit raises :class:`SpecError`, which names file, entry and field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class SpecError(ValueError):
    """A file or an entry that does not fit. The message is one line."""


def read(file: Path, kind: type[T]) -> dict[str, T]:
    """Return {name: entry} of the tables in ``file``, each read as the dataclass ``kind``.

    The name of a table becomes the field ``id``. The type of a field is str, bool, int, Literal, a
    dataclass, a tuple of such types, or ``None |`` such a type. Raises SpecError.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{file.name}: {error}") from None
    return {id: _table(f"{file.name}: {id}", kind, table, id=id) for id, table in tables.items()}


def _table(place: str, kind: Any, table: object, **given: object) -> Any:
    if not isinstance(table, Mapping):
        raise SpecError(f"{place}: not a table")
    types = get_type_hints(kind)
    if unknown := sorted(table.keys() - (types.keys() - given.keys())):
        raise SpecError(f"{place}: no field {unknown[0]!r}")
    for field in fields(kind):
        if field.name in table:
            where = f"{place}: {field.name}"
            given[field.name] = _value(where, types[field.name], table[field.name])
        elif field.name not in given and field.default is MISSING:
            raise SpecError(f"{place}: {field.name} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise SpecError(f"{place}: {error}") from None


def _value(place: str, kind: Any, value: object) -> object:
    arguments = get_args(kind)
    if isinstance(kind, UnionType):
        return _value(place, next(each for each in arguments if each is not NoneType), value)
    if is_dataclass(kind):
        return _table(place, kind, value)
    if get_origin(kind) is tuple:
        return _tuple(place, arguments, value)
    if get_origin(kind) is Literal:
        if value not in arguments:
            raise SpecError(f"{place}: {value!r} is none of {' '.join(arguments)}")
        return value
    if type(value) is not kind:
        raise SpecError(f"{place}: {value!r} is not of type {kind.__name__}")
    if value == "":
        raise SpecError(f"{place}: empty")
    return value


def _tuple(place: str, types: tuple[Any, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{place}: {value!r} is not a list")
    if types[-1] is ...:
        types = types[:1] * len(value)
    if len(types) != len(value):
        raise SpecError(f"{place}: {value!r} does not have {len(types)} items")
    return tuple(_value(place, *pair) for pair in zip(types, value, strict=True))
