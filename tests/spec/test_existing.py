"""Mode existing: a folder of anybody's master tiles becomes one level, sharp, whole picture (D4)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tests import scenes, strangers, values
from tests.strangers import NOISE, SKY, SKY_STARS, H, Stranger, W
from zemosaicd.model import Plan
from zemosaicd.work.existing import common_lattice


def picture_of(path: Path) -> tuple[np.ndarray, WCS]:
    with fits.open(path) as hdus:
        return np.asarray(hdus[0].data, np.float64), WCS(hdus[0].header, naxis=2)


def flux_errors(path: Path, gain: float) -> np.ndarray:
    """Relative flux errors of the bright, lone stars of the sky that lie in the mosaic."""
    picture, wcs = picture_of(path)
    x, y = wcs.all_world2pix(SKY_STARS[:, 0], SKY_STARS[:, 1], 0)
    errors = []
    for i in np.flatnonzero(SKY_STARS[:, 2] > 5000):
        apart = np.hypot(x - x[i], y - y[i])
        inside = 14 < x[i] < picture.shape[1] - 15 and 14 < y[i] < picture.shape[0] - 15
        if not inside or (apart < 22).sum() > 1:
            continue
        cut = picture[int(y[i]) - 14 : int(y[i]) + 15, int(x[i]) - 14 : int(x[i]) + 15]
        if np.isfinite(cut).all():
            flux = scenes.flux(cut, x[i] - int(x[i]) + 14, y[i] - int(y[i]) + 14, radius=8.0)
            errors.append(flux / (gain * SKY_STARS[i, 2]) - 1)
    assert len(errors) >= 5
    return np.array(errors)


@pytest.mark.parametrize("kind", ["TAN", "SIN", "ZEA"])
def test_D4_tiles_of_other_gains_levels_and_slopes_become_one_picture(tmp_path: Path, kind: str) -> None:
    """Whatever the projection: no seam, stars of one scale to a percent, the sky level to a fraction of the noise."""
    plan = strangers.plan(tmp_path / "w", strangers.write(tmp_path / "in", strangers.square(kind)))
    path, made = strangers.mosaic(tmp_path / "w", plan)
    seams = made.figures["seams"]
    assert isinstance(seams, dict)
    assert len(seams["pairs"]) == 6
    assert seams["parts"] == 1
    assert max(abs(p["before_adu"][0]) for p in seams["pairs"]) > 15 * NOISE
    assert seams["worst_sigma"] < 0.1
    gain = (1.05 * 0.96 * 1.02 * 0.98) ** 0.25
    errors = flux_errors(path, gain)
    assert abs(np.median(errors)) < 0.01
    assert np.std(errors) < 0.015
    picture, _ = picture_of(path)
    blocks = [np.nanmedian(picture[y : y + 30, x : x + 30]) for y in range(30, 270, 40) for x in range(30, 330, 40)]
    y, x = (v.ravel() for v in np.meshgrid(range(30, 270, 40), range(30, 330, 40), indexing="ij"))
    design = np.stack([np.ones(len(x)), x, y], axis=1)
    fit, *_ = np.linalg.lstsq(design, np.array(blocks), rcond=None)
    assert np.abs(np.array(blocks) - design @ fit).max() < 0.5 * NOISE, "but for one common plane"


def test_D4_no_pixel_that_a_tile_has_is_missing(tmp_path: Path) -> None:
    """The mosaic's grid holds all tiles, and every pixel inside a tile's outline is seen; coverage stays absent."""
    tiles = strangers.square()
    plan = strangers.plan(tmp_path / "w", strangers.write(tmp_path / "in", tiles))
    path, _ = strangers.mosaic(tmp_path / "w", plan)
    picture, wcs = picture_of(path)
    y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]]
    sky = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    covered = np.zeros(x.size, bool)
    corners = 0
    for tile in tiles:
        own = WCS(strangers.header_of(tile), naxis=2)
        u, v = own.all_world2pix(*sky, 0)
        covered |= (u > -0.499) & (u < W - 0.501) & (v > -0.499) & (v < H - 0.501)
        gx, gy = wcs.all_world2pix(*own.all_pix2world([0, W - 1, 0, W - 1], [0, 0, H - 1, H - 1], 0), 0)
        corners += int(
            ((gx > -0.5) & (gx < picture.shape[1] - 0.5) & (gy > -0.5) & (gy < picture.shape[0] - 0.5)).sum()
        )
    assert corners == 16
    assert np.isfinite(picture).ravel()[covered].all()
    with fits.open(path) as hdus:
        assert [h.name for h in hdus] == ["PRIMARY", "WEIGHT", "ALPHA", "FRAMES"]
        assert "NCOMBINE" not in hdus[0].header


def test_D4_weights_are_measured_where_tiles_bring_none(tmp_path: Path) -> None:
    """WEIGHT is the inverse variance of the tile's own noise, of two tiles together more."""
    paths = strangers.write(tmp_path / "in", [Stranger(), Stranger()])
    fits.writeto(paths[1], strangers.pixels_of(Stranger(), 9), strangers.header_of(Stranger()), overwrite=True)
    path, _ = strangers.mosaic(tmp_path / "w", strangers.plan(tmp_path / "w", paths))
    weight = scenes.planes(path)["WEIGHT"]
    assert np.median(weight[60:140, 60:180]) == pytest.approx(2 / NOISE**2, rel=0.15)
    picture = scenes.planes(path)[""]
    off = picture[:, 6:] - picture[:, :-6]
    assert 1.4826 * np.nanmedian(np.abs(off)) / math.sqrt(2) == pytest.approx(NOISE / math.sqrt(2), rel=0.1)


def test_D4_tiles_on_one_lattice_pass_unchanged(tmp_path: Path) -> None:
    """Tiles that this program made, or anybody on one lattice: the pixels of a tile that is alone are its own."""
    base = values.wcs_at(10.0, 20.0, width=W, height=H)
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    cubes = []
    for i, dx in enumerate((0, 190)):
        header = WCS(naxis=2)
        header.wcs.ctype, header.wcs.crval = ["RA---TAN", "DEC--TAN"], [base.ra_deg, base.dec_deg]
        header.wcs.crpix, header.wcs.cd = [base.x_px + 1 - dx, base.y_px + 1], np.reshape(base.cd, (2, 2))
        cubes.append(rng.normal(SKY, NOISE, (3, H, W)).astype(np.float32))
        fits.writeto(tmp_path / "in" / f"{i}.fits", cubes[-1], header.to_header())
    plan = strangers.plan(tmp_path / "w", sorted((tmp_path / "in").iterdir()))
    path, made = strangers.mosaic(tmp_path / "w", plan)
    picture = scenes.planes(path)[""]
    assert picture.shape == (3, H, W + 190)
    assert max(p["placement_error_px"] for p in made.figures["photometry"].values()) < 1e-9  # type: ignore[attr-defined]
    # The two share 50 columns of pure noise: what may differ is a plane, not one pixel against its neighbour.
    left = picture[:, :, :190] - cubes[0][:, :, :190]
    assert np.abs(np.diff(left, axis=2)).max() < 0.05


def test_common_lattice_is_found_only_where_there_is_one() -> None:
    """Whole-pixel windows of one plane have one; another scale, another tangent point or half a pixel has not."""
    base = values.wcs_at(10.0, 20.0)
    same = [base, values.shifted(base, 31.0, -7.0)]
    assert common_lattice(same) == base
    assert common_lattice([*same, values.shifted(base, 0.5, 0.0)]) is None
    assert common_lattice([*same, replace(base, ra_deg=10.01)]) is None
    assert common_lattice([*same, values.wcs_at(10.0, 20.0, scale_arcsec=2.1)]) is None


def test_D4_packed_integer_and_scaled_tiles_are_read_as_they_are(tmp_path: Path) -> None:
    """gzip under a plain name, 16 bit with BZERO, BSCALE with BLANK: the same sky as the plain float tile."""
    tile = Stranger()
    plain = strangers.pixels_of(tile, 0)
    header = strangers.header_of(tile)
    folder = tmp_path / "in"
    strangers.write(folder, [tile], packed=True)
    fits.writeto(folder / "u16.fits", np.round(plain).astype(np.uint16), header)
    stored = np.round((plain - 1000) / 0.5).astype(np.int32)
    stored[50:60, 70:90] = -(2**31)
    scaled = fits.PrimaryHDU(stored, header)
    scaled.header["BLANK"] = -(2**31)
    scaled.header["BSCALE"], scaled.header["BZERO"] = 0.5, 1000.0
    scaled.writeto(folder / "scaled.fits")
    for path in sorted(folder.iterdir()):
        out = tmp_path / path.stem
        mosaic, _ = strangers.mosaic(out, strangers.plan(out, [path]))
        picture = scenes.planes(mosaic)[""]
        blank = np.isnan(picture)
        assert blank.sum() == (200 if path.stem == "scaled" else 0)
        np.testing.assert_allclose(picture[~blank], plain[~blank], atol=0.51)


def test_D4_what_is_blank_in_a_tile_comes_from_another(tmp_path: Path) -> None:
    """NaN and the zeros that co-adders leave outside their pictures are no data: no black, and no edge."""
    tile = Stranger()
    folder = tmp_path / "in"
    strangers.write(folder, [tile, tile])
    for name, value, cut in (("tile_1", np.nan, np.s_[:, :80]), ("tile_2", 0.0, np.s_[:, 170:])):
        with fits.open(folder / f"{name}.fits", mode="update") as hdus:
            hdus[0].data[cut] = value
            hdus[0].data += 50 if name == "tile_1" else 0
            hdus[0].data[cut] = value
    path, _ = strangers.mosaic(tmp_path / "w", strangers.plan(tmp_path / "w", sorted(folder.iterdir())))
    picture, alpha = scenes.planes(path)[""], scenes.planes(path)["ALPHA"]
    assert np.isfinite(picture).all()
    assert (alpha > 0).all()
    columns = np.median(picture, axis=0)
    levels = [float(np.median(columns[a : a + 20])) for a in (10, 60, 90, 120, 150, 180, 210)]
    assert max(levels) - min(levels) < 0.5 * NOISE


def test_D4_a_tile_that_says_its_own_weights_is_believed(tmp_path: Path) -> None:
    """WEIGHT as this program writes it counts; one in unknown units does not."""
    for unit, expected in (("ADU-2", 0.03), ("counts", 1 / NOISE**2)):
        path = tmp_path / unit / "t.fits"
        path.parent.mkdir()
        weight = fits.ImageHDU(np.full((H, W), 0.03, np.float32), name="WEIGHT")
        weight.header["BUNIT"] = unit
        tile = fits.PrimaryHDU(strangers.pixels_of(Stranger(), 0), strangers.header_of(Stranger()))
        fits.HDUList([tile, weight]).writeto(path)
        out = tmp_path / unit / "w"
        mosaic, _ = strangers.mosaic(out, strangers.plan(out, [path]))
        assert np.median(scenes.planes(mosaic)["WEIGHT"]) == pytest.approx(expected, rel=0.15)


def refused(plan: Plan) -> dict[str, str]:
    return {Path(left.path).name: left.reason.rule for left in plan.left_out}


def test_D4_what_cannot_be_used_is_left_out_with_its_rule(tmp_path: Path) -> None:
    """No WCS, a twin, another part of the sky, not FITS: the rest becomes the mosaic."""
    folder = tmp_path / "in"
    good = strangers.write(folder, strangers.square())
    fits.writeto(folder / "nowhere.fits", strangers.pixels_of(Stranger(), 0))
    (folder / "twin.fits").write_bytes(good[0].read_bytes())
    far = Stranger(ra_deg=strangers.RA + 60.0)
    fits.writeto(folder / "far.fits", np.full((H, W), 5.0, np.float32), strangers.header_of(far))
    (folder / "text.fits").write_text("not a picture" * 500)
    plan = strangers.plan(tmp_path / "w", sorted(folder.iterdir()))
    assert refused(plan) == {
        "nowhere.fits": "tile.wcs",
        "twin.fits": "duplicate",
        "far.fits": "far_from_target",
        "text.fits": "fits.signature",
    }
    assert sorted(plan.made.values()) == [str(p) for p in good]


def test_D4_filters_make_mosaics_of_their_own(tmp_path: Path) -> None:
    """Two filters in one folder: two mosaics; nothing is mixed."""
    tiles = [replace(t, cards={"FILTER": f}) for t, f in zip(strangers.square(), "JJHH", strict=True)]
    plan = strangers.plan(tmp_path / "w", strangers.write(tmp_path / "in", tiles))
    assert [(m.filter_name, len(m.tiles)) for m in plan.mosaics] == [("H", 2), ("J", 2)]


def test_D4_the_plan_does_not_depend_on_the_order_of_the_files(tmp_path: Path) -> None:
    """C7: the same tiles, whatever order they were found in."""
    paths = strangers.write(tmp_path / "in", strangers.square())
    first = strangers.plan(tmp_path / "a", paths)
    second = strangers.plan(tmp_path / "b", paths[::-1])
    assert replace(first, figures={}) == replace(second, figures={})


@pytest.mark.parametrize("settings", [{"band_budget_bytes": 1000}, {"threads": 3, "band_budget_bytes": 1000}])
def test_M5_pixels_do_not_depend_on_bands_and_threads(tmp_path: Path, settings: dict[str, int]) -> None:
    """Bands of 16 rows or the whole picture at once, made by one thread or by three: the same file."""
    plan = strangers.plan(tmp_path / "w", strangers.write(tmp_path / "in", strangers.square("SIN")))
    path, _ = strangers.mosaic(tmp_path / "w", plan)
    first = path.read_bytes()
    strangers.mosaic(tmp_path / "w", plan, **settings)
    assert path.read_bytes() == first
