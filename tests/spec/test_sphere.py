"""Geometry on the sphere, held against astropy's celestial arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import values
from zemosaicd import sphere
from zemosaicd.core.wcs_cards import wcs_header
from zemosaicd.model import Distortion, Grid, Wcs

PLACES = [(0.0, 0.0), (359.9999, 12.0), (0.0001, -45.0), (83.8, -5.4), (120.0, 89.9), (300.0, -89.95), (45.0, 90.0)]
POINTS = [(0.0, 0.0), (95.0, 0.0), (95.0, 63.0), (0.0, 63.0), (47.5, 31.5), (-300.25, 511.5)]
RA, DEC = st.floats(0.0, 360.0), st.floats(-90.0, 90.0)


def astropy_wcs(wcs: Wcs) -> WCS:
    """The same solution as astropy reads it from our cards."""
    return WCS(fits.Header(list(wcs_header(wcs).items())))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("turn_deg", [0.0, 33.0, 180.0])
def test_pixels_and_sky_agree_with_astropy(place: tuple[float, float], turn_deg: float) -> None:
    """At the equator, across RA 0 and at both poles, to 1e-6 px and back."""
    wcs = values.wcs_at(*place, turn_deg=turn_deg, scale_arcsec=12.0)
    theirs = astropy_wcs(wcs)
    for x, y in POINTS:
        ra, dec = theirs.pixel_to_world_values(x, y)
        v = sphere.pixel_to_sky(wcs, x, y)
        assert sphere.separation_deg(v, sphere.direction(float(ra), float(dec))) < 1e-6 * 12.0 / 3600.0
        assert sphere.sky_to_pixel(wcs, v) == pytest.approx((x, y), abs=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_a_homography_equals_the_way_over_the_sky(place: tuple[float, float]) -> None:
    """Tangent plane to tangent plane is exactly one 3x3 matrix: the way over astropy gives the same to 1e-6 px."""
    source = values.wcs_at(*place, turn_deg=20.0)
    ra, dec = sphere.position(sphere.pixel_to_sky(source, 400.0, -250.0))
    target = values.wcs_at(ra, dec, turn_deg=100.0, scale_arcsec=2.5)
    matrix = sphere.homography(source, target)
    first, second = astropy_wcs(source), astropy_wcs(target)
    for x, y in POINTS:
        expected = second.world_to_pixel_values(*first.pixel_to_world_values(x, y))
        assert sphere.apply_plane(matrix, x, y) == pytest.approx([float(v) for v in expected], abs=1e-6)


@given(RA, DEC, RA, DEC)
@settings(max_examples=100)
def test_separations_agree_with_astropy(ra: float, dec: float, ra2: float, dec2: float) -> None:
    """Any two places, near or far."""
    ours = sphere.separation_deg(sphere.direction(ra, dec), sphere.direction(ra2, dec2))
    theirs = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(ra2, dec2, unit="deg")).deg
    assert ours == pytest.approx(float(theirs), abs=1e-10)


def test_small_separations_keep_their_digits() -> None:
    """A microarcsecond is a microarcsecond, at the equator and beside the pole."""
    tiny = 1e-6 / 3600.0
    for dec in (0.0, 60.0, 89.9):
        a, b = sphere.direction(10.0, dec), sphere.direction(10.0, dec + tiny)
        assert sphere.separation_deg(a, b) == pytest.approx(tiny, rel=1e-4)


@given(RA, DEC)
@settings(max_examples=100)
def test_directions_and_positions_are_inverse(ra: float, dec: float) -> None:
    """RA comes back in [0, 360), whatever the place."""
    back = sphere.position(sphere.direction(ra, dec))
    assert 0.0 <= back[0] < 360.0
    assert sphere.separation_deg(sphere.direction(*back), sphere.direction(ra, dec)) < 1e-12


def test_a_mean_knows_neither_ra_wrap_nor_pole() -> None:
    """Half-way between 359 and 1 degree is 0, not 180; between two sides of the pole it is the pole."""
    ra, dec = sphere.position(sphere.mean_direction([sphere.direction(359.0, 0.0), sphere.direction(1.0, 0.0)]))
    assert (min(ra, 360.0 - ra), dec) == pytest.approx((0.0, 0.0), abs=1e-9)
    over = sphere.mean_direction([sphere.direction(30.0, 89.0), sphere.direction(210.0, 89.0)])
    assert sphere.position(over)[1] == pytest.approx(90.0, abs=1e-9)


def test_a_mean_that_cancels_is_still_a_direction() -> None:
    """Opposite directions give a unit vector, not a division by zero."""
    assert sphere.mean_direction([sphere.direction(0.0, 0.0), sphere.direction(180.0, 0.0)]) == (0.0, 0.0, 1.0)


def test_the_far_side_has_no_pixel() -> None:
    """A direction 90 degrees or more from the tangent point is None, not a mirror image."""
    wcs = values.wcs_at(10.0, 20.0)
    assert sphere.sky_to_pixel(wcs, sphere.direction(190.0, -20.0)) is None
    assert sphere.sky_to_pixel(wcs, sphere.direction(190.0, 69.9)) is None
    assert sphere.sky_to_pixel(wcs, sphere.direction(10.0, 20.0)) == pytest.approx((wcs.x_px, wcs.y_px))


@given(st.lists(st.floats(-3, 3), min_size=9, max_size=9))
@settings(max_examples=100)
def test_inverse_is_the_inverse_or_says_that_there_is_none(numbers: list[float]) -> None:
    """Any 3x3 matrix that is not nearly singular, against numpy; a singular one is a ValueError."""
    m = np.array(numbers).reshape(3, 3)
    if np.linalg.cond(m) < 1e6:
        ours = sphere.inverse(tuple(numbers))  # type: ignore[arg-type]
        np.testing.assert_allclose(np.array(ours).reshape(3, 3), np.linalg.inv(m), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="singular"):
        sphere.inverse((1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 0.0, 0.0, 1.0))


def test_scale_angle_and_radius_of_a_grid() -> None:
    """They are those that the grid was made with."""
    grid = Grid(wcs=values.wcs_at(10.0, 60.0, turn_deg=310.0), width=values.WIDTH, height=values.HEIGHT)
    assert sphere.scale_arcsec(grid.wcs) == pytest.approx(values.SCALE_ARCSEC)
    assert sphere.position_angle_deg(grid.wcs) == pytest.approx(310.0)
    half = math.hypot(values.WIDTH / 2, values.HEIGHT / 2) * values.SCALE_ARCSEC / 3600.0
    assert sphere.field_radius_deg(grid) == pytest.approx(half, rel=1e-6)
    assert sphere.position(sphere.centre_of(grid)) == pytest.approx((10.0, 60.0))
    assert len(sphere.footprint(grid)) == 4


def test_a_distortion_goes_from_the_ideal_pixel_to_the_recorded_one() -> None:
    """Outward in the corner by what it says, an eighth of that half way there, nothing in the middle."""
    lens = values.radial(1.5, 1081, 1921)
    middle, radius = (540.0, 960.0), math.hypot(1081, 1921) / 2
    assert sphere.recorded_pixel(lens, *middle) == middle
    for share in (1.0, 0.5):
        x, y = middle[0] + share * radius * 0.6, middle[1] - share * radius * 0.8
        moved = np.subtract(sphere.recorded_pixel(lens, x, y), (x, y))
        assert moved == pytest.approx((1.5 * share**3 * 0.6, -1.5 * share**3 * 0.8))


@given(st.floats(-0.05, 1.05), st.floats(-0.05, 1.05))
def test_every_term_of_a_distortion_is_undone_by_its_inverse(x: float, y: float) -> None:
    """To 1e-9 px on the sensor and round it."""
    lens = values.crooked(640, 480)
    place = (x * 640, y * 480)
    assert sphere.recorded_pixel(lens, *sphere.ideal_pixel(lens, *place)) == pytest.approx(place, abs=1e-9)
    assert np.abs(np.subtract(sphere.recorded_pixel(lens, *place), place)).max() <= lens.reach_px


def test_a_distortion_that_could_fold_is_refused() -> None:
    """Shifts that reach beyond the border on which they hold, and polynomials of another degree, are no distortion."""
    with pytest.raises(ValueError, match="the most"):
        values.radial(20.0, 640, 480)
    with pytest.raises(ValueError, match="7 coefficients"):
        Distortion(width=640, height=480, x_px=(0.1,), y_px=(0.1,))


def test_an_outline_has_corners_and_the_middles_of_its_edges() -> None:
    """Eight points in order round the edge, half a pixel outside the outermost pixel centres."""
    ring = sphere.edge_points(11, 7)
    assert ring[::2] == sphere.corners(11, 7)
    assert ring[1::2] == ((5.0, -0.5), (10.5, 3.0), (5.0, 6.5), (-0.5, 3.0))
