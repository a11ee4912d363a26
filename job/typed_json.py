"""Read JSON into dataclasses, checking the type of every value.

Another release, a failing disk or an edit can leave valid JSON with values of other types. This
module does not use pydantic, whose import takes 200 ms: every command of the runner reads records.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_json(kind: type[T], text: str | bytes) -> T:
    """Return the ``kind``, a dataclass or another type, that ``text`` holds.

    Fields that only a newer release knows are dropped. Raises ValueError, which names the field.
    """
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    value: T = convert(tree, kind)
    return value


def read_object(text: str | bytes) -> dict[str, Any]:
    """Return the object that ``text`` holds, whatever its values are. Raises ValueError."""
    return read_json(dict[str, Any], text)


def convert(tree: Any, kind: Any, name: str = "") -> Any:
    """Return ``tree`` as a value of the type ``kind``; ValueError names the field ``name``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return tree
    if origin in (Union, UnionType):
        return _convert_to_any(tree, arguments, name)
    if dataclasses.is_dataclass(kind) and isinstance(tree, dict):
        return _convert_fields(tree, kind, name)
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(tree, str):
        return kind(tree)
    if origin in (list, tuple) and isinstance(tree, list):
        return origin(convert(item, arguments[0], f"{name}[]") for item in tree)
    if origin is dict and isinstance(tree, dict):
        return {key: convert(item, arguments[1], f"{name}.{key}") for key, item in tree.items()}
    if kind is float and type(tree) is int:
        return float(tree) if abs(tree) <= sys.float_info.max else _refuse(tree, kind, name)
    is_valid = origin is None and type(tree) is kind and tree not in (math.inf, -math.inf)
    return tree if is_valid else _refuse(tree, kind, name)


def _convert_to_any(tree: Any, kinds: tuple[Any, ...], name: str) -> Any:
    for kind in kinds:
        try:
            return convert(tree, kind, name)
        except ValueError:
            continue
    return _refuse(tree, kinds[0], name)


def _convert_fields(tree: dict[str, Any], kind: Any, name: str) -> Any:
    hints, values = _hints(kind), {}
    for field in dataclasses.fields(kind):
        path = f"{name}.{field.name}".lstrip(".")
        if field.name in tree:
            values[field.name] = convert(tree[field.name], hints[field.name], path)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path} is missing")
    return kind(**values)


_hints = cache(get_type_hints)


def _refuse(tree: Any, kind: Any, name: str) -> Any:
    expected = "null" if kind is NoneType else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{name or 'the file'}: expected {expected}, got {str(tree)[:40]!r}")
