"""Slow, plain-numpy definitions that the compiled kernels are held against. Loops and float64; small arrays only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zemosaicd.science.frame import Colour, colour_offsets

Array = NDArray[np.float64]


def keys(a: float, t: float) -> float:
    """Keys' cubic convolution kernel at distance t (Keys 1981)."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def lattice_value(at: dict[tuple[int, int], float], u: float, v: float, a: float) -> float:
    """Cubic convolution at (u, v) on a lattice of values by integer site; phases rounded to 1/1024 as in the kernel."""
    iu, iv = math.floor(u), math.floor(v)
    fu, fv = (math.floor((f) * 1024 + 0.5) / 1024 for f in (u - iu, v - iv))
    total = 0.0
    for j in range(-1, 3):
        for i in range(-1, 3):
            total += keys(a, fu - i) * keys(a, fv - j) * at[(iu + i, iv + j)]
    return total


def demosaic_at(cfa: Array, bayer: str, x: float, y: float) -> tuple[float, float, float]:
    """(R, G, B) at source position (x, y): each colour from its own photosites, green on its quincunx."""
    sites: dict[str, dict[tuple[int, int], float]] = {"R": {}, "G": {}, "B": {}}
    first = {bayer[k]: (k % 2, k // 2) for k in range(4)}
    odd = (first["R"][0] + first["R"][1] + 1) % 2
    for row in range(cfa.shape[0]):
        for column in range(cfa.shape[1]):
            colour = bayer[2 * (row % 2) + column % 2]
            quincunx = (column + odd + row) // 2, (column + odd - row) // 2
            site = quincunx if colour == "G" else (column // 2, row // 2)
            sites[colour][site] = float(cfa[row, column])
    (rx, ry), (bx, by) = first["R"], first["B"]
    return (
        lattice_value(sites["R"], (x - rx) / 2, (y - ry) / 2, -1.0),
        lattice_value(sites["G"], (x + odd + y) / 2, (x + odd - y) / 2, -0.5),
        lattice_value(sites["B"], (x - bx) / 2, (y - by) / 2, -1.0),
    )


def pixel_at(plane: Array, x: float, y: float) -> float:
    """Catmull-Rom value of a mono plane at (x, y)."""
    at = {(c, r): float(plane[r, c]) for r in range(plane.shape[0]) for c in range(plane.shape[1])}
    return lattice_value(at, x, y, -0.5)


def nan_median(values: Array) -> Array:
    """Median over the first axis, NaN left out, NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=0)


def kappa_sigma(values: Array, k_low: float, k_high: float) -> NDArray[np.bool_]:
    """SPEC M6, sample by sample: True where kept; values (n, ...), NaN where there is no sample."""
    there = ~np.isnan(values)
    found = np.maximum(there.sum(axis=0), 1)
    mean, square = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for v in values:
        mean += np.where(np.isnan(v), 0.0, v)
    mean /= found
    for v in values:
        square += np.where(np.isnan(v), 0.0, (v - mean) ** 2)
    std, median = np.sqrt(square / found), nan_median(values)
    return there & (values >= median - k_low * std) & (values <= median + k_high * std)


def auto_kept(
    values: Array, variance: Array, photon: Array, pedestal: Array, *, k: float, c: float, gain: float, least: int
) -> NDArray[np.bool_]:
    """The default rule, whole image at once: True where kept; values (n, H, W, C), NaN where there is no sample."""
    there = ~np.isnan(values)
    judged = there.sum(axis=0) >= 3
    m = nan_median(values).astype(np.float32).astype(np.float64)
    floor = (c * k * gradient_of(m)) ** 2
    lower = np.sort(values, axis=0)
    lower = np.take_along_axis(lower, np.maximum(there.sum(axis=0) - 1, 0)[np.newaxis] // 2, axis=0)[0]

    def within(centre: Array) -> NDArray[np.bool_]:
        signal = np.maximum(centre - pedestal, 0.0)
        limit = gain * k * k * (variance[:, None, None, :] + photon[:, None, None, :] * signal) + floor
        return there & ((values - centre) ** 2 <= limit)

    kept = within(m)
    kept |= within(lower) & ~kept.any(axis=0)
    kept |= there & ~judged
    grown = grown_from((there & ~kept).sum(axis=-1), least)[..., np.newaxis] & kept & judged
    after = kept & ~grown
    return after | (grown & ~after.any(axis=0))


def gradient_of(m: Array) -> Array:
    """Half of max - min over 3x3 pixels, cut at the image's edge, NaN left out; m (H, W, C)."""
    padded = np.pad(m, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    around = np.stack(
        [padded[1 + j : 1 + j + m.shape[0], 1 + i : 1 + i + m.shape[1]] for j in (-1, 0, 1) for i in (-1, 0, 1)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        high, low = np.nanmax(around, axis=0).astype(np.float32), np.nanmin(around, axis=0).astype(np.float32)
    return (np.float32(0.5) * (high - low)).astype(np.float64)


def grown_from(hits: NDArray[np.int64], least: int) -> NDArray[np.bool_]:
    """(n, H, W) rejected samples a pixel -> where a 5x5 box with `least` of them, widened by 1 px, reaches."""
    n, height, width = hits.shape
    grown = np.zeros(hits.shape, bool)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                box = hits[i, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                if box.sum() >= least:
                    grown[i, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    return grown


def colour_mask(bayer: str, colour: Colour, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: True where the photosite has that colour."""
    mask = np.zeros(shape, bool)
    for row, column in colour_offsets(bayer, colour):
        mask[row::2, column::2] = True
    return mask


def lanczos(t: float) -> float:
    """Lanczos-3 at distance t."""
    return float(np.sinc(t) * np.sinc(t / 3)) if abs(t) < 3 else 0.0


def catmull_rom(t: float) -> float:
    """Keys' kernel with a = -0.5."""
    return keys(-0.5, t)


def kernel_at(plane: NDArray[np.float32], x: float, y: float, kernel: Callable[[float], float]) -> float:
    """A plane's value at (x, y): 6x6 pixels weighted by a separable kernel, the weights of each axis of sum 1."""
    ix, iy = math.floor(x), math.floor(y)
    across = [kernel(x - ix - i) for i in range(-2, 4)]
    down = [kernel(y - iy - j) for j in range(-2, 4)]
    total = sum(down[j] * across[i] * float(plane[iy + j - 2, ix + i - 2]) for j in range(6) for i in range(6))
    return total / (sum(across) * sum(down))
