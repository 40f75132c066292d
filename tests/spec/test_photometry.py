"""Photometry between frames: what differs is measured from stars, no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from zemosaicd.model import Wcs
from zemosaicd.science.overlaps import weighted_median
from zemosaicd.science.photometry import frame_scales
from zemosaicd.science.stars import StarList

WCS = Wcs(ra_deg=10.0, dec_deg=20.0, x_px=200.0, y_px=200.0, cd=(0.001, 0.0, 0.0, 0.001))


def star_list(x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64]) -> StarList:
    same = np.full(len(x), 3.0, np.float32)
    snr = np.sqrt(flux).astype(np.float32)
    return StarList(x=x, y=y, flux=flux.astype(np.float32), snr=snr, fwhm_px=same, ellipticity=same)


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
    assert [s.transparency[0] for s in scales] == pytest.approx([1.0, 0.7, 0.45], rel=0.01)
    assert all(s.measured and s.stars == 60 and s.sigma < 0.02 for s in scales)


def test_transparency_without_common_stars_is_one_and_says_so() -> None:
    """Fewer than three stars in common: 1.0, marked as not measured."""
    few = star_list(np.array([1.0, 50.0]), np.array([1.0, 9.0]), np.array([5000.0, 4000.0]))
    none = star_list(np.zeros(0), np.zeros(0), np.zeros(0))
    scales = frame_scales([few, none], [WCS, WCS], 0)
    assert [(s.transparency, s.measured) for s in scales] == [((1.0,), False), ((1.0,), False)]
    assert [s.stars for s in scales] == [2, 0]


def test_weighted_median_ignores_the_wild_third() -> None:
    """A third of wild values moves the weighted median less than the scatter of the good ones."""
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 50.0, 60.0, 70.0])
    centre, sigma = weighted_median(values, np.ones(9))
    assert centre == pytest.approx(1.05, abs=0.06)
    assert sigma < 0.1


def coloured(stars: StarList, *channels: NDArray[np.float64]) -> StarList:
    """The list with a flux a channel."""
    return replace(stars, colours=np.stack(channels, axis=1).astype(np.float32))


def test_transparency_is_told_apart_by_channel() -> None:
    """Haze that reddens: each channel has its own, from stars of any colour, to 0.5 %."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 400, 200), rng.uniform(0, 400, 200)
    flux, tint = 3000 * (1 + rng.pareto(1.5, 200)), rng.uniform(0.3, 1.5, (3, 200))
    lists = []
    for t in ((1.0, 1.0, 1.0), (1.0, 0.9, 0.8)):
        light = [flux * c * k * np.exp(rng.normal(0, 0.02, 200)) for c, k in zip(tint, t, strict=True)]
        lists.append(coloured(star_list(x, y, light[1]), *light))
    scales = frame_scales(lists, [WCS, WCS], 0)
    assert scales[0].transparency == (1.0, 1.0, 1.0)
    assert scales[1].transparency == pytest.approx((1.0, 0.9, 0.8), rel=0.005)


def night_of_haze(n: int, noise: float, stars: int = 200) -> list[StarList]:
    """n frames of one field, whose stars share an error of colour a frame, and blue fades by 0.2 % a frame."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(0, 400, stars), rng.uniform(0, 400, stars)
    flux, tint = 3000 * (1 + rng.pareto(1.5, stars)), rng.uniform(0.3, 1.5, (3, stars))
    lists = []
    for i in range(n):
        haze, odd = (1.0, 1.0, 1.0 - 0.002 * i), np.exp(rng.normal(0, noise, 3)) if i else (0.98, 1.0, 1.03)
        light = [flux * c * k * o for c, k, o in zip(tint, haze, odd, strict=True)]
        lists.append(coloured(star_list(x, y, light[1] / odd[1]), *light))
    return lists


def test_the_colour_of_the_reference_is_told_by_its_neighbours_too() -> None:
    """A reference whose colours are measured 2 and 3 % off is told so by the frames after it, through haze."""
    scales = frame_scales(night_of_haze(30, 0.004), [WCS] * 30, 0)
    assert scales[0].transparency == pytest.approx((0.98, 1.0, 1.03), abs=0.006)
    found = np.array([s.transparency for s in scales])
    wanted = np.array([(1.0, 1.0, 1.0 - 0.002 * i) for i in range(30)])
    assert np.abs(found[1:] / wanted[1:] - 1.0).mean() < 0.006


def test_too_few_neighbours_do_not_tell_the_colour_of_the_reference() -> None:
    """Of seven frames it is what the reference says."""
    assert frame_scales(night_of_haze(7, 0.004), [WCS] * 7, 0)[0].transparency == (1.0, 1.0, 1.0)


def test_a_channel_that_few_stars_tell_goes_with_all_light() -> None:
    """Without three stars in a channel it has the transparency of the others; with five noisy ones, most of it."""
    x, y = np.linspace(20, 380, 5), np.linspace(50, 300, 5)
    flux = np.full(5, 1e5)
    first = coloured(star_list(x, y, flux), flux, flux, flux)
    noisy = 0.7 * flux * np.array([1.0, 1.6, 0.6, 1.5, 1.4])
    second = coloured(star_list(x, y, 0.7 * flux), np.full(5, np.nan), 0.7 * flux, noisy)
    red, green, blue = frame_scales([first, second], [WCS, WCS], 0)[1].transparency
    assert (red, green) == pytest.approx((0.7, 0.7), rel=1e-6)
    assert blue == pytest.approx(0.7, rel=0.06)
