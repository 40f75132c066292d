"""Where images lie on a grid: exact to a hundredth of a pixel in any projection, exact to the bit on the lattice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import values
from zemosaicd import sphere
from zemosaicd.science.placement import MAX_ERROR_PX, homography_transform, place


def test_phase5_two_tangent_planes_are_placed_exactly() -> None:
    """A lattice every 16 px stands for the homography to a millionth of a pixel."""
    grid = values.wcs_at(83.8, -5.4, width=4000, height=3000)
    tile = values.wcs_at(84.1, -5.2, turn_deg=7.0, width=1080, height=1920)
    there = place(homography_transform(sphere.homography(grid, tile)), (0, 0, 4000, 3000), 1080, 1920)
    assert there.shift is None
    assert there.step == 16
    assert there.error_px < 1e-5
    assert there.area == pytest.approx(1.0, abs=1e-3)


def test_phase5_a_curved_map_gets_a_finer_lattice() -> None:
    """Where 16 px would be off by more than 0.01 px the lattice is made finer until it is not."""
    there = place(lambda x, y: (x + 3e-4 * y * y, y), (0, 0, 200, 200), 200, 200)
    assert there.step < 16
    assert there.error_px <= MAX_ERROR_PX


@given(dx=st.integers(-500, 500), dy=st.integers(-500, 500), off=st.floats(-1e-4, 1e-4))
@settings(max_examples=30, deadline=None)
def test_phase5_an_image_on_the_grids_own_pixels_is_known(dx: int, dy: int, off: float) -> None:
    """A shift by whole pixels is found, through any rounding of a WCS; one by broken pixels is none."""
    box = (0, 0, 300, 200)
    assert place(lambda x, y: (x - dx + off, y - dy), box, 300, 200).shift == (dx, dy)
    assert place(lambda x, y: (x - dx - 0.01, y - dy), box, 300, 200).shift is None
    assert place(lambda x, y: (1.0001 * x - dx, y - dy), box, 300, 200).shift is None


@given(
    angle=st.floats(-180.0, 180.0), dx=st.floats(-100.0, 300.0), dy=st.floats(-100.0, 300.0), row0=st.integers(0, 250),
    rows=st.integers(1, 60), scale=st.floats(0.3, 3.0),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_M5_a_band_asks_for_all_that_it_needs(
    angle: float, dx: float, dy: float, row0: int, rows: int, scale: float
) -> None:
    """Every pixel of the band that lies in the image lies in the columns and rows that are named."""
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    there = place(lambda x, y: (c * x - s * y + dx, s * x + c * y + dy), (0, 0, 320, 310), 250, 180)
    (left, right), (top, bottom) = there.columns_and_rows(row0, row0 + rows)
    y, x = np.mgrid[row0 : min(310, row0 + rows), 0:320]
    u, v = c * x - s * y + dx, s * x + c * y + dy
    seen = (u >= -0.5) & (u < 249.5) & (v >= -0.5) & (v < 179.5)
    if seen.any():
        assert left <= x[seen].min()
        assert x[seen].max() < right
        assert top <= max(0, math.floor(v[seen].min() + 0.5))
        assert min(179, math.floor(v[seen].max() + 0.5)) < bottom


def test_phase5_what_cannot_be_placed_is_nowhere() -> None:
    """Behind the tangent plane there are no positions: such a band asks for nothing."""
    grid = values.wcs_at(0.0, 0.0, scale_arcsec=3600.0, width=100, height=100)
    far = values.wcs_at(180.0, 0.0, width=200, height=200)
    there = place(homography_transform(sphere.homography(grid, far)), (0, 0, 100, 100), 200, 200)
    assert there.columns_and_rows(0, 100) == ((0, 0), (0, 0))
    assert np.isnan(there.nodes).all()
