"""A raw frame's pixels, before any star is looked at: hot pixels, colours, sky and noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.oracles import colour_mask
from tests.scenes import repair_hot_pixels
from zemosaicd.science.frame import (
    binned_green,
    binned_mono,
    block_levels,
    colour_offsets,
    find_hot_pixels,
    repair_pixels,
    sky_and_noise,
)

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


def bayer_sky(rng: np.random.Generator, bayer: str, shape: tuple[int, int] = (240, 320)) -> np.ndarray:
    """An empty Bayer frame: R 800 +- 30, G 1000 +- 40, B 700 +- 20 ADU."""
    plane = np.empty(shape)
    for colour, level, sigma in (("R", 800, 30), ("G", 1000, 40), ("B", 700, 20)):
        mask = colour_mask(bayer, colour, shape)
        plane[mask] = rng.normal(level, sigma, int(mask.sum()))
    return plane.astype(np.float32)


def add_star(plane: np.ndarray, x: float, y: float, flux: float, sigma: float) -> None:
    """Add a Gaussian star in place."""
    yy, xx = np.mgrid[: plane.shape[0], : plane.shape[1]]
    plane += flux / (2 * np.pi * sigma**2) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))


def oracle_hot(plane: np.ndarray, sigma: float) -> np.ndarray:
    """The Bayer rule, pixel by pixel, away from the border."""
    height, width = plane.shape
    hot = np.zeros(plane.shape, bool)

    def around(y: int, x: int) -> np.ndarray:
        return np.delete(plane[y - 2 : y + 3 : 2, x - 2 : x + 3 : 2].ravel(), 4)

    for y in range(3, height - 3):
        for x in range(3, width - 3):
            eight = around(y, x)
            if plane[y, x] <= eight.max() + 5 * sigma:
                continue
            steps = ((-1, 0), (1, 0), (0, -1), (0, 1))
            rise = np.mean([plane[y + dy, x + dx] - np.median(around(y + dy, x + dx)) for dy, dx in steps])
            hot[y, x] = rise < 0.10 * (plane[y, x] - np.median(eight)) + 0.6 * sigma
    return hot


class TestHotPixels:
    def test_bayer_rule_is_the_slow_one(self) -> None:
        """The kernel replaces exactly the pixels that the pixel-by-pixel definition calls hot, by their median."""
        rng = np.random.default_rng(1)
        plane = bayer_sky(rng, "GRBG", (80, 90))
        for _ in range(25):
            plane[rng.integers(0, 80), rng.integers(0, 90)] += rng.uniform(100, 3000)
        add_star(plane, 40.3, 30.7, 20000, 1.0)
        repaired, _ = repair_hot_pixels(plane, True)
        steps = np.abs(plane[::8, 2:] - plane[::8, :-2])
        hot = oracle_hot(plane, 1.4826 * float(np.median(steps)) / np.sqrt(2))
        inner = (slice(3, -3), slice(3, -3))
        assert hot.any()
        np.testing.assert_array_equal((repaired != plane)[inner], hot[inner])

    @pytest.mark.parametrize("bayer", [True, False])
    def test_strong_hot_pixels_go(self, bayer: bool) -> None:
        """Hot pixels of 20 sigma go, also on the border and in the corners, and the count is told."""
        rng = np.random.default_rng(2)
        plane = rng.normal(1000, 30, (200, 200)).astype(np.float32)
        places = [(0, 0), (0, 100), (199, 199), (50, 0), (120, 77), (33, 160)]
        for y, x in places:
            plane[y, x] += 1500
        repaired, count = repair_hot_pixels(plane, bayer)
        assert len(places) <= count <= len(places) + 3
        assert all(abs(repaired[p] - 1000) < 100 for p in places)
        assert repaired.dtype == np.float32

    @pytest.mark.parametrize("bayer", [True, False])
    def test_stars_stay(self, bayer: bool) -> None:
        """Star cores are not touched."""
        rng = np.random.default_rng(3)
        plane = rng.normal(1000, 30, (300, 300)).astype(np.float32)
        for _ in range(30):
            add_star(plane, rng.uniform(10, 290), rng.uniform(10, 290), rng.uniform(3e3, 1e5), 1.1)
        repaired, _ = repair_hot_pixels(plane, bayer)
        assert np.count_nonzero(repaired != plane) <= 2

    @pytest.mark.parametrize("bayer", [True, False])
    def test_they_are_named_with_what_to_put_there(self, bayer: bool) -> None:
        """Places and values repair a plane in place just as the copy is repaired."""
        plane = np.random.default_rng(6).normal(1000, 30, (90, 70)).astype(np.float32)
        plane.reshape(-1)[[0, 500, 3333, 90 * 70 - 1]] += 2000
        repaired, count = repair_hot_pixels(plane, bayer)
        hot = find_hot_pixels(plane, bayer)
        places, values = hot.place[hot.sure], hot.value[hot.sure]
        assert {0, 500, 3333, 90 * 70 - 1} <= set(places.tolist())
        plane.reshape(-1)[places] = values
        np.testing.assert_array_equal(plane, repaired)
        assert count == len(places)

    @pytest.mark.parametrize(("bayer", "sigmas"), [(True, 8), (False, 9)])
    def test_a_warm_pixel_is_suspect_and_no_more(self, bayer: bool, sigmas: int) -> None:
        """Not hot enough to be touched in one frame, but named, so that others may confirm it."""
        suspected = 0
        for seed in range(20):
            plane = np.random.default_rng(seed).normal(1000, 30, (90, 70)).astype(np.float32)
            plane[40, 30] = 1000 + sigmas * 30
            hot = find_hot_pixels(plane, bayer)
            suspected += 40 * 70 + 30 in hot.place
            assert len(hot.place) < 20
        assert suspected >= 8

    @pytest.mark.parametrize("kind", [np.float32, np.uint16])
    def test_named_pixels_are_repaired_by_their_own_colour(self, kind: type) -> None:
        """Whatever they hold, the median of their neighbours of the same colour takes their place, also at the edge."""
        plane = np.zeros((20, 24), kind)
        plane[0::2, 0::2], plane[0::2, 1::2], plane[1::2, 0::2], plane[1::2, 1::2] = 100, 200, 200, 300
        whole, places = plane.copy(), np.array([0, 24 * 7 + 8, 24 * 19 + 23, 24 * 5 + 5])
        plane.reshape(-1)[places] = 9000
        repair_pixels(plane, places, True)
        np.testing.assert_array_equal(plane, whole)

    def test_V3_nan_stays_nan_and_is_no_neighbour(self) -> None:
        """A hot pixel beside NaN is still found, and NaN is not filled in."""
        plane = np.random.default_rng(4).normal(1000, 30, (60, 60)).astype(np.float32)
        plane[30, 30] = 9000
        plane[30, 32] = plane[28, 28] = np.nan
        repaired, _ = repair_hot_pixels(plane, True)
        assert repaired[30, 30] < 1200
        np.testing.assert_array_equal(np.isnan(repaired), np.isnan(plane))

    @pytest.mark.parametrize("value", [0.0, 1000.0, np.nan])
    def test_F30_a_constant_frame_is_left_alone(self, value: float) -> None:
        """A frame without noise has no hot pixels."""
        plane = np.full((50, 50), value, np.float32)
        repaired, count = repair_hot_pixels(plane, True)
        assert count == 0
        np.testing.assert_array_equal(repaired, plane)

    def test_input_is_not_changed(self) -> None:
        """The caller's array, of any type, is not written to."""
        plane = np.random.default_rng(5).integers(900, 1100, (40, 40)).astype(np.uint16)
        plane[20, 20] = 60000
        before = plane.copy()
        repaired, count = repair_hot_pixels(plane, True)
        np.testing.assert_array_equal(plane, before)
        assert count == 1
        assert repaired[20, 20] < 1100


class TestPlanes:
    @pytest.mark.parametrize("bayer", PATTERNS)
    def test_binned_green_is_the_mean_of_both_greens(self, bayer: str) -> None:
        """One value a block: the mean of its two greens, whatever the pattern; an odd last row or column is left."""
        plane = np.arange(7 * 9, dtype=np.float32).reshape(7, 9)
        green = colour_mask(bayer, "G", plane.shape)
        expected = [
            [plane[2 * j : 2 * j + 2, 2 * i : 2 * i + 2][green[:2, :2]].mean() for i in range(4)] for j in range(3)
        ]
        np.testing.assert_allclose(binned_green(plane, bayer), expected)

    def test_binned_green_with_one_green_missing(self) -> None:
        """One NaN green leaves the other; two leave NaN."""
        plane = np.ones((4, 4), np.float32)
        plane[0, 1] = plane[2, 1] = plane[3, 0] = np.nan
        green = binned_green(plane, "RGGB")
        assert green[0, 0] == 1.0
        assert np.isnan(green[1, 0])

    @given(arrays(np.float32, (7, 9), elements=st.floats(0, 60000, width=32)))
    @settings(max_examples=30)
    def test_binned_mono_is_the_mean_of_each_2x2_block(self, plane: np.ndarray) -> None:
        """An odd last row or column is left; NaN makes its block NaN."""
        blocks = plane[:6, :8].astype(np.float64).reshape(3, 2, 4, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(binned_mono(plane), blocks, rtol=1e-5, atol=1e-3)
        plane[3, 2] = np.nan
        assert np.argwhere(np.isnan(binned_mono(plane))).tolist() == [[1, 1]]

    @pytest.mark.parametrize("bayer", PATTERNS)
    def test_colours_share_out_the_block(self, bayer: str) -> None:
        """Every photosite has one colour; offsets say the row and column of the pattern's letters."""
        masks = [colour_mask(bayer, c, (6, 6)) for c in ("R", "G", "B")]
        np.testing.assert_array_equal(sum(m.astype(int) for m in masks), 1)
        assert [m.sum() for m in masks] == [9, 18, 9]
        assert colour_offsets(bayer, "R") == ((bayer.index("R") // 2, bayer.index("R") % 2),)

    @pytest.mark.parametrize("bayer", ["", "RGBG2", "RRGB", "grbg"])
    def test_what_is_no_bayer_pattern_is_refused(self, bayer: str) -> None:
        """Only one red, two greens and one blue make a pattern."""
        with pytest.raises(ValueError, match="Bayer"):
            colour_offsets(bayer, "G")


class TestSkyAndNoise:
    @pytest.mark.parametrize("bayer", PATTERNS)
    def test_each_colour_has_its_own(self, bayer: str) -> None:
        """Sky and noise of R, G, B, in that order, for every pattern."""
        sky, noise = sky_and_noise(*block_levels(bayer_sky(np.random.default_rng(6), bayer, (512, 512)), bayer))
        np.testing.assert_allclose(sky, (800, 1000, 700), atol=3)
        np.testing.assert_allclose(noise, (30, 40, 20), rtol=0.04)

    def test_stars_and_nebula_do_not_lift_them(self) -> None:
        """Forty stars, and a nebula over 45 % of the frame that is brighter than the sky: sky and noise hold."""
        rng = np.random.default_rng(7)
        plane = rng.normal(1000, 30, (768, 768)).astype(np.float32)
        plane[:, :345] += 900 + 5 * rng.normal(0, 30, (768, 345)).astype(np.float32)
        for _ in range(40):
            add_star(plane, rng.uniform(0, 768), rng.uniform(0, 768), rng.uniform(1e3, 1e6), 1.5)
        (sky,), (noise,) = sky_and_noise(*block_levels(plane, ""))
        assert sky == pytest.approx(1000, abs=6)
        assert noise == pytest.approx(30, rel=0.05)

    def test_coarse_whole_numbers_are_resolved(self) -> None:
        """Twelve-bit data in steps of 16 ADU give a sky and a noise finer than the step."""
        plane = 16 * np.round(np.random.default_rng(8).normal(1003, 24, (512, 512)) / 16)
        (sky,), (noise,) = sky_and_noise(*block_levels(plane.astype(np.float32), ""))
        assert sky == pytest.approx(1003, abs=2)
        assert noise == pytest.approx(np.hypot(24, 16 / np.sqrt(12)), rel=0.05)

    def test_V3_nan_and_padding_are_no_sky(self) -> None:
        """NaN borders and zero padding leave sky and noise alone; nothing finite gives NaN."""
        plane = np.random.default_rng(9).normal(500, 10, (512, 512)).astype(np.float32)
        plane[:128] = np.nan
        plane[:, :128] = 0.0
        (sky,), (noise,) = sky_and_noise(*block_levels(plane, ""))
        assert sky == pytest.approx(500, abs=2)
        assert noise == pytest.approx(10, rel=0.05)
        assert np.isnan(sky_and_noise(*block_levels(np.full((64, 64), np.nan, np.float32), "RGGB"))).all()

    def test_F30_a_constant_frame_has_its_level_and_no_noise(self) -> None:
        """A constant frame is told as what it is."""
        assert sky_and_noise(*block_levels(np.full((100, 100), 7.0, np.float32), "")) == ((7.0,), (0.0,))
