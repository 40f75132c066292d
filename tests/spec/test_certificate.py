"""What a mosaic's certificate says is what lies in its pixels (issue 3, point 8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests import values
from zemosaicd import sphere
from zemosaicd.model import Grid
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.certificate import certify
from zemosaicd.work.fitswrite import FitsWriter, ImageSpec, write_fits

WIDTH, HEIGHT, SCALE, FWHM = 900, 700, 3.0, 2.8
GRID = Grid(wcs=values.wcs_at(83.6, 22.0, scale_arcsec=SCALE, width=WIDTH, height=HEIGHT), width=WIDTH, height=HEIGHT)


@contextmanager
def mosaic(path: Path, *, sigma: float = 5.0, shift_px: float = 0.0, counts: int = 10) -> Iterator[FitsWriter]:
    """A mosaic of the catalogue's own stars in noise, seen in its left half by `counts` frames, in a strip by 2."""
    rng = np.random.default_rng(2)
    picture = rng.normal(100.0, sigma, (3, HEIGHT, WIDTH)).astype(np.float32)
    stars = read_cone(83.6, 22.0, 1.0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    for ra, dec in zip(stars.ra_deg, stars.dec_deg, strict=True):
        place = sphere.sky_to_pixel(GRID.wcs, sphere.direction(float(ra), float(dec)))
        if place and -10 < place[0] < WIDTH + 10 and -10 < place[1] < HEIGHT + 10:
            r2 = (x - place[0] - shift_px) ** 2 + (y - place[1]) ** 2
            near = r2 < 400
            picture[:, near] += 2000.0 * np.exp(-r2[near] * 4 * np.log(2) / FWHM**2)
    seen = np.zeros((HEIGHT, WIDTH), np.uint16)
    seen[:, : WIDTH // 2], seen[:100, WIDTH // 2 :] = counts, 2
    picture[:, seen == 0] = np.nan
    weight = np.where(seen > 0, np.float32(1 / 5.0**2), np.float32(0))
    cube = (3, HEIGHT, WIDTH)
    images = [
        ImageSpec(name="", shape=cube, wcs=GRID.wcs, cards={"ASTRRMS": (None, "rms"), "OBJECT": "M 1"}),
        ImageSpec(name="WEIGHT", shape=cube),
        ImageSpec(name="COVERAGE", shape=(HEIGHT, WIDTH), dtype="uint16"),
    ]
    with write_fits(path, images) as writer:
        writer.write("", 0, picture)
        writer.write("WEIGHT", 0, np.repeat(weight[np.newaxis], 3, axis=0))
        writer.write("COVERAGE", 0, seen)
        yield writer


def test_noise_astrometry_and_coverage_are_measured(tmp_path: Path) -> None:
    """Stars where they should be, noise as promised, the share that was seen and how deeply."""
    with mosaic(tmp_path / "m.fits") as writer:
        told = certify(writer, GRID, 3, FWHM, counts_frames=True)
    assert told["noise"]["adu"] == pytest.approx([5.0] * 3, rel=0.05)
    assert told["noise"]["ratio"] == pytest.approx([1.0] * 3, abs=0.05)
    stars = told["astrometry"]
    assert stars["wanted"] >= 10
    assert stars["stars"] == stars["wanted"]
    assert stars["rms_arcsec"] < 0.05 * SCALE
    seen = 0.5 + 0.5 * 100 / HEIGHT
    assert told["coverage"]["seen"] == pytest.approx(seen, abs=0.005)
    assert told["coverage"]["half_depth"] == pytest.approx(0.5 / seen, abs=0.005)
    assert (told["coverage"]["deepest"], told["coverage"]["median"]) == (10, 10.0)


def test_a_mosaic_that_lies_wrong_shows_it(tmp_path: Path) -> None:
    """Stars 0.7 px off are 0.7 px off; stars far off are not found at all."""
    with mosaic(tmp_path / "m.fits", shift_px=0.7) as writer:
        off = certify(writer, GRID, 3, FWHM, counts_frames=True)["astrometry"]
    assert off["rms_arcsec"] == pytest.approx(0.7 * SCALE, rel=0.03)
    with mosaic(tmp_path / "far.fits", shift_px=9.0) as writer:
        far = certify(writer, GRID, 3, FWHM, counts_frames=True)["astrometry"]
    assert far["stars"] < 0.3 * far["wanted"]


def test_noise_that_weights_do_not_explain_shows(tmp_path: Path) -> None:
    """Twice the noise that WEIGHT promises."""
    with mosaic(tmp_path / "m.fits", sigma=10.0) as writer:
        told = certify(writer, GRID, 3, FWHM, counts_frames=True)
    assert told["noise"]["ratio"] == pytest.approx([2.0] * 3, rel=0.05)


def test_cards_that_are_known_last_are_put_in_their_places(tmp_path: Path) -> None:
    """A picture's header keeps a place for them; what was not kept a place for is refused, and pixels stay."""
    with mosaic(tmp_path / "m.fits") as writer:
        corner = writer.window("", (3, 5, 40, 20))
        writer.describe("", {"ASTRRMS": (0.25, "rms")})
        with pytest.raises(ValueError, match=r"no place was kept for .*SEAMSIG"):
            writer.describe("", {"SEAMSIG": 1.0})
        with pytest.raises(IndexError, match="COVERAGE"):
            writer.window("COVERAGE", (0, 0, WIDTH + 1, 1))
    with fits.open(tmp_path / "m.fits") as hdus:
        hdus.verify("exception")
        assert (hdus[0].header["ASTRRMS"], hdus[0].header["OBJECT"]) == (0.25, "M 1")
        np.testing.assert_array_equal(hdus[0].data[:, 5:20, 3:40], corner)
