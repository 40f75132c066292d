"""What a single raw frame's pixels say before any star is looked at: hot pixels, luminance, colours, sky and noise.

Knows arrays and the colour of the Bayer block at their origin; never files, headers or other frames. Planes are
(H, W), rows as stored in the file; NaN is "no data" and never turns into a number. Recipe and figures: hot pixels and
luminance from `experiments-astrometry.md` section 1.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Colour = Literal["R", "G", "B"]

HOT_SIGMA = 5.0
HOT_NEIGHBOUR_SHARE, HOT_NEIGHBOUR_SIGMA = 0.10, 0.6
"""A hot pixel leaves the four pixels beside it within 0.6 sigma and 10 % of its own height. At 25 %, as first measured
on simulated frames, one red star core in five of real sharp frames counts as hot (M 27: colours off by 0.3 mag)."""
HOT_MONO_FACTOR = 4.0
HOT_MONO_SIGMA = 6.0
BLOCK_PX = 128
ROW_STRIDE = 8
MAD_TO_SIGMA = 1.4826
CLIP_SIGMA = 3.0
CLIPPED_SHARE = 0.98658
"""Standard deviation of a unit Gaussian cut at 3 sigma."""


def colour_offsets(bayer: str, colour: Colour) -> tuple[tuple[int, int], ...]:
    """(row, column) of each photosite of a colour in the 2x2 block at the array's origin.

    `bayer` names the colours of array [0, 0], [0, 1], [1, 0], [1, 1] ("GRBG", "RGGB", ...). ValueError for anything
    that is not one red, two greens and one blue.
    """
    if sorted(bayer) != ["B", "G", "G", "R"]:
        raise ValueError(f"not a Bayer pattern: {bayer!r}")
    return tuple((i // 2, i % 2) for i, c in enumerate(bayer) if c == colour)


def repair_hot_pixels(plane: NDArray[np.generic], bayer: bool) -> tuple[Float32, int]:
    """Replace single hot pixels by the median of their neighbours of the same colour: (float32 (H, W) copy, count).

    Bayer: hot is 5 sigma above each of the 8 same-colour neighbours while the 4 adjacent pixels, each over its own
    same-colour median, rise by less than 0.1 of it plus 0.6 sigma on average (a star lifts all colours). Mono: hot
    stands more than 4 (max - median) + 6 sigma of its 8 neighbours above their median. sigma: from the median of
    |v(x) - v(x + 2)|. NaN stays NaN and is no neighbour.
    """
    source = np.ascontiguousarray(plane, np.float32)
    repaired = source.copy()
    sigma = _difference_sigma(source)
    if min(source.shape) < 4 or not sigma > 0.0:
        return repaired, 0
    count = _repair_cfa(source, repaired, sigma) if bayer else _repair_mono(source, repaired, sigma)
    return repaired, int(count)


def luminance(plane: NDArray[np.float32]) -> Float32:
    """Mean of the 2x2 block that starts at each pixel: float32 (H, W), without colour pattern at any Bayer order.

    Value [y, x] belongs to the sensor position (x + 0.5, y + 0.5): add 0.5 px to any position measured on it. The
    last row and column use the one before the last again (same colours). NaN spreads to the blocks it touches.
    """
    return _luminance(np.ascontiguousarray(plane, np.float32))


def binned_green(plane: NDArray[np.float32], bayer: str) -> Float32:
    """One green value a Bayer block: (G1 + G2) / 2, float32 (H // 2, W // 2); NaN only where both greens are.

    Value [j, i] belongs to the sensor position (2 i + 0.5, 2 j + 0.5).
    """
    (r1, c1), (r2, c2) = colour_offsets(bayer, "G")
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    first, second = plane[r1:rows:2, c1:columns:2], plane[r2:rows:2, c2:columns:2]
    green = np.asarray(0.5 * (first + second), np.float32)
    hole = np.isnan(green)
    if hole.any():
        green[hole] = np.where(np.isnan(first), second, first)[hole]
    return green


def sky_and_noise(plane: NDArray[np.float32], bayer: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(sky_adu, noise_adu): level of the empty sky and standard deviation of one photosite on it.

    Three values in R, G, B order, one for mono (`bayer` ""). The frame is cut into blocks of 128 px; the sky is the
    lower quartile of the blocks' clipped means, so stars and a nebula over half the frame do not lift it; the noise is
    the median, over the blocks at or below the middle level, of the clipped rms of v(x) - v(next of its colour), over
    sqrt 2, which a slope does not touch. Blocks without variation (padding) count only where there are no others. NaN
    if nothing is finite.
    """
    pixels = np.asarray(plane, np.float32)
    if not bayer:
        sky, noise = _level_and_noise([pixels], BLOCK_PX, 2)
        return (sky,), (noise,)
    measured = [
        _level_and_noise([pixels[r::2, c::2] for r, c in colour_offsets(bayer, colour)], BLOCK_PX // 2, 1)
        for colour in ("R", "G", "B")
    ]
    return tuple(sky for sky, _ in measured), tuple(noise for _, noise in measured)


def block_levels(plane: NDArray[np.float32], bayer: str) -> tuple[Float32, Float32]:
    """(levels, noise) of blocks of 128 px, float32 (C, rows, columns), C = 3 in R, G, B order or 1 for mono (`bayer`
    ""): the clipped mean of a block's photosites of a colour, and the standard deviation of one of them (both greens
    together: of their mean). NaN where a block has no data.
    """
    pixels = np.asarray(plane, np.float32)
    shape = max(1, pixels.shape[0] // BLOCK_PX), max(1, pixels.shape[1] // BLOCK_PX)
    lattices = (
        [[pixels[r::2, c::2] for r, c in colour_offsets(bayer, k)] for k in ("R", "G", "B")] if bayer else [[pixels]]
    )
    levels, noises = [], []
    for own in lattices:
        blocks = [_block_statistics(lattice, BLOCK_PX // (2 if bayer else 1), 1 if bayer else 2) for lattice in own]
        both = np.mean(blocks, axis=0).reshape(*shape, 2)
        levels.append(both[:, :, 0])
        noises.append(both[:, :, 1] / math.sqrt(len(own)))
    return np.array(levels, np.float32), np.array(noises, np.float32)


def _level_and_noise(lattices: list[Float32], block: int, step: int) -> tuple[float, float]:
    """Sky and noise over the blocks of one or more lattices of a colour (`step`: distance of the differences)."""
    blocks = np.concatenate([_block_statistics(lattice, block, step) for lattice in lattices])
    blocks = blocks[np.isfinite(blocks[:, 0])]
    if not len(blocks):
        return math.nan, math.nan
    if (blocks[:, 1] > 0.0).any():
        blocks = blocks[blocks[:, 1] > 0.0]
    quiet = blocks[:, 0] <= np.median(blocks[:, 0])
    return float(np.percentile(blocks[:, 0], 25.0)), float(np.median(blocks[quiet, 1]))


@njit(cache=True, nogil=True)
def _block_statistics(lattice: Float32, block: int, step: int) -> NDArray[np.float64]:
    """(blocks, 2): clipped mean and difference noise of each block, from every eighth row; NaN below 16 samples."""
    height, width = lattice.shape
    rows, columns = max(1, height // block), max(1, width // block)
    statistics = np.full((rows * columns, 2), np.nan)
    size = (height // rows + 1) * (width // columns + 1)
    values, steps = np.empty(size, np.float32), np.empty(size, np.float32)
    for k in range(rows * columns):
        top, bottom = (k // columns) * height // rows, (k // columns + 1) * height // rows
        left, right = (k % columns) * width // columns, (k % columns + 1) * width // columns
        n = m = 0
        for y in range(top, bottom, ROW_STRIDE):
            for x in range(left, right):
                v = lattice[y, x]
                if not np.isfinite(v):
                    continue
                values[n] = v
                n += 1
                if x + step < width and np.isfinite(lattice[y, x + step]):
                    steps[m] = abs(v - lattice[y, x + step])
                    m += 1
        if n >= 16 and m >= 16:
            statistics[k, 1] = _clipped_rms(steps[:m]) / math.sqrt(2.0)
            statistics[k, 0] = _clipped_mean(values[:n], statistics[k, 1])
    return statistics


@njit(cache=True, nogil=True)
def _clipped_mean(values: Float32, sigma: float) -> float:
    """Mean of the values within 3 sigma of their median: finer than the steps of whole-number data."""
    middle = np.median(values)
    total, n = 0.0, 0
    for v in values:
        if abs(v - middle) <= CLIP_SIGMA * sigma:
            total += v
            n += 1
    return total / n if n else float(middle)


@njit(cache=True, nogil=True)
def _clipped_rms(steps: Float32) -> float:
    """Standard deviation of differences from their absolute values, those beyond 3 robust sigma left out."""
    sigma = float(_robust_sigma(steps))
    for _ in range(4):  # the median of whole-number data may be off by a step: let the limit settle
        total, n = 0.0, 0
        for d in steps:
            if d <= CLIP_SIGMA * sigma:
                total += float(d) * d
                n += 1
        sigma = math.sqrt(total / n) / CLIPPED_SHARE if n else 0.0
    return sigma


@njit(cache=True, nogil=True)
def _robust_sigma(steps: Float32) -> float:
    """Standard deviation from absolute values by their median; by their mean where the median is 0."""
    middle = np.median(steps)
    return float(MAD_TO_SIGMA * middle if middle > 0.0 else math.sqrt(0.5 * math.pi) * np.mean(steps))


def _difference_sigma(plane: Float32) -> float:
    """Noise of one photosite from median |v(x) - v(x + 2)| over every eighth row."""
    if plane.shape[1] < 3:
        return 0.0
    steps = np.abs(plane[::8, 2:] - plane[::8, :-2])
    steps = steps[np.isfinite(steps)]
    return float(_robust_sigma(steps)) / math.sqrt(2.0) if steps.size else 0.0


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
def _stands_out(plane: Float32, y: int, x: int, step: int, limit: float) -> bool:
    """Whether a pixel is more than `limit` above its left and right neighbours at `step` (the cheap first test)."""
    width = plane.shape[1]
    v = plane[y, x] - limit
    return not (v <= plane[y, _mirror(x - step, width)] or v <= plane[y, _mirror(x + step, width)])


@njit(cache=True, nogil=True)
def _repair_cfa(plane: Float32, out: Float32, sigma: float) -> int:
    """The Bayer rule of `repair_hot_pixels`, written into `out`; how many."""
    scratch, around = np.empty(8, np.float32), np.empty(8, np.float32)
    count = 0
    limit = HOT_SIGMA * sigma
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            v = plane[y, x]
            if not _stands_out(plane, y, x, 2, limit) or not np.isfinite(v):
                continue
            n = _neighbours(plane, y, x, 2, around)
            if n == 0 or v <= around[n - 1] + limit:
                continue
            median = _median_sorted(around, n)
            beside = HOT_NEIGHBOUR_SHARE * (v - median) + HOT_NEIGHBOUR_SIGMA * sigma
            if _adjacent_excess(plane, y, x, scratch) < beside:
                out[y, x] = median
                count += 1
    return count


@njit(cache=True, nogil=True)
def _repair_mono(plane: Float32, out: Float32, sigma: float) -> int:
    """The mono rule of `repair_hot_pixels`, written into `out`; how many."""
    around = np.empty(8, np.float32)
    count = 0
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            v = plane[y, x]
            if not _stands_out(plane, y, x, 1, HOT_SIGMA * sigma) or not np.isfinite(v):
                continue
            n = _neighbours(plane, y, x, 1, around)
            if n == 0:
                continue
            median = _median_sorted(around, n)
            if v - median > HOT_MONO_FACTOR * (around[n - 1] - median) + HOT_MONO_SIGMA * sigma:
                out[y, x] = median
                count += 1
    return count


@njit(cache=True, nogil=True)
def _luminance(plane: Float32) -> Float32:
    """The 2x2 box mean of `luminance`."""
    height, width = plane.shape
    out = np.empty((height, width), np.float32)
    for y in range(height):
        below = y + 1 if y + 1 < height else max(0, height - 2)
        for x in range(width - 1):
            out[y, x] = 0.25 * (plane[y, x] + plane[y, x + 1] + plane[below, x] + plane[below, x + 1])
        other = max(0, width - 2)
        out[y, width - 1] = 0.25 * (
            plane[y, width - 1] + plane[y, other] + plane[below, width - 1] + plane[below, other]
        )
    return out
