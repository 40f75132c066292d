"""What two tiles saw of the same sky: block medians of their overlap, and the flux ratio of the stars in it.

Knows two windows of one lattice at a time, NaN where a tile has no data; `science.photometry` solves over all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

BLOCK_PX = 16
BLOCK_FILL = 0.5
MIN_BLOCKS = 4
MIN_COMMON_STARS = 3
FLUX_RATIO_FLOOR = 0.02
"""Scatter of a star's flux ratio that no SNR explains (scintillation, flat field), as a fraction."""
GAIN_FLOOR = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What two tiles (indices `first` < `second`) saw of the same n blocks of sky.

    `x, y` (n,): centres of the blocks on the lattice, px. `a, b` (C, n) float32: block medians in ADU over the pixels
    valid in both. `noise` (C,): standard deviation of the pixel difference a - b inside blocks. `gain` (C,): star flux
    in the first over the second, NaN where no stars tell; `gain_sigma` its error.
    """

    first: int
    second: int
    x: F64
    y: F64
    a: F32
    b: F32
    noise: F64
    gain: F64
    gain_sigma: F64


def weighted_median(values: F64, weights: F64) -> tuple[float, float]:
    """Weighted median (midpoint rule) and a robust standard error (1.2533 x 1.4826 MAD / sqrt(effective number))."""
    order = np.argsort(values, kind="stable")
    v, w = values[order], weights[order]
    total = np.cumsum(w) - w / 2
    centre = float(np.interp(w.sum() / 2, total, v))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    effective = float(w.sum() ** 2 / (w**2).sum())
    return centre, 1.2533 * spread / math.sqrt(effective)


def sample_overlap(
    first: int, second: int, a: F32, b: F32, x0: int, y0: int, *, block: int = BLOCK_PX,
    star_gain: tuple[F64, F64] | None = None,
) -> Overlap | None:  # fmt: skip
    """Blocks of the overlap of two tiles: `a`, `b` (C, H, W) float32 are the same window of the lattice, at (x0, y0).

    NaN marks pixels without data. Blocks are those of the lattice (x // block), so that neighbours share them; one
    counts if at least half its area is valid in both, in all channels. None if fewer than 4 do.
    """
    channels = a.shape[0]
    medians_a, medians_b, spread, count = _block_medians(a, b, x0 % block, y0 % block, block)
    good = count >= BLOCK_FILL * block * block
    if int(good.sum()) < MIN_BLOCKS:
        return None
    row, column = np.nonzero(good)
    x = (column + x0 // block) * float(block) + (block - 1) / 2
    y = (row + y0 // block) * float(block) + (block - 1) / 2
    gain, gain_sigma = star_gain or (np.full(channels, np.nan), np.full(channels, np.nan))
    return Overlap(
        first=first, second=second, x=x.astype(np.float64), y=y.astype(np.float64),
        a=medians_a[:, good], b=medians_b[:, good],
        noise=1.4826 * np.median(spread[:, good].astype(np.float64), axis=1), gain=gain, gain_sigma=gain_sigma,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _block_medians(a: F32, b: F32, dx: int, dy: int, block: int) -> tuple[F32, F32, F32, I64]:
    """Per lattice block: medians of a and of b, MAD of a - b, and the number of pixels valid in both (all channels)."""
    channels, height, width = a.shape
    rows, columns = (height + dy + block - 1) // block, (width + dx + block - 1) // block
    median_a = np.full((channels, rows, columns), np.nan, np.float32)
    median_b = np.full((channels, rows, columns), np.nan, np.float32)
    spread = np.full((channels, rows, columns), np.nan, np.float32)
    count = np.zeros((rows, columns), np.int64)
    va = np.empty((channels, block * block), np.float32)
    vb = np.empty((channels, block * block), np.float32)
    for r in range(rows):
        for c in range(columns):
            n = 0
            for y in range(max(0, r * block - dy), min(height, (r + 1) * block - dy)):
                for x in range(max(0, c * block - dx), min(width, (c + 1) * block - dx)):
                    valid = True
                    for k in range(channels):
                        va[k, n], vb[k, n] = a[k, y, x], b[k, y, x]
                        valid = valid and np.isfinite(va[k, n]) and np.isfinite(vb[k, n])
                    if valid:
                        n += 1
            count[r, c] = n
            if n == 0:
                continue
            for k in range(channels):
                median_a[k, r, c] = np.median(va[k, :n])
                median_b[k, r, c] = np.median(vb[k, :n])
                difference = va[k, :n] - vb[k, :n]
                spread[k, r, c] = np.median(np.abs(difference - np.median(difference)))
    return median_a, median_b, spread, count


def star_gain(a: F32, b: F32, x: F64, y: F64, radius_px: float) -> tuple[F64, F64]:
    """Star flux in `a` over star flux in `b` a channel, and its error: same stars, same apertures, on one lattice.

    `a`, `b` (C, H, W) float32 windows, NaN without data; `x, y` positions in the window; `radius_px` should be 2 FWHM
    of the wider tile or more, so that seeing does not count as gain. Sky is the median of a ring. NaN for fewer than 3
    stars of SNR 20 in both.
    """
    channels = a.shape[0]
    gain, error = np.full(channels, np.nan), np.full(channels, np.nan)
    for k in range(channels):
        flux_a, noise_a = _apertures(a[k], x, y, radius_px)
        flux_b, noise_b = _apertures(b[k], x, y, radius_px)
        with np.errstate(invalid="ignore"):
            good = (flux_a > 20 * noise_a) & (flux_b > 20 * noise_b)
        if int(good.sum()) < MIN_COMMON_STARS:
            continue
        ratio = np.log(flux_a[good] / flux_b[good])
        variance = (noise_a[good] / flux_a[good]) ** 2 + (noise_b[good] / flux_b[good]) ** 2
        centre, sigma = weighted_median(ratio, 1 / (variance + FLUX_RATIO_FLOOR**2))
        floor = math.sqrt(1 / float((1 / (variance + 1e-6)).sum()))
        gain[k], error[k] = math.exp(centre), max(sigma, floor, GAIN_FLOOR)
    return gain, error


@njit(cache=True, nogil=True)
def _apertures(plane: F32, x: F64, y: F64, radius: float) -> tuple[F64, F64]:
    """Aperture flux and its noise (from the ring's scatter) at each position; NaN where a pixel is missing."""
    height, width = plane.shape
    outer = 2.0 * radius + 3.0
    reach = math.ceil(outer)
    flux, noise = np.full(len(x), np.nan), np.full(len(x), np.nan)
    ring = np.empty((2 * reach + 1) ** 2, np.float64)
    for i in range(len(x)):
        cx, cy = round(x[i]), round(y[i])
        if cx < reach or cy < reach or cx >= width - reach or cy >= height - reach:
            continue
        total, area, n, whole = 0.0, 0, 0, True
        for row in range(cy - reach, cy + reach + 1):
            for column in range(cx - reach, cx + reach + 1):
                value = plane[row, column]
                distance = math.hypot(column - x[i], row - y[i])
                if distance <= radius:
                    whole = whole and np.isfinite(value)
                    total += value
                    area += 1
                elif distance >= radius + 2.0 and distance <= outer and np.isfinite(value):
                    ring[n] = value
                    n += 1
        if whole and n >= 20:
            sky = np.median(ring[:n])
            sigma = 1.4826 * np.median(np.abs(ring[:n] - sky))
            flux[i] = total - area * sky
            noise[i] = max(sigma * math.sqrt(area * (1.0 + 1.57 * area / n)), 1e-9)
    return flux, noise
