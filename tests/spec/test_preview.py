"""The preview: a neutral, stretched, right-way-up picture; pixels never seen are plainly not sky."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaicd.science.preview import NO_DATA_GREY, SKY_GREY, block_mean, quality, stretch


def mosaic(height: int = 120, width: int = 160) -> np.ndarray:
    rng = np.random.default_rng(4)
    cube = rng.normal(0, 5, (3, height, width)) + np.array([900.0, 1400.0, 700.0])[:, None, None]
    cube[:, 20, 30] += 20000
    cube[:, 0:10, :] = np.nan
    return cube.astype(np.float32)


def test_block_mean_honours_nan() -> None:
    """Means are over pixels with data; a block less than half full has none (oracle: loops of nanmean)."""
    rng = np.random.default_rng(1)
    cube = rng.normal(0, 1, (2, 23, 31)).astype(np.float32)
    cube[:, :9, :13] = np.nan
    small = block_mean(cube, 4)
    assert small.shape == (2, 6, 8)
    for r in range(6):
        for c in range(8):
            block = cube[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].reshape(2, -1)
            for k in range(2):
                good = block[k][np.isfinite(block[k])]
                expected = good.mean() if 2 * len(good) >= block.shape[1] else np.nan
                np.testing.assert_allclose(small[k, r, c], expected, rtol=1e-5, atol=1e-6)


def test_stretch_makes_the_sky_neutral_and_dark() -> None:
    """Whatever the channels' levels, the sky comes out as one dark grey."""
    picture = stretch(mosaic())
    sky = np.median(picture[:100].reshape(-1, 3), axis=0)
    assert np.ptp(sky) <= 2
    assert abs(sky.mean() - SKY_GREY) <= 4


def test_stretch_keeps_the_colour_of_stars() -> None:
    """One curve for all channels: a red star stays red in the same proportion."""
    cube = mosaic()
    cube[:, 80, 80] = np.array([900.0, 1400.0, 700.0]) + np.array([400.0, 200.0, 100.0])
    red, green, blue = stretch(cube)[119 - 80, 80].astype(float)
    assert red / green == pytest.approx(2.0, rel=0.15)
    assert green > blue


def test_stretch_shows_pixels_never_seen_as_flat_grey_and_turns_fits_rows_upside_down() -> None:
    """NaN is one flat grey lighter than sky, and row 0 of the array is the bottom of the picture."""
    picture = stretch(mosaic())
    assert (picture[-10:] == NO_DATA_GREY).all()
    assert NO_DATA_GREY > SKY_GREY + 15
    assert picture[119 - 20, 30].min() > 200


@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (2, 1), (3, 3)])
def test_stretch_is_8_bit_and_no_larger_than_asked(channels: int, depth: int) -> None:
    """Shape and type for mono and colour; the longer side is at most max_px."""
    picture = stretch(mosaic()[:channels], max_px=50)
    assert picture.dtype == np.uint8
    assert picture.shape == (30, 40, depth)


def test_stretch_of_nothing_is_grey() -> None:
    """A mosaic without any data, or a constant one, gives a picture and no error."""
    empty = np.full((3, 8, 8), np.nan, np.float32)
    assert (stretch(empty) == NO_DATA_GREY).all()
    assert stretch(np.full((3, 8, 8), 7.0, np.float32)).shape == (8, 8, 3)


def test_quality_figures() -> None:
    """Sky, pixel noise, filled share and unevenness are those that were put in."""
    rng = np.random.default_rng(2)
    cube = (rng.normal(0, 5, (1, 200, 320)) + 1000).astype(np.float32)
    even = quality(cube)
    assert even.sky[0] == pytest.approx(1000, abs=0.5)
    assert even.noise[0] == pytest.approx(5, rel=0.05)
    assert even.filled == 1.0
    cube[:, :, 160:] += 10
    cube[:, :20] = np.nan
    stepped = quality(cube)
    assert stepped.unevenness[0] > 5 > 5 * even.unevenness[0]
    assert stepped.filled == pytest.approx(0.9)
