"""Values to JSON and back, by their type hints: how events, plans and job results cross files and processes.

Handles exactly what the model is made of: frozen dataclasses, enums, tuples, dicts with string-like keys, optional
values, bytes (base64), numbers and strings. Lone surrogates (filenames that are not UTF-8, F5) survive as escapes;
NaN and infinities survive as JSON's NaN, which Python reads back. Never pickle (M10).
"""

from __future__ import annotations

import base64
import json
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def plain(value: object) -> Any:
    """The JSON-ready form of a value."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, str | int | float | None):
        return value
    raise TypeError(f"{type(value).__name__} is not a value of the model")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(kind: Any, data: Any) -> Any:
    """The value of type `kind` from its JSON-ready form; unknown fields are dropped, absent ones take their default."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or origin is types.UnionType:
        return _build_union(args, data)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(build(args[0], v) for v in data)
        return tuple(build(a, v) for a, v in zip(args, data, strict=True))
    if origin is dict:
        return {build(args[0], k): build(args[1], v) for k, v in data.items()}
    if origin is frozenset:
        return frozenset(build(args[0], v) for v in data)
    if kind is Any or kind is object:
        return data
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{k: build(hints[k], v) for k, v in data.items() if k in hints})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    if kind is bytes:
        return base64.b64decode(data)
    if kind in (int, float):
        return kind(data)
    return data


def _build_union(options: tuple[Any, ...], data: Any) -> Any:
    if data is None:
        return None
    rest = [o for o in options if o is not type(None)]
    if len(rest) == 1:
        return build(rest[0], data)
    return data  # unions of plain scalars only: Reason.value


def dumps(value: object) -> str:
    """Compact JSON text, keys in field order (the order of a dataclass is part of its meaning for hashes)."""
    return json.dumps(plain(value), separators=(",", ":"))


def loads(kind: type[T], text: str) -> T:
    """The value of dataclass `kind` from its JSON text."""
    return typing.cast(T, build(kind, json.loads(text)))
