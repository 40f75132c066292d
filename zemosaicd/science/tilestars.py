"""Noise, sharpness and stars of a tile of anybody's: on its own pixels, quickly, and only as well as gains need it.

Bright stars are enough for a tile's gain, so a pixel that stands far above its surroundings and above its neighbours
is one; faint, blended and trailed ones cost nothing by being missed. `science.stars` does what astrometry needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.robust import median_of

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

CELL_PX = 64
PEAK_SIGMA = 12.0
"""Height of a star's peak over its surroundings, in sigmas of a pixel: fluxes then have an SNR of about 20 and more."""
NEIGHBOURS_SHARE = 0.15
"""A star's four neighbours have at least this share of its height; those of a hot pixel have not."""
RINGING_SIGMA = 8.0
"""So far below the darkest part of a tile there is no sky."""
SHARPNESS_STARS = 200
NOISE_LAG_PX = 6
"""Farther than interpolation and demosaicing carry a pixel's noise, nearer than the sky changes."""
NOISE_SAMPLES = 30_000
HALF_WINDOW = 12
MAX_STARS_A_SLAB = 2000
RING_OUTER = 1.35
"""The ring under a star ends this many aperture radii, and 4 px, from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """`noise` (C,): standard deviation of a pixel on empty sky, NaN without data; `fwhm_px`: NaN without stars;
    `floor` (C,): a level that no sky of the tile is below."""

    noise: tuple[float, ...]
    fwhm_px: float
    floor: tuple[float, ...]


def character(strips: Sequence[F32], darkest: F32) -> Character:
    """Noise and sharpness of a tile from some strips of its rows, float32 (C, h, W), NaN without data; `darkest` (C,):
    level of its darkest part."""
    noise = tuple(pixel_noise([s[k] for s in strips]) for k in range(len(strips[0])))
    sizes = [np.empty(0)]
    for strip in strips:
        plane, sigma = mean_plane(strip, noise)
        x, y, level, _ = find_peaks(plane, sigma, 0, plane.shape[0])
        sizes.append(_half_light(plane, x[:SHARPNESS_STARS], y[:SHARPNESS_STARS], level[:SHARPNESS_STARS]))
    found = np.concatenate(sizes)
    floor = tuple(float(level) - RINGING_SIGMA * sigma for level, sigma in zip(darkest, noise, strict=True))
    return Character(noise=noise, fwhm_px=float(np.median(found)) if found.size else math.nan, floor=floor)


def darkest_level(cube: F32) -> F32:
    """(C,): median of the darkest 64-px cell of each plane of (C, h, W) float32; inf without data."""
    levels = np.stack([_cell_levels(plane, CELL_PX) for plane in cube]).reshape(len(cube), -1)
    return np.where(np.isnan(levels), np.float32(np.inf), levels).min(axis=1)


def pixel_noise(planes: Sequence[F32]) -> float:
    """Standard deviation of a pixel of some planes float32 (h, W) against those NOISE_LAG_PX left and right of it; NaN
    without data."""
    lag, parts = NOISE_LAG_PX, []
    for plane in planes:
        some = plane[:: -(-plane.size // NOISE_SAMPLES)]
        off = some[:, lag:-lag] - np.float32(0.5) * (some[:, : -2 * lag] + some[:, 2 * lag :])
        parts.append(off[np.isfinite(off)])
    off = np.concatenate(parts)
    return 1.4826 * float(np.median(np.abs(off))) / math.sqrt(1.5) if off.size else math.nan


def mean_plane(cube: F32, noise: Sequence[float]) -> tuple[F32, float]:
    """The mean of the channels (h, W), and its noise."""
    sigma = math.sqrt(sum(n * n for n in noise)) / len(noise)
    return (cube[0] if len(cube) == 1 else cube.mean(axis=0, dtype=np.float32)), sigma


@njit(cache=True, nogil=True)
def gaps(cube: F32) -> tuple[int, int]:
    """How many values of a cube (C, h, W) are not finite, and how many are exactly 0."""
    blank = zero = 0
    for value in cube.reshape(-1):
        blank += value - value != 0.0
        zero += value == 0.0
    return blank, zero


def find_peaks(plane: F32, sigma: float, first: int, last: int) -> tuple[F64, F64, F64, F64]:
    """Stars whose peak lies in rows `first` to `last` of a plane (h, W): centroids x and y, the level under each, and
    the height of its peak over that.

    In the order of their peaks' rows and columns. NaN is no data; a star next to it is left out.
    """
    out = np.empty((4, MAX_STARS_A_SLAB))
    n = 0
    if math.isfinite(sigma) and sigma > 0.0 and min(plane.shape) >= 5:
        level = _cell_levels(plane, CELL_PX)
        n = _peaks(plane, level, CELL_PX, PEAK_SIGMA * sigma, max(2, first), min(plane.shape[0] - 2, last), out)
    return out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy(), out[3, :n].copy()


@njit(cache=True, nogil=True)
def _cell_levels(plane: F32, cell: int) -> F32:
    """Median of every eighth pixel of every eighth row of each cell; NaN without data."""
    rows, columns = -(-plane.shape[0] // cell), -(-plane.shape[1] // cell)
    level = np.full((rows, columns), np.nan, np.float32)
    values = np.empty((cell // 8 + 1) ** 2, np.float32)
    for r in range(rows):
        for c in range(columns):
            n = 0
            for y in range(r * cell, min((r + 1) * cell, plane.shape[0]), 8):
                for x in range(c * cell, min((c + 1) * cell, plane.shape[1]), 8):
                    values[n] = plane[y, x]
                    n += np.isfinite(plane[y, x])
            if n:
                level[r, c] = median_of(values[:n])
    return level


@njit(cache=True, nogil=True)
def _peaks(plane: F32, level: F32, cell: int, height: float, first: int, last: int, out: F64) -> int:
    """Writes x, y, level and peak of each star into `out` (4, most); returns how many."""
    n = 0
    for y in range(first, last):
        row = plane[y]
        for c in range(level.shape[1]):
            under = level[y // cell, c]
            limit = under + np.float32(height)
            if not limit < np.inf:
                continue
            for x in range(max(2, c * cell), min(len(row) - 2, (c + 1) * cell)):
                if row[x] > limit and n < out.shape[1] and _is_star(plane, x, y, under):
                    out[0, n], out[1, n], out[2, n], out[3, n] = x, y, under, row[x] - under
                    _centre(plane, out, n)
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _is_star(plane: F32, x: int, y: int, under: float) -> bool:
    """Whether a pixel is the highest of 5x5 and its four neighbours share its light."""
    value = plane[y, x]
    four = 0.25 * (plane[y - 1, x] + plane[y + 1, x] + plane[y, x - 1] + plane[y, x + 1]) - under
    if not four > NEIGHBOURS_SHARE * (value - under):
        return False
    for j in range(-2, 3):
        for i in range(-2, 3):
            other, before = plane[y + j, x + i], j < 0 or (j == 0 and i < 0)
            if not (other < value or (other == value and not before)) and (i != 0 or j != 0):
                return False
    return True


@njit(cache=True, nogil=True)
def _centre(plane: F32, out: F64, n: int) -> None:
    """Moves a star from its peak to the centre of the light in 5x5 px round it."""
    cx, cy, under = int(out[0, n]), int(out[1, n]), out[2, n]
    total = sx = sy = 0.0
    for j in range(-2, 3):
        for i in range(-2, 3):
            light = max(0.0, plane[cy + j, cx + i] - under)
            total += light
            sx += light * i
            sy += light * j
    out[0, n], out[1, n] = cx + sx / total, cy + sy / total


@njit(cache=True, nogil=True)
def _half_light(plane: F32, x: F64, y: F64, level: F64) -> F64:
    """FWHM of each star, px: the diameter of a circle as large as the area above half its height round its peak."""
    height, width = plane.shape
    out = np.empty(len(x))
    for i in range(len(x)):
        cx, cy = round(x[i]), round(y[i])
        peak = plane[cy, cx] - level[i]
        area = 0
        for row in range(max(0, cy - HALF_WINDOW), min(height, cy + HALF_WINDOW + 1)):
            for column in range(max(0, cx - HALF_WINDOW), min(width, cx + HALF_WINDOW + 1)):
                area += plane[row, column] - level[i] > 0.5 * peak
        out[i] = 2.0 * math.sqrt(area / math.pi)
    return out


def aperture_fluxes(cube: F32, x: F64, y: F64, radius_px: float, noise: Sequence[float]) -> tuple[F64, F64]:
    """(C, n) flux within `radius_px` of each position of a cube (C, h, W), over the median of a ring, and its error
    for pixels of this noise (C,). NaN where a pixel of the aperture has no data, or the ring does not lie in the cube.
    """
    both = [_apertures(plane, x, y, radius_px, sigma) for plane, sigma in zip(cube, noise, strict=True)]
    return np.stack([f for f, _ in both]), np.stack([n for _, n in both])


@njit(cache=True, nogil=True)
def _apertures(plane: F32, x: F64, y: F64, radius: float, sigma: float) -> tuple[F64, F64]:
    """Aperture flux and its error at each position; NaN where a pixel is missing."""
    height, width = plane.shape
    inner, outer = radius + 2.0, RING_OUTER * radius + 4.0
    reach = math.ceil(outer)
    flux, error = np.full(len(x), np.nan), np.full(len(x), np.nan)
    ring = np.empty((2 * reach + 1) ** 2, np.float32)
    for i in range(len(x)):
        cx, cy = round(x[i]), round(y[i])
        if cx < reach or cy < reach or cx >= width - reach or cy >= height - reach:
            continue
        total, area, n = 0.0, 0, 0
        for row in range(cy - reach, cy + reach + 1):
            for column in range(cx - reach, cx + reach + 1):
                d2 = (column - x[i]) ** 2 + (row - y[i]) ** 2
                if d2 <= radius * radius:
                    total += plane[row, column]
                    area += 1
                elif inner * inner <= d2 <= outer * outer and np.isfinite(plane[row, column]):
                    ring[n] = plane[row, column]
                    n += 1
        if n >= 20:  # a pixel without data has made the sum NaN
            flux[i] = total - area * median_of(ring[:n])
            error[i] = max(sigma * math.sqrt(area * (1.0 + 1.57 * area / n)), 1e-9)
    return flux, error
