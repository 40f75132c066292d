"""Photometry between frames: what differs is measured from stars, no more."""

from __future__ import annotations

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
