"""Satellites cross a frame in straight lines: they are found as lines, far below what a pixel shows (SPEC M6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zemosaicd.model import Trail
from zemosaicd.science.trails import find_trails, own_trails

HEIGHT, WIDTH, SKY, NOISE = 600, 480, 1000.0, 40.0


def night_sky(seed: int, stars: int = 250, slope: float = 0.3) -> np.ndarray:
    """A frame of GRBG colours, a sloping sky, and stars; float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frame = SKY + slope * (x - 0.5 * y) + rng.normal(0.0, NOISE, (HEIGHT, WIDTH))
    frame[0::2, 1::2] -= 200.0
    frame[1::2, 0::2] -= 300.0
    for sx, sy, flux in zip(
        rng.uniform(0, WIDTH, stars), rng.uniform(0, HEIGHT, stars), 300.0 / rng.random(stars) ** 1.2, strict=True
    ):
        left, top = max(0, int(sx) - 12), max(0, int(sy) - 12)
        part = (slice(top, top + 24), slice(left, left + 24))
        frame[part] += flux * np.exp(-((x[part] - sx) ** 2 + (y[part] - sy) ** 2) / 3.0)
    return frame.astype(np.float32)


def with_trail(frame: np.ndarray, angle: float, offset: float, height: float, sigma_px: float = 1.4) -> np.ndarray:
    """The frame with a line x cos + y sin = offset about its middle."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    away = (x - WIDTH / 2) * math.cos(angle) + (y - HEIGHT / 2) * math.sin(angle) - offset
    return (frame + height * np.exp(-0.5 * (away / sigma_px) ** 2)).astype(np.float32)


def distance(trail: Trail, angle: float, offset: float) -> float:
    """How far the found line strays from the true one within the frame, px."""
    ends = []
    for along in np.linspace(-500, 500, 101):
        x = WIDTH / 2 + offset * math.cos(angle) - along * math.sin(angle)
        y = HEIGHT / 2 + offset * math.sin(angle) + along * math.cos(angle)
        if 0 <= x < WIDTH and 0 <= y < HEIGHT:
            ends.append(abs(trail.a * x + trail.b * y + trail.c))
    return max(ends)


@given(
    angle=st.floats(0.0, math.pi), offset=st.floats(-120.0, 120.0), height=st.floats(3.0, 40.0), seed=st.integers(0, 99)
)
@example(angle=1.6, offset=-45.0, height=4.0, seed=19)  # along rows of cells, between two of them
@example(angle=1.625, offset=3.0, height=4.0, seed=1)
@example(angle=1.625, offset=-45.0, height=4.0, seed=25)
@example(angle=0.0, offset=17.0, height=3.0, seed=1)  # a sky that slopes across it
@settings(max_examples=25)
def test_M6_a_faint_trail_is_found_where_it_is(angle: float, offset: float, height: float, seed: int) -> None:
    """At any angle, from three sigma of a pixel up (the frame is small): one line, within 3 px, whose mask holds it."""
    frame = with_trail(night_sky(seed), angle, offset, height * NOISE)
    (trail,) = find_trails(frame)
    assert distance(trail, angle, offset) < 3.0
    assert trail.half_width_px > 3.0 * 1.4 + distance(trail, angle, offset) - 2.0
    assert trail.half_width_px < 20.0
    assert trail.peak_adu == pytest.approx(height * NOISE, rel=0.35)


@given(seed=st.integers(0, 10_000), slope=st.floats(-2.0, 2.0), stars=st.sampled_from([0, 60, 250, 800]))
@settings(max_examples=30)
def test_a_sky_without_trails_has_none(seed: int, slope: float, stars: int) -> None:
    """Neither stars in any number nor a steep sky make a line."""
    assert find_trails(night_sky(seed, stars, slope)) == ()


def test_several_trails_are_told_apart() -> None:
    """Three lines that cross: three trails."""
    frame = night_sky(3)
    lines = [(0.3, 20.0), (1.4, -60.0), (2.6, 90.0)]
    for angle, offset in lines:
        frame = with_trail(frame, angle, offset, 6 * NOISE)
    trails = find_trails(frame)
    assert len(trails) == 3
    for angle, offset in lines:
        assert min(distance(t, angle, offset) for t in trails) < 3.0


def test_a_nebula_and_missing_data_are_no_trails() -> None:
    """A bright round cloud, and a corner without data."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frame = night_sky(5) + (20 * NOISE * np.exp(-((x - 200) ** 2 + (y - 300) ** 2) / 2 / 60**2)).astype(np.float32)
    frame[:150, :120] = np.nan
    assert find_trails(frame) == ()


@pytest.mark.parametrize("frame", [np.full((300, 300), 7.0, np.float32), np.full((300, 300), np.nan, np.float32)])
def test_F30_a_frame_without_sky_has_no_trails(frame: np.ndarray) -> None:
    """Constant, or empty: nothing, and no exception."""
    assert find_trails(frame) == ()
    assert find_trails(frame[:100, :100]) == ()


def line(angle: float, offset: float) -> Trail:
    a, b = math.cos(angle), math.sin(angle)
    return Trail(a=a, b=b, c=-offset - a * 240 - b * 300, half_width_px=6.0, peak_adu=50.0, sigma=30.0)


def test_what_many_frames_show_is_no_satellite() -> None:
    """Lines at one place of the sky (an edge of a nebula) or of the sensor (a bad column) stay in the picture."""
    shifts = [(7.0 * i, -5.0 * i) for i in range(8)]
    to_common = [(1.0, 0.0, dx, 0.0, 1.0, dy, 0.0, 0.0, 1.0) for dx, dy in shifts]
    on_sky = [line(0.7, 30.0 - dx * math.cos(0.7) - dy * math.sin(0.7)) for dx, dy in shifts]
    on_sensor = [line(0.0, -100.0)] * 8
    satellites = [line(1.2 + 0.2 * i, 12.0 * i) for i in range(8)]
    given = [(on_sky[i], satellites[i], on_sensor[i]) for i in range(8)]
    assert own_trails(given, to_common, (WIDTH, HEIGHT)) == [(s,) for s in satellites]
    assert own_trails(given[:2], to_common[:2], (WIDTH, HEIGHT)) == given[:2]  # two frames cannot tell
