"""Photometry between frames and tiles: what differs is measured from stars and overlaps, no more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from zemosaicd.model import Wcs
from zemosaicd.science.overlaps import Overlap, sample_overlap, star_gain, weighted_median
from zemosaicd.science.photometry import TileExtent, corrected, frame_scales, solve_tiles
from zemosaicd.science.stars import StarList

SIDE, STEP = 320, 224
WCS = Wcs(ra_deg=10.0, dec_deg=20.0, x_px=200.0, y_px=200.0, cd=(0.001, 0.0, 0.0, 0.001))


def star_list(x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64]) -> StarList:
    same = np.full(len(x), 3.0, np.float32)
    snr = np.sqrt(flux).astype(np.float32)
    return StarList(x=x, y=y, flux=flux.astype(np.float32), snr=snr, fwhm_px=same, ellipticity=same)


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


def overlaps_of(made: Made, with_stars: bool) -> list[Overlap]:
    found = []
    for i in range(len(made.cubes)):
        for j in range(i + 1, len(made.cubes)):
            (xi, yi), (xj, yj) = made.corners[i], made.corners[j]
            x0, y0, x1, y1 = max(xi, xj), max(yi, yj), min(xi, xj) + SIDE, min(yi, yj) + SIDE
            a = made.cubes[i][:, y0 - yi : y1 - yi, x0 - xi : x1 - xi]
            b = made.cubes[j][:, y0 - yj : y1 - yj, x0 - xj : x1 - xj]
            a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
            gain = star_gain(a, b, made.stars[0] - x0, made.stars[1] - y0, 6.0) if with_stars else None
            overlap = sample_overlap(i, j, a, b, x0, y0, star_gain=gain)
            assert overlap is not None
            found.append(overlap)
    return found


def test_transparency_is_the_ratio_of_star_fluxes() -> None:
    """Each frame's transparency is recovered from matched stars to a percent, through a variable star."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 400, 60), rng.uniform(0, 400, 60)
    flux = 2000 * (1 + rng.pareto(1.5, 60))
    lists = []
    for t in (1.0, 0.7, 0.45):
        seen = flux * t * np.exp(rng.normal(0, 0.02, 60))
        seen[5] *= 3
        lists.append(star_list(x + 5 * t, y, seen))
    places = [
        Wcs(ra_deg=10.0, dec_deg=20.0, x_px=200.0 + 5 * t, y_px=200.0, cd=(0.001, 0.0, 0.0, 0.001))
        for t in (1.0, 0.7, 0.45)
    ]
    scales = frame_scales(lists, places, 0)
    assert [s.transparency for s in scales] == pytest.approx([1.0, 0.7, 0.45], rel=0.01)
    assert all(s.measured and s.stars == 60 and s.sigma < 0.02 for s in scales)


def test_transparency_without_common_stars_is_one_and_says_so() -> None:
    """Fewer than three stars in common: 1.0, marked as not measured."""
    few = star_list(np.array([1.0, 50.0]), np.array([1.0, 9.0]), np.array([5000.0, 4000.0]))
    none = star_list(np.zeros(0), np.zeros(0), np.zeros(0))
    scales = frame_scales([few, none], [WCS, WCS], 0)
    assert [(s.transparency, s.measured) for s in scales] == [(1.0, False), (1.0, False)]
    assert [s.stars for s in scales] == [2, 0]


def test_weighted_median_ignores_the_wild_third() -> None:
    """A third of wild values moves the weighted median less than the scatter of the good ones."""
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 50.0, 60.0, 70.0])
    centre, sigma = weighted_median(values, np.ones(9))
    assert centre == pytest.approx(1.05, abs=0.06)
    assert sigma < 0.1


def test_block_medians_agree_with_plain_numpy() -> None:
    """The blocks of an overlap are the lattice's own, medians over pixels valid in both tiles (oracle: np.median)."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(100, 5, (2, 3, 70, 90)).astype(np.float32)
    a[1, 10:40, 20:50] = np.nan
    b[:, 60:, :] = np.nan
    x0, y0 = 37, -5
    found = sample_overlap(0, 1, a, b, x0, y0)
    assert found is not None
    valid = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    column, row = (np.arange(90) + x0) // 16, (np.arange(70) + y0) // 16
    expected = []
    for r in np.unique(row):
        for c in np.unique(column):
            inside = valid & (row == r)[:, None] & (column == c)[None, :]
            if inside.sum() >= 128:
                medians = [np.median(v[:, inside], axis=1) for v in (a, b)]
                expected.append((c * 16 + 7.5, r * 16 + 7.5, *medians[0], *medians[1]))
    got = np.column_stack([found.x, found.y, found.a.T, found.b.T])
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-6)
    assert found.noise == pytest.approx([5 * math.sqrt(2)] * 3, rel=0.1)


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
        level.append(corrected(cube, tile, x0, y0) - true)
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
    out = corrected(cube, solution.tiles[1], 0, 0)
    assert np.isnan(out[0, 0, 0])
    assert (out[np.isfinite(out)] < 0).all()


def test_phase5_gain_is_not_taken_from_the_background() -> None:
    """Without stars and without structure in the overlap the gain stays 1 and is marked as not measured."""
    made = make_tiles(nebula=0.0)
    flat = [
        Overlap(
            first=o.first, second=o.second, x=o.x, y=o.y, noise=o.noise, gain=o.gain, gain_sigma=o.gain_sigma,
            a=o.a - np.median(o.a, axis=1, keepdims=True) + 1000, b=o.b - np.median(o.b, axis=1, keepdims=True) + 700,
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
    np.testing.assert_array_equal(corrected(alone, solution.tiles[3], STEP, STEP), alone)


def test_phase5_a_thin_overlap_gives_an_offset_but_no_wild_plane() -> None:
    """A strip one block wide levels its tiles; slopes that it cannot tell stay small."""
    rng = np.random.default_rng(5)
    y = np.arange(8) * 16.0
    strip = Overlap(
        first=0, second=1, x=np.full(8, 300.0), y=y, a=(1000 + rng.normal(0, 0.3, (1, 8))).astype(np.float32),
        b=(1030 + rng.normal(0, 0.3, (1, 8))).astype(np.float32), noise=np.array([5.0]), gain=np.array([np.nan]),
        gain_sigma=np.array([np.nan]),
    )  # fmt: skip
    extents = [
        TileExtent(x=160.0, y=160.0, half_px=160.0, frames=1),
        TileExtent(x=440.0, y=160.0, half_px=160.0, frames=1),
    ]
    solution = solve_tiles([strip], extents, 1)
    assert abs(solution.seams[0].after_adu[0]) < 0.5
    assert max(abs(t.slope_x[0]) + abs(t.slope_y[0]) for t in solution.tiles) * 160 < 5


def test_phase5_no_overlaps_at_all() -> None:
    """One tile, no overlap: gain 1, offset 0, no seams."""
    solution = solve_tiles([], [TileExtent(x=0.0, y=0.0, half_px=10.0, frames=3)], 3)
    assert solution.seams == ()
    assert solution.tiles[0].gain == (1.0, 1.0, 1.0)
    assert solution.tiles[0].offset == (0.0, 0.0, 0.0)
