"""A tile's own coordinates: any projection of FITS goes to the grid where astropy says (D4)."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from tests import values
from zemosaicd import sphere
from zemosaicd.model import Grid, Rejected
from zemosaicd.science.placement import MAX_ERROR_PX, place
from zemosaicd.work.skymaps import grid_to_image, image_to_grid, sky_map, tangent_wcs

W, H = 400, 300
RA, DEC = 83.8, -5.4
SCALE = 5.0 / 3600
GRID = Grid(wcs=values.wcs_at(RA, DEC, scale_arcsec=5.0, width=600, height=500), width=600, height=500)


def cards(kind: str, **more: object) -> dict[str, object]:
    """A header of this projection, its reference point in the middle of the image."""
    return {
        "NAXIS1": W, "NAXIS2": H, "CTYPE1": f"RA---{kind}", "CTYPE2": f"DEC--{kind}", "CRVAL1": RA, "CRVAL2": DEC,
        "CRPIX1": 200.5, "CRPIX2": 150.5, "CD1_1": -SCALE, "CD1_2": 0.1 * SCALE, "CD2_1": 0.1 * SCALE, "CD2_2": SCALE,
        "RADESYS": "ICRS", **more,
    }  # fmt: skip


SIP = {"A_ORDER": 2, "A_2_0": 2e-6, "A_1_1": -1e-6, "B_ORDER": 2, "B_0_2": 3e-6, "B_2_0": 1e-6}
TPV = {"PV1_1": 1.0, "PV1_7": 40.0, "PV2_1": 1.0, "PV2_4": 0.002}
HEADERS = {
    "TAN": cards("TAN"),
    "SIN": cards("SIN"),
    "ZEA": cards("ZEA"),
    "STG": cards("STG"),
    "CAR": cards("CAR", CRVAL2=0.0, CRPIX2=150.5 + 5.4 / SCALE),
    "SIP": cards("TAN-SIP", **SIP),
    "TPV": cards("TPV", **TPV),
    "B1950": cards("TAN", RADESYS="FK4", EQUINOX=1950.0),
    "galactic": cards("TAN") | {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "CRVAL1": 208.6, "CRVAL2": -19.5},
}


def by_astropy(header: dict[str, object], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vectors (3, n) of pixels, ICRS."""
    from astropy.io import fits

    there = WCS(fits.Header(header)).pixel_to_world(x, y).icrs
    return np.asarray(there.cartesian.xyz.value)


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_D4_every_projection_goes_where_astropy_says(name: str) -> None:
    """Pixel to grid, and grid to pixel through the lattice of a placement: right to 0.01 px all over the image."""
    header = HEADERS[name]
    sky = sky_map(header, W, H)
    assert (sky.wcs is not None) == (name == "TAN")
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, W - 1, 9), np.linspace(0, H - 1, 7)))
    grid_x, grid_y = image_to_grid(sky, GRID)(x, y)
    truth = [sphere.sky_to_pixel(GRID.wcs, tuple(v)) for v in by_astropy(header, x, y).T]
    np.testing.assert_allclose(np.stack([grid_x, grid_y], axis=1), np.array(truth), atol=0.005)
    box = (int(grid_x.min()) - 2, int(grid_y.min()) - 2, int(grid_x.max()) + 3, int(grid_y.max()) + 3)
    there = place(grid_to_image(sky, GRID), box, W, H)
    assert there.error_px <= MAX_ERROR_PX
    exact = grid_to_image(sky, GRID)(grid_x, grid_y)
    np.testing.assert_allclose(np.stack(exact), np.stack([x, y]), atol=0.01)


def test_D4_the_tangent_plane_of_a_tile_serves_planning() -> None:
    """Scale, turn and middle of a SIN image as those of the TAN that touches it there."""
    wcs = tangent_wcs(sky_map(HEADERS["SIN"], W, H), W, H)
    truth = sphere.position(tuple(by_astropy(HEADERS["SIN"], np.array([199.5]), np.array([149.5]))[:, 0]))
    assert (wcs.ra_deg, wcs.dec_deg) == pytest.approx(truth, abs=1e-9)
    assert (wcs.x_px, wcs.y_px) == (199.5, 149.5)
    assert wcs.cd == pytest.approx((-SCALE, 0.1 * SCALE, 0.1 * SCALE, SCALE), rel=1e-4, abs=1e-4 * SCALE)


@pytest.mark.parametrize("kind", ["SIN", "TAN-SIP", "ZEA"])
def test_D4_the_far_side_of_the_sky_is_in_no_image(kind: str) -> None:
    """A projection that folds the sky puts nothing of its far side into an image."""
    sky = sky_map(cards(kind, **(SIP if "SIP" in kind else {})), W, H)
    opposite = -np.array(sphere.direction(RA, DEC))[:, np.newaxis]
    assert np.isnan(sky.to_image(opposite)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"CTYPE1": "", "CTYPE2": ""},
        {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"},
        {"CTYPE1": "RA---XYZ"},
        {"CD2_1": 0, "CD2_2": 0},
    ],
)
def test_D4_a_tile_without_a_place_on_the_sky_is_refused(changes: dict[str, object]) -> None:
    """No celestial axes, an unknown projection, a singular matrix: a rule, not a crash."""
    with pytest.raises(Rejected) as caught:
        sky_map(cards("SIN") | changes, W, H)
    assert caught.value.reason.rule == "tile.wcs"
