"""Frames of two cameras and scales in one mosaic (I6): each has tiles of its own, Phase 5 gives them one zero point.

The second camera has coarser pixels, another Bayer pattern, gain, exposure and aperture, and mirrors the sky. Zero
points are those of stars that only one of the two has seen, against the truth of the simulator.
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from tests import pair, strangers, values
from tests.nights import Place, drop
from zemosaicd.core import canvas
from zemosaicd.core.plan import at_their_scales
from zemosaicd.core.supertiles import with_supers
from zemosaicd.science.overlaps import Overlap
from zemosaicd.science.tilesolve import TileExtent, solve_tiles
from zemosaicd.sphere import scale_arcsec

F64, Flags = NDArray[np.float64], NDArray[np.bool_]

ALIKE = replace(
    pair.SECOND, bayer=pair.FIRST.bayer, instrument=pair.FIRST.instrument, telescope=pair.FIRST.telescope,
    exposure_s=pair.FIRST.exposure_s, width=pair.FIRST.width, height=pair.FIRST.height,
)  # fmt: skip
"""The second camera, of which no card but the focal length says that it is another."""


RUNS = [
    pytest.param("classic", pair.SECOND, id="classic"),
    pytest.param("classic", ALIKE, id="classic-cards_alike"),
    pytest.param("grid", pair.SECOND, id="grid"),
    pytest.param("sds", ALIKE, id="sds-cards_alike"),
]


@functools.cache
def made(mode: str, second: pair.Night) -> Place:
    """The frames of both through `process`, once a test run."""
    place = Place(Path(tempfile.mkdtemp(prefix="zemosaicd-pair-")), (f"session.mode={mode}",))
    atexit.register(shutil.rmtree, place.root, ignore_errors=True)
    drop([f.path for camera in pair.cameras(second=second)[1] for f in camera.frames], place.incoming)
    assert place.process() == 0
    return place


@pytest.mark.parametrize(("mode", "second"), RUNS)
def test_I6_two_cameras_make_one_mosaic_of_one_zero_point(mode: str, second: pair.Night) -> None:
    """The light of a star that only the second camera saw is within 1 % of what the first would have made of it."""
    sky, both = pair.cameras(second=second)
    ones, others = pair.zero_points(made(mode, second).mosaic(), sky, both)
    assert min(len(ones), len(others)) >= 25
    np.testing.assert_allclose(np.median(others, axis=0) / np.median(ones, axis=0), 1.0, atol=0.01)


@pytest.mark.parametrize(("mode", "second"), RUNS)
def test_I6_two_cameras_make_one_mosaic_without_a_hole(mode: str, second: pair.Night) -> None:
    """All frames are in it, each tile has those of one camera, and no pixel that either has seen well shows nothing."""
    place, (_, both) = made(mode, second), pair.cameras(second=second)
    report = place.report()
    assert (report["verdict"], report["islands"]) == ("good", 1)
    assert report["frames"]["used"] == sum(len(c.frames) for c in both)
    with fits.open(place.mosaic()) as hdus:
        where = dict(zip(hdus["FRAMES"].data["NAME"], hdus["FRAMES"].data["TILE"].tolist(), strict=True))
    first, second_ = ({where[f.path.name] for f in c.frames} for c in both)
    assert first
    assert second_
    assert not first & second_
    assert pair.holes(place.mosaic(), both) == 0


def test_phase6_the_header_is_that_of_the_camera_whose_units_the_mosaic_has() -> None:
    """Its tile has a gain of 1, its exposure is that of "one frame", whichever camera began the night."""
    place = made("classic", pair.SECOND)
    with fits.open(place.mosaic()) as hdus:
        header = hdus[0].header
        rows = hdus["FRAMES"].data
        tile = {str(t) for t, exposure in zip(rows["TILE"], rows["EXPTIME"], strict=True) if exposure == 20.0}
    assert (header["TELESCOP"], header["INSTRUME"]) == (pair.SECOND.telescope, pair.SECOND.instrument)
    assert header["EXPTIME"] == pair.SECOND.exposure_s
    assert header["DATE-OBS"].startswith(pair.FIRST.start[:16])
    gains = {t: f["gain"] for t, f in place.report()["photometry"].items()}
    assert [gains.pop(t) for t in tile] == [[1.0, 1.0, 1.0]]
    assert min(min(g) for g in gains.values()) > 2.0


def test_D2_mega_tiles_of_two_scales_give_way_to_master_tiles_I6() -> None:
    """Mode SDS says that frames of two kinds do not mix, even where no card tells the cameras apart."""
    place = made("sds", ALIKE)
    assert place.report()["mode"] == "classic"
    (warned,) = place.events("sds_and_mosaic_first_failed_fallback_mastertiles")
    assert "2 kinds" in warned["reason"]


def test_C3_a_tile_never_holds_frames_of_two_scales() -> None:
    """Even where header and field are the same but for the scale, frames of two scales are of two kinds; those of one
    camera stay of one kind however a night's refraction and flexure change their scale."""
    frames = [
        values.frame_plan(i, values.wcs_at(100.0, 20.0, scale_arcsec=scale * (1 + 1e-3 * i)))
        for i, scale in enumerate((5.0, 6.6, 5.0, 6.6, 5.0, 6.6))
    ]
    plan = values.plan_of(at_their_scales(frames))
    assert sorted(len(t.frames) for t in plan.tiles) == [3, 3]
    for tile in plan.tiles:
        assert len({round(scale_arcsec(plan.frames[f].wcs), 1) for f in tile.frames}) == 1


def test_I3_super_tiles_never_join_tiles_of_two_scales() -> None:
    """Two pointings of each of two cameras at the same place: two super tiles, of one camera each, since the stars of
    one are no outliers among those of the other."""
    step_deg = 0.6 * values.WIDTH * 5.0 / 3600
    frames = [
        values.frame_plan(i, values.wcs_at(100.0 + step_deg * (i // 2), 20.0, scale_arcsec=(5.0, 6.6)[i % 2]))
        for i in range(4)
    ]
    plan = with_supers(values.plan_of(at_their_scales(frames)), 0.1)
    scale = {t.tile: scale_arcsec(plan.frames[t.reference].wcs) for t in plan.tiles}
    joined = [{scale[t] for t in members} for members in plan.supers.values()]
    assert sorted(map(len, plan.supers.values())) == [2, 2]
    assert sorted(min(s) for s in joined) == pytest.approx([5.0, 6.6])
    assert all(len(s) == 1 for s in joined)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        pytest.param([3.0, 2.4, 3.0, 3.0], 2.4, id="finer_though_fewer"),
        pytest.param([2.4, 2.41, 2.42, 3.0], 2.41, id="median_of_the_finer"),
        pytest.param([3.0, 3.0, 3.0, 0.5], 1.5, id="at_most_twice_as_fine_as_the_median"),
        pytest.param([2.41, 2.4, 2.4], 2.4, id="one_camera"),
    ],
)
def test_I6_a_mosaic_has_the_pixels_of_its_finest_camera(scales: list[float], expected: float) -> None:
    """Coarser pixels would cost light and sharpness that the finer camera has; finer ones only cost room."""
    frames = [values.frame_plan(i, values.wcs_at(100.0, 20.0, scale_arcsec=s)) for i, s in enumerate(scales)]
    assert scale_arcsec(canvas.lattice(frames, "auto")) == pytest.approx(expected, rel=1e-9)


def test_phase5_a_mosaic_has_the_units_and_the_sky_of_one_of_its_cameras() -> None:
    """Two tiles of one camera and one, far brighter, of another with fewer frames: the former keep gain 1 and offset 0
    in the mean; without cameras told apart, nobody is preferred."""
    tiles = [extent(0, "a", 10), extent(1, "a", 10), extent(2, "b", 12)]
    overlaps = [overlap(0, 1, (1000.0, 1010.0), 1.0), overlap(1, 2, (1010.0, 3000.0), 0.25)]
    solved = solve_tiles(overlaps, tiles, 1).tiles
    assert [t.gain[0] for t in solved] == pytest.approx([1.0, 1.0, 0.25], rel=0.001)
    assert solved[0].offset[0] + solved[1].offset[0] == pytest.approx(0.0, abs=1e-6)
    level = [v + t.offset[0] for v, t in zip((1000.0, 1010.0, 3000.0), solved, strict=True)]
    assert level == pytest.approx([1005.0] * 3, abs=0.5)
    nobody = solve_tiles(overlaps, [replace(t, camera="") for t in tiles], 1).tiles
    assert nobody[2].gain[0] == pytest.approx(1.0, rel=0.001)


def test_D3_cells_of_one_sky_are_corrected_as_one() -> None:
    """Cells that Phase 2 has brought to one scale and sky share gain, offset and plane, which all their overlaps with
    another camera's cells tell: no seam opens between them."""
    tiles = [replace(extent(i, "ab"[i // 2], 10), unit="ab"[i // 2]) for i in range(4)]
    overlaps = [overlap(0, 2, (1000.0, 3000.0), 0.25), overlap(1, 3, (1000.0, 3008.0), 0.26)]
    solved = solve_tiles(overlaps, tiles, 1)
    assert solved.tiles[0] == solved.tiles[1]
    assert solved.tiles[2] == solved.tiles[3]
    assert solved.tiles[2].gain[0] == pytest.approx(0.255, rel=0.001)
    assert [(s.first, s.second) for s in solved.seams] == [(0, 2), (1, 3)]
    assert [s.before_adu[0] for s in solved.seams] == pytest.approx([-2000.0, -2008.0], abs=0.1)


def extent(place: int, camera: str, frames: int) -> TileExtent:
    """A tile in a row of them."""
    return TileExtent(x=100.0 * place, y=50.0, half_px=80.0, frames=frames, camera=camera)


def overlap(first: int, second: int, levels: tuple[float, float], gain: float) -> Overlap:
    """What two flat tiles share: their levels, and the light of a star in the first over that in the second."""
    y, x = (v.ravel() * 16.0 for v in np.mgrid[0:6, 0:6])
    rng = np.random.default_rng(first)
    a, b = (rng.normal(level, 0.05, (1, 36)).astype(np.float32) for level in levels)
    return Overlap(
        first=first, second=second, x=100.0 * first + 50 + x, y=y, a=a, b=b, block_px=16, noise=np.array([1.0]),
        gain=np.array([gain]), gain_sigma=np.array([0.002]),
    )  # fmt: skip


# --- master tiles of anybody's -------------------------------------------------------------------------------------


def test_D4_tiles_of_two_scales_and_a_mirrored_one_make_one_mosaic_I6(tmp_path: Path) -> None:
    """Tiles of 5 arcsec a pixel beside a turned and mirrored one of 6.6, of which a pixel sees 1.74 times the sky and
    that has another gain and level: the mosaic has the finer pixels, no hole, and light of one zero point."""
    coarse = 6.6 / 3600
    a = math.radians(70.0)
    other = strangers.Stranger(
        ra_deg=strangers.RA + 0.24, gain=1.7, offset=-600.0,
        cards={
            "CD1_1": coarse * math.cos(a), "CD1_2": coarse * math.sin(a),
            "CD2_1": -coarse * math.sin(a), "CD2_2": coarse * math.cos(a),
        },
    )  # fmt: skip
    ones = [strangers.Stranger(ra_deg=strangers.RA - 0.1), strangers.Stranger(ra_deg=strangers.RA + 0.1)]
    plan = strangers.plan(tmp_path / "w", strangers.write(tmp_path / "in", [*ones, other]))
    assert not plan.left_out
    assert scale_arcsec(plan.mosaics[0].lattice) == pytest.approx(5.0, rel=1e-4)
    path, made = strangers.mosaic(tmp_path / "w", plan)
    gains = {Path(plan.made[int(t)]).stem: f["gain"][0] for t, f in made.figures["photometry"].items()}  # type: ignore[attr-defined]
    assert gains["tile_1"] / gains["tile_3"] == pytest.approx(1.7 * (6.6 / 5.0) ** 2, rel=0.01)
    with fits.open(path) as hdus:
        picture, wcs = np.asarray(hdus[0].data, np.float64), WCS(hdus[0].header, naxis=2)
    inside, touched = ([_sees(t, edge) for t in (*ones, other)] for edge in (14, -14))
    ours, theirs = (inside[0] | inside[1]) & ~touched[2], inside[2] & ~touched[0] & ~touched[1]
    light = [_light(picture, wcs, stars) for stars in (ours, theirs)]
    assert min(map(len, light)) >= 7
    assert np.median(light[1]) / np.median(light[0]) == pytest.approx(1.0, abs=0.01)
    ra, dec = wcs.all_pix2world(*np.nonzero(~np.isfinite(picture))[::-1], 0)
    assert not any(_holds(t, ra, dec, 3).any() for t in (*ones, other))


def _holds(tile: strangers.Stranger, ra_deg: F64, dec_deg: F64, edge_px: float) -> Flags:
    """Which places are so far inside a tile's edges."""
    u, v = WCS(strangers.header_of(tile), naxis=2).all_world2pix(ra_deg, dec_deg, 0)
    right, bottom = strangers.W - 1 - edge_px, strangers.H - 1 - edge_px
    return np.asarray((u > edge_px) & (u < right) & (v > edge_px) & (v < bottom))


def _sees(tile: strangers.Stranger, edge_px: float) -> Flags:
    return _holds(tile, strangers.SKY_STARS[:, 0], strangers.SKY_STARS[:, 1], edge_px)


def _light(picture: F64, wcs: WCS, which: Flags) -> list[float]:
    """Of the lone stars among these, the mosaic's light over the true one."""
    stars = strangers.SKY_STARS
    x, y = wcs.all_world2pix(stars[:, 0], stars[:, 1], 0)
    found = []
    for s in np.flatnonzero(which):
        nearest = np.sort(np.hypot(x - x[s], y - y[s]))[1]
        sums = pair.light(picture[np.newaxis], float(x[s]), float(y[s]), 6.5) if nearest > 12 else None
        found += [] if sums is None else [float(sums[0]) / stars[s, 2]]
    return found
