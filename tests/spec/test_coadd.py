"""Tiles added into bands: exact where they lie on the grid, by the kernel elsewhere, and not a pixel lost (phase 5)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import oracles
from zemosaicd.science.coadd import REACH, Slab, Sums
from zemosaicd.science.coverage import edge_weight
from zemosaicd.science.kernels import lanczos_table, table_of
from zemosaicd.science.placement import Placement, place
from zemosaicd.science.tilesolve import TileCorrection

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
H, W = 70, 83
LANCZOS, CATMULL_ROM = lanczos_table(), table_of(np.vectorize(oracles.catmull_rom))


def noise(channels: int = 1, seed: int = 5) -> F32:
    return np.random.default_rng(seed).normal(500.0, 30.0, (channels, H, W)).astype(np.float32)


def correction(channels: int = 1, **changes: float) -> TileCorrection:
    """Of no effect but for what is named, the same in all channels."""
    values = {"gain": 1.0, "pivot": 0.0, "offset": 0.0, "slope_x": 0.0, "slope_y": 0.0} | changes
    tuples = {name: (value,) * channels for name, value in values.items()}
    return TileCorrection(**tuples, x=40.0, y=30.0, gain_measured=(True,) * channels, component=0)  # type: ignore[arg-type]


def turned(degrees: float, dx: float, dy: float, scale: float = 1.0) -> Placement:
    """An image turned about its corner on a grid of 120 x 110 pixels, `scale` of its pixels to one of the grid."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return place(lambda x, y: (c * x - s * y + dx, s * x + c * y + dy), (0, 0, 120, 110), W, H)


def added(
    cube: F32,
    there: Placement,
    step: int = 110,
    table: F32 = LANCZOS,
    change: TileCorrection | None = None,
    **slab: F32,
) -> Sums:
    """The whole grid's sums (110 x 120), added in bands of `step` rows, each from no more rows than it asks for."""
    whole, band = Sums(len(cube), 110, 120), Sums(len(cube), step, 120)
    for row0 in range(0, 110, step):
        rows = min(step, 110 - row0)
        band.begin(row0, rows)
        _, (first, last) = there.columns_and_rows(row0, row0 + rows)
        halo = 0 if there.shift else REACH
        first, last = max(0, first - halo), min(H, last + halo)
        parts = {n: v if v.ndim == 1 else np.ascontiguousarray(v[..., first:last, :]) for n, v in slab.items()}
        part = Slab(pixels=np.ascontiguousarray(cube[:, first:last]), row0=first, feather_px=6.0, **parts)
        band.add(part, there, change or correction(len(cube)), np.full(len(cube), 0.25), table)
        for name in ("value", "weight", "squared", "alpha"):
            getattr(whole, name)[..., row0 : row0 + rows, :] = getattr(band, name)
    return whole


def seen_by_nearest(there: Placement, cube: F32) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(110, 120): where the nearest pixel of the image has data in all channels, by the exact places of the nodes; and
    where it is plain which pixel that is."""
    y, x = np.mgrid[0:110, 0:120].astype(np.float64)
    j, i = (y // there.step).astype(int) - there.y_node, (x // there.step).astype(int) - there.x_node
    fy, fx = (y % there.step) / there.step, (x % there.step) / there.step
    n = there.nodes
    u, v = ((1 - fy) * ((1 - fx) * n[k, j, i] + fx * n[k, j, i + 1])
            + fy * ((1 - fx) * n[k, j + 1, i] + fx * n[k, j + 1, i + 1]) for k in (0, 1))  # fmt: skip
    plain = np.maximum(np.abs(u - np.round(u)), np.abs(v - np.round(v))) < 0.5 - 1e-9
    u, v = np.floor(u + 0.5), np.floor(v + 0.5)
    inside = (u >= 0) & (u < W) & (v >= 0) & (v < H)
    good = np.isfinite(cube).all(axis=0)
    inside[inside] = good[v[inside].astype(int), u[inside].astype(int)]
    return inside, plain


@pytest.mark.parametrize(("table", "kernel"), [(LANCZOS, oracles.lanczos), (CATMULL_ROM, oracles.catmull_rom)])
def test_phase5_interpolation_equals_its_definition(table: F32, kernel: object) -> None:
    """Well inside a tile a sample is the kernel's weighted sum of 6x6 pixels, weights of sum 1 (oracle: loops)."""
    cube = noise()
    there = turned(7.3, -4.4, -9.1)
    picture, _ = added(cube, there, table=table).finish()
    a = math.radians(7.3)
    compared = 0
    for y in range(20, 70, 7):
        for x in range(20, 70, 6):
            u, v = math.cos(a) * x - math.sin(a) * y - 4.4, math.sin(a) * x + math.cos(a) * y - 9.1
            if 3 <= u < W - 6 and 3 <= v < H - 4:
                assert picture[0, y, x] == pytest.approx(oracles.kernel_at(cube[0], u, v, kernel), abs=2.0)
                compared += 1
    assert compared > 30


@given(dx=st.integers(-30, 60), dy=st.integers(-30, 60), step=st.sampled_from([1, 13, 110]))
@settings(max_examples=20, deadline=None)
def test_phase5_a_tile_on_the_lattice_passes_unchanged(dx: int, dy: int, step: int) -> None:
    """By whole pixels nothing is interpolated: values to the last bit, up to the tile's own edge, NaN elsewhere."""
    cube = noise(3)
    there = place(lambda x, y: (x - dx, y - dy), (max(0, dx), max(0, dy), min(120, dx + W), min(110, dy + H)), W, H)
    assert there.shift == (dx, dy)
    picture, ivar = added(cube, there, step).finish()
    expected = np.full((3, 110, 120), np.nan, np.float32)
    y0, y1, x0, x1 = max(0, dy), min(110, dy + H), max(0, dx), min(120, dx + W)
    expected[:, y0:y1, x0:x1] = cube[:, y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    np.testing.assert_array_equal(picture, expected)
    np.testing.assert_allclose(ivar[np.isfinite(expected)], 0.25, rtol=1e-6)


@given(
    angle=st.floats(-180.0, 180.0), dx=st.floats(-20.0, 90.0), dy=st.floats(-20.0, 90.0),
    step=st.sampled_from([1, 7, 32, 64]), holes=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_M5_bands_and_slabs_have_the_bits_of_the_whole(
    angle: float, dx: float, dy: float, step: int, holes: bool
) -> None:
    """Bands of any height, each from no more rows than it asks for, equal the whole mosaic bit by bit."""
    cube, there = noise(), turned(angle, dx, dy)
    if holes:
        cube[0, 20:30, 40:44] = np.nan
    whole, bands = added(cube, there), added(cube, there, step)
    for name in ("value", "weight", "squared", "alpha"):
        np.testing.assert_array_equal(getattr(bands, name), getattr(whole, name), err_msg=name)


@given(angle=st.floats(-180.0, 180.0), dx=st.floats(0.0, 80.0), dy=st.floats(0.0, 70.0), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_V3_nothing_is_lost_and_nothing_invented(angle: float, dx: float, dy: float, seed: int) -> None:
    """A pixel is seen exactly where the nearest pixel of the tile has data: no halo round edges and gaps, no NaN let
    in, nothing extrapolated."""
    cube = noise(2)
    rng = np.random.default_rng(seed)
    cube[0, rng.random((H, W)) < 0.02] = np.nan
    cube[1, 10:25, 30:50] = np.inf
    there = turned(angle, dx, dy)
    picture, ivar = added(cube, there).finish()
    expected, plain = seen_by_nearest(there, cube)
    np.testing.assert_array_equal(np.isfinite(picture[0])[plain], expected[plain])
    np.testing.assert_array_equal(np.isfinite(picture[1]), np.isfinite(picture[0]))
    assert (ivar[0][~np.isfinite(picture[0])] == 0).all()
    within = picture[0][np.isfinite(picture[0])]
    assert within.size == 0 or (within.min() > 200 and within.max() < 800)


def test_phase5_the_feather_is_that_of_coverage() -> None:
    """A whole tile fades towards its own edges as the weight of a mask does; a tile with a gap as it is told."""
    cube = noise()
    there = place(lambda x, y: (x - 5, y - 3), (5, 3, 5 + W, 3 + H), W, H)
    expected = edge_weight(np.ones((H, W), bool), 6.0)
    alpha = added(cube, there).alpha[3 : 3 + H, 5 : 5 + W]
    np.testing.assert_allclose(alpha, expected, atol=1e-6)
    gap = cube.copy()
    gap[0, 30:40, 20:50] = np.nan
    given_alpha = edge_weight(np.isfinite(gap[0]), 6.0)
    found = added(gap, there, alpha=given_alpha).alpha[3 : 3 + H, 5 : 5 + W]
    np.testing.assert_array_equal(found, given_alpha)


def test_phase5_tiles_are_weighted_by_variance_and_feather() -> None:
    """The mean of two tiles, each by its inverse variance after its gain, times its feather; WEIGHT says what that is
    worth."""
    a, b = np.full((1, H, W), 10.0, np.float32), np.full((1, H, W), 22.0, np.float32)
    there = place(lambda x, y: (x, y), (0, 0, W, H), W, H)
    sums = Sums(1, 110, 120)
    double = correction(gain=2.0)
    sums.add(Slab(pixels=a, row0=0, feather_px=0.0), there, double, np.array([4.0]), LANCZOS)
    ramp = np.tile(np.linspace(0.2, 1.0, W, dtype=np.float32), (H, 1))
    sums.add(Slab(pixels=b, row0=0, alpha=ramp), there, correction(), np.array([3.0]), LANCZOS)
    picture, ivar = sums.finish()
    wa, wb = 4.0 / 2.0**2, 3.0 * ramp
    np.testing.assert_allclose(picture[0, :H, :W], (wa * 20.0 + wb * 22.0) / (wa + wb), rtol=1e-6)
    np.testing.assert_allclose(ivar[0, :H, :W], (wa + wb) ** 2 / (wa + wb * ramp), rtol=1e-6)
    np.testing.assert_allclose(sums.alpha[:H, :W], 1.0)


def test_phase5_a_tiles_own_weights_count_pixel_by_pixel() -> None:
    """WEIGHT is taken from the nearest pixel, never interpolated; a pixel of weight 0 counts for nothing."""
    cube, weight = noise(3), np.random.default_rng(1).uniform(0.5, 2.0, (3, H, W)).astype(np.float32)
    weight[:, 30, 30] = 0.0
    there = place(lambda x, y: (x - 2, y - 1), (2, 1, 2 + W, 1 + H), W, H)
    picture, ivar = added(cube, there, weight=weight).finish()
    np.testing.assert_allclose(ivar[:, 1 : 1 + H, 2 : 2 + W], 0.25 * weight, rtol=1e-6)
    assert np.isnan(picture[:, 31, 32]).all()


def test_phase5_corrections_are_of_the_grid_and_nothing_is_clipped() -> None:
    """gain * (pixel - pivot) + pivot + offset + slopes from the tile's centre on the grid; below 0 stays below 0."""
    cube = np.full((1, H, W), -300.0, np.float32)
    there = place(lambda x, y: (x - 7, y - 4), (7, 4, 7 + W, 4 + H), W, H)
    change = correction(gain=1.5, pivot=100.0, offset=-7.0, slope_x=0.5, slope_y=-0.25)
    picture, _ = added(cube, there, change=change).finish()
    y, x = np.mgrid[0:110, 0:120]
    expected = 1.5 * (-300 - 100) + 100 - 7 + 0.5 * (x - 40) - 0.25 * (y - 30)
    seen = np.isfinite(picture[0])
    assert seen.sum() == H * W
    np.testing.assert_allclose(picture[0][seen], expected[seen], rtol=1e-6)
    assert (picture[0][seen] < 0).all()


def test_phase5_a_slab_that_is_too_small_is_refused() -> None:
    """A band never reads what is not there."""
    there = turned(3.0, 0.0, 0.0)
    slab = Slab(pixels=noise()[:, 10:40].copy(), row0=10, feather_px=5.0)
    with pytest.raises(ValueError, match="needs rows"):
        Sums(1, 110, 120).add(slab, there, correction(), np.array([1.0]), LANCZOS)
    with pytest.raises(ValueError, match="needs rows"):
        Sums(1, 110, 120).add(replace(slab, row0=0), there, correction(), np.array([1.0]), LANCZOS)


def clipped_star(sky: float) -> F32:
    """A star of 2.9 px FWHM, clipped at a tenth of its height, on a flat sky."""
    y, x = np.mgrid[0:H, 0:W]
    star = np.minimum(1e5 * np.exp(-0.5 * ((x - 41) ** 2 + (y - 35) ** 2) / 1.23**2), 1e4)
    return np.asarray(star + sky, np.float32)[np.newaxis]


def test_phase5_no_dark_ring_round_a_saturated_star() -> None:
    """Where the kernel would go below the tile's darkest sky it does not, and nothing else changes."""
    there = place(lambda x, y: (x - 0.5, y - 0.3), (0, 0, 120, 110), W, H)
    cube = clipped_star(100.0)
    free = added(cube, there).finish()[0][0]
    held = added(cube, there, floor=np.array([92.0], np.float32)).finish()[0][0]
    seen = np.isfinite(free)
    assert free[seen].min() < 0.0
    assert held[seen].min() >= 92.0
    np.testing.assert_array_equal(held[seen & (free >= 92.0)], free[seen & (free >= 92.0)])


@pytest.mark.parametrize("fwhm_px", [2.0, 2.9])
def test_phase5_the_kernel_keeps_stars_sharp(fwhm_px: float) -> None:
    """A star that moves by half a pixel both ways, the worst there is, is hardly wider for it; by Catmull-Rom it is
    several times as much wider."""
    sigma = fwhm_px / 2.3548
    y, x = np.mgrid[0:H, 0:W]
    star = np.exp(-0.5 * ((x - 41) ** 2 + (y - 35) ** 2) / sigma**2).astype(np.float32)[np.newaxis]
    there = place(lambda x, y: (x - 0.5, y - 0.5), (0, 0, 120, 110), W, H)

    def width(table: F32) -> float:
        picture = np.nan_to_num(added(star, there, table=table).finish()[0][0])[15:60, 20:65].astype(np.float64)
        v, u = np.mgrid[0:45, 0:45]
        # windowed by a Gaussian of the star's own size, so that the kernel's far lobes do not count
        w = picture * np.exp(-0.5 * ((u - 21.5) ** 2 + (v - 20.5) ** 2) / sigma**2)
        return math.sqrt(2 * float((w * (u - 21.5) ** 2).sum() / w.sum())) / sigma

    wider, by_catmull_rom = width(LANCZOS) - 1.0, width(CATMULL_ROM) - 1.0
    assert abs(wider) < 0.02
    assert by_catmull_rom > 3 * abs(wider)


def test_a_tile_of_larger_pixels_counts_for_what_it_knows() -> None:
    """Two images of the same sky and depth, one of pixels twice as wide: four of the grid's pixels share one of its, so
    the mean of both has half the noise of either (variance, over blocks), and WEIGHT is that of what is written."""
    same, twice = turned(0.0, 0.0, 0.0), turned(0.0, -0.25, -0.25, scale=0.5)
    assert same.shift == (0, 0)
    rng, means, spreads = np.random.default_rng(3), [], []
    for _ in range(30):
        sums, alone = Sums(1, 110, 120), Sums(1, 110, 120)
        sky = [rng.normal(500.0, sigma, (1, H, W)).astype(np.float32) for sigma in (30.0, 15.0)]
        for target, parts in ((sums, ((same, sky[0], 30.0), (twice, sky[1], 15.0))), (alone, ((same, sky[0], 30.0),))):
            for there, pixels, sigma in parts:
                target.add(Slab(pixels=pixels, row0=0), there, correction(), np.array([sigma**-2]), LANCZOS)
        blocks = [t.finish()[0][0, 4:60, 4:76].reshape(7, 8, 9, 8).mean(axis=(1, 3)).ravel() for t in (sums, alone)]
        means.append(blocks[0])
        spreads.append(blocks[1])
    assert float(np.var(means)) == pytest.approx(0.5 * float(np.var(spreads)), rel=0.1)
    weight = sums.finish()[1][0, 30, 30]
    assert weight == pytest.approx((1 / 900 + 0.25 / 225) ** 2 / (1 / 900 + 0.0625 / 225), rel=1e-3)
