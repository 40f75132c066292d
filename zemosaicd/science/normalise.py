"""How the frames of a tile come to one level, and what each counts for: the choices by name.

Pure: plans of frames in, numbers for the warp and the combiner out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from zemosaicd.model import FramePlan, FrameSky
from zemosaicd.science.lattices import ILLUMINATION_TERMS, Levels
from zemosaicd.sphere import scale_arcsec

F64 = NDArray[np.float64]

TRANSPARENCY_LIMITS = (0.05, 20.0)
STEEPEST = 20.0
"""A linear fit steeper than this is none."""


class Weights(StrEnum):
    """What a frame counts for. AUTO: inverse variance, light scaled to the reference, over its FWHM: depth is the
    number of frames (DESIGN), and of frames equally deep the sharper counts for more. NOISE_VARIANCE and NOISE_FWHM:
    one of the two alone.
    """

    AUTO = "auto"
    NOISE_VARIANCE = "noise_variance"
    NOISE_FWHM = "noise_fwhm"
    NONE = "none"


def weights_of(rule: Weights, variance: F64, fwhm_px: F64) -> F64:
    """(n, C) from the variances (n, C) and the FWHM (n,) of the frames; a frame of unknown FWHM is taken as average."""
    known = np.isfinite(fwhm_px) & (fwhm_px > 0.0)
    middle = float(np.median(fwhm_px[known])) if known.any() else 1.0
    sharpness = (middle / np.where(known, fwhm_px, middle))[:, np.newaxis]
    match rule:
        case Weights.AUTO:
            return sharpness / variance
        case Weights.NOISE_VARIANCE:
            return 1.0 / variance
        case Weights.NOISE_FWHM:
            return np.broadcast_to(sharpness, variance.shape).copy()
        case Weights.NONE:
            return np.ones_like(variance)


class Normalise(StrEnum):
    """How a frame comes to its tile's reference. STARS: sky, its plane and the illumination are taken out, and light is
    scaled by the flux of the stars. The others are coarser and take pixels as they are: LINEAR_FIT maps the 25th and
    90th percentile of each channel onto the reference's, SKY_MEAN adds one number that levels the 25th percentiles.
    """

    STARS = "stars"
    LINEAR_FIT = "linear_fit"
    SKY_MEAN = "sky_mean"
    NONE = "none"


def levels_of(frame: FramePlan, reference: FramePlan, rule: Normalise = Normalise.STARS) -> Levels:
    """How a frame comes to the reference (science.lattices has the formula)."""
    channels = len(frame.sky_adu)
    nothing = np.zeros(channels)
    plain = Levels.plain(channels)
    if rule is Normalise.NONE:
        return plain
    low, zero = np.array(frame.low_adu or frame.sky_adu), np.array(reference.low_adu or reference.sky_adu)
    if rule is Normalise.SKY_MEAN:
        return replace(plain, zero=np.full(channels, float(np.mean(zero) - np.mean(low))))
    if rule is Normalise.LINEAR_FIT:
        rise, wanted = (
            np.array(f.high_adu or f.sky_adu) - np.array(f.low_adu or f.sky_adu) for f in (frame, reference)
        )
        told = (np.abs(rise) > 1e-3 * np.maximum(1.0, np.abs(low))) & (np.abs(wanted) > 1e-5)
        gain = np.where(told, wanted / np.where(told, rise, 1.0), 1.0)
        return replace(plain, gain=np.where(np.abs(gain) <= STEEPEST, gain, 1.0), sky=low, zero=zero)
    own = frame.sky or FrameSky(slope_x=(0.0,) * channels, slope_y=(0.0,) * channels)
    terms = np.zeros((channels, ILLUMINATION_TERMS))
    terms[:, : len(own.illumination)] = own.illumination
    dimmest, brightest = TRANSPARENCY_LIMITS
    # Interpolation keeps a pixel's value, not a star's flux: a pixel of more sky holds more of it.
    area = (scale_arcsec(reference.wcs) / scale_arcsec(frame.wcs)) ** 2
    return Levels(
        gain=area / np.clip(np.array(frame.transparency, np.float64), dimmest, brightest),
        zero=np.array(reference.sky_adu, np.float64),
        sky=np.array(frame.sky_adu, np.float64),
        slope_x=np.array(own.slope_x, np.float64),
        slope_y=np.array(own.slope_y, np.float64),
        bowl=np.array(own.light, np.float64) if own.light else nothing,
        illumination=terms,
        middle=((frame.facts.width - 1) / 2, (frame.facts.height - 1) / 2),
        radius=math.hypot(frame.facts.width, frame.facts.height) / 2,
    )
