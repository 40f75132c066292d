"""Phases 4 to 6: what a mosaic is, on tiles small enough to be checked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tests import scenes, values
from zemosaicd import sphere
from zemosaicd.core.canvas import cut, union
from zemosaicd.model import FramePlan, Grid, Plan, SessionFailed, Wcs

W, H = 160, 120
STEP = 90
"""Pixels from one pointing to the next: neighbours share 70 columns."""
NOISE = 2.0
BASE = values.wcs_at(83.8, -5.4, width=W, height=H)


def star_field(width: int, seed: int = 3) -> list[scenes.Star]:
    """Stars all over a strip of sky, none beside another."""
    rng = np.random.default_rng(seed)
    places = [(x, y) for x in range(12, width - 12, 26) for y in range(14, H - 12, 24)]
    return [(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), rng.uniform(4e3, 3e4)) for x, y in places]


STARS = star_field(W + STEP)


def strip(folder: Path, depths: Sequence[int], changed: Any = None, *, bayer: str = "", **settings: Any) -> Plan:
    """Pointings side by side, so many frames each; `changed(pointing, pixels)`: what a pointing's sky did to them."""
    rng = np.random.default_rng(11)
    frames: list[FramePlan] = []
    home: dict[str, int] = {}
    for pointing, depth in enumerate(depths):
        for i in range(depth):
            wcs = values.shifted(BASE, STEP * pointing + 0.37 * i, 0.21 * i)
            frames.append(values.frame_plan(len(frames), wcs, width=W, height=H, bayer=bayer))
            home[frames[-1].frame] = pointing

    def pixels(_: int, frame: FramePlan) -> scenes.Array:
        seen = scenes.render(frame.wcs, W, H, BASE, STARS, bayer)
        seen += rng.normal(0.0, NOISE, seen.shape)
        return seen if changed is None else changed(home[frame.frame], seen)

    return values.plan_of(scenes.caches(folder, frames, pixels), **settings)


def whole(plan: Plan) -> Grid:
    """The mosaic's grid."""
    return union((t.grid for t in plan.tiles), plan.mosaics[0].lattice)


def place_of(grid: Grid, star: scenes.Star, base: Wcs = BASE) -> tuple[float, float]:
    """Where a star lies on the grid."""
    found = sphere.sky_to_pixel(grid.wcs, sphere.pixel_to_sky(base, star[0], star[1]))
    assert found is not None
    return found


def sky_of(picture: scenes.Array, columns: slice) -> float:
    """Median of a stripe of the mosaic."""
    return float(np.nanmedian(picture[:, columns]))


def worse(pointing: int, pixels: scenes.Array) -> scenes.Array:
    """The second pointing has another gain and another level than its header and sky say."""
    return 1.25 * (pixels - scenes.SKY) + scenes.SKY + 40.0 if pointing else pixels


def test_two_tiles_of_other_gain_and_level_join_without_a_seam(tmp_path: Path) -> None:
    """Phase 5: the step is gone, the sky is level across the overlap, and stars have the deeper tile's flux."""
    plan = strip(tmp_path / "c", [4, 2], worse)
    path, made = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))
    picture = scenes.planes(path)[""]
    grid = whole(plan)
    left, right = sorted([place_of(grid, (0.0, 0.0, 0.0))[0], place_of(grid, (W + STEP - 1.0, 0.0, 0.0))[0]])
    edges = np.linspace(left + 6, right - 6, 6).astype(int)
    levels = [sky_of(picture, slice(a, b)) for a, b in itertools.pairwise(edges)]
    assert max(levels) - min(levels) < 0.5 * NOISE
    seams = made.figures["seams"]
    assert isinstance(seams, dict)
    (pair,) = seams["pairs"]
    assert abs(pair["before_adu"][0]) == pytest.approx(40.0, abs=2.0)
    assert abs(pair["after_adu"][0]) < 0.3 * NOISE
    assert seams["worst_sigma"] < 0.3
    assert seams["parts"] == 1
    gains = {t: p["gain"][0] for t, p in made.figures["photometry"].items()}  # type: ignore[attr-defined]
    deep = next(str(t.tile) for t in plan.tiles if len(t.frames) == 4)
    assert gains[deep] == 1.0
    assert gains["1" if deep == "2" else "2"] == pytest.approx(1 / 1.25, rel=0.01)
    only_second = [s for s in STARS if s[0] > W + 8 and 20 < s[1] < H - 20]
    assert len(only_second) >= 3
    for star in only_second:
        assert scenes.flux(picture, *place_of(grid, star)) == pytest.approx(star[2], rel=0.03)


STRICT: dict[str, Any] = {"rejection": "kappa_sigma", "kappa_low": 1.5, "kappa_high": 1.5}
"""So that something is rejected of clean frames."""


@pytest.mark.parametrize("bayer", ["", "GRBG"])
def test_a_stars_flux_is_conserved_from_frame_to_mosaic(tmp_path: Path, bayer: str) -> None:
    """Frame, tile, mosaic: within 1 % in every colour, in one tile and in the overlap of two."""
    plan = strip(tmp_path / "c", [5, 5], bayer=bayer)
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))
    grid = whole(plan)
    picture = scenes.planes(path)[""].reshape(-1, grid.height, grid.width)
    bright = [s for s in STARS if s[2] > 1.2e4 and 24 < s[1] < H - 24 and 24 < s[0] < W + STEP - 24]
    assert len(bright) >= 6
    for plane, share in zip(picture, scenes.COLOURS if bayer else (1.0,), strict=True):
        ratios = [scenes.flux(plane, *place_of(grid, s), radius=8.0) / (share * s[2]) for s in bright]
        assert np.median(ratios) == pytest.approx(1.0, abs=0.01)
        assert np.std(ratios) < 0.02


def test_one_tile_goes_into_its_mosaic_unchanged(tmp_path: Path) -> None:
    """On a common lattice nothing is interpolated twice; what nobody saw stays NaN."""
    plan = strip(tmp_path / "c", [9])
    ((number, tile),) = scenes.stack_all(tmp_path, plan, **STRICT)
    path, _ = scenes.mosaic(tmp_path, plan, [(number, tile)])
    before, after = scenes.planes(Path(tile)), scenes.planes(path)
    assert before["REJECTED"].any()
    for name in ("", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, err_msg=name)


def test_rejected_frames_are_counted_across_tiles(tmp_path: Path) -> None:
    """Where two tiles saw the sky, what either of them rejected is told (issue 3: kept as a map)."""
    plan = strip(tmp_path / "c", [6, 6])
    tiles = scenes.stack_all(tmp_path, plan, **STRICT)
    path, _ = scenes.mosaic(tmp_path, plan, tiles)
    apart = sum(int(scenes.planes(Path(tile))["REJECTED"].sum()) for _, tile in tiles)
    assert int(scenes.planes(path)["REJECTED"].sum()) == apart > 0


def test_a_missing_tile_is_a_hole_of_nan(tmp_path: Path) -> None:
    """F31: the mosaic keeps its grid's part of the tiles that there are; nothing is made up for the other."""
    plan = strip(tmp_path / "c", [2, 2, 2])
    tiles = scenes.stack_all(tmp_path, plan)
    middle = next(t for t in plan.tiles if plan.frames[t.frames[0]].path == "/in/2.fits")
    path, made = scenes.mosaic(tmp_path, plan, [t for t in tiles if t[0] != middle.tile])
    found = scenes.planes(path)
    hole = found["COVERAGE"] == 0
    assert 0.02 < hole.mean() < 0.5
    np.testing.assert_array_equal(np.isnan(found[""]), hole)
    assert (found["WEIGHT"][hole] == 0).all()
    assert (found["ALPHA"][hole] == 0).all()
    assert made.figures["seams"]["parts"] == 2  # type: ignore[index]


def test_R8_coverage_counts_distinct_frames(tmp_path: Path) -> None:
    """Tiles that share frames (overlapping batches): a shared frame counts once."""
    plan = strip(tmp_path / "c", [8], batch_cap=5, batch_overlap=2)
    assert len(plan.tiles) == 2
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan, rejection="none"))
    found = scenes.planes(path)["COVERAGE"]
    inner = found[10:-10, 10:-10]
    assert (inner == 8).all()
    assert found.max() == 8
    alone = strip(tmp_path / "d", [8])
    single, _ = scenes.mosaic(tmp_path, alone, scenes.stack_all(tmp_path, alone, rejection="none"))
    assert (np.abs(scenes.planes(single)["COVERAGE"].astype(int) - found) > 0).mean() < 0.02


def test_R8_coverage_counts_distinct_frames_of_a_camera_that_distorts(tmp_path: Path) -> None:
    """Where a shared frame ends is where its camera bends it to: no frame is counted twice along that edge."""
    both = []
    for cap in (0, 5):
        plan = strip(tmp_path / f"c{cap}", [8], batch_cap=cap, batch_overlap=2)
        bent = {n: replace(f, distortion=values.radial(-2.2, W, H)) for n, f in plan.frames.items()}
        grown = tuple(
            replace(t, grid=cut(t.grid.wcs, (-4, -4, t.grid.width + 4, t.grid.height + 4))) for t in plan.tiles
        )
        plan = replace(plan, frames=bent, tiles=grown)
        path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan, rejection="none"))
        both.append(scenes.planes(path)["COVERAGE"].astype(int))
    alone, batched = both
    assert alone.max() == 8
    np.testing.assert_array_equal(alone[3:-3, 3:-3], batched[3:-3, 3:-3])


def test_V1_coverage_adds_up_over_tiles_that_share_no_frame(tmp_path: Path) -> None:
    """In the overlap of 3 and 2 frames there are 5."""
    plan = strip(tmp_path / "c", [3, 2])
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan, rejection="none"))
    found = scenes.planes(path)["COVERAGE"]
    assert set(np.unique(found[20:-20, 20:-20])) <= {2, 3, 4, 5}
    middle = found[found.shape[0] // 2]
    assert {2, 3, 5} <= set(np.unique(middle))


def test_weight_is_the_inverse_variance_of_what_is_written(tmp_path: Path) -> None:
    """A tile that is scaled by g has g^2 the variance: where it is alone, WEIGHT is its weight over g^2."""
    plan = strip(tmp_path / "c", [4, 2], worse)
    tiles = dict(scenes.stack_all(tmp_path, plan))
    path, made = scenes.mosaic(tmp_path, plan, list(tiles.items()))
    shallow = next(t for t in plan.tiles if len(t.frames) == 2)
    gain = made.figures["photometry"][str(shallow.tile)]["gain"][0]  # type: ignore[index]
    assert gain == pytest.approx(0.8, rel=0.02)
    own = scenes.planes(Path(tiles[shallow.tile]))["WEIGHT"].max()
    x, y = place_of(whole(plan), (W + STEP - 20.0, H / 2, 0.0))
    assert scenes.planes(path)["WEIGHT"][round(y), round(x)] == pytest.approx(own / gain**2, rel=1e-4)


def test_weights_of_two_tiles_add_where_both_are_deep(tmp_path: Path) -> None:
    """In the middle of an overlap the inverse variances add up, as far as both tiles' feathers count fully."""
    plan = strip(tmp_path / "c", [4, 4])
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan, feather_fraction=0.02, rejection="none"))
    x, y = place_of(whole(plan), ((W + STEP) / 2, H / 2, 0.0))
    assert scenes.planes(path)["WEIGHT"][round(y), round(x)] == pytest.approx(8 / 10.0**2, rel=1e-3)


@pytest.mark.parametrize("bayer", ["", "RGGB"])
def test_the_mosaic_opens_elsewhere_with_its_wcs(tmp_path: Path, bayer: str) -> None:
    """SPEC section 10: (C, H, W) or (H, W) float32, WEIGHT, COVERAGE, ALPHA, FRAMES; astropy finds our places."""
    plan = strip(tmp_path / "c", [2, 2], bayer=bayer)
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))
    grid = whole(plan)
    shape = (grid.height, grid.width)
    with fits.open(path, memmap=False) as file:
        file.verify("exception")
        assert [h.header.get("EXTNAME", "") for h in file] == ["", "WEIGHT", "COVERAGE", "REJECTED", "ALPHA", "FRAMES"]
        assert [h.data.shape for h in file[:4]] == [(3, *shape) if bayer else shape] * 2 + [shape] * 2
        assert file[0].data.dtype == ">f4"
        assert (file[0].header["NCOMBINE"], file[0].header["NTILES"], file[0].header["EXPTOTAL"]) == (4, 2, 40.0)
        for hdu in file[:4]:
            theirs = WCS(hdu.header).celestial
            for x, y in values.centres(grid.width, grid.height):
                ra, dec = (float(v) for v in theirs.pixel_to_world_values(x, y))
                assert sphere.sky_to_pixel(grid.wcs, sphere.direction(ra, dec)) == pytest.approx((x, y), abs=1e-6)
        table = Table(file["FRAMES"].data)
    ordered = sorted(plan.frames.values(), key=lambda f: f.facts.observed_s or 0.0)
    assert [str(n) for n in table["FRAME"]] == [f.frame for f in ordered]
    assert {str(n): int(t) for n, t in zip(table["FRAME"], table["TILE"], strict=True)} == {
        f: t.tile for t in plan.tiles for f in t.frames
    }
    assert float(table["RA"][0]) == pytest.approx(sphere.position(sphere.centre_of(_grid(ordered[0])))[0], abs=1e-9)


def _grid(frame: FramePlan) -> Grid:
    return Grid(wcs=frame.wcs, width=frame.facts.width, height=frame.facts.height)


@pytest.mark.parametrize("bayer", ["", "RGGB"])
def test_M5_the_band_leaves_no_trace_in_the_mosaic(tmp_path: Path, bayer: str) -> None:
    """Sixteen rows at a time or all at once: the same pixels, weights, coverage and alpha."""
    plan = strip(tmp_path / "c", [2, 2], worse, bayer=bayer)
    tiles = scenes.stack_all(tmp_path, plan)
    small, _ = scenes.mosaic(tmp_path, plan, tiles, preview_max_px=100)
    narrow = scenes.planes(small)
    # The overlaps are measured in stripes of the same budget: only the coadd's bands may differ here.
    large, _ = scenes.mosaic(tmp_path, plan, tiles, preview_max_px=100, band_budget_bytes=3_000_000)
    for name, plane in scenes.planes(large).items():
        np.testing.assert_array_equal(plane, narrow[name], err_msg=name)


def test_M5_a_preview_at_full_size_does_not_depend_on_the_bands(tmp_path: Path) -> None:
    """Each band shows its own sky: with many bands and with one it is the same picture."""
    plan = strip(tmp_path / "c", [3, 3])
    tiles = scenes.stack_all(tmp_path, plan)
    pictures = []
    for budget in (1, 1 << 30):
        scenes.mosaic(tmp_path, plan, tiles, preview_max_px=2000, band_budget_bytes=budget)
        pictures.append(cv2.imread(str(tmp_path / "preview.png")))
    assert pictures[0].shape[:2] == scenes.planes(tmp_path / "mosaic.fits")["ALPHA"].shape
    np.testing.assert_array_equal(*pictures)


def test_the_preview_is_a_picture_of_the_size_asked_for(tmp_path: Path) -> None:
    """Longer side at most `preview_max_px`; none is written if none is wanted; the mosaic does not change with it."""
    plan = strip(tmp_path / "c", [2, 2], bayer="RGGB")
    tiles = scenes.stack_all(tmp_path, plan)
    path, _ = scenes.mosaic(tmp_path, plan, tiles, preview_max_px=64)
    picture = cv2.imread(str(tmp_path / "preview.png"))
    assert picture is not None
    assert max(picture.shape[:2]) <= 64
    assert picture.std() > 5
    before = scenes.planes(path)[""]
    (tmp_path / "preview.png").unlink()
    scenes.mosaic(tmp_path, plan, tiles, preview=False)
    assert not (tmp_path / "preview.png").exists()
    np.testing.assert_array_equal(scenes.planes(path)[""], before)


def test_a_mosaic_without_tiles_fails_with_a_reason(tmp_path: Path) -> None:
    """Nothing is written."""
    plan = strip(tmp_path / "c", [1])
    with pytest.raises(SessionFailed) as error:
        scenes.mosaic(tmp_path, plan, [])
    assert error.value.reason.rule == "no_tiles"
    assert not (tmp_path / "mosaic.fits").exists()


def test_frames_that_were_lost_are_not_in_the_table(tmp_path: Path) -> None:
    """FRAMES and NCOMBINE name what is in the pixels."""
    plan = strip(tmp_path / "c", [3])
    gone = plan.tiles[0].frames[1]
    tile, _ = scenes.stack(tmp_path, plan, without=[gone])
    path, _ = scenes.mosaic(tmp_path, plan, [(1, str(tile))], without=[gone])
    with fits.open(path, memmap=False) as file:
        assert file[0].header["NCOMBINE"] == 2
        assert gone not in {str(n) for n in file["FRAMES"].data["FRAME"]}


def test_a_mosaic_across_ra_zero_beside_the_pole(tmp_path: Path) -> None:
    """The same engine there: no hole, no step, and WCS as everywhere."""
    middle = values.wcs_at(0.0, 89.9, width=W, height=H)
    frames = []
    for i, dx in enumerate((-STEP / 2, STEP / 2)):
        ra, dec = sphere.position(sphere.pixel_to_sky(middle, middle.x_px + dx, middle.y_px))
        north = values.wcs_at(ra, dec, width=W, height=H)
        x0, y0 = sphere.apply_plane(sphere.homography(middle, north), middle.x_px + dx, middle.y_px)
        x1, y1 = sphere.apply_plane(sphere.homography(middle, north), middle.x_px + dx, middle.y_px + 1.0)
        turn = -math.degrees(math.atan2(x1 - x0, y1 - y0))
        frames.append(values.frame_plan(i, values.wcs_at(ra, dec, turn_deg=turn, width=W, height=H), width=W, height=H))
    rng = np.random.default_rng(5)
    made = scenes.caches(
        tmp_path / "c",
        frames,
        lambda _, f: scenes.render(f.wcs, W, H, middle, STARS) + rng.normal(0, NOISE, (H, W)),
    )
    plan = values.plan_of(made)
    path, _ = scenes.mosaic(tmp_path, plan, scenes.stack_all(tmp_path, plan))
    grid, picture = whole(plan), scenes.planes(path)[""]
    assert grid.width <= W + STEP + 3
    assert grid.height <= H + 3
    assert np.isfinite(picture[4:-4, 4:-4]).all()
    star = next(s for s in STARS if abs(s[0] - W / 2) < 15 and 30 < s[1] < H - 30)
    assert scenes.flux(picture, *place_of(grid, star, middle)) == pytest.approx(star[2], rel=0.02)


def test_repeated_assembly_gives_the_same_bytes(tmp_path: Path) -> None:
    """C7: nothing of the run is in the file."""
    plan = strip(tmp_path / "c", [2, 2])
    tiles = scenes.stack_all(tmp_path, plan)
    first = scenes.mosaic(tmp_path, plan, tiles)[0].read_bytes()
    assert (
        scenes.mosaic(tmp_path, replace(plan, figures={"seconds": 9.0}), list(reversed(tiles)))[0].read_bytes() == first
    )
