"""Medians of many frames, a row of pixels at a time: a sorting network for few, counting for many.

Up to NETWORK_FRAMES the samples of a block of LANES pixels go through Batcher's merge exchange (Knuth, TAOCP 5.2.2 M),
pruned to the two middle outputs; missing samples are spread as alternating +inf and -inf, which keeps the median in the
middle. Beyond, the middle is found by counting: samples at or below a trial value, at first the middle of FEW of them,
are counted for all pixels of a block at once, and the value is moved until the middle is next to it, which takes about
eight passes over the samples, so that time grows as the number of frames. Both are exact.

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
FEW, PASSES = 32, 24


@lru_cache(maxsize=16)
def median_network(n: int) -> Integers:
    """Compare-exchanges (P, 2) that put the two middle values of n (odd n: the middle one and its lower) in place; of
    more than NETWORK_FRAMES, those that sort a sample of FEW of them.
    """
    count = n if n <= NETWORK_FRAMES else FEW
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, kept = {max(0, n // 2 - 1), n // 2} if count == n else set(range(FEW)), []
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
def _largest(work: Pixels, lanes: int, trial: Pixels, first: Pixels, second: Pixels) -> None:
    """The two largest samples at or below the trial value."""
    first[:lanes], second[:lanes] = -np.inf, -np.inf
    for i in range(work.shape[0]):
        line = work[i]
        for j in range(lanes):
            v = line[j] if line[j] <= trial[j] else np.float32(-np.inf)
            less = v if v < first[j] else first[j]
            first[j] = v if v > first[j] else first[j]
            second[j] = less if less > second[j] else second[j]


@njit(cache=True, nogil=True)
def _smallest(work: Pixels, lanes: int, trial: Pixels, first: Pixels, second: Pixels) -> None:
    """The two smallest samples above the trial value."""
    first[:lanes], second[:lanes] = np.inf, np.inf
    for i in range(work.shape[0]):
        line = work[i]
        for j in range(lanes):
            v = np.float32(np.inf) if line[j] <= trial[j] else line[j]
            more = v if v > first[j] else first[j]
            first[j] = v if v < first[j] else first[j]
            second[j] = more if more < second[j] else second[j]


@njit(cache=True, nogil=True)
def _first_trial(work: Pixels, lanes: int, network: Integers, few: Pixels, trial: Pixels, step: Pixels) -> None:
    """From FEW samples of each lane, spread evenly: their upper middle, and how much the value rises from one of all
    samples to the next (a guess, which is doubled as long as it does not suffice)."""
    n = work.shape[0]
    for i in range(FEW):
        few[i, :lanes] = work[(2 * i + 1) * n // (2 * FEW), :lanes]
    _exchange(few, lanes, network)
    for j in range(lanes):
        trial[j] = few[FEW // 2, j]
        rise = (few[3 * FEW // 4, j] - few[FEW // 4, j]) * np.float32(2.0 / n)
        step[j] = rise if np.isfinite(rise) and rise > 0.0 else max(abs(trial[j]), np.float32(1.0)) * np.float32(1e-6)


@njit(cache=True, nogil=True)
def _move(
    step_number: int, lanes: int, count: Counts, least: Counts, most: Counts, bounds: tuple[Pixels, Pixels],
    ranks: tuple[Counts, Counts], step: Pixels, trial: Pixels,
) -> int:  # fmt: skip
    """The next trial value of each lane whose count is not from `least` to `most`; how many there are of these.

    Within its bounds in proportion to the samples between them, every third time in the middle; without two bounds
    yet, by `step` a sample.
    """
    (low, high), (few, many) = bounds, ranks
    halve, left = step_number > 2 and step_number % 3 == 2, 0
    for j in range(lanes):
        c, wanted = count[j], np.float32(0.5) * np.float32(least[j] + most[j])
        under, over = c < least[j], c > most[j]
        low[j], few[j] = trial[j] if under else low[j], c if under else few[j]
        high[j], many[j] = trial[j] if over else high[j], c if over else many[j]
        share = (wanted - np.float32(few[j])) / np.float32(max(1, many[j] - few[j]))
        between = low[j] + (high[j] - low[j]) * (np.float32(0.5) if halve else share)
        beyond = trial[j] + (wanted - np.float32(c)) * step[j]
        step[j] *= np.float32(2.0)
        closed = (low[j] > -np.inf) & (high[j] < np.inf)
        trial[j] = (between if closed else beyond) if under | over else trial[j]
        left += under | over
    return left


@njit(cache=True, nogil=True)
def _search(
    work: Pixels, lanes: int, network: Integers, missing: Counts, middle_low: Pixels, middle_high: Pixels
) -> None:
    """The two middle samples of each lane by counting: the trial value moves until they are among the two samples on
    either side of it."""
    n = work.shape[0]
    few, near = np.empty((FEW, lanes), np.float32), np.empty((4, lanes), np.float32)
    trial, step = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    low, high = np.full(lanes, -np.inf, np.float32), np.full(lanes, np.inf, np.float32)
    least, most, count = np.empty(lanes, np.int32), np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    below, above = np.zeros(lanes, np.int32), np.full(lanes, n, np.int32)
    _first_trial(work, lanes, network, few, trial, step)
    for j in range(lanes):
        wanted = missing[j] // 2 + max(0, n - missing[j] - 1) // 2 + 1  # the rank of the lower one
        odd = (n - missing[j]) % 2
        least[j], most[j] = (wanted - 1 - odd, wanted + 1) if missing[j] < n else (0, n)
    for number in range(PASSES):
        _count(work, lanes, trial, count)
        if _move(number, lanes, count, least, most, (low, high), (below, above), step, trial) == 0:
            break
    _largest(work, lanes, trial, near[1], near[0])
    _smallest(work, lanes, trial, near[2], near[3])
    for j in range(lanes):
        if missing[j] == n:
            middle_low[j], middle_high[j] = 0.0, 0.0
        elif least[j] <= count[j] <= most[j]:
            odd = (n - missing[j]) % 2
            at = most[j] - count[j]  # of `near`, the lower one
            middle_low[j], middle_high[j] = near[at, j], near[at + 1 - odd, j]
        else:  # ties
            ordered = np.sort(work[:, j])
            first, found = missing[j] // 2, n - missing[j]
            middle_low[j], middle_high[j] = ordered[first + (found - 1) // 2], ordered[first + found // 2]


@njit(cache=True, nogil=True)
def middle_two(work: Pixels, lanes: int, network: Integers, missing: Counts, low: Pixels, high: Pixels) -> None:
    """The two middle kept samples of each lane of a loaded block (one twice, of an odd number); `work` may be spoilt.

    Lanes without any sample get what means nothing.
    """
    n = work.shape[0]
    if n > NETWORK_FRAMES:
        _search(work, lanes, network, missing, low, high)
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
