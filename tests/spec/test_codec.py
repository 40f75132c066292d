"""Values cross files and processes as JSON and come back as they were (M10: never pickle)."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import values
from zemosaicd import codec
from zemosaicd.core.events import EVENTS
from zemosaicd.model import Distortion, Fingerprint, LogNote, MountMode, Plan, PreparedFrame, Reason, Rejected
from zemosaicd.work.planfiles import PlanRequest

ESCAPED = st.integers(0xDC80, 0xDCFF).map(chr)
"""What os.fsdecode makes of bytes that are not UTF-8 (F5); the other surrogates never come from a filename."""
TEXT = st.text(st.one_of(st.characters(exclude_categories=("Cs",)), ESCAPED), max_size=6)
FLOATS = st.floats(width=64)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
PLAIN = {str: TEXT, int: st.integers(), float: FLOATS, bool: st.booleans(), bytes: st.binary(max_size=5)}


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a type hint of the model allows."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object:
        return ANY
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is type(None):
        return st.none()
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of, args))
    if origin is tuple and args[1:] == (Ellipsis,):
        return st.lists(of(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of, args))
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=2)
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    if kind is Distortion:  # most random polynomials fold, and are refused
        shifts = st.lists(st.floats(-1.0, 1.0), min_size=7, max_size=7).map(tuple)
        return st.builds(
            Distortion, width=st.integers(200, 9000), height=st.integers(200, 9000), x_px=shifts, y_px=shifts
        )
    assert is_dataclass(kind), kind
    assert isinstance(kind, type)
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: of(hints[f.name]) for f in fields(kind)})


KINDS = {**EVENTS, "Plan": Plan, "PreparedFrame": PreparedFrame, "PlanRequest": PlanRequest, "LogNote": LogNote}


@pytest.mark.parametrize("name", KINDS)
def test_every_value_comes_back_as_it_was(name: str) -> None:
    """NaN, infinities, None, bytes, enum keys and filenames that are not UTF-8 (F5) survive in every event and plan."""

    @settings(max_examples=12, database=None, suppress_health_check=list(HealthCheck))
    @given(of(KINDS[name]))
    def round_trip(value: Any) -> None:
        text = codec.dumps(value)
        assert text.isascii()
        assert repr(codec.loads(KINDS[name], text)) == repr(value)  # NaN is not equal to itself, its repr is

    round_trip()


def test_a_real_plan_comes_back_equal() -> None:
    """A plan with its mount modes, an enum-keyed dict, is the same value after a journey through its file."""
    plan = values.plan_of(values.field(2, 2))
    back = codec.loads(Plan, codec.dumps(plan))
    assert back == plan
    assert back.mount_modes[MountMode.UNKNOWN] == 4
    assert all(isinstance(mode, MountMode) for mode in back.mount_modes)


def test_F5_a_filename_that_is_not_utf8_survives() -> None:
    """The escaped byte of a filename is the same byte afterwards."""
    reason = Reason(rule="x", value=b"/in/\xff.fits".decode(errors="surrogateescape"))
    back = codec.loads(Reason, codec.dumps(reason))
    assert str(back.value).encode(errors="surrogateescape") == b"/in/\xff.fits"


def test_unknown_fields_are_dropped_and_absent_ones_take_their_default() -> None:
    """An older or newer journal is read as far as it says something we know."""
    assert codec.build(Reason, {"rule": "r", "of_tomorrow": 1}) == Reason(rule="r")


def test_a_missing_field_without_default_is_an_error() -> None:
    """Half a value is never made up."""
    with pytest.raises(TypeError, match="mtime_ns"):
        codec.build(Fingerprint, {"device": 1, "inode": 2, "size": 3})


def test_numbers_take_the_type_of_their_field() -> None:
    """A whole number in a float's place is a float again: 10.0 was written as it is, 10 by someone else."""
    built = codec.build(tuple[float, ...], [1, 2.5])
    assert built == (1.0, 2.5)
    assert all(isinstance(v, float) for v in built)
    assert math.isnan(codec.build(float | None, float("nan")))


def test_strangers_are_refused() -> None:
    """What is not a value of the model is a TypeError, never a pickle or a repr (M10)."""
    with pytest.raises(TypeError, match="object"):
        codec.dumps({"x": object()})
    with pytest.raises(TypeError, match="complex"):
        codec.dumps((1j,))


def test_sets_are_written_in_order() -> None:
    """A set gives the same text whatever its order in memory, because texts are hashed."""

    @dataclass(frozen=True)
    class Holder:
        names: frozenset[str]

    assert codec.dumps(Holder(frozenset("cab"))) == '{"names":["a","b","c"]}'
    assert codec.build(frozenset[str], ["a", "b"]) == frozenset("ab")


def test_errors_carry_their_reason_through_a_pipe() -> None:
    """An error of the model is rebuilt from its reason in another process."""
    error = Rejected(Reason(rule="no_sky", value=1, threshold=2, message="dark"))
    kind, args = error.__reduce__()
    assert isinstance(kind(*args), Rejected)
    assert kind(*args).reason == error.reason
