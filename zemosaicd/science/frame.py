"""What a single raw frame's pixels say before any star is looked at: hot pixels, colours, sky and noise.

Knows arrays and the colour of the Bayer block at their origin; never files, headers or other frames. Planes are
(H, W), rows as stored in the file; NaN is "no data" and never turns into a number. Recipe and figures of the hot
pixels: `experiments-astrometry.md` section 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.robust import append_steps, block_statistics, kth_smallest, robust_spread

Float32 = NDArray[np.float32]
Colour = Literal["R", "G", "B"]

HOT_SIGMA = 5.0
HOT_NEIGHBOUR_SHARE, HOT_NEIGHBOUR_SIGMA = 0.10, 0.6
"""A hot pixel leaves the four pixels beside it within 0.6 sigma and 10 % of its own height. At 25 %, as first measured
on simulated frames, one red star core in five of real sharp frames counts as hot (M 27: colours off by 0.3 mag)."""
SUSPECT_SIGMA, SUSPECT_NEIGHBOUR_SHARE = 3.0, 0.25
"""What a pixel of one frame must show to be hot if many frames agree."""
HOT_MONO_FACTOR = 4.0
HOT_MONO_SIGMA = 6.0
BLOCK_PX = 128
ROW_STRIDE = 8


def colour_offsets(bayer: str, colour: Colour) -> tuple[tuple[int, int], ...]:
    """(row, column) of each photosite of a colour in the 2x2 block at the array's origin.

    `bayer` names the colours of array [0, 0], [0, 1], [1, 0], [1, 1] ("GRBG", "RGGB", ...). ValueError for anything
    that is not one red, two greens and one blue.
    """
    if sorted(bayer) != ["B", "G", "G", "R"]:
        raise ValueError(f"not a Bayer pattern: {bayer!r}")
    return tuple((i // 2, i % 2) for i, c in enumerate(bayer) if c == colour)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HotPixels:
    """Single pixels of a frame that stand out: `place` int64 (n,) flat indices, `value` float32 (n,) the median of
    their neighbours of the same colour, `sure` bool (n,): hot beyond doubt; the others are hot if other frames say so.
    """

    place: NDArray[np.int64]
    value: Float32
    sure: NDArray[np.bool_]


def find_hot_pixels(plane: Float32, bayer: bool) -> HotPixels:
    """Single pixels of (H, W) float32 that no star explains.

    Bayer: hot is 5 sigma above each of the 8 same-colour neighbours while the 4 adjacent pixels, each over its own
    same-colour median, rise by less than 0.1 of it plus 0.6 sigma on average (a star lifts all colours). Mono: hot
    stands more than 4 (max - median) + 6 sigma of its 8 neighbours above their median. Suspects stand 3 sigma out and
    may lift what is beside them by a quarter. sigma: from the median of |v(x) - v(x + 2)|. NaN is not hot and no
    neighbour.
    """
    source = np.ascontiguousarray(plane, np.float32)
    sigma = _difference_sigma(source)
    if min(source.shape) < 4 or not sigma > 0.0:
        return HotPixels(place=np.empty(0, np.int64), value=np.empty(0, np.float32), sure=np.empty(0, np.bool_))
    place, value, sure = _hot_pixels(source, sigma, bayer)
    return HotPixels(place=place, value=value, sure=sure)


def repair_pixels(plane: NDArray[np.generic], places: NDArray[np.int64], bayer: bool) -> None:
    """Put the median of their neighbours of the same colour into some pixels (flat indices) of (H, W), in place."""
    _repair(plane, places, 2 if bayer else 1)


def binned_green(plane: NDArray[np.float32], bayer: str) -> Float32:
    """One green value a Bayer block: (G1 + G2) / 2, float32 (H // 2, W // 2); NaN only where both greens are.

    Value [j, i] belongs to the sensor position (2 i + 0.5, 2 j + 0.5).
    """
    (r1, c1), (r2, c2) = colour_offsets(bayer, "G")
    return _binned_green(np.ascontiguousarray(plane, np.float32), r1, c1, r2, c2)


def binned_mono(plane: NDArray[np.float32]) -> Float32:
    """Mean of each 2x2 block, float32 (H // 2, W // 2); NaN if any of the four is.

    Value [j, i] belongs to the sensor position (2 i + 0.5, 2 j + 0.5).
    """
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    a, b = plane[0:rows:2, 0:columns:2], plane[0:rows:2, 1:columns:2]
    c, d = plane[1:rows:2, 0:columns:2], plane[1:rows:2, 1:columns:2]
    return np.asarray(np.float32(0.25) * (a + b + c + d), np.float32)


def block_levels(plane: NDArray[np.float32], bayer: str) -> tuple[Float32, Float32]:
    """(levels, noise) of blocks of 128 px, float32 (C, rows, columns), C = 3 in R, G, B order or 1 for mono (`bayer`
    ""): where most of a block's photosites of a colour lie, and the standard deviation of one of them, from v(x) -
    v(next of its colour), which a slope does not touch. NaN where a block has no data.
    """
    pixels = np.asarray(plane, np.float32)
    if not bayer:
        blocks = block_statistics(pixels, BLOCK_PX, 2, ROW_STRIDE)[np.newaxis]
    else:
        blocks = np.array(
            [
                np.mean(
                    [
                        block_statistics(pixels[r : _even(pixels.shape[0]) : 2, c : _even(pixels.shape[1]) : 2],
                                         BLOCK_PX // 2, 1, ROW_STRIDE)
                        for r, c in colour_offsets(bayer, colour)
                    ],
                    axis=0,
                )
                for colour in ("R", "G", "B")
            ]
        )  # fmt: skip
    return blocks[..., 0].astype(np.float32), blocks[..., 1].astype(np.float32)


def _even(n: int) -> int:
    return n // 2 * 2


def low_and_high(plane: NDArray[np.float32], bayer: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """25th and 90th percentile of a frame's photosites a channel, ADU, from every 32nd rows; NaN without data."""
    pixels = np.asarray(plane, np.float32)
    low: list[float] = []
    high: list[float] = []
    for own in [colour_offsets(bayer, k) for k in ("R", "G", "B")] if bayer else [((0, 0),)]:
        step = 2 if bayer else 1
        values = np.concatenate([pixels[r :: 32 * step, c::step].reshape(-1) for r, c in own])
        values = values[np.isfinite(values)]
        for found, share in ((low, 0.25), (high, 0.9)):
            found.append(float(kth_smallest(values, round(share * (len(values) - 1)))) if len(values) else math.nan)
    return tuple(low), tuple(high)


def sky_and_noise(levels: Float32, noise: Float32) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(sky_adu, noise_adu) a channel from `block_levels`: level of the empty sky, noise of one photosite on it.

    The sky is the lower quartile of the blocks' levels, so stars and a nebula over half the frame do not lift it; the
    noise is the median over the blocks at or below the middle level. Blocks without variation (padding) count only
    where there are no others. NaN if nothing is finite.
    """
    found = [_quiet(level.reshape(-1), own.reshape(-1)) for level, own in zip(levels, noise, strict=True)]
    return tuple(sky for sky, _ in found), tuple(sigma for _, sigma in found)


def _quiet(level: Float32, noise: Float32) -> tuple[float, float]:
    """Sky and noise over the blocks (n,) of a channel."""
    good = np.isfinite(level)
    if not good.any():
        return math.nan, math.nan
    if (noise[good] > 0.0).any():
        good &= noise > 0.0
    level, noise = level[good].astype(np.float64), noise[good].astype(np.float64)
    return float(np.percentile(level, 25.0)), float(np.median(noise[level <= np.median(level)]))


@njit(cache=True, nogil=True)
def _difference_sigma(plane: Float32) -> float:
    """Noise of one photosite from median |v(x) - v(x + 2)| over every eighth row; 0 for nothing to go by."""
    height, width = plane.shape
    steps = np.empty((height // ROW_STRIDE + 1) * width, np.float32)
    n = 0
    for y in range(0, height, ROW_STRIDE):
        n = append_steps(steps, n, plane[y, : width - 2], plane[y, 2:])
    return robust_spread(steps[:n])[0] / math.sqrt(2.0) if n else 0.0


@njit(cache=True, nogil=True)
def _mirror(i: int, n: int) -> int:
    """Index mirrored at the borders without repeating the edge: keeps the parity, hence the colour."""
    return -i if i < 0 else (2 * (n - 1) - i if i >= n else i)


@njit(cache=True, nogil=True)
def _neighbours(plane: Float32, y: int, x: int, step: int, out: Float32) -> int:
    """The finite ones of the 8 neighbours at distance `step`, sorted into `out`; how many."""
    height, width = plane.shape
    n = 0
    for dy in range(-step, step + 1, step):
        for dx in range(-step, step + 1, step):
            v = plane[_mirror(y + dy, height), _mirror(x + dx, width)]
            if (dy == 0 and dx == 0) or not np.isfinite(v):
                continue
            k = n
            while k > 0 and out[k - 1] > v:
                out[k] = out[k - 1]
                k -= 1
            out[k] = v
            n += 1
    return n


@njit(cache=True, nogil=True)
def _median_sorted(values: Float32, n: int) -> float:
    """Median of the first n of a sorted array."""
    return 0.5 * (values[(n - 1) // 2] + values[n // 2])


@njit(cache=True, nogil=True)
def _adjacent_excess(plane: Float32, y: int, x: int, scratch: Float32) -> float:
    """Mean height of the 4 adjacent pixels, each over the median of its own 8 same-colour neighbours."""
    height, width = plane.shape
    total, n = 0.0, 0
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        ya, xa = _mirror(y + dy, height), _mirror(x + dx, width)
        m = _neighbours(plane, ya, xa, 2, scratch)
        if m and np.isfinite(plane[ya, xa]):
            total += plane[ya, xa] - _median_sorted(scratch, m)
            n += 1
    return total / n if n else 0.0


@njit(cache=True, nogil=True)
def _outstanding(row: Float32, step: int, limit: np.float32, flags: NDArray[np.uint8]) -> int:
    """1 where a pixel is not within `limit` above its left and right neighbours at `step`: the cheap first test.

    Answers whether there is any. Without a branch and from whole slices, so that it runs on vectors; a neighbour that
    is NaN is none.
    """
    width = len(row)
    left, here, right = row[: width - 2 * step], row[step : width - step], row[2 * step :]
    inner = flags[step : width - step]
    found = np.uint8(0)
    for x in range(len(here)):
        v = here[x] - limit
        inner[x] = np.uint8(1) - np.uint8((v <= left[x]) | (v <= right[x]))
        found |= inner[x]
    for k in range(step):
        for x in (k, width - 1 - k):
            v = row[x] - limit
            flags[x] = not (v <= row[_mirror(x - step, width)] or v <= row[_mirror(x + step, width)])
            found |= flags[x]
    return int(found)


@njit(cache=True, nogil=True)
def _hot_in_cfa(plane: Float32, y: int, x: int, sigma: float, around: Float32, scratch: Float32) -> tuple[float, bool]:
    """(median to put in the pixel's place, whether it is surely hot) by the Bayer rule; NaN if nothing stands out."""
    v = plane[y, x]
    n = _neighbours(plane, y, x, 2, around)
    if n == 0 or v <= around[n - 1] + SUSPECT_SIGMA * sigma:
        return np.nan, False
    median = _median_sorted(around, n)
    height, beside = v - median, _adjacent_excess(plane, y, x, scratch)
    if beside >= SUSPECT_NEIGHBOUR_SHARE * height + HOT_NEIGHBOUR_SIGMA * sigma:
        return np.nan, False
    alone = beside < HOT_NEIGHBOUR_SHARE * height + HOT_NEIGHBOUR_SIGMA * sigma
    return median, alone and v > around[n - 1] + HOT_SIGMA * sigma


@njit(cache=True, nogil=True)
def _hot_in_mono(plane: Float32, y: int, x: int, sigma: float, around: Float32) -> tuple[float, bool]:
    """The same by the mono rule."""
    n = _neighbours(plane, y, x, 1, around)
    if n == 0:
        return np.nan, False
    median = _median_sorted(around, n)
    height, above = plane[y, x] - median, around[n - 1] - median
    suspect = height > HOT_MONO_FACTOR * above + SUSPECT_SIGMA * sigma
    return median if suspect else np.nan, height > HOT_MONO_FACTOR * above + HOT_MONO_SIGMA * sigma


@njit(cache=True, nogil=True)
def _hot_pixels(plane: Float32, sigma: float, bayer: bool) -> tuple[NDArray[np.int64], Float32, NDArray[np.bool_]]:
    """What `find_hot_pixels` says, at a noise of `sigma`."""
    height, width = plane.shape
    places, medians = np.empty(plane.size, np.int64), np.empty(plane.size, np.float32)
    certain = np.empty(plane.size, np.bool_)
    around, scratch = np.empty(8, np.float32), np.empty(8, np.float32)
    flags = np.zeros(-(-width // 8) * 8, np.uint8)
    eights = flags.view(np.uint64)  # most rows have a flag or two: eight are looked at together
    step, limit = 2 if bayer else 1, np.float32(SUSPECT_SIGMA * sigma)
    n = 0
    for y in range(height):
        row = plane[y]
        if not _outstanding(row, step, limit, flags):
            continue
        for k in range(len(eights)):
            if not eights[k]:
                continue
            for x in range(8 * k, min(width, 8 * k + 8)):
                if not flags[x] or not np.isfinite(row[x]):
                    continue
                if bayer:
                    median, sure = _hot_in_cfa(plane, y, x, sigma, around, scratch)
                else:
                    median, sure = _hot_in_mono(plane, y, x, sigma, around)
                if np.isfinite(median):
                    places[n], medians[n], certain[n] = y * width + x, median, sure
                    n += 1
    return places[:n].copy(), medians[:n].copy(), certain[:n].copy()


@njit(cache=True, nogil=True)
def _repair(plane: NDArray[np.generic], places: NDArray[np.int64], step: int) -> None:
    """What `repair_pixels` says."""
    width, around = plane.shape[1], np.empty(8, np.float32)
    for place in places:
        y, x = place // width, place % width
        n = _neighbours(plane, y, x, step, around)
        if n:
            plane[y, x] = _median_sorted(around, n)


@njit(cache=True, nogil=True)
def _binned_green(plane: Float32, r1: int, c1: int, r2: int, c2: int) -> Float32:
    """What `binned_green` says, for greens at (r1, c1) and (r2, c2) of each block."""
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    out = np.empty((height, width), np.float32)
    for y in range(height):
        first, second, target = plane[2 * y + r1, c1:], plane[2 * y + r2, c2:], out[y]
        for x in range(width):
            a, b = first[2 * x], second[2 * x]
            both = np.float32(0.5) * (a + b)
            target[x] = both if both == both else (b if a != a else a)
    return out
