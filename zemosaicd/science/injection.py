"""Stars of known place and flux, put into raw frames to see what a stack makes of them.

Pure: light added to raw pixels, and light found again in the difference of two stacks. A star is a round Moffat profile
(Moffat 1969, beta 3) sampled at the photosites' centres. What is found is measured by sep (Barbary 2016), not by the
code that is being tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sep
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

BETA = 3.0
REACH_FWHM = 5.0
"""Light further out than this is left out: two thousandths of a star."""
APERTURE_FWHM = 3.0
WINDOW_FWHM = 0.8
"""Sigma of the window that places are weighed in: wide, as nothing but the star is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """A star on one frame: 0-based place, FWHM, and flux a channel, ADU of that frame."""

    x: float
    y: float
    fwhm_px: float
    flux_adu: tuple[float, ...]

    @property
    def core2(self) -> float:
        """Square of the profile's core radius, px^2."""
        return self.fwhm_px**2 / (4.0 * (2.0 ** (1.0 / BETA) - 1.0))


def with_star(pixels: NDArray[np.generic], corner: tuple[int, int], bayer: str, star: Light) -> NDArray[np.generic]:
    """A copy of a slab (h, w) of a CFA or mono frame, or (h, w, C) of planes, whose (left, top) is `corner`, with a
    star added. `bayer` names the colours of the frame's first cell. Whole numbers stay whole, as a camera makes them.
    """
    planes = np.array(pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis], np.float32)
    x, y = star.x - corner[0], star.y - corner[1]
    colour = np.array([["RGB".index(c) for c in bayer] if bayer else [0] * 4], np.int64).reshape(2, 2)
    colour = np.roll(colour, (-(corner[1] % 2), -(corner[0] % 2)), axis=(0, 1))
    kind = pixels.dtype
    whole = kind.kind in "iu"
    _add(planes, x, y, star.core2, REACH_FWHM * star.fwhm_px, np.array(star.flux_adu), colour, whole)
    if whole:
        np.minimum(planes, np.float32(np.iinfo(str(kind)).max), out=planes)
    return planes.reshape(pixels.shape).astype(kind)


@njit(cache=True, nogil=True)
def _add(planes: F32, x: float, y: float, core2: float, reach: float, flux: F64, colour: I64, whole: bool) -> None:
    """Add a star to planes (h, w, C), or to one plane (h, w, 1) whose pixels have a colour by their parity."""
    height, width, count = planes.shape
    peak = (BETA - 1.0) / (math.pi * core2)
    for j in range(max(0, math.ceil(y - reach)), min(height, math.floor(y + reach) + 1)):
        for i in range(max(0, math.ceil(x - reach)), min(width, math.floor(x + reach) + 1)):
            share = peak * (1.0 + ((i - x) ** 2 + (j - y) ** 2) / core2) ** -BETA
            for k in range(count):
                light = share * flux[k if count > 1 else colour[j % 2, i % 2]]
                if whole:  # dithered by a golden-ratio pattern: wings below half an ADU are not lost
                    light = math.floor(light + (0.754877666 * i + 0.569840291 * j) % 1.0)
                planes[j, i, k] += light


def found(difference: F32, x: float, y: float, fwhm_px: float) -> tuple[F64, F64]:
    """(flux (C,), offset (2,) in px) of the star at (x, y) of a difference of two stacks (C, h, w), all of it known.

    Flux: sum within 3 FWHM, made whole by what the profile has outside. Offset: windowed centroid of all channels
    together, less the place.
    """
    radius, size = APERTURE_FWHM * fwhm_px, Light(x=x, y=y, fwhm_px=fwhm_px, flux_adu=())
    inside = 1.0 - (1.0 + radius**2 / size.core2) ** (1.0 - BETA)
    planes = np.ascontiguousarray(difference, np.float64)
    flux = np.array([float(sep.sum_circle(plane, [x], [y], radius, subpix=0)[0][0]) for plane in planes]) / inside
    mean = np.ascontiguousarray(planes.mean(axis=0))
    at_x, at_y, _ = sep.winpos(mean, [x], [y], [WINDOW_FWHM * fwhm_px])
    return flux, np.array([float(at_x[0]) - x, float(at_y[0]) - y])


def spread_over(width: int, height: int, margin_px: float, seed: int, across: int = 2) -> F64:
    """Places (n, 2) of stars on a grid, at least `margin_px` inside: one in each of across x across cells, anywhere in
    the middle half of it; the same ones for the same seed. Empty where the grid has no room.
    """
    rng = np.random.default_rng(seed)
    room = np.array([width - 1, height - 1]) - 2.0 * margin_px
    if (room <= 0.0).any():
        return np.empty((0, 2))
    cells = np.stack(np.meshgrid(np.arange(across), np.arange(across)), axis=-1).reshape(-1, 2)
    return np.asarray(margin_px + room * (cells + 0.25 + 0.5 * rng.random(cells.shape)) / across)


def summary(flux: Sequence[F64], offset: Sequence[F64]) -> dict[str, object]:
    """What n stars say together, from `flux` (C,) of each, as a part of what was put in, and `offset` (2,), px."""
    ratio, off = np.array(flux), np.hypot(*np.array(offset).T)
    return {
        "stars": len(ratio),
        "flux_ratio": [float(v) for v in np.median(ratio, axis=0)],
        "flux_worst": float(ratio.reshape(-1)[np.argmax(np.abs(ratio - 1.0))]),
        "offset_px": float(np.median(off)),
        "offset_max_px": float(off.max()),
    }
