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
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
_SCALARS = frozenset({str, int, float, bool, types.NoneType})


def plain(value: object) -> Any:
    """The JSON-ready form of a value."""
    kind: Any = type(value)
    return value if kind in _SCALARS else _plainer(kind)(value)


Plainer = Callable[[Any], Any]


@cache
def _plainer(kind: Any) -> Plainer:
    """How values of one type become plain, worked out once a type: a plan holds many values of few types."""
    if is_dataclass(kind):
        names = tuple(f.name for f in fields(kind))
        return lambda value: {name: plain(getattr(value, name)) for name in names}
    if issubclass(kind, Enum):
        return lambda value: value.value
    if issubclass(kind, bytes):
        return lambda value: base64.b64encode(value).decode("ascii")
    if issubclass(kind, dict):
        return lambda value: {str(plain(k)): plain(v) for k, v in value.items()}
    if issubclass(kind, set | frozenset):
        return lambda value: list(map(plain, sorted(value)))
    if issubclass(kind, tuple | list):
        return lambda value: list(map(plain, value))
    if issubclass(kind, str | int | float):
        return _as_it_is
    raise TypeError(f"{kind.__name__} is not a value of the model")


def build(kind: Any, data: Any) -> Any:
    """The value of type `kind` from its JSON-ready form; unknown fields are dropped, absent ones take their default."""
    return _builder(kind)(data)


Builder = Callable[[Any], Any]


@cache
def _builder(kind: Any) -> Builder:
    """How values of one type are made, worked out once a type: a journal holds many values of few types."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or origin is types.UnionType:
        return _union_builder(args)
    if origin is tuple:
        return _tuple_builder(args)
    if origin is dict:
        key, value = _builder(args[0]), _builder(args[1])
        return lambda data: {key(k): value(v) for k, v in data.items()}
    if origin is frozenset:
        item = _builder(args[0])
        return lambda data: frozenset(map(item, data))
    if isinstance(kind, type):
        return _plain_builder(kind)
    return _as_it_is


def _plain_builder(kind: type) -> Builder:
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        builders = {f.name: _builder(hints[f.name]) for f in fields(kind)}
        return lambda data: kind(**{k: builders[k](v) for k, v in data.items() if k in builders})
    if issubclass(kind, Enum):
        return kind
    if kind is bytes:
        return base64.b64decode
    return kind if kind in (int, float) else _as_it_is


def _tuple_builder(args: tuple[Any, ...]) -> Builder:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _builder(args[0])
        return lambda data: tuple(map(item, data))
    items = tuple(map(_builder, args))
    return lambda data: tuple(item(v) for item, v in zip(items, data, strict=True))


def _union_builder(options: tuple[Any, ...]) -> Builder:
    """One type or None; unions of plain scalars (Reason.value) are taken as they are."""
    rest = [o for o in options if o is not type(None)]
    if len(rest) != 1:
        return _as_it_is
    some = _builder(rest[0])
    return lambda data: None if data is None else some(data)


def _as_it_is(data: Any) -> Any:
    return data


def dumps(value: object) -> str:
    """Compact JSON text, keys in field order (the order of a dataclass is part of its meaning for hashes)."""
    return json.dumps(plain(value), separators=(",", ":"))


def loads(kind: type[T], text: str) -> T:
    """The value of dataclass `kind` from its JSON text."""
    return typing.cast(T, build(kind, json.loads(text)))
