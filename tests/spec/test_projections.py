"""Projections of wide mosaics (I6): ours against astropy's (wcslib), for one position and for arrays."""

import math
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaicd import sphere
from zemosaicd.core.wcs_cards import wcs_header
from zemosaicd.model import Grid, Wcs
from zemosaicd.science import projections

CENTRES = [(83.0, 22.0), (0.0, -35.0), (359.9, 0.0), (40.0, 90.0), (211.0, 89.9), (120.0, -90.0), (12.0, -0.001)]
WIDE = (sphere.ZEA, sphere.CAR, sphere.HPX)
SCALE_DEG, TURN_DEG = 0.05, 37.0


def image(projection: str, ra_deg: float, dec_deg: float) -> Wcs:
    """An image of 3 arcmin a pixel, turned."""
    c, s = SCALE_DEG * math.cos(math.radians(TURN_DEG)), SCALE_DEG * math.sin(math.radians(TURN_DEG))
    return Wcs(ra_deg=ra_deg, dec_deg=dec_deg, x_px=100.5, y_px=-20.25, cd=(-c, s, s, c), projection=projection)


def directions(count: int = 4000) -> np.ndarray:
    """(3, n) unit vectors, evenly over the sky."""
    v = np.random.default_rng(5).normal(size=(3, count))
    return v / np.linalg.norm(v, axis=0)


def astropy_of(wcs: Wcs) -> WCS:
    return WCS(fits.Header(wcs_header(wcs)), naxis=2)


@pytest.mark.parametrize("centre", CENTRES, ids=str)
@pytest.mark.parametrize("projection", WIDE)
def test_pixels_are_where_the_cards_that_we_write_say_I6(projection: str, centre: tuple[float, float]) -> None:
    """A direction's pixel is wcslib's, from the cards of the mosaic, to 1e-9 deg, all over the sky."""
    wcs, sky = image(projection, *centre), directions()
    ours = np.array(projections.to_pixels(wcs, sky))
    ra, dec = np.degrees(np.arctan2(sky[1], sky[0])), np.degrees(np.arcsin(sky[2]))
    theirs = np.array(astropy_of(wcs).all_world2pix(ra, dec, 0))
    off = np.hypot(*(ours - theirs)) * SCALE_DEG
    seen = np.isfinite(ours).all(axis=0)
    assert seen.mean() > 0.99
    # Two pixels are one direction on the seam opposite the centre and, in HPX, on the edges of the gores.
    assert (off[seen] < 1e-9).mean() > 0.999


@pytest.mark.parametrize("centre", CENTRES, ids=str)
@pytest.mark.parametrize("projection", WIDE)
def test_the_way_back_is_the_way_there_I6(projection: str, centre: tuple[float, float]) -> None:
    """Direction -> pixel -> direction loses less than 1e-9 deg, for arrays and for one position alike."""
    wcs, sky = image(projection, *centre), directions(600)
    x, y = projections.to_pixels(wcs, sky)
    back = projections.to_sky(wcs, x, y)
    assert np.degrees(np.linalg.norm(back - sky, axis=0)).max() < 1e-7  # ZEA: a square root, next to the antipode
    near = sky.T @ np.array(sphere.direction(*centre)) > -0.9
    assert np.degrees(np.linalg.norm(back - sky, axis=0))[near].max() < 1e-9
    for i in range(0, 600, 7):
        place = sphere.sky_to_pixel(wcs, tuple(sky[:, i]))
        assert place == pytest.approx((x[i], y[i]), abs=1e-9)
        there = sphere.sky_at(wcs, *place)
        assert there == pytest.approx(tuple(back[:, i]), abs=1e-12)


@pytest.mark.parametrize("projection", WIDE)
def test_there_is_no_sky_beyond_a_projection_I6(projection: str) -> None:
    """Pixels that show no sky give none: outside ZEA's disc and the plates, and between HPX's gores."""
    wcs = image(projection, 83.0, 22.0)
    far = {"ZEA": (0.0, 120.0), "CAR": (0.0, 91.0), "HPX": (0.0, 80.0)}[projection]
    a = np.radians(TURN_DEG)
    x, y = (
        wcs.x_px + (-np.cos(a) * far[0] + np.sin(a) * far[1]) / SCALE_DEG,
        wcs.y_px + (np.sin(a) * far[0] + np.cos(a) * far[1]) / SCALE_DEG,
    )
    assert sphere.sky_at(wcs, x, y) is None
    assert np.isnan(projections.to_sky(wcs, np.array([x]), np.array([y]))).all()
    with pytest.raises(ValueError, match="no sky"):
        sphere.pixel_to_sky(wcs, x, y)
    assert sphere.field_radius_deg(Grid(wcs=replace(wcs, x_px=5000.0, y_px=5000.0), width=10001, height=10001)) == 180.0
    with pytest.raises(ValueError, match="no tangent plane"):
        sphere.sky_matrix(wcs)


@pytest.mark.parametrize("projection", [sphere.ZEA, sphere.HPX])
def test_equal_area_means_equal_area_I6(projection: str) -> None:
    """Everywhere on ZEA and HPX a pixel has the same solid angle."""
    wcs = image(projection, 300.0, -60.0)
    x, y = np.random.default_rng(1).uniform(-600, 600, (2, 200))
    there = projections.to_sky(wcs, x, y)
    step = 1e-3
    u = (projections.to_sky(wcs, x + step, y) - projections.to_sky(wcs, x - step, y)) / (2 * step)
    v = (projections.to_sky(wcs, x, y + step) - projections.to_sky(wcs, x, y - step)) / (2 * step)
    area = np.abs((np.cross(u.T, v.T).T * there).sum(axis=0))
    known = np.isfinite(area)
    assert known.sum() > 100
    assert area[known] == pytest.approx(math.radians(sphere.scale_arcsec(wcs) / 3600) ** 2, rel=1e-5)
