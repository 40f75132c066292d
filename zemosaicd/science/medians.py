"""Medians of many frames, a row of pixels at a time: a sorting network for few, counting for many.

Up to NETWORK_FRAMES the samples of a block of LANES pixels go through Batcher's merge exchange (Knuth, TAOCP 5.2.2 M),
pruned to the two middle outputs; missing samples are spread as alternating +inf and -inf, which keeps the median in the
middle. Beyond, the middle is found by counting: samples at or below a trial value are counted for all pixels of a block
at once and the value is moved until half of them lie below it, which costs a fixed number of passes over the samples,
so that time grows as the number of frames. Both are exact.

Arrays of a window: samples float32 (n, C, R, W), one number a frame, channel, row and column; codes uint8 (n, R, W), a
bit a channel (1 << k: rejected in channel k), GROWN and UNSEEN for all channels. A sample is kept where its code has
none of `mask` = UNSEEN | GROWN | 1 << k. Samples are finite wherever their code does not say UNSEEN.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Codes = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.int32]

UNSEEN, GROWN = np.uint8(128), np.uint8(64)
MOST_CHANNELS = 6
LANES = 512
NETWORK_FRAMES = 128
PASSES = 24


@lru_cache(maxsize=16)
def median_network(n: int) -> Integers:
    """Compare-exchanges (P, 2) that put the two middle values of n (odd n: the middle one and its lower) in place."""
    if n > NETWORK_FRAMES:
        return np.zeros((0, 2), np.int64)
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, kept = {max(0, n // 2 - 1), n // 2}, []
    for a, b in reversed(pairs):
        if a in needed or b in needed:
            needed |= {a, b}
            kept.append((a, b))
    network = np.array(kept[::-1], np.int64).reshape(-1, 2)
    network.setflags(write=False)
    return network


@njit(cache=True, nogil=True)
def load_block(
    samples: Pixels, codes: Codes, k: int, r: int, x0: int, lanes: int, work: Pixels, missing: Counts
) -> None:
    """work (n, lanes) = the kept samples of a block of a row; the others are +inf and -inf by turns, counted."""
    n, mask = samples.shape[0], UNSEEN | GROWN | np.uint8(1 << k)
    missing[:lanes] = 0
    some = np.uint8(0)
    for i in range(n):
        line, code, target = samples[i, k, r, x0 : x0 + lanes], codes[i, r, x0 : x0 + lanes], work[i]
        for j in range(lanes):
            target[j] = line[j]
            some |= code[j]
    if some & mask == 0:
        return
    for i in range(n):
        code, target = codes[i, r, x0 : x0 + lanes], work[i]
        for j in range(lanes):
            if code[j] & mask != 0:
                target[j] = np.float32(np.inf) if missing[j] % 2 == 0 else np.float32(-np.inf)
                missing[j] += 1


@njit(cache=True, nogil=True)
def _exchange(work: Pixels, lanes: int, network: Integers) -> None:
    for k in range(network.shape[0]):
        low, high = work[network[k, 0]], work[network[k, 1]]
        for j in range(lanes):
            a, b = low[j], high[j]
            low[j] = a if a < b else b
            high[j] = b if a < b else a


@njit(cache=True, nogil=True)
def _count(work: Pixels, lanes: int, trial: Pixels, count: Counts) -> None:
    """count = samples at or below the trial value of each lane."""
    count[:lanes] = 0
    for i in range(work.shape[0]):
        line = work[i]
        for j in range(lanes):
            count[j] += np.int32(line[j] <= trial[j])


@njit(cache=True, nogil=True)
def _beside(work: Pixels, lanes: int, trial: Pixels, below: Pixels, above: Pixels) -> None:
    """The largest sample at or below the trial value, and the smallest above it."""
    below[:lanes], above[:lanes] = -np.inf, np.inf
    for i in range(work.shape[0]):
        line = work[i]
        for j in range(lanes):
            v, t = line[j], trial[j]
            lower = v if v <= t else np.float32(-np.inf)
            upper = np.float32(np.inf) if v <= t else v
            below[j] = lower if lower > below[j] else below[j]
            above[j] = upper if upper < above[j] else above[j]


@njit(cache=True, nogil=True)
def _start(work: Pixels, j: int) -> np.float32:
    """A value near the middle of lane j: the median of five of its samples."""
    n = work.shape[0]
    a, b, c = work[n // 10, j], work[3 * n // 10, j], work[n // 2, j]
    d, e = work[7 * n // 10, j], work[9 * n // 10, j]
    low, high = max(min(a, b), min(c, d)), min(max(a, b), max(c, d))
    return np.float32(max(min(e, low), min(max(e, low), high)))


@njit(cache=True, nogil=True)
def _span(work: Pixels, lanes: int, low: Pixels, high: Pixels) -> None:
    """The smallest and largest finite value of each lane."""
    low[:lanes], high[:lanes] = np.inf, -np.inf
    for i in range(work.shape[0]):
        line = work[i]
        for j in range(lanes):
            v = line[j]
            real = abs(v) < np.float32(np.inf)
            low[j] = v if real and v < low[j] else low[j]
            high[j] = v if real and v > high[j] else high[j]


@njit(cache=True, nogil=True)
def _search(work: Pixels, lanes: int, missing: Counts, middle_low: Pixels, middle_high: Pixels) -> None:
    """The two middle samples of each lane by counting: the trial value moves until as many lie below it as should."""
    n = work.shape[0]
    low, high, trial = np.empty(lanes, np.float32), np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    few, many = np.zeros(lanes, np.int32), np.full(lanes, n, np.int32)
    count, wanted = np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    _span(work, lanes, low, high)
    for j in range(lanes):
        start = _start(work, j)
        trial[j] = start if low[j] <= start <= high[j] else np.float32(0.5) * (low[j] + high[j])
        wanted[j] = missing[j] // 2 + max(0, n - missing[j] - 1) // 2 + 1
    for step in range(PASSES):
        _count(work, lanes, trial, count)
        open_lanes = 0
        for j in range(lanes):
            if count[j] == wanted[j] or missing[j] == n:
                continue
            open_lanes += 1
            if count[j] < wanted[j]:
                low[j], few[j] = trial[j], count[j]
            else:
                high[j], many[j] = trial[j], count[j]
            share = (wanted[j] - 0.5 - few[j]) / max(1, many[j] - few[j])
            share = 0.5 if step % 3 == 2 else min(max(share, 0.1), 0.9)
            trial[j] = low[j] + (high[j] - low[j]) * np.float32(share)
        if open_lanes == 0:
            break
    _beside(work, lanes, trial, middle_low, middle_high)
    for j in range(lanes):
        found = n - missing[j]
        if count[j] != wanted[j] and found > 0:  # ties, or a gap that the steps did not hit
            ordered = np.sort(work[:, j])
            middle_low[j], middle_high[j] = ordered[wanted[j] - 1], ordered[missing[j] // 2 + found // 2]
        elif found % 2 == 1:
            middle_high[j] = middle_low[j]


@njit(cache=True, nogil=True)
def middle_two(work: Pixels, lanes: int, network: Integers, missing: Counts, low: Pixels, high: Pixels) -> None:
    """The two middle kept samples of each lane of a loaded block (one twice, of an odd number); `work` may be spoilt.

    Lanes without any sample get what means nothing.
    """
    n = work.shape[0]
    if n > NETWORK_FRAMES:
        _search(work, lanes, missing, low, high)
        return
    _exchange(work, lanes, network)
    for j in range(lanes):
        below, found = missing[j] // 2, n - missing[j]  # -inf lie below the samples, +inf above
        low[j] = work[below + max(0, found - 1) // 2, j]
        high[j] = work[min(n - 1, below + found // 2), j]


@njit(cache=True, nogil=True)
def medians(samples: Pixels, codes: Codes, network: Integers, centre: Pixels, low: Pixels, count: Counts) -> None:
    """centre, low (C, R, W): median and lower median of the kept samples, NaN where there are none; count (C, R, W)."""
    n, channels, rows, width = samples.shape
    work, missing = np.empty((n, LANES), np.float32), np.empty(LANES, np.int32)
    a, b = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for k in range(channels):
        for r in range(rows):
            for x0 in range(0, width, LANES):
                lanes = min(LANES, width - x0)
                load_block(samples, codes, k, r, x0, lanes, work, missing)
                middle_two(work, lanes, network, missing, a, b)
                for j in range(lanes):
                    found = missing[j] < n
                    count[k, r, x0 + j] = n - missing[j]
                    low[k, r, x0 + j] = a[j] if found else np.nan
                    middle = np.float32(0.5 * (np.float64(a[j]) + np.float64(b[j])))
                    centre[k, r, x0 + j] = middle if found else np.nan
