"""Compiled rejection rules that are asked for by name: kappa-sigma, winsorized sigma, linear fit.

They judge each pixel and channel by its own samples alone; `rejection` holds the default rule and the array layout.
All statistics are float64 on float32 samples, sums in the order of the frames.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from zemosaicd.science.medians import (
    GROWN,
    LANES,
    UNSEEN,
    Codes,
    Integers,
    Numbers,
    Pixels,
    load_block,
    middle_two,
)
from zemosaicd.science.rejection import MIN_JUDGED

WINSOR_AT = 1.5
"""Huber's winsorization: values beyond this many sigma are moved to that border (Huber 1981, Robust Statistics)."""
WINSOR_SCALE = 1.134
"""Makes good for what a normal sample's std loses by it."""
WINSOR_TOLERANCE = 5e-4
ROUNDS = 10


@njit(cache=True, nogil=True)
def _mean_and_std(
    samples: Pixels, codes: Codes, at: tuple[int, int, int], lanes: int, mean: Numbers, std: Numbers
) -> None:
    """Mean and population std of the seen samples of a block of a row; 0 where there are none."""
    k, r, x0 = at
    mean[:], std[:] = 0.0, 0.0
    found = np.zeros(lanes, np.int32)
    for i in range(samples.shape[0]):
        line, code = samples[i, k, r, x0 : x0 + lanes], codes[i, r, x0 : x0 + lanes]
        for j in range(lanes):
            there = code[j] & UNSEEN == 0
            mean[j] += np.float64(line[j]) if there else 0.0
            found[j] += np.int32(there)
    for j in range(lanes):
        mean[j] /= max(1, found[j])
    for i in range(samples.shape[0]):
        line, code = samples[i, k, r, x0 : x0 + lanes], codes[i, r, x0 : x0 + lanes]
        for j in range(lanes):
            d = np.float64(line[j]) - mean[j]
            std[j] += d * d if code[j] & UNSEEN == 0 else 0.0
    for j in range(lanes):
        std[j] = math.sqrt(std[j] / max(1, found[j]))


@njit(cache=True, nogil=True)
def kappa_sigma(samples: Pixels, codes: Codes, network: Integers, k_low: float, k_high: float) -> None:
    """One pass: keep median - k_low * std <= x <= median + k_high * std, population std of all samples (M6).

    One outlier among N is at most N / sqrt(N - 1) std from the median: nothing can be rejected at k = 3 for N <= 7.
    """
    n, channels, rows, width = samples.shape
    work, missing = np.empty((n, LANES), np.float32), np.empty(LANES, np.int32)
    a, b = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    mean, std = np.empty(LANES), np.empty(LANES)
    for k in range(channels):
        bit = np.uint8(1 << k)
        for r in range(rows):
            for x0 in range(0, width, LANES):
                lanes = min(LANES, width - x0)
                load_block(samples, codes, k, r, x0, lanes, work, missing)
                middle_two(work, lanes, network, missing, a, b)
                _mean_and_std(samples, codes, (k, r, x0), lanes, mean, std)
                for i in range(n):
                    line, code = samples[i, k, r, x0 : x0 + lanes], codes[i, r, x0 : x0 + lanes]
                    for j in range(lanes):
                        median, v = 0.5 * (np.float64(a[j]) + np.float64(b[j])), np.float64(line[j])
                        out = (v < median - k_low * std[j]) | (v > median + k_high * std[j])
                        code[j] |= bit if (code[j] & UNSEEN == 0) & out else np.uint8(0)


@njit(cache=True, nogil=True)
def _mean_std(values: Numbers) -> tuple[float, float]:
    mean = 0.0
    for v in values:
        mean += v
    mean /= values.shape[0]
    square = 0.0
    for v in values:
        square += (v - mean) * (v - mean)
    return mean, math.sqrt(square / values.shape[0])


@njit(cache=True, nogil=True)
def _winsorized_std(values: Numbers, median: float, drawn: Numbers) -> float:
    """Population std of the values drawn in to median +- 1.5 sigma, repeated until it settles. `drawn`: scratch."""
    _, std = _mean_std(values)
    for _ in range(ROUNDS):
        for i in range(values.shape[0]):
            drawn[i] = min(max(values[i], median - WINSOR_AT * std), median + WINSOR_AT * std)
        before, (_, std) = std, _mean_std(drawn)
        std *= WINSOR_SCALE
        if abs(std - before) <= WINSOR_TOLERANCE * before:
            break
    return std


@njit(cache=True, nogil=True)
def _winsorized_range(values: Numbers, scratch: Numbers, k_low: float, k_high: float) -> tuple[int, int]:
    """First and last + 1 of the sorted values that are kept: clip at k winsorized sigma until nothing more goes."""
    first, last = 0, values.shape[0]
    while last - first >= MIN_JUDGED:
        kept = values[first:last]
        half = (last - first) // 2
        median = kept[half] if (last - first) % 2 == 1 else 0.5 * (kept[half - 1] + kept[half])
        std = _winsorized_std(kept, median, scratch[: last - first])
        a, b = first, last
        while a < b and values[a] < median - k_low * std:
            a += 1
        while b > a and values[b - 1] > median + k_high * std:
            b -= 1
        if (a, b) == (first, last) or a >= b:
            break
        first, last = a, b
    return first, last


@njit(cache=True, nogil=True)
def _line_range(values: Numbers, k_low: float, k_high: float) -> tuple[int, int]:
    """First and last + 1 of the sorted values that are kept: straight line through them by rank, least squares.

    Sigma is the mean absolute distance from the line; clip at k sigma from the ends inwards until nothing more goes.
    """
    first, last = 0, values.shape[0]
    while last - first >= MIN_JUDGED:
        n = last - first
        mean, _ = _mean_std(values[first:last])
        middle, slope = 0.5 * (n - 1), 0.0
        for i in range(n):
            slope += (i - middle) * (values[first + i] - mean)
        slope *= 12.0 / (n * (float(n) * n - 1.0))
        sigma = 0.0
        for i in range(n):
            sigma += abs(values[first + i] - mean - slope * (i - middle))
        sigma /= n
        a, b = first, last
        while a < b and values[a] < mean + slope * (a - first - middle) - k_low * sigma:
            a += 1
        while b > a and values[b - 1] > mean + slope * (b - 1 - first - middle) + k_high * sigma:
            b -= 1
        if (a, b) == (first, last) or a >= b:
            break
        first, last = a, b
    return first, last


@njit(cache=True, nogil=True)
def clip_sorted(samples: Pixels, codes: Codes, line: bool, k_low: float, k_high: float) -> None:
    """Reject, per pixel and channel of samples (n, C, R, W), what lies outside the kept range when they are sorted.

    `line` False: winsorized sigma; True: linear fit. Equal values share one fate, so the order of frames is no matter.
    """
    n, channels, rows, width = samples.shape
    values, scratch = np.empty(n), np.empty(n)
    for k in range(channels):
        bit = np.uint8(1 << k)
        mask = UNSEEN | GROWN | bit
        for r in range(rows):
            for x in range(width):
                found = 0
                for i in range(n):
                    if codes[i, r, x] & mask == 0:
                        values[found] = samples[i, k, r, x]
                        found += 1
                if found < MIN_JUDGED:
                    continue
                ordered = values[:found]
                ordered.sort()
                if line:
                    first, last = _line_range(ordered, k_low, k_high)
                else:
                    first, last = _winsorized_range(ordered, scratch, k_low, k_high)
                low, high = ordered[first], ordered[last - 1]
                for i in range(n):
                    if codes[i, r, x] & mask == 0 and not low <= samples[i, k, r, x] <= high:
                        codes[i, r, x] |= bit
