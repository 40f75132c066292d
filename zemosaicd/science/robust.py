"""Level and spread of pixel samples that also hold stars, cosmic rays and hot pixels, by counting.

A histogram of some 0.1 sigma a bin, with each bin's own sum, gives what sorting would at a fifth of the cost; the sums
make means exact to the rounding of float64, so that whole-number data are resolved below their step. Of few values the
exact order statistics are found by counting too: branches that depend on the data are what sorting spends its time on.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MAD_TO_SIGMA = 1.4826
CLIP_SIGMA = 3.0
CLIPPED_SHARE = 0.98658
"""Standard deviation of a unit Gaussian cut at 3 sigma."""
BIWEIGHT_SIGMA = 3.0
"""Reach of the biweight: short, so that the location is that of the peak and the wings of stars count for little."""
SAMPLE, GOLDEN = 31, 0.6180339887498949
BINS = 160
SPREAD_BINS_A_MEDIAN = 12.0
LEVEL_BINS_A_SIGMA = 8.0
MINIMUM_SAMPLES = 16
INFINITY = 0x7F800000
BELOW_ALL = -INFINITY - 2
"""Bits of an infinite float32, and what is lower than those of minus infinity where numbers are ordered by their bits:
all but the sign turned over in the negative ones."""


@njit(cache=True, nogil=True)
def kth_smallest(values: Float32, k: int) -> np.float32:
    """The value that `k` of the values float32 (n,) come before in ascending order, 0 <= k < n; no NaN among them.

    The lowest number that more than k of them are not above, by bisection of all numbers in the order of their bits.
    """
    bits = np.empty(1, np.int32)
    number = bits.view(np.float32)
    low, high = np.int64(BELOW_ALL), np.int64(INFINITY)
    while high - low > 1:
        middle = (low + high) >> 1
        bits[0] = middle if middle >= 0 else middle ^ 0x7FFFFFFF
        trial, n = number[0], 0
        for i in range(len(values)):
            n += values[i] <= trial
        if n > k:
            high = middle
        else:
            low = middle
    bits[0] = high if high >= 0 else high ^ 0x7FFFFFFF
    return number[0]


@njit(cache=True, nogil=True)
def median_of(values: Float32) -> float:
    """Median of float32 (n,), n > 0, no NaN among them."""
    lower = kth_smallest(values, (len(values) - 1) // 2)
    if len(values) % 2:
        return float(lower)
    n, upper = 0, np.float32(np.inf)
    for v in values:
        n += v <= lower
        if v > lower:
            upper = min(upper, v)
    return float(lower) if n > len(values) // 2 else 0.5 * (float(lower) + float(upper))


@njit(cache=True, nogil=True)
def _sample_median(values: Float32) -> float:
    """One of the values, about in the middle: the median of 31 of them, taken in golden steps against any pattern."""
    sample = np.empty(min(len(values), SAMPLE), np.float32)
    for i in range(len(sample)):
        sample[i] = values[int(len(values) * (i * GOLDEN % 1.0))]
    return float(kth_smallest(sample, len(sample) // 2))


@njit(cache=True, nogil=True)
def robust_spread(steps: Float32) -> tuple[float, float]:
    """(by the median, by the clipped rms): standard deviation of differences from their absolute values, float32 (n,).

    The first is 1.4826 times the median, or sqrt(pi / 2) times the mean where the median is 0; the second leaves out
    what lies beyond 3 sigma, by rounds, since the median of whole-number data may be off by a step. n > 0.
    """
    scale = _sample_median(steps)
    if not scale > 0.0:
        scale = float(np.mean(steps))
        if not scale > 0.0:
            return 0.0, 0.0
    counts, squares, half = np.empty(BINS, np.int64), np.empty(BINS), 0.5 * len(steps)
    while True:
        inverse = SPREAD_BINS_A_MEDIAN / scale
        counts[:], squares[:] = 0, 0.0
        for d in steps:
            k = d * inverse
            if k < BINS:
                counts[int(k)] += 1
                squares[int(k)] += float(d) * d
        if counts.sum() > half:
            break
        scale *= 8.0  # the few values that it was laid by were small ones
    below, k = 0, 0
    while below + counts[k] < half:
        below += counts[k]
        k += 1
    median = (k + (half - below) / counts[k]) / inverse
    first = MAD_TO_SIGMA * median if k or squares[0] > 0.0 else math.sqrt(0.5 * math.pi) * float(np.mean(steps))
    sigma, before = first, -1
    for _ in range(4):
        total, n = 0.0, 0
        for i in range(min(BINS, int(CLIP_SIGMA * sigma * inverse + 0.5))):
            total += squares[i]
            n += counts[i]
        sigma = math.sqrt(total / n) / CLIPPED_SHARE if n else 0.0
        if n == before:
            break
        before = n
    return first, sigma


@njit(cache=True, nogil=True)
def robust_level(values: Float32, sigma: float) -> float:
    """Where most of the values lie, float32 (n,), n > 0: Tukey's biweight location with a reach of 3 `sigma`.

    After Beaton and Tukey (1974, Technometrics 16, 147), started at about the median. `sigma` 0 gives that.
    """
    centre = _sample_median(values)
    if not sigma > 0.0:
        return centre
    inverse = LEVEL_BINS_A_SIGMA / sigma
    counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS)
    for v in values:
        k = (v - centre) * inverse + 0.5 * BINS
        if 0.0 <= k < BINS:
            counts[int(k)] += 1
            sums[int(k)] += v - centre
    level, reach = 0.0, BIWEIGHT_SIGMA * sigma
    for _ in range(10):
        total, weights, before = 0.0, 0.0, level
        first = int(max(0.0, (level - reach) * inverse + 0.5 * BINS))
        for i in range(first, min(BINS, first + int(2.0 * reach * inverse) + 1)):
            u = ((i + 0.5 - 0.5 * BINS) / inverse - level) / reach
            w = max(0.0, 1.0 - u * u) ** 2
            total += w * sums[i]
            weights += w * counts[i]
        if weights > 0.0:
            level = total / weights
        if abs(level - before) < 3e-3 * sigma:
            break
    return centre + level


@njit(cache=True, nogil=True)
def _append(out: Float32, n: int, values: Float32) -> int:
    """Puts the finite values behind the first n of `out`; how many there are then."""
    target = out[n : n + len(values)]
    wrong = False
    for i in range(len(values)):
        target[i] = values[i]
        wrong |= not np.isfinite(target[i])
    if not wrong:
        return n + len(values)
    for v in values:
        if np.isfinite(v):
            out[n] = v
            n += 1
    return n


@njit(cache=True, nogil=True)
def append_steps(out: Float32, n: int, first: Float32, second: Float32) -> int:
    """Puts the finite |first - second|, float32 (m,), behind the first n of `out`; how many there are then."""
    target = out[n : n + len(first)]
    for i in range(len(first)):
        target[i] = abs(first[i] - second[i])
    return _append(out, n, target)


@njit(cache=True, nogil=True)
def block_statistics(plane: Float32, block: int, step: int, stride: int) -> Float64:
    """(rows, columns, 2): level and noise of a plane in blocks of about `block` px; NaN below 16 finite samples.

    Level: `robust_level`. Noise: clipped rms of v(x) - v(x + step), over sqrt 2, which a slope does not touch. Every
    `stride`-th row counts.
    """
    height, width = plane.shape
    rows, columns = max(1, height // block), max(1, width // block)
    statistics = np.full((rows, columns, 2), np.nan)
    size = (height // rows + 1) * (width // columns + 1)
    values, steps = np.empty(size, np.float32), np.empty(size, np.float32)
    for r in range(rows):
        for c in range(columns):
            left, right = c * width // columns, (c + 1) * width // columns
            n = m = 0
            for y in range(r * height // rows, (r + 1) * height // rows, stride):
                n = _append(values, n, plane[y, left:right])
                m = append_steps(steps, m, plane[y, left : right - step], plane[y, left + step : right])
            if n >= MINIMUM_SAMPLES and m >= MINIMUM_SAMPLES:
                noise = robust_spread(steps[:m])[1] / math.sqrt(2.0)
                statistics[r, c, 0], statistics[r, c, 1] = robust_level(values[:n], noise), noise
    return statistics
