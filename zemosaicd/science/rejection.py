"""Compiled parts of the combiner: medians by sorting network, the rejection rules, the weighted mean.

Arrays of a band: samples float32 (n, R, E) and codes uint8 (n, R, E) with E = width * channels, one code a sample
(UNSEEN, KEPT, REJECTED, GROWN). Work goes by blocks of LANES pixels of one row, so the innermost loops run over
neighbouring elements and vectorise; no element ever looks at another one except where a rule says so (gradient, grow),
so results do not depend on the blocks. No fast-math: the same IEEE operations in the same order, in every path.

The network is Batcher's merge exchange (Knuth, TAOCP 5.2.2 M), pruned to the two middle outputs. Missing samples are
spread as alternating +inf and -inf, which keeps the medians in the middle.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Flags = NDArray[np.bool_]
Codes = NDArray[np.uint8]
Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.int32]

UNSEEN, KEPT, REJECTED, GROWN = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
LANES = 512
"""Elements sorted together."""
PIXELS = 64
"""Pixels of one block of the other loops."""
MIN_JUDGED = 3
"""Fewer samples than this at a pixel cannot outvote one another: nothing is rejected there."""


@lru_cache(maxsize=16)
def median_network(n: int) -> Integers:
    """Compare-exchanges (P, 2) that put the two middle values of n (odd n: the middle one and its lower) in place."""
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
def first_codes(samples: Pixels, bits: NDArray[np.uint32], seen: Flags, codes: Codes) -> None:
    """codes (n, R, w, c) = KEPT where seen (n, R, w) and samples (n, R, w, c) finite, else UNSEEN.

    `bits` is samples.view(uint32): whether a whole row is finite is asked of its exponents, as integers vectorise.
    """
    n, rows, width, channels = samples.shape
    exponent = np.uint32(0x7F800000)
    for i in range(n):
        for r in range(rows):
            line, odd = bits[i, r].reshape(-1), 0
            for e in range(width * channels):
                odd += 1 if line[e] & exponent == exponent else 0
            code, mask = codes[i, r].reshape(-1), seen[i, r]
            for k in range(channels):
                for x in range(width):
                    code[x * channels + k] = KEPT if mask[x] else UNSEEN
            if odd > 0:
                for x in range(width):
                    for k in range(channels):
                        if not math.isfinite(samples[i, r, x, k]):
                            codes[i, r, x, k] = UNSEEN


@njit(cache=True, nogil=True)
def sort_middle(
    samples: Pixels, codes: Codes, r: int, e0: int, e1: int, network: Integers, work: Pixels, missing: Counts
) -> None:
    """Bring the middle of the block's kept samples to the middle of `work` (n, lanes); `missing` counts the others."""
    n, lanes = samples.shape[0], e1 - e0
    missing[:lanes] = 0
    for i in range(n):
        for j in range(lanes):
            kept = codes[i, r, e0 + j] == KEPT
            infinite = np.float32(np.inf) if missing[j] % 2 == 0 else np.float32(-np.inf)
            work[i, j] = samples[i, r, e0 + j] if kept else infinite
            missing[j] += 0 if kept else 1
    for k in range(network.shape[0]):
        low, high = work[network[k, 0]], work[network[k, 1]]
        for j in range(lanes):
            a, b = low[j], high[j]
            low[j] = a if a < b else b
            high[j] = b if a < b else a


@njit(cache=True, nogil=True)
def middle_two(work: Pixels, missing: int, j: int) -> tuple[float, float]:
    """The two middle samples (one twice, for an odd number) of lane j after `sort_middle`; some must be there."""
    below, found = missing // 2, work.shape[0] - missing  # -inf lie below the samples, +inf above
    return work[below + (found - 1) // 2, j], work[below + found // 2, j]


@njit(cache=True, nogil=True)
def medians(samples: Pixels, codes: Codes, network: Integers, centre: Pixels, low: Pixels, count: Counts) -> None:
    """centre, low (R, E): median and lower median of the kept samples, NaN where there are none; count (R, E)."""
    n, rows, elements = samples.shape
    work, missing = np.empty((n, LANES), np.float32), np.empty(LANES, np.int32)
    for r in range(rows):
        for e0 in range(0, elements, LANES):
            e1 = min(elements, e0 + LANES)
            sort_middle(samples, codes, r, e0, e1, network, work, missing)
            for j in range(e1 - e0):
                count[r, e0 + j] = n - missing[j]
                centre[r, e0 + j] = low[r, e0 + j] = np.nan
                if missing[j] < n:
                    a, b = middle_two(work, missing[j], j)
                    centre[r, e0 + j], low[r, e0 + j] = np.float32(0.5 * (np.float64(a) + np.float64(b))), a


@njit(cache=True, nogil=True)
def gradients(centre: Pixels, count: Counts, channels: int, out: Pixels) -> None:
    """out (R, E): half of max - min of the median over 3x3 pixels (fewer at the band's edges); +inf: judge nothing."""
    rows, elements = centre.shape
    for r in range(rows):
        above, below = centre[max(0, r - 1)], centre[min(rows - 1, r + 1)]
        for e in range(elements):
            high, low = np.float32(-np.inf), np.float32(np.inf)
            for k in range(max(e % channels, e - channels), min(elements, e + channels + 1), channels):
                for v in (above[k], centre[r, k], below[k]):
                    high = v if v > high else high  # NaN compares false: no samples, no say
                    low = v if v < low else low
            judged = count[r, e] >= MIN_JUDGED
            out[r, e] = np.float32(0.5) * (high - low) if judged else np.float32(np.inf)


@njit(cache=True, nogil=True)
def _recentre(
    samples: Pixels, codes: Codes, r: int, e: int, centre: float,
    limits: Numbers, slopes: Numbers, pedestal: float, floor: float,
) -> None:  # fmt: skip
    """Judge the rejected samples of one element again, against another centre (its lower median, itself a sample)."""
    signal = max(centre - pedestal, 0.0)
    for i in range(samples.shape[0]):
        if codes[i, r, e] == REJECTED:
            d = np.float64(samples[i, r, e]) - centre
            if d * d <= limits[i] + slopes[i] * signal + floor:
                codes[i, r, e] = KEPT


@njit(cache=True, nogil=True)
def reject_by_model(
    samples: Pixels, codes: Codes, centre: Pixels, low: Pixels, gradient: Pixels, fixed: Numbers, slope: Numbers,
    pedestal: Numbers, k_gradient: float, k_signal: float,
) -> None:  # fmt: skip
    """Reject where (v - m)^2 > fixed_i + slope_i s + (k_gradient g)^2 + (k_signal s)^2, s = max(m - pedestal, 0).

    fixed, slope (n, c) and the two constants already carry k^2 or k. Where that rejects all (an even number of samples
    in two camps, m between them), the lower camp is right: what is added to a sky is light, not shadow.
    """
    n, rows, elements = samples.shape
    channels = pedestal.shape[0]
    block = PIXELS * channels
    lane_fixed, lane_slope = np.empty((n, block)), np.empty((n, block))
    for i in range(n):
        for j in range(block):
            lane_fixed[i, j], lane_slope[i, j] = fixed[i, j % channels], slope[i, j % channels]
    middle, signal, floor, kept = np.empty(block), np.empty(block), np.empty(block), np.empty(block, np.uint8)
    for r in range(rows):
        for e0 in range(0, elements, block):
            lanes = min(block, elements - e0)
            kept[:] = 0
            for j in range(lanes):
                m, g = np.float64(centre[r, e0 + j]), np.float64(gradient[r, e0 + j])
                middle[j], signal[j] = m, max(m - pedestal[j % channels], 0.0)
                floor[j] = (k_gradient * g) ** 2 + (k_signal * signal[j]) ** 2
            for i in range(n):
                line, code = samples[i, r, e0 : e0 + lanes], codes[i, r, e0 : e0 + lanes]
                for j in range(lanes):
                    d = np.float64(line[j]) - middle[j]
                    limit = lane_fixed[i, j] + lane_slope[i, j] * signal[j] + floor[j]
                    code[j] = REJECTED if (code[j] == KEPT) & (d * d > limit) else code[j]
                    kept[j] |= np.uint8(code[j] == KEPT)
            for j in range(lanes):
                if kept[j] == 0 and math.isfinite(floor[j]):
                    k, m = j % channels, np.float64(low[r, e0 + j])
                    _recentre(samples, codes, r, e0 + j, m, fixed[:, k], slope[:, k], pedestal[k], floor[j])


@njit(cache=True, nogil=True)
def _hits(line: Codes, channels: int, hits: NDArray[np.int16]) -> np.int32:
    """hits (w): rejected samples of each pixel of a row of codes (w * c); returns their sum."""
    total = np.int32(0)
    hits[:] = 0
    if channels == 3:  # spelled out: vectorises
        for x in range(hits.shape[0]):
            hits[x] = (
                np.int16(line[3 * x] == REJECTED)
                + np.int16(line[3 * x + 1] == REJECTED)
                + np.int16(line[3 * x + 2] == REJECTED)
            )
    else:
        for e in range(line.shape[0]):
            hits[e // channels] += np.int16(line[e] == REJECTED)
    for x in range(hits.shape[0]):
        total += hits[x]
    return total


@njit(cache=True, nogil=True)
def grow(codes: Codes, gradient: Pixels, least: int) -> None:
    """Widen what was rejected, frame by frame: codes (n, R, w, c), gradient (R, w * c) infinite where none is judged.

    A 5x5 box (cut at the band's edges) with at least `least` rejected samples, channels counted together, marks its
    centre; marks widen by one pixel and take all channels. A trail's wings below k sigma are found by nothing else.
    """
    n, rows, width, channels = codes.shape
    hits = np.zeros((rows + 4, width + 4), np.int16)
    marks = np.zeros((rows + 2, width + 2), np.uint8)
    column = np.zeros(width + 4, np.int16)
    for i in range(n):
        total = 0
        for r in range(rows):
            total += _hits(codes[i, r].reshape(-1), channels, hits[r + 2, 2 : width + 2])
        if total < least:
            continue
        for r in range(rows):
            a, b, c, d, e = hits[r], hits[r + 1], hits[r + 2], hits[r + 3], hits[r + 4]
            for x in range(width + 4):
                column[x] = a[x] + b[x] + c[x] + d[x] + e[x]
            for x in range(width):
                box = column[x] + column[x + 1] + column[x + 2] + column[x + 3] + column[x + 4]
                marks[r + 1, x + 1] = 1 if box >= least else 0
        _widen(codes[i], marks, gradient, column)


@njit(cache=True, nogil=True)
def _widen(codes: Codes, marks: Codes, gradient: Pixels, column: NDArray[np.int16]) -> None:
    """Turn KEPT into GROWN within one pixel of a mark; codes (R, w, c), marks (R + 2, w + 2)."""
    rows, width, channels = codes.shape
    for r in range(rows):
        a, b, c = marks[r], marks[r + 1], marks[r + 2]
        total = 0
        for x in range(width + 2):
            column[x] = a[x] + b[x] + c[x]
            total += column[x]
        if total == 0:
            continue
        for x in range(width):
            if column[x] + column[x + 1] + column[x + 2] > 0:
                for k in range(channels):
                    if codes[r, x, k] == KEPT and math.isfinite(gradient[r, x * channels + k]):
                        codes[r, x, k] = GROWN


@njit(cache=True, nogil=True)
def restore(codes: Codes) -> None:
    """Where growing left an element (n, R, E) without any sample, take back what was grown there: no holes."""
    n, rows, elements = codes.shape
    kept = np.empty(elements, np.uint8)
    for r in range(rows):
        kept[:] = 0
        for i in range(n):
            for e in range(elements):
                kept[e] |= np.uint8(codes[i, r, e] == KEPT)
        for e in range(elements):
            if kept[e] == 0:
                for i in range(n):
                    codes[i, r, e] = KEPT if codes[i, r, e] == GROWN else codes[i, r, e]


@njit(cache=True, nogil=True)
def average(
    samples: Pixels, codes: Codes, weights: Numbers, maps: Pixels, top: int, mean: Pixels, weight: Pixels
) -> None:
    """Weighted mean of the kept samples and sum of their weights, mean and weight (rows, E) from band row `top` on.

    weights (n, c) times maps (n, R, w), or maps empty. float64 sums in the order of the frames; both 0 where none.
    """
    n, elements, channels = samples.shape[0], samples.shape[2], weights.shape[1]
    block = PIXELS * channels
    lane_weights, mapped = np.empty((n, block)), maps.shape[0] > 0
    for i in range(n):
        for j in range(block):
            lane_weights[i, j] = weights[i, j % channels]
    values, total, scaled = np.empty(block), np.empty(block), np.empty(block)
    for r in range(mean.shape[0]):
        for e0 in range(0, elements, block):
            lanes = min(block, elements - e0)
            values[:], total[:] = 0.0, 0.0
            for i in range(n):
                line, code = samples[i, top + r, e0 : e0 + lanes], codes[i, top + r, e0 : e0 + lanes]
                lane = lane_weights[i]
                if mapped:
                    for j in range(lanes):
                        scaled[j] = lane[j] * maps[i, top + r, (e0 + j) // channels]
                    lane = scaled
                for j in range(lanes):
                    kept = code[j] == KEPT
                    w = lane[j] if kept else 0.0
                    values[j] += w * (np.float64(line[j]) if kept else 0.0)
                    total[j] += w
            for j in range(lanes):
                found = total[j] > 0.0
                mean[r, e0 + j] = values[j] / total[j] if found else 0.0
                weight[r, e0 + j] = total[j] if found else 0.0


@njit(cache=True, nogil=True)
def tally(codes: Codes, top: int, count: NDArray[np.uint16], rejected: Integers, seen: Integers) -> None:
    """count (rows, w): frames kept in all channels (V1); rejected, seen (n): samples a frame; from row `top` on."""
    n, _, width, channels = codes.shape
    count[:] = 0
    for i in range(n):
        for r in range(count.shape[0]):
            row = codes[i, top + r]
            line, lost, found = row.reshape(-1), np.int32(0), np.int32(0)
            for e in range(width * channels):
                lost += np.int32(line[e] > KEPT)
                found += np.int32(line[e] > UNSEEN)
            rejected[i] += lost
            seen[i] += found
            if channels == 3:  # spelled out: vectorises
                for x in range(width):
                    kept = (line[3 * x] == KEPT) & (line[3 * x + 1] == KEPT) & (line[3 * x + 2] == KEPT)
                    count[r, x] += np.uint16(kept)
            else:
                for x in range(width):
                    kept = True
                    for k in range(channels):
                        kept &= row[x, k] == KEPT
                    count[r, x] += np.uint16(kept)
