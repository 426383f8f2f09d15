# SPDX-License-Identifier: GPL-2.0-only
"""Whether plain data is of a type. A kernel under test may corrupt what its guest reports."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def fits(value: object, kind: Any) -> bool:
    """Return whether a value is of ``kind``: a scalar type, or list, tuple, dict, union, TypedDict.

    A bool is no int. An int is a float.
    """
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(fits(value[name], hint) for name, hint in hints.items())
        )
    kinds = get_args(kind)
    match get_origin(kind):
        case None:
            return kind is Any or type(value) is kind or (kind is float and type(value) is int)
        case origin if origin in (Union, UnionType):
            return any(fits(value, each) for each in kinds)
        case origin if not isinstance(value, origin):
            return False
        case origin if origin is list:
            return all(fits(each, kinds[0]) for each in value)
        case origin if origin is dict:
            return all(fits(key, kinds[0]) and fits(each, kinds[1]) for key, each in value.items())
    assert isinstance(value, tuple)
    return len(value) == len(kinds) and all(map(fits, value, kinds))
