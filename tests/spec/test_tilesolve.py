"""The photometric solve: what tiles differ by comes from the sky that they share, and no more is changed (phase 5)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from zemosaicd.science.coadd import linear
from zemosaicd.science.overlaps import (
    Overlap,
    TileSample,
    TileStars,
    fill_levels,
    joined,
    matched,
    overlap_of,
)
from zemosaicd.science.placement import place
from zemosaicd.science.tilesolve import TileCorrection, TileExtent, solve_tiles
from zemosaicd.science.tilestars import aperture_fluxes

SIDE, STEP = 320, 224
Stars = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Tiles cut from one true sky, each with its own gain, offset and plane, (C, H, W) at (x0, y0)."""

    truth: NDArray[np.float32]
    cubes: list[NDArray[np.float32]]
    corners: list[tuple[int, int]]
    extents: list[TileExtent]
    gains: list[NDArray[np.float64]]
    stars: tuple[NDArray[np.float64], NDArray[np.float64]]


def make_tiles(noise: float = 1.0, gain: float = 0.05, nebula: float = 300.0, seed: int = 3) -> Made:
    """2 x 2 tiles with gains +-5 %, offsets +-25 ADU, slopes +-15 ADU a tile and a nebula across the middle."""
    rng = np.random.default_rng(seed)
    size = STEP + SIDE
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float64)
    sky = np.stack([1000.0 + 0 * xx, 1200 + 0 * xx, 800 + 0 * xx])
    sky += (
        nebula * np.exp(-((xx - 260) ** 2 + (yy - 280) ** 2) / (2 * 90.0**2)) * np.array([1, 0.4, 0.3])[:, None, None]
    )
    sx, sy = rng.uniform(20, size - 20, 220), rng.uniform(20, size - 20, 220)
    for x, y, flux in zip(sx, sy, 3000 * (1 + rng.pareto(1.5, 220)), strict=True):
        y0, x0 = int(y) - 9, int(x) - 9
        cut = np.s_[:, y0 : y0 + 19, x0 : x0 + 19]
        r2 = (xx[y0 : y0 + 19, x0 : x0 + 19] - x) ** 2 + (yy[y0 : y0 + 19, x0 : x0 + 19] - y) ** 2
        sky[cut] += min(flux, 40000) / (2 * math.pi * 1.5) * np.exp(-r2 / 3)
    made = Made(truth=sky.astype(np.float32), cubes=[], corners=[], extents=[], gains=[], stars=(sx, sy))
    u = np.linspace(-1, 1, SIDE)
    for n, (y0, x0) in enumerate([(0, 0), (0, STEP), (STEP, 0), (STEP, STEP)]):
        g = 1 + rng.uniform(-gain, gain, 3)
        slope_x, slope_y, offset = (rng.uniform(-v, v, (3, 1, 1)) for v in (15, 15, 25))
        plane = slope_x * u[None, None, :] + slope_y * u[None, :, None] + offset
        cube = sky[:, y0 : y0 + SIDE, x0 : x0 + SIDE] * g[:, None, None] + plane
        cube = cube + rng.normal(0, noise, cube.shape)
        made.cubes.append(cube.astype(np.float32))
        made.corners.append((x0, y0))
        middle = (SIDE - 1) / 2
        made.extents.append(TileExtent(x=x0 + middle, y=y0 + middle, half_px=SIDE / 2, frames=40 if n == 0 else 10))
        made.gains.append(g)
    return made


def sampled(cube: NDArray[np.float32], corner: tuple[int, int], stars: Stars | None, noise: float = 1.0) -> TileSample:
    """A tile (C, H, W) whose first pixel lies on pixel `corner` of the grid, as its neighbours are to see it."""
    channels, height, width = cube.shape
    (x0, y0), block = corner, 16
    box = (x0, y0, x0 + width, y0 + height)
    there = place(lambda x, y: (x - x0, y - y0), box, width, height)
    assert there.shift == corner
    origin = x0 // block, y0 // block
    wanted = np.ones((-(-box[3] // block) - origin[1], -(-box[2] // block) - origin[0]), np.bool_)
    level = np.full((channels, *wanted.shape), np.nan, np.float32)
    fill_levels(level, wanted, origin, block, (0, len(wanted)), cube, 0, there, np.full(channels, noise))
    found = joined([], channels)
    if stars is not None:
        flux, error = aperture_fluxes(cube, stars[0] - x0, stars[1] - y0, 6.0, [noise] * channels)
        good = np.isfinite(flux).all(axis=0)
        found = TileStars(x=stars[0][good], y=stars[1][good], flux=flux[:, good], noise=error[:, good])
    return TileSample(
        block_px=block, x_block=origin[0], y_block=origin[1], level=level, noise=np.full(channels, noise), stars=found
    )


def overlaps_of(made: Made, with_stars: bool, few: int | None = None) -> list[Overlap]:
    """All overlaps of the tiles; `few`: with so many of their stars only."""
    stars = (made.stars[0][:few], made.stars[1][:few]) if with_stars else None
    samples = [sampled(c, corner, stars) for c, corner in zip(made.cubes, made.corners, strict=True)]
    pairs = itertools.combinations(range(len(samples)), 2)
    return [o for i, j in pairs if (o := overlap_of(i, j, samples[i], samples[j])) is not None]


def corrected(cube: NDArray[np.float32], tile: TileCorrection, corner: tuple[int, int]) -> NDArray[np.float32]:
    """The tile as it goes into the mosaic."""
    gain, constant, slope_x, slope_y = linear(tile)[:, :, None, None]
    x, y = corner[0] + np.arange(cube.shape[2])[None, None, :], corner[1] + np.arange(cube.shape[1])[None, :, None]
    return np.asarray(gain * cube + constant + slope_x * x + slope_y * y, np.float32)


def test_block_levels_are_means_without_what_stands_out() -> None:
    """A tile's blocks are the grid's own: the clipped mean of its pixels there (oracle: numpy), none next to a gap."""
    rng = np.random.default_rng(2)
    cube = rng.normal(100, 5, (3, 70, 90)).astype(np.float32)
    cube[:, 40:44, 60:64] += 3000
    cube[1, 10:40, 20:50] = np.nan
    x0, y0 = 37, 5
    found = sampled(cube, (x0, y0), None, noise=5.0)
    known = 0
    for r in range(found.level.shape[1]):
        for c in range(found.level.shape[2]):
            y, x = (r + found.y_block) * 16 - y0, (c + found.x_block) * 16 - x0
            block = cube[:, y : y + 16, x : x + 16] if min(x, y) >= 0 else cube[:, :0, :0]
            for k in range(3):
                if block[k].size < 256 or not np.isfinite(block[k]).all():
                    assert np.isnan(found.level[k, r, c])
                    continue
                kept = block[k]
                for _ in range(10):
                    kept = block[k][np.abs(block[k] - np.median(kept)) < 12.5]
                assert found.level[k, r, c] == pytest.approx(kept.mean(), abs=0.35)
                known += 1
    assert known >= 20


def test_star_gain_is_the_ratio_of_fluxes_whatever_the_sky() -> None:
    """The gain from stars is right to half a percent through different offsets and slopes."""
    made = make_tiles()
    o = overlaps_of(made, with_stars=True)[0]
    assert o.gain == pytest.approx(made.gains[0] / made.gains[1], rel=0.005)
    assert (o.gain_sigma < 0.01).all()


def test_phase5_tiles_are_levelled_to_the_noise_and_the_nebula_stays() -> None:
    """Gain, offset and plane of every tile and channel come out of one solve: seams < 0.3 ADU, nebula untouched."""
    made = make_tiles()
    solution = solve_tiles(overlaps_of(made, with_stars=True), made.extents, 3)
    assert solution.components == 1
    assert max(abs(s) for seam in solution.seams for s in seam.before_adu) > 20
    assert max(abs(s) for seam in solution.seams for s in seam.after_adu) < 0.3
    assert max(u for seam in solution.seams for u in seam.uneven_adu) < 1.0
    # Against the truth each mosaic channel may differ by one gain and one common plane, and by nothing else.
    level = []
    for cube, tile, (x0, y0) in zip(made.cubes, solution.tiles, made.corners, strict=True):
        true = made.truth[:, y0 : y0 + SIDE, x0 : x0 + SIDE] * made.gains[0][:, None, None]
        level.append(corrected(cube, tile, (x0, y0)) - true)
    for k in range(3):
        rows = [
            (x0 + x, y0 + y, np.median(d[k, y - 10 : y + 10, x - 10 : x + 10]))
            for d, (x0, y0) in zip(level, made.corners, strict=True)
            for x in range(30, SIDE, 60)
            for y in range(30, SIDE, 60)
        ]
        points = np.array(rows)
        design = np.column_stack([np.ones(len(points)), points[:, :2]])
        fit, *_ = np.linalg.lstsq(design, points[:, 2], rcond=None)
        assert np.abs(points[:, 2] - design @ fit).max() < 2.0


def test_phase5_overall_sky_is_kept_and_nothing_is_clipped() -> None:
    """The mean level of the tiles' overlaps stays; negative pixels stay negative; NaN stays NaN."""
    made = make_tiles()
    overlaps = overlaps_of(made, with_stars=True)
    solution = solve_tiles(overlaps, made.extents, 3)
    for k in range(3):
        assert sum(t.offset[k] for t in solution.tiles) == pytest.approx(0, abs=1e-6)
        assert sum(t.slope_x[k] for t in solution.tiles) == pytest.approx(0, abs=1e-9)
    cube = np.full((3, 4, 4), -5000.0, np.float32)
    cube[0, 0, 0] = np.nan
    out = corrected(cube, solution.tiles[1], (0, 0))
    assert np.isnan(out[0, 0, 0])
    assert (out[np.isfinite(out)] < 0).all()


def test_phase5_gain_is_not_taken_from_the_background() -> None:
    """Without stars and without structure in the overlap the gain stays 1 and is marked as not measured."""
    made = make_tiles(nebula=0.0)
    flat = [
        Overlap(
            first=o.first, second=o.second, x=o.x, y=o.y, block_px=o.block_px, noise=o.noise, gain=o.gain,
            gain_sigma=o.gain_sigma, a=o.a - np.median(o.a, axis=1, keepdims=True) + 1000,
            b=o.b - np.median(o.b, axis=1, keepdims=True) + 700,
        )
        for o in overlaps_of(made, with_stars=False)
    ]  # fmt: skip
    solution = solve_tiles(flat, made.extents, 3)
    assert {g for t in solution.tiles for g in t.gain} == {1.0}
    assert not any(m for t in solution.tiles for m in t.gain_measured)


def test_phase5_gain_from_structure_where_no_star_tells() -> None:
    """A nebula across the overlap gives the gain to a percent where there are no stars."""
    made = make_tiles()
    solution = solve_tiles(overlaps_of(made, with_stars=False), made.extents, 3)
    for tile, gain in zip(solution.tiles, made.gains, strict=True):
        if tile.gain_measured[0]:
            assert tile.gain[0] == pytest.approx(made.gains[0][0] / gain[0], rel=0.01)
    assert solution.tiles[1].gain_measured[0]


def test_phase5_tiles_without_overlap_are_left_alone() -> None:
    """A tile that overlaps none is its own component and keeps its pixels; the rest is solved."""
    made = make_tiles()
    overlaps = [o for o in overlaps_of(made, with_stars=True) if 3 not in (o.first, o.second)]
    solution = solve_tiles(overlaps, made.extents, 3)
    assert solution.components == 2
    assert solution.tiles[3].component not in {t.component for t in solution.tiles[:3]}
    alone = made.cubes[3]
    np.testing.assert_array_equal(corrected(alone, solution.tiles[3], (STEP, STEP)), alone)


def test_phase5_a_thin_overlap_gives_an_offset_but_no_wild_plane() -> None:
    """A strip one block wide levels its tiles; slopes that it cannot tell stay small."""
    rng = np.random.default_rng(5)
    y = np.arange(8) * 16.0
    strip = Overlap(
        first=0, second=1, x=np.full(8, 300.0), y=y, a=(1000 + rng.normal(0, 0.3, (1, 8))).astype(np.float32),
        b=(1030 + rng.normal(0, 0.3, (1, 8))).astype(np.float32), noise=np.array([5.0]), gain=np.array([np.nan]),
        gain_sigma=np.array([np.nan]), block_px=16,
    )  # fmt: skip
    extents = [
        TileExtent(x=160.0, y=160.0, half_px=160.0, frames=1),
        TileExtent(x=440.0, y=160.0, half_px=160.0, frames=1),
    ]
    solution = solve_tiles([strip], extents, 1)
    assert abs(solution.seams[0].after_adu[0]) < 0.5
    assert max(abs(t.slope_x[0]) + abs(t.slope_y[0]) for t in solution.tiles) * 160 < 5


@pytest.mark.parametrize(("gain", "sigma", "expected"), [(1.0, 0.004, 1.0), (np.nan, np.nan, 1.06)])
def test_phase5_stars_overrule_structure(gain: float, sigma: float, expected: float) -> None:
    """What a lens dims looks like more or less nebula: structure tells the gain only where no stars do."""
    rng = np.random.default_rng(8)
    x, y = (v.ravel().astype(float) for v in np.meshgrid(np.arange(10) * 16.0, np.arange(12) * 16.0))
    nebula = 1000 * np.exp(-((x - 70) ** 2 + (y - 90) ** 2) / 2 / 40**2)
    pair = Overlap(
        first=0, second=1, x=x, y=y, a=(1000 + 1.06 * nebula + rng.normal(0, 0.3, (1, 120))).astype(np.float32),
        b=(1000 + nebula + rng.normal(0, 0.3, (1, 120))).astype(np.float32), noise=np.array([5.0]),
        gain=np.array([gain]), gain_sigma=np.array([sigma]), block_px=16,
    )  # fmt: skip
    extents = [TileExtent(x=80.0 + 80 * i, y=80.0, half_px=160.0, frames=1) for i in (0, 1)]
    first, second = (t.gain[0] for t in solve_tiles([pair], extents, 1).tiles)
    assert second / first == pytest.approx(expected, abs=0.003)


def test_phase5_no_overlaps_at_all() -> None:
    """One tile, no overlap: gain 1, offset 0, no seams."""
    solution = solve_tiles([], [TileExtent(x=0.0, y=0.0, half_px=10.0, frames=3)], 3)
    assert solution.seams == ()
    assert solution.tiles[0].gain == (1.0, 1.0, 1.0)
    assert solution.tiles[0].offset == (0.0, 0.0, 0.0)


def test_phase5_gain_comes_right_with_few_stars() -> None:
    """Ten stars on all four tiles, some overlaps with none: every gain is right to 2 %, with no help of structure."""
    made = make_tiles(nebula=0.0)
    inner = (np.abs(made.stars[0] - 272) < 40) & (np.abs(made.stars[1] - 272) < 40)
    order = np.argsort(~inner, kind="stable")
    some = replace(made, stars=(made.stars[0][order], made.stars[1][order]))
    count = min(10, int(inner.sum()))
    assert count >= 3
    solution = solve_tiles(overlaps_of(some, with_stars=True, few=count), made.extents, 3)
    for tile, gain in zip(solution.tiles, made.gains, strict=True):
        np.testing.assert_allclose(tile.gain, made.gains[0] / gain, rtol=0.02)


def test_phase5_one_wild_overlap_does_not_bend_the_gains() -> None:
    """A pair whose stars are wrong (a variable among few) is outvoted by the ways round it."""
    made = make_tiles()
    overlaps = overlaps_of(made, with_stars=True)
    wild = [replace(o, gain=o.gain * 1.5) if (o.first, o.second) == (0, 3) else o for o in overlaps]
    solution = solve_tiles(wild, made.extents, 3)
    for tile, gain in zip(solution.tiles, made.gains, strict=True):
        np.testing.assert_allclose(tile.gain, made.gains[0] / gain, rtol=0.01)


def test_phase5_equal_tiles_keep_their_mean_scale() -> None:
    """Where no tile is deeper than the others their mean gain is 1: nobody's units are preferred."""
    made = make_tiles()
    equal = [replace(e, frames=1) for e in made.extents]
    solution = solve_tiles(overlaps_of(made, with_stars=True), equal, 3)
    for k in range(3):
        assert sum(math.log(t.gain[k]) for t in solution.tiles) == pytest.approx(0.0, abs=1e-9)


def test_phase5_what_is_left_is_reported() -> None:
    """Each overlap says how many stars it has, how far they lie apart, and what is left of their flux ratio."""
    made = make_tiles()
    solution = solve_tiles(overlaps_of(made, with_stars=True), made.extents, 3)
    for seam in solution.seams:
        assert seam.stars >= 2
        assert math.hypot(*seam.shift_px) < 1e-6
        assert max(abs(v) for v in seam.gain_off_mag) < 0.02


def test_stars_are_matched_one_to_one_within_the_radius() -> None:
    """Each other's nearest within 2 px, whatever their order (oracle: all distances)."""
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 60, 40), rng.uniform(0, 60, 40)
    away = rng.normal(0, 0.8, (2, 40))
    nothing = np.ones((1, 40))
    a = TileStars(x=x, y=y, flux=nothing, noise=nothing)
    order = rng.permutation(40)
    b = TileStars(x=(x + away[0])[order], y=(y + away[1])[order], flux=nothing, noise=nothing)
    distance = np.hypot(a.x[:, None] - b.x[None, :], a.y[:, None] - b.y[None, :])
    expected = {
        (i, int(distance[i].argmin()))
        for i in range(40)
        if distance[i].min() <= 2.0 and distance[:, distance[i].argmin()].argmin() == i
    }
    mine, theirs = matched(a, b)
    assert set(zip(mine.tolist(), theirs.tolist(), strict=True)) == expected
    assert len(expected) > 20


def test_phase5_hundreds_of_tiles_are_solved_together() -> None:
    """A chain of 300 tiles whose levels drift comes out level to its ends, from its neighbours alone."""
    rng = np.random.default_rng(4)
    level = np.cumsum(rng.normal(0, 5, 300))
    y, x = (v.ravel() * 16.0 for v in np.mgrid[0:8, 0:3])
    overlaps, extents = [], []
    for i in range(300):
        extents.append(TileExtent(x=160.0 * i, y=64.0, half_px=100.0, frames=1))
        if i:
            both = (1000 + level[[i - 1, i]][:, None, None] + rng.normal(0, 0.05, (2, 1, 24))).astype(np.float32)
            overlaps.append(
                Overlap(
                    first=i - 1, second=i, x=160.0 * i - 96 + x, y=y, a=both[0], b=both[1], block_px=16,
                    noise=np.array([1.0]), gain=np.array([1.0]), gain_sigma=np.array([0.01]),
                )
            )  # fmt: skip
    solution = solve_tiles(overlaps, extents, 1)
    after = level + [t.offset[0] for t in solution.tiles]
    assert np.ptp(level) > 30
    assert np.ptp(after) < 3.0
    assert solution.components == 1
