"""Photometry between frames: the transparency of each against a reference, a channel, from the ratio of star fluxes.

Between tiles it is `science.tilesolve`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zemosaicd.model import Wcs
from zemosaicd.science.matching import one_to_one
from zemosaicd.science.overlaps import FLUX_RATIO_FLOOR, weighted_median
from zemosaicd.science.registration import sky_vectors
from zemosaicd.science.stars import StarList
from zemosaicd.sphere import ARCSEC_RAD, scale_arcsec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MIN_COMMON_STARS = 3
MIN_STAR_SNR = 10.0
MATCH_PX = 2.0
COLOUR_SPREAD = 0.05
"""How far a channel's transparency is expected to lie from that of all light (natural log, 1 sigma: haze, extinction at
low altitude): what few stars say beyond that is doubted."""
COLOUR_FRAMES = (8, 31)
"""How few and how many frames tell the reference's colour with it: 1 % a frame (FWHM 2 px, 200 stars) becomes 0.2 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScale:
    """Transparency of a frame relative to the reference (flux = transparency x reference flux), one a channel, or a
    single one where the stars have no colours. The reference's own is 1 in all light, and near it in each channel.

    `sigma`: standard error of that of all light, NaN if unknown; `stars`: how many it rests on; `measured` false: fewer
    than 3 stars in common, 1.0 assumed.
    """

    transparency: tuple[float, ...]
    sigma: float
    stars: int
    measured: bool


def frame_scales(stars: Sequence[StarList], solutions: Sequence[Wcs], reference: int) -> tuple[FrameScale, ...]:
    """Transparency of each frame against frame `reference`, from star flux ratios (weighted median).

    Stars are matched on the sky within 2 px; those below SNR 10 in either frame are left out. Fluxes must be on one
    scale (same exposure and gain). Fewer than 3 common stars: 1.0 with `measured` false. Channels: the same stars with
    the same weights; a channel is held to all light (`flux`) by COLOUR_SPREAD against its error. What the reference's
    colours are is told by the frames before and after it too, which come in order of time: its stars are the sharpest,
    of which the photosites of one colour see least, and its error would be that of the whole picture.
    """
    ref = _bright(stars[reference])
    there = sky_vectors(solutions[reference], stars[reference].x[ref], stars[reference].y[ref])
    result, offsets = [], []
    for mine, wcs in zip(stars, solutions, strict=True):
        pick = _bright(mine)
        here = sky_vectors(wcs, mine.x[pick], mine.y[pick])
        own, other, _ = one_to_one(here, there, MATCH_PX * scale_arcsec(wcs) * ARCSEC_RAD)
        scale, offset = _scale(mine, pick[own], stars[reference], ref[other])
        result.append(scale)
        offsets.append(offset)
    known = [i for i, offset in enumerate(offsets) if len(offset)]
    if known:
        at = np.array(known) - reference
        middle = _at_zero(at, np.array([offsets[i] for i in known]))
        for i in known:
            each = result[i].transparency[0] * np.exp(offsets[i] - middle)
            result[i] = replace(result[i], transparency=tuple(each.tolist()))
    return tuple(result)


def _at_zero(at: I64, values: F64) -> F64:
    """What values (n, C) at whole numbers (n,) are at 0, where the value is 0 by itself too: straight lines through the
    nearest COLOUR_FRAMES (Theil 1950, Sen 1968), and that 0, each by its variance there. Of too few: 0.
    """
    if len(at) < COLOUR_FRAMES[0]:
        return np.zeros(values.shape[1])
    near = np.argsort(np.abs(at), kind="stable")[: COLOUR_FRAMES[1]]
    x, y = at[near].astype(np.float64), values[near]
    first, second = np.triu_indices(len(x), 1)
    slope = np.median((y[second] - y[first]) / (x[second] - x[first])[:, np.newaxis], axis=0)
    line = np.median(y - slope * x[:, np.newaxis], axis=0)
    variance = 1.0 / len(x) + np.mean(x) ** 2 / np.sum((x - np.mean(x)) ** 2)  # of a line, in that of a value
    return np.asarray(line / (1.0 + variance))


def _bright(stars: StarList) -> I64:
    return np.flatnonzero((stars.snr >= MIN_STAR_SNR) & (stars.flux > 0))


def _scale(mine: StarList, own: I64, reference: StarList, other: I64) -> tuple[FrameScale, F64]:
    """The scale of all light, and how much more (log) comes through of each channel's; empty without colours."""
    nothing = np.empty(0)
    if len(own) < MIN_COMMON_STARS:
        return FrameScale(transparency=(1.0,), sigma=math.nan, stars=len(own), measured=False), nothing
    ratio = np.log(mine.flux[own].astype(np.float64) / reference.flux[other])
    variance = 1 / mine.snr[own].astype(np.float64) ** 2 + 1 / reference.snr[other] ** 2 + FLUX_RATIO_FLOOR**2
    centre, sigma = weighted_median(ratio, 1 / variance)
    scale = FrameScale(transparency=(math.exp(centre),), sigma=sigma, stars=len(own), measured=True)
    if mine.colours is None or reference.colours is None:
        return scale, nothing
    pairs = zip(mine.colours[own].T, reference.colours[other].T, strict=True)
    return scale, np.array([_offset(a.astype(np.float64), b.astype(np.float64), variance, centre) for a, b in pairs])


def _offset(mine: F64, reference: F64, variance: F64, centre: float) -> float:
    """How much more (log) of one channel's light comes through than of all light, whose log ratio is `centre`."""
    both = (mine > 0.0) & (reference > 0.0)
    if both.sum() < MIN_COMMON_STARS:
        return 0.0
    value, sigma = weighted_median(np.log(mine[both] / reference[both]), 1 / variance[both])
    doubt = sigma**2 + FLUX_RATIO_FLOOR**2 / int(both.sum())  # few stars may agree by chance
    return (value - centre) * COLOUR_SPREAD**2 / (COLOUR_SPREAD**2 + doubt)
