"""The course of a telescope over a night, as headers tell it: for a sweep `auto` takes SDS, for nothing else (D2)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import values
from zemosaicd import sphere
from zemosaicd.core.course import LEAST_LOOPS, LONGEST_STAY, Course, course_of
from zemosaicd.core.modes import choose
from zemosaicd.core.sweeps import LEAST_FRAMES, TARGET_FRAMES
from zemosaicd.model import FrameFacts

SIDE_PX, SCALE = 80, 10.0
"""A square frame, so that a quarter turn of the sky changes nothing."""
Place = tuple[float, float]


def night(places: Sequence[Place], **said: object) -> list[FrameFacts]:
    """Frames ten seconds apart at places in frames' sides about a middle on the sky."""
    plane = values.wcs_at(10.0, 40.0, scale_arcsec=SCALE, width=SIDE_PX, height=SIDE_PX)
    out = []
    for i, (x, y) in enumerate(places):
        ra, dec = sphere.position(sphere.pixel_to_sky(plane, plane.x_px + x * SIDE_PX, plane.y_px + y * SIDE_PX))
        one = values.facts(width=SIDE_PX, height=SIDE_PX, ra_deg=ra, dec_deg=dec, scale_arcsec=SCALE)
        out.append(replace(one, observed_s=1e9 + 10.0 * i, **said))  # type: ignore[arg-type]
    return out


def pointings(columns: int, rows: int, step: float = 0.8) -> list[Place]:
    """A grid of them, in the order of a plough."""
    return [
        (step * ((x if y % 2 == 0 else columns - 1 - x) - (columns - 1) / 2), step * (y - (rows - 1) / 2))
        for y in range(rows)
        for x in range(columns)
    ]


def rounds(loops: int, stay: int = 1, columns: int = 3, rows: int = 2) -> list[Place]:
    """All pointings in turn, a few frames each, again and again; never quite at the same place (seeded)."""
    dither = random.Random(loops)
    return [
        (x + dither.uniform(-0.02, 0.02), y + dither.uniform(-0.02, 0.02))
        for _ in range(loops)
        for x, y in pointings(columns, rows)
        for _ in range(stay)
    ]


def one_after_the_other(frames: int) -> list[Place]:
    return [place for place in pointings(3, 2) for _ in range(frames)]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        pytest.param(rounds(8), ("1.0 frames in a row", "4.7 fields", "covered 5 times"), id="D2-one-frame-each"),
        pytest.param(rounds(6, stay=3), ("3.0 frames in a row", "covered 7 times"), id="D2-three-frames-each"),
        pytest.param([(math.cos(t / 3), math.sin(t / 3)) for t in range(120)], ("fields",), id="D2-round-and-round"),
    ],
)
def test_D2_a_sweep_is_taken_as_sds_with_its_reason(places: list[Place], words: tuple[str, ...]) -> None:
    """Few frames in a row, a field of several frames, several times covered: SDS, and the reason has the figures."""
    course = course_of(night(places))
    assert course.sweeps
    choice = choose(frames=len(places), course=course)
    assert choice.mode == "sds"
    assert choice.why.startswith("the telescope swept: ")
    assert [w for w in words if w not in choice.why] == []


@pytest.mark.parametrize(
    ("places", "word"),
    [
        pytest.param(one_after_the_other(10), "10.0 frames in a row at a pointing", id="pointings-one-after-the-other"),
        pytest.param(rounds(3, stay=5), "5.0 frames in a row at a pointing", id="long-stays"),
        pytest.param([p for p in pointings(1, 1) for _ in range(60)], "60.0 frames in a row", id="one-field"),
        pytest.param([(0.05 * (i % 2), 0.0) for i in range(60)], "60.0 frames in a row", id="dithered-a-little"),
        pytest.param(rounds(20, columns=2, rows=1), "1.9 fields", id="hardly-wider-than-a-frame"),
        pytest.param([(0.3 * (i % 2), 0.3 * (i // 2 % 2)) for i in range(60)], "fields", id="dithered-by-much"),
        pytest.param(rounds(2), "covered 1 times", id="too-few-loops"),
        pytest.param(pointings(6, 5), "covered 1 times", id="once-round"),
    ],
)
def test_D2_what_is_no_sweep_is_classics_with_its_reason(places: list[Place], word: str) -> None:
    """Pointings with long stays, one field however dithered, too few rounds: classic, and the reason says why not."""
    course = course_of(night(places))
    assert not course.sweeps
    choice = choose(frames=len(places), course=course)
    assert choice.mode == "classic"
    assert word in choice.why


@pytest.mark.parametrize(("step", "stay"), [(0.08, 30.0), (0.12, 1.0)])
@pytest.mark.parametrize(("width", "height"), [(SIDE_PX, SIDE_PX), (SIDE_PX // 2, 2 * SIDE_PX)])
def test_D2_a_telescope_that_moves_by_less_than_a_tenth_of_the_short_side_dithers(
    step: float, stay: float, width: int, height: int
) -> None:
    """To and fro by 8 % it stays, by 12 % it goes on, whatever the shape of its frames."""
    places = [(step * min(width, height) / SIDE_PX * (i % 2), 0.0) for i in range(30)]
    assert course_of(night(places, width=width, height=height)).stay == pytest.approx(stay)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ra_deg": None}, "not all headers tell"),
        ({"dec_deg": None}, "not all headers tell"),
        ({"observed_s": None}, "not all headers tell"),
        ({"scale_arcsec": 0.0}, "not all headers tell"),
        ({"exposure_s": 20.0}, "several kinds"),
        ({"filter_name": "Ha"}, "several kinds"),
        ({"ra_deg": 190.0, "dec_deg": -40.0}, "all over the sky"),
    ],
)
def test_D2_one_frame_that_does_not_tell_makes_a_course_unknown(change: dict[str, object], word: str) -> None:
    """No pointing, time or scale, another kind, the far side of the sky: what is not known is not taken for a sweep."""
    frames = night(rounds(8))
    frames[5] = replace(frames[5], **change)  # type: ignore[arg-type]
    course = course_of(frames)
    assert not course.sweeps
    assert word in choose(frames=len(frames), course=course).why


def test_D2_no_frame_is_no_course() -> None:
    """Of nothing nothing is known."""
    assert not course_of([]).sweeps
    assert not Course().sweeps


def test_D2_one_stray_frame_does_not_make_a_field_wide_nor_end_a_sweep() -> None:
    """The field is what is seen again and again: a sweep with a stray pointing stays one, one field stays one."""
    stray = (5.0, 5.0)
    assert course_of(night([*rounds(8), stray])).sweeps
    course = course_of(night([*([(0.0, 0.0), (0.2, 0.0)] * 30), stray]))
    assert course.fields < 2.0
    assert not course.sweeps


def test_D3_a_plan_outweighs_the_course() -> None:
    """Somebody wrote it."""
    assert choose(frames=48, stack_plans=("/in/stack_plan.csv",), course=course_of(night(rounds(8)))).mode == "grid"


NIGHTS: tuple[Callable[[], list[Place]], ...] = (
    lambda: rounds(8),
    lambda: rounds(6, stay=3),
    lambda: rounds(2),
    lambda: one_after_the_other(10),
    lambda: rounds(20, columns=2, rows=1),
)


@given(st.sampled_from(NIGHTS), st.randoms(use_true_random=False))
def test_C7_the_order_of_arrival_leaves_no_trace_in_a_course(
    made: Callable[[], list[Place]], rng: random.Random
) -> None:
    """Times tell the order, and frames of slightly different scale are no exception."""
    frames = [replace(f, scale_arcsec=SCALE + 0.01 * (i % 3)) for i, f in enumerate(night(made()))]
    mixed = list(frames)
    rng.shuffle(mixed)
    assert course_of(mixed) == course_of(frames)


@given(st.sampled_from(NIGHTS), st.floats(0.0, 360.0), st.integers(0, 3))
def test_D2_a_course_is_the_same_wherever_on_the_sky(
    made: Callable[[], list[Place]], ra_deg: float, quarters: int
) -> None:
    """Turned by quarters, moved along in right ascension, over its end too: the same stay, field, loops and verdict."""
    places = made()
    turned = places
    for _ in range(quarters):
        turned = [(-y, x) for x, y in turned]
    moved = [replace(f, ra_deg=((f.ra_deg or 0.0) + ra_deg) % 360.0) for f in night(turned)]
    here, there = course_of(night(places)), course_of(moved)
    assert (there.stay, there.loops, there.sweeps) == (here.stay, here.loops, here.sweeps)
    assert there.fields == pytest.approx(here.fields, abs=0.1)


@given(st.integers(1, 12), st.integers(1, 8))
def test_D2_stays_are_what_was_done_and_a_loop_has_its_frames(loops: int, stay: int) -> None:
    """So many frames in a row at a pointing; ten frames a loop, five the last; the verdict follows from both."""
    frames = night(rounds(loops, stay))
    course = course_of(frames)
    assert course.stay == pytest.approx(stay)
    assert course.loops == 0 or LEAST_FRAMES + TARGET_FRAMES * (course.loops - 1) <= len(frames)
    assert course.sweeps == (stay <= LONGEST_STAY and course.loops >= LEAST_LOOPS)
