"""Compiled parts of the combiner: the default rejection rule and its growth, the weighted mean, the tallies.

Arrays of a window as in `science.medians`: samples float32 (n, C, R, W), codes uint8 (n, R, W). No element ever looks
at another one except where a rule says so (gradient, grow), so results do not depend on windows. No fast-math: the same
IEEE operations in the same order, in every path.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.medians import GROWN, LANES, UNSEEN, Codes, Counts, Integers, Numbers, Pixels

Flags = NDArray[np.bool_]

MIN_JUDGED = 3
"""Fewer samples than this at a pixel cannot outvote one another: nothing is rejected there."""


@njit(cache=True, nogil=True)
def first_codes(seen: Flags, codes: Codes) -> None:
    """codes (n, R, W) = UNSEEN where seen is False, else 0."""
    for i in range(seen.shape[0]):
        for r in range(seen.shape[1]):
            mask, code = seen[i, r], codes[i, r]
            for x in range(mask.shape[0]):
                code[x] = np.uint8(0) if mask[x] else UNSEEN


@njit(cache=True, nogil=True)
def mark_line(codes: Codes, line: Numbers) -> None:
    """Add GROWN to the seen samples of one frame, codes (R, W), that lie on a trail.

    `line` float64 (7,): a, b, c, half, p, q, r; on it are window pixels with |a x + b y + c| <= half (p x + q y + r),
    which is a band about a straight line of the frame as a homography shows it.
    """
    a, b, c, half, p, q, r0 = line
    for r in range(codes.shape[0]):
        code = codes[r]
        for x in range(codes.shape[1]):
            on = abs(a * x + b * r + c) <= half * (p * x + q * r + r0)
            code[x] |= GROWN if on & (code[x] & UNSEEN == 0) else np.uint8(0)


@njit(cache=True, nogil=True)
def gradients(centre: Pixels, count: Counts, out: Pixels) -> None:
    """out (C, R, W): half of max - min of the median over 3x3 pixels (fewer at the edges); +inf: judge nothing."""
    channels, rows, width = centre.shape
    high, low = np.empty(width, np.float32), np.empty(width, np.float32)
    for k in range(channels):
        for r in range(rows):
            above, here, below = centre[k, max(0, r - 1)], centre[k, r], centre[k, min(rows - 1, r + 1)]
            for x in range(width):  # NaN compares false: no samples, no say
                top, bottom = np.float32(-np.inf), np.float32(np.inf)
                for v in (above[x], here[x], below[x]):
                    top = v if v > top else top
                    bottom = v if v < bottom else bottom
                high[x], low[x] = top, bottom
            for x in range(width):
                a, b = max(0, x - 1), min(width - 1, x + 1)
                rise = max(high[a], high[x], high[b]) - min(low[a], low[x], low[b])
                judged = count[k, r, x] >= MIN_JUDGED
                out[k, r, x] = np.float32(0.5) * rise if judged else np.float32(np.inf)


@njit(cache=True, nogil=True)
def _recentre(
    samples: Pixels, codes: Codes, at: tuple[int, int, int], centre: float,
    limits: Numbers, slopes: Numbers, pedestal: float, floor: float,
) -> None:  # fmt: skip
    """Judge the rejected samples of one element again, against another centre (its lower median, itself a sample)."""
    k, r, x = at
    bit, signal = np.uint8(1 << k), max(centre - pedestal, 0.0)
    for i in range(samples.shape[0]):
        if codes[i, r, x] & bit != 0:
            d = np.float64(samples[i, k, r, x]) - centre
            if d * d <= limits[i] + slopes[i] * signal + floor:
                codes[i, r, x] &= ~bit


@njit(cache=True, nogil=True)
def reject_by_model(
    samples: Pixels, codes: Codes, centre: Pixels, low: Pixels, gradient: Pixels, fixed: Numbers, slope: Numbers,
    pedestal: Numbers, k_gradient: float, k_signal: float,
) -> None:  # fmt: skip
    """Reject where (v - m)^2 > fixed_i + slope_i s + (k_gradient g)^2 + (k_signal s)^2, s = max(m - pedestal, 0).

    fixed, slope (n, C) and the two constants already carry k^2 or k. Where that rejects all (an even number of samples
    in two camps, m between them), the lower camp is right: what is added to a sky is light, not shadow.
    """
    n, channels, rows, width = samples.shape
    middle, signal, floor, kept = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES, np.uint8)
    for k in range(channels):
        bit = np.uint8(1 << k)
        for r in range(rows):
            for x0 in range(0, width, LANES):
                lanes = min(LANES, width - x0)
                kept[:] = 0
                for j in range(lanes):
                    m, g = np.float64(centre[k, r, x0 + j]), np.float64(gradient[k, r, x0 + j])
                    middle[j], signal[j] = m, max(m - pedestal[k], 0.0)
                    floor[j] = (k_gradient * g) ** 2 + (k_signal * signal[j]) ** 2
                for i in range(n):
                    line, code = samples[i, k, r, x0 : x0 + lanes], codes[i, r, x0 : x0 + lanes]
                    base, rise = fixed[i, k], slope[i, k]
                    for j in range(lanes):
                        d = np.float64(line[j]) - middle[j]
                        out = d * d > base + rise * signal[j] + floor[j]
                        there = code[j] & UNSEEN == 0
                        code[j] |= bit if there & out else np.uint8(0)
                        kept[j] |= np.uint8(there & (not out))
                for j in range(lanes):
                    if kept[j] == 0 and math.isfinite(floor[j]):
                        m = np.float64(low[k, r, x0 + j])
                        _recentre(samples, codes, (k, r, x0 + j), m, fixed[:, k], slope[:, k], pedestal[k], floor[j])


@njit(cache=True, nogil=True)
def _rejected(code: np.uint8) -> np.uint8:
    """In how many channels a code says that its sample was rejected: its bits below GROWN, counted without a table or
    a branch, so that the compiler does many at once."""
    b = code & (GROWN - np.uint8(1))
    b -= (b >> np.uint8(1)) & np.uint8(0x55)
    b = (b & np.uint8(0x33)) + ((b >> np.uint8(2)) & np.uint8(0x33))
    return np.uint8((b + (b >> np.uint8(4))) & np.uint8(0x0F))


@njit(cache=True, nogil=True)
def grow(codes: Codes, judged: Flags, least: int) -> None:
    """Widen what was rejected, frame by frame: codes (n, R, W), judged (R, W) False where nothing may be rejected.

    A 5x5 box (cut at the window's edges) with at least `least` rejected samples, channels counted together, marks its
    centre; marks widen by one pixel and take all channels. A trail's wings below k sigma are found by nothing else.
    """
    n, rows, width = codes.shape
    hits = np.zeros((rows + 4, width + 4), np.uint8)  # a box of 25 pixels and MOST_CHANNELS counts up to 150
    marks = np.zeros((rows + 2, width + 2), np.uint8)
    column, found, enough = np.zeros(width + 4, np.uint8), np.zeros(rows + 4, np.int64), np.uint8(least)
    for i in range(n):
        for r in range(rows):
            line, target, here = codes[i, r], hits[r + 2, 2 : width + 2], np.uint32(0)
            for x in range(width):
                bits = _rejected(line[x])
                target[x] = bits
                here += np.uint32(bits)
            found[r + 2] = here
        if found.sum() < least:
            continue
        for r in range(rows):
            mark = marks[r + 1]
            if found[r : r + 5].sum() < least:
                mark[:] = 0
                continue
            a, b, c, d, e = hits[r], hits[r + 1], hits[r + 2], hits[r + 3], hits[r + 4]
            for x in range(width + 4):
                column[x] = a[x] + b[x] + c[x] + d[x] + e[x]
            for x in range(width):
                box = column[x] + column[x + 1] + column[x + 2] + column[x + 3] + column[x + 4]
                mark[x + 1] = np.uint8(box >= enough)
        _widen(codes[i], marks, judged, column)


@njit(cache=True, nogil=True)
def _widen(codes: Codes, marks: Codes, judged: Flags, column: Codes) -> None:
    """Add GROWN within one pixel of a mark; codes (R, W), marks (R + 2, W + 2)."""
    rows, width = codes.shape
    for r in range(rows):
        a, b, c = marks[r], marks[r + 1], marks[r + 2]
        some = np.uint8(0)
        for x in range(width + 2):
            column[x] = a[x] | b[x] | c[x]
            some |= column[x]
        if some == 0:
            continue
        for x in range(width):
            near = column[x] | column[x + 1] | column[x + 2]
            if near != 0 and judged[r, x] and codes[r, x] & UNSEEN == 0:
                codes[r, x] |= GROWN


@njit(cache=True, nogil=True)
def restore(codes: Codes, channels: int) -> None:
    """Where growing left a pixel without any sample in a channel, take back what was grown there: no holes."""
    n, rows, width = codes.shape
    whole = np.uint8((1 << channels) - 1)
    lost, grown = np.empty(width, np.uint8), np.empty(width, np.uint8)
    for r in range(rows):
        lost[:], grown[:] = whole, 0
        for i in range(n):
            line = codes[i, r]
            for x in range(width):
                gone = line[x] if line[x] & (UNSEEN | GROWN) == 0 else whole
                lost[x] &= gone
                grown[x] |= line[x] & GROWN
        for x in range(width):
            if lost[x] & whole != 0 and grown[x] != 0:
                for i in range(n):
                    codes[i, r, x] &= ~GROWN


@njit(cache=True, nogil=True)
def average(
    samples: Pixels, codes: Codes, weights: Numbers, variance: Numbers, maps: Pixels, corner: tuple[int, int],
    mean: Pixels, weight: Pixels, inverse: Pixels,
) -> None:  # fmt: skip
    """Weighted mean of the kept samples, sum of their weights w, and inverse variance of the mean, (sum w)^2 over the
    sum of w^2 v: all (C, rows, width), from `corner` on.

    weights (n, C) times maps (n, R, W), or maps empty; `variance` v (n, C) of a frame's samples. float64 sums in the
    order of the frames; 0 where none. `corner`: (row, column) of the window that is the first of the result.
    """
    n, (channels, rows, width), (top, left) = samples.shape[0], mean.shape, corner
    values, total, power, scale = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.ones(LANES)
    for k in range(channels):
        mask = UNSEEN | GROWN | np.uint8(1 << k)
        for r in range(rows):
            for x0 in range(0, width, LANES):
                lanes = min(LANES, width - x0)
                values[:], total[:], power[:] = 0.0, 0.0, 0.0
                part = slice(left + x0, left + x0 + lanes)
                for i in range(n):
                    line, code, own = samples[i, k, top + r, part], codes[i, top + r, part], weights[i, k]
                    if maps.shape[0] > 0:
                        for j in range(lanes):
                            scale[j] = maps[i, top + r, left + x0 + j]
                    for j in range(lanes):
                        kept = code[j] & mask == 0
                        w = own * scale[j] if kept else 0.0
                        values[j] += w * (np.float64(line[j]) if kept else 0.0)
                        total[j] += w
                        power[j] += w * w * variance[i, k]
                for j in range(lanes):
                    found = total[j] > 0.0
                    mean[k, r, x0 + j] = values[j] / total[j] if found else 0.0
                    weight[k, r, x0 + j] = total[j] if found else 0.0
                    inverse[k, r, x0 + j] = total[j] * total[j] / power[j] if found else 0.0


@njit(cache=True, nogil=True)
def tally(
    codes: Codes, corner: tuple[int, int], channels: int, count: NDArray[np.uint16], lost: NDArray[np.uint16],
    rejected: Integers, seen: Integers,
) -> None:  # fmt: skip
    """count, lost (rows, width): frames kept in all channels (V1), frames rejected in any; from `corner` on.

    rejected, seen (n,) grow by the samples of each frame, channels counted one by one.
    """
    n, (rows, width), (top, left) = codes.shape[0], count.shape, corner
    count[:], lost[:] = 0, 0
    for i in range(n):
        for r in range(rows):
            line, kept, cut = codes[i, top + r, left : left + width], count[r], lost[r]
            gone, found = np.uint32(0), np.uint32(0)
            for x in range(width):
                code = line[x]
                there = (code >> np.uint8(7)) ^ np.uint8(1)  # UNSEEN is the highest bit
                bits = np.uint8(channels) if code & GROWN != 0 else _rejected(code)
                gone += np.uint32(bits * there)
                found += np.uint32(there)
                kept[x] += np.uint16(code == 0)
                cut[x] += np.uint16(there if code != 0 else np.uint8(0))
            rejected[i] += np.int64(gone)
            seen[i] += np.int64(found) * channels
