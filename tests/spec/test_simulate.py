"""The simulated night: raw frames with a known truth, the same every time, with a header like the real thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.spatial import cKDTree

from tests.scenes import repair_hot_pixels
from zemosaicd import simulate, sphere
from zemosaicd.science.stars import find_stars
from zemosaicd.simulate import Night, pixel_positions, plan_frame, render, sky_of
from zemosaicd.sphere import precess_to_j2000
from zemosaicd.work.catalogue import read_cone

NIGHT = Night(frames=3)


def test_simulate_writes_a_frame_like_a_seestars(tmp_path: Path) -> None:
    """uint16 with BZERO 32768, Bayer pattern, pointing, scale, time and target in the header; progress is told."""
    told: list[tuple[int, int]] = []
    frames = simulate.simulate(NIGHT, tmp_path / "new", lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(f.path.name for f in frames)
    with fits.open(frames[0].path) as hdus:
        header, data = hdus[0].header, hdus[0].data
        assert data.dtype == np.uint16
        assert data.shape == (640, 480)
        wanted = {"BITPIX": 16, "BAYERPAT": "GRBG", "EXPTIME": 10.0, "FILTER": "IRCUT", "OBJECT": "Sadr"}
        assert {k: header[k] for k in wanted} == wanted
        scale = 206.264806 * header["XPIXSZ"] / header["FOCALLEN"]
        assert scale == pytest.approx(NIGHT.scale_arcsec, rel=0.02)
        assert "EQMODE" not in header


def test_simulate_header_pointing_is_of_date_and_a_little_off(tmp_path: Path) -> None:
    """RA and DEC, precessed to J2000, lie `pointing_error_deg` from the frame's true centre."""
    frame = simulate.simulate(replace(NIGHT, frames=1, pointing_error_deg=0.05), tmp_path)[0]
    header = fits.getheader(frame.path)
    ra, dec = precess_to_j2000(header["RA"], header["DEC"], 2025.62)
    centre = sphere.direction(frame.wcs.ra_deg, frame.wcs.dec_deg)
    assert sphere.separation_deg(sphere.direction(ra, dec), centre) == pytest.approx(0.05, abs=0.001)


def test_simulate_is_a_function_of_the_night_and_the_number() -> None:
    """The same night gives the same pixels; another seed gives others; frames do not depend on one another."""
    sky = sky_of(NIGHT)
    truth = plan_frame(NIGHT, 2, Path())
    once = render(NIGHT, sky, truth, 2)
    np.testing.assert_array_equal(once, render(NIGHT, sky_of(NIGHT), plan_frame(NIGHT, 2, Path()), 2))
    other = replace(NIGHT, seed=2)
    assert (once != render(other, sky_of(other), plan_frame(other, 2, Path()), 2)).any()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("bayer", ["GRBG", ""])
def test_simulate_stars_lie_where_the_truth_says(bayer: str, mirrored: bool) -> None:
    """Detected stars fall on catalogue stars through the true WCS, without offset, and 15 or more are in the field."""
    night = replace(NIGHT, bayer=bayer, mirrored=mirrored, rotation_deg_min=3.0)
    truth = plan_frame(night, 2, Path())
    clean, _ = repair_hot_pixels(render(night, sky_of(night), truth, 2), bool(bayer))
    stars = find_stars(clean, bayer)
    known = read_cone(night.ra_deg, night.dec_deg, 1.0)
    x, y = pixel_positions(truth.wcs, known.ra_deg, known.dec_deg)
    distance, index = cKDTree(np.column_stack([x, y])).query(np.column_stack([stars.x, stars.y]))
    near = distance < 1.0
    assert near.sum() >= 15
    off = np.column_stack([stars.x - x[index], stars.y - y[index]])[near]
    assert np.abs(np.median(off, axis=0)).max() < 0.03
    v = sphere.pixel_to_sky(truth.wcs, 100.0, 200.0)
    assert sphere.sky_to_pixel(truth.wcs, v) == pytest.approx((100.0, 200.0), abs=1e-6)


def test_simulate_noise_is_that_of_photons_and_readout() -> None:
    """The scatter of a star-free flat sky is sqrt(sky + read noise squared)."""
    night = replace(NIGHT, mag10_e=1e-3, nebula_e=0.0, gradient=0.0, hot_pixels_ppm=0.0, bayer="", vignetting=0.0)
    pixels = render(night, sky_of(night), plan_frame(night, 0, Path()), 0).astype(np.float64)
    electrons = (pixels - night.bias_adu) * night.electrons_per_adu
    assert electrons.mean() == pytest.approx(night.sky_e, rel=0.01)
    assert electrons.std() == pytest.approx(np.sqrt(night.sky_e + night.read_noise_e**2), rel=0.02)


def test_simulate_hot_pixels_stay_on_the_sensor_and_trails_cross_where_asked() -> None:
    """Hot pixels are at the same places in every frame; every n-th frame has a satellite."""
    night = replace(NIGHT, hot_pixels_ppm=500.0, trail_every=2, frames=2)
    sky = sky_of(night)
    frames = [plan_frame(night, i, Path()) for i in (0, 1)]
    assert [f.trail for f in frames] == [False, True]
    bare = replace(night, hot_pixels_ppm=0.0, trail_every=0)
    extra = []
    for i, f in enumerate(frames):
        without = render(bare, sky, replace(f, trail=False), i)
        extra.append(render(night, sky, replace(f, trail=False), i).astype(int) - without)
    np.testing.assert_array_equal(extra[0] > 100, extra[1] > 100)
    assert (extra[0] > 100).sum() > 100
    satellite = render(night, sky, frames[1], 1).astype(int) - render(night, sky, replace(frames[1], trail=False), 1)
    assert (satellite > 100).sum() > 300


def test_simulate_panels_overlap_as_asked() -> None:
    """Neighbouring panels share the asked part of their side; each panel's first frame is not dithered."""
    night = replace(NIGHT, rows=2, cols=2, frames=1, overlap=0.25, position_angle_deg=0.0)
    frames = [plan_frame(night, i, Path()) for i in range(4)]
    x, y = pixel_positions(
        frames[0].wcs, np.array([f.wcs.ra_deg for f in frames]), np.array([f.wcs.dec_deg for f in frames])
    )
    np.testing.assert_allclose(x - x[0], [0, 360, 0, 360], atol=2)
    np.testing.assert_allclose(y - y[0], [0, 0, 480, 480], atol=2)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"bayer": "GRXG"}, {"width": 481}, {"overlap": 1.0}])
def test_simulate_refuses_an_impossible_night(wrong: dict[str, object]) -> None:
    """A night that cannot be is refused before anything is written."""
    with pytest.raises(ValueError, match=r"must|needs"):
        Night(**wrong)  # type: ignore[arg-type]
