"""Light of known place and flux: put into raw pixels, and found again (issue 3, certificate)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaicd.science.injection import Light, found, spread_over, summary, with_star

FLUX = (3000.0, 5000.0, 2000.0)


def star(x: float, y: float, fwhm_px: float = 3.0, flux: tuple[float, ...] = FLUX) -> Light:
    """A star of these colours."""
    return Light(x=x, y=y, fwhm_px=fwhm_px, flux_adu=flux)


@pytest.mark.parametrize("bayer", ["RGGB", "GRBG", "GBRG", "BGGR"])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (7, 11)])
def test_each_photosite_gets_the_light_of_its_own_colour(bayer: str, corner: tuple[int, int]) -> None:
    """Whatever the slab's corner: a box of a frame shows what that box of the whole frame would."""
    whole = with_star(np.zeros((64, 64), np.float32), (0, 0), bayer, star(30.3, 31.6))
    left, top = corner
    box = with_star(np.zeros((48, 48), np.float32), corner, bayer, star(30.3, 31.6))
    np.testing.assert_allclose(box, whole[top : top + 48, left : left + 48], atol=1e-4)
    for k, colour in enumerate("RGB"):
        sites = [(i // 2, i % 2) for i in range(4) if bayer[i] == colour]
        light = 4 / len(sites) * sum(float(whole[r::2, c::2].sum()) for r, c in sites)
        assert light == pytest.approx(FLUX[k], rel=0.01)


@given(x=st.floats(28.0, 36.0), y=st.floats(28.0, 36.0), fwhm=st.floats(1.8, 4.5))
def test_what_was_put_in_is_found(x: float, y: float, fwhm: float) -> None:
    """Flux to half a percent, place to a hundredth of a pixel."""
    flux, offset = found(
        np.moveaxis(with_star(np.zeros((65, 65, 3), np.float32), (0, 0), "", star(x, y, fwhm)), 2, 0), x, y, fwhm
    )
    np.testing.assert_allclose(flux, FLUX, rtol=5e-3)
    assert np.abs(offset).max() < 0.01


def test_a_camera_of_whole_numbers_gets_whole_numbers_and_all_the_light() -> None:
    """Wings below half an ADU are dithered, not lost, and nothing wraps round at the top."""
    pixels = np.full((65, 65), 65000, np.uint16)
    lit = with_star(pixels, (0, 0), "", star(32.2, 31.7, 3.0, (400.0,)))
    assert lit.dtype == np.uint16
    assert float((lit.astype(float) - 65000).sum()) == pytest.approx(400.0, rel=0.02)
    full = with_star(pixels, (0, 0), "", star(32.0, 32.0, 3.0, (1e6,)))
    assert (full.max(), full.min()) == (65535, 65000)
    assert int(pixels.max()) == 65000


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), margin=st.floats(0.0, 40.0), seed=st.integers(0, 10**6))
def test_stars_lie_inside_and_apart_and_are_the_same_again(width: int, height: int, margin: float, seed: int) -> None:
    """Four of them, or none where there is no room; the tile's number alone decides where."""
    places = spread_over(width, height, margin, seed)
    assert len(places) == (4 if width - 1 > 2 * margin and height - 1 > 2 * margin else 0)
    assert np.array_equal(places, spread_over(width, height, margin, seed))
    if len(places):
        assert (places >= margin).all()
        assert (places <= np.array([width - 1, height - 1]) - margin).all()


def test_the_summary_names_the_worst_star() -> None:
    """Medians a channel, and whichever star and channel is farthest from what was put in."""
    told = summary([np.array([1.0, 0.98]), np.array([0.9, 1.02]), np.array([1.0, 1.0])], [np.array([0.03, 0.04])] * 3)
    assert told["flux_ratio"] == [1.0, 1.0]
    assert (told["stars"], told["flux_worst"]) == (3, 0.9)
    assert told["offset_px"] == pytest.approx(0.05)
