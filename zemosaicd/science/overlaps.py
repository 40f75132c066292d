"""What tiles saw of the sky that they share: block medians on the mosaic's lattice, and star fluxes.

Each tile is read once, whatever the number of its neighbours: its pixels that fall into a block of the lattice give
that block's median, and its stars are measured on its own pixels, so that nothing is interpolated. Two tiles are then
compared block by block and star by star; `science.tilesolve` solves over all of them. A tile comes as slabs of rows,
planes (C, h, W) float32, NaN without data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.placement import Placement

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

BLOCK_PX = 16
BLOCK_FILL = 0.95
"""Share of a block's pixels that must have data in a tile, so that two tiles' blocks are the same sky."""
MIN_BLOCKS = 4
LEVEL_SIGMA, LEVEL_ROUNDS = 2.5, 3
NOTHING = 1e30
"""Stands for a pixel without data among those of a block: farther than any limit, and no NaN to spread."""
MATCH_PX = 2.0
MAG_PER_LN = 2.5 / math.log(10.0)
STAR_SNR = 10.0
MAX_COMMON_STARS = 300
FLUX_RATIO_FLOOR = 0.02
"""Scatter of a star's flux ratio that no SNR explains (scintillation, flat field), as a fraction."""
LEAST_RATIO_FLOOR, BRIGHT_STARS = 0.004, 12
"""The least that this is taken for, and from how many stars on it is measured."""
FEW_STARS, FEW_STARS_FLOOR = 3, 0.05
"""So few stars cannot vouch for each other: one may be variable, or no star."""
GAIN_FLOOR = 0.002


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileStars:
    """Stars of a tile: `x, y` (n,) on the grid, px; `flux, noise` (C, n): within the aperture, in the tile's units
    times pixels of the grid, and their error."""

    x: F64
    y: F64
    flux: F64
    noise: F64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileSample:
    """A tile's part in its overlaps. `level` float32 (C, ny, nx): medians of the grid's blocks from block
    (`x_block`, `y_block`) on, NaN where it has no data or no neighbour. `noise` (C,): of a pixel, standard deviation.
    """

    block_px: int
    x_block: int
    y_block: int
    level: F32
    noise: F64
    stars: TileStars


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overlap:
    """What two tiles (indices `first` < `second`) saw of the same n blocks of sky.

    `x, y` (n,): centres of the blocks on the grid, px. `a, b` (C, n) float32: block medians. `block_px`: their side.
    `noise` (C,): standard deviation of the difference of two pixels. `gain` (C,): star flux in the first over the
    second, NaN where no stars tell; `gain_sigma` its error, `scatter_mag` that of single stars.
    `stars`: how many the two have in common; `shift_px`: by how much these lie apart in the median, x and y, first -
    second (NaN without stars).
    """

    first: int
    second: int
    x: F64
    y: F64
    a: F32
    b: F32
    block_px: int
    noise: F64
    gain: F64
    gain_sigma: F64
    scatter_mag: tuple[float, ...] = ()
    stars: int = 0
    shift_px: tuple[float, float] = (math.nan, math.nan)


def weighted_median(values: F64, weights: F64) -> tuple[float, float]:
    """Weighted median (midpoint rule) and a robust standard error (1.2533 x 1.4826 MAD / sqrt(effective number))."""
    centre = _middle(values, weights)
    spread = 1.4826 * _middle(np.abs(values - centre), weights)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return centre, 1.2533 * spread / math.sqrt(effective)


def _middle(values: F64, weights: F64) -> float:
    order = np.argsort(values, kind="stable")
    v, w = values[order], weights[order]
    return float(np.interp(w.sum() / 2, np.cumsum(w) - w / 2, v))


# --- one tile ------------------------------------------------------------------------------------------------------


def fill_levels(
    level: F32, wanted: Flags, origin: tuple[int, int], block_px: int, rows: tuple[int, int],
    slab: F32, slab_row0: int, placement: Placement, noise: F64,
) -> None:  # fmt: skip
    """Fills the block rows `rows` (first, last) of `level` (C, ny, nx) where `wanted` (ny, nx), from a slab of a tile.

    `origin`: index on the grid of the first block, x and y. A block's pixels are the tile's nearest to the grid's. Its
    level is the mean of those within LEVEL_SIGMA of it, for pixels of this `noise` (C,): that of its median, but for
    two thirds of the noise and a fraction of the time.
    """
    lattice = placement.x_node, placement.y_node, placement.step
    _levels(level, wanted, origin, block_px, rows, slab, slab_row0, placement.height, placement.nodes, lattice, noise)


@njit(cache=True, nogil=True)
def _levels(
    level: F32, wanted: Flags, origin: tuple[int, int], block: int, rows: tuple[int, int], slab: F32, slab_row0: int,
    height: int, nodes: F64, lattice: tuple[int, int, int], noise: F64,
) -> None:  # fmt: skip
    """Levels of blocks; block and lattice step are powers of two, so a run of pixels lies between two nodes."""
    (x_node, y_node, step), channels = lattice, slab.shape[0]
    run = min(block, step)
    values = np.empty((channels, block * block), np.float32)
    for r in range(rows[0], rows[1]):
        for c in range(wanted.shape[1]):
            if not wanted[r, c]:
                continue
            y0, x0 = (origin[1] + r) * block, (origin[0] + c) * block
            for y in range(block):
                j, below = (y0 + y) // step - y_node, ((y0 + y) % step) / step
                for x in range(0, block, run):
                    i, first, at = (x0 + x) // step - x_node, (x0 + x) % step, y * block + x
                    for k in range(channels):
                        here = values[k, at : at + run]
                        _take(nodes, i, j, below, first, step, slab[k], slab_row0, height, here)
            for k in range(channels):
                level[k, r, c] = _level(values[k], noise[k])


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _level(values: F32, noise: float) -> np.float32:
    """Mean of the values within LEVEL_SIGMA of it, in a few rounds from the median of some of them; NaN if more than a
    few are NOTHING. Written so that compilers make vectors of it; float32 holds sums of small differences."""
    filled = np.float32(0.0)
    for i in range(len(values)):
        filled += np.float32(values[i] < NOTHING)
    if filled < np.float32(BLOCK_FILL * len(values)):
        return np.float32(np.nan)
    some = values[:: max(1, len(values) // 32)]
    level = np.float32(np.median(some))
    reach = np.float32(LEVEL_SIGMA * max(noise, 1.4826 * np.median(np.abs(some - level))))
    for _ in range(LEVEL_ROUNDS):
        total, count = np.float32(0.0), np.float32(0.0)
        for i in range(len(values)):
            off = values[i] - level
            inside = np.float32(abs(off) <= reach)
            total += off * inside
            count += inside
        level += total / max(count, np.float32(1.0))
    return level


@njit(cache=True, nogil=True, fastmath={"contract"})
def _take(
    nodes: F64, i: int, j: int, below: float, first: int, step: int, plane: F32, slab_row0: int, height: int,
    values: F32,
) -> None:  # fmt: skip
    """values = the pixels of a plane nearest to those of the grid from `first` on in cell (j, i), at `below` of its
    height; NOTHING outside the image and where it has no data."""
    width, count = plane.shape[1], len(values)
    left_x = left_y = along_x = along_y = np.nan
    if 0 <= i < nodes.shape[2] - 1 and 0 <= j < nodes.shape[1] - 1:
        left_x = nodes[0, j, i] * (1.0 - below) + nodes[0, j + 1, i] * below + 0.5
        left_y = nodes[1, j, i] * (1.0 - below) + nodes[1, j + 1, i] * below + 0.5
        along_x = (nodes[0, j, i + 1] * (1.0 - below) + nodes[0, j + 1, i + 1] * below + 0.5 - left_x) / step
        along_y = (nodes[1, j, i + 1] * (1.0 - below) + nodes[1, j + 1, i + 1] * below + 0.5 - left_y) / step
    x0, y0 = left_x + first * along_x, left_y + first * along_y - slab_row0
    x1, y1 = x0 + (count - 1) * along_x, y0 + (count - 1) * along_y
    inside = min(x0, x1) >= 0.0 and max(x0, x1) < width and min(y0, y1) + slab_row0 >= 0.0
    if inside and max(y0, y1) + slab_row0 < height:
        for q in range(count):
            value = plane[np.uint64(y0 + q * along_y), np.uint64(x0 + q * along_x)]
            values[q] = value if abs(value) < NOTHING else np.float32(NOTHING)
        return
    for q in range(count):
        sx, sy = x0 + q * along_x, y0 + q * along_y
        values[q] = NOTHING
        if 0.0 <= sx < width and 0.0 <= sy + slab_row0 < height and abs(plane[int(sy), int(sx)]) < NOTHING:
            values[q] = plane[int(sy), int(sx)]


# --- two tiles -----------------------------------------------------------------------------------------------------


def overlap_of(first: int, second: int, a: TileSample, b: TileSample) -> Overlap | None:
    """What tiles `first` and `second` have in common; None for fewer than 4 blocks."""
    if a.block_px != b.block_px or len(a.level) != len(b.level):
        raise ValueError("two tiles of one mosaic have blocks of one size, and as many channels")
    block = a.block_px
    x0, y0 = max(a.x_block, b.x_block), max(a.y_block, b.y_block)
    x1, y1 = (
        min(s.x_block + s.level.shape[2] for s in (a, b)),
        min(s.y_block + s.level.shape[1] for s in (a, b)),
    )
    if x1 <= x0 or y1 <= y0:
        return None
    here = [s.level[:, y0 - s.y_block : y1 - s.y_block, x0 - s.x_block : x1 - s.x_block] for s in (a, b)]
    row, column = np.nonzero(np.isfinite(here[0]).all(axis=0) & np.isfinite(here[1]).all(axis=0))
    if len(row) < MIN_BLOCKS:
        return None
    mine, theirs = matched(a.stars, b.stars)
    gain, sigma, scatter = star_gain(a.stars, mine, b.stars, theirs)
    apart = [float(np.median(p[mine] - q[theirs])) if len(mine) else math.nan
             for p, q in ((a.stars.x, b.stars.x), (a.stars.y, b.stars.y))]  # fmt: skip
    middle = (block - 1) / 2
    return Overlap(
        first=first,
        second=second,
        x=np.asarray((column + x0) * block + middle, np.float64),
        y=np.asarray((row + y0) * block + middle, np.float64),
        a=np.ascontiguousarray(here[0][:, row, column]),
        b=np.ascontiguousarray(here[1][:, row, column]),
        block_px=block,
        noise=np.hypot(a.noise, b.noise),
        gain=gain,
        gain_sigma=sigma,
        scatter_mag=tuple(scatter.tolist()),
        stars=len(mine),
        shift_px=(apart[0], apart[1]),
    )


def matched(a: TileStars, b: TileStars, radius_px: float = MATCH_PX) -> tuple[I64, I64]:
    """Indices into a and b of the stars that are each other's nearest, within `radius_px` of the grid."""
    if not len(a.x) or not len(b.x):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order_a, order_b = np.argsort(a.x, kind="stable"), np.argsort(b.x, kind="stable")
    forth = _nearest_of(a.x[order_a], a.y[order_a], b.x[order_b], b.y[order_b], radius_px)
    back = _nearest_of(b.x[order_b], b.y[order_b], a.x[order_a], a.y[order_a], radius_px)
    mine = np.flatnonzero(forth >= 0)
    mine = mine[back[forth[mine]] == mine]
    return order_a[mine], order_b[forth[mine]]


@njit(cache=True, nogil=True)
def _nearest_of(ax: F64, ay: F64, bx: F64, by: F64, radius: float) -> I64:
    """For each a (sorted by x) the index of the nearest b (sorted by x) within the radius, -1 without one."""
    found = np.full(len(ax), -1, np.int64)
    start = 0
    for i in range(len(ax)):
        while start < len(bx) and bx[start] < ax[i] - radius:
            start += 1
        best, j = radius * radius, start
        while j < len(bx) and bx[j] <= ax[i] + radius:
            d2 = (bx[j] - ax[i]) ** 2 + (by[j] - ay[i]) ** 2
            if d2 <= best:
                best, found[i] = d2, j
            j += 1
    return found


def star_gain(a: TileStars, mine: I64, b: TileStars, theirs: I64) -> tuple[F64, F64, F64]:
    """Star flux in `a` over star flux in `b` a channel, its error and its scatter (robust, mag), from stars of one sky:
    a[mine], b[theirs].

    NaN without a star of SNR 10 in both. What cannot be excluded with few stars (a variable) is in the error.
    """
    channels = len(a.flux)
    gain, error, scatter = np.full((3, channels), np.nan)
    for k in range(channels):
        flux_a, noise_a, flux_b, noise_b = a.flux[k, mine], a.noise[k, mine], b.flux[k, theirs], b.noise[k, theirs]
        with np.errstate(invalid="ignore"):
            good = np.flatnonzero((flux_a > STAR_SNR * noise_a) & (flux_b > STAR_SNR * noise_b))
        if not len(good):
            continue
        ratio = np.log(flux_a[good] / flux_b[good])
        variance = (noise_a[good] / flux_a[good]) ** 2 + (noise_b[good] / flux_b[good]) ** 2
        best = np.argsort(variance, kind="stable")[:MAX_COMMON_STARS]
        ratio, variance = ratio[best], variance[best]
        centre, sigma = weighted_median(ratio, 1 / (variance + _floor(ratio, variance) ** 2))
        least = math.sqrt(1 / float((1 / (variance + 1e-6)).sum()))
        if len(good) < FEW_STARS:
            least = math.hypot(least, FEW_STARS_FLOOR)
        gain[k], error[k] = math.exp(centre), max(sigma, least, GAIN_FLOOR)
        scatter[k] = 1.4826 * float(np.median(np.abs(ratio - centre))) * MAG_PER_LN
    return gain, error, scatter


def _floor(ratio: F64, variance: F64) -> float:
    """Scatter that no noise explains, from the brightest quarter of the stars (those of least variance come first)."""
    some = max(BRIGHT_STARS, len(ratio) // 4)
    if len(ratio) < some:
        return FLUX_RATIO_FLOOR
    scatter = 1.4826 * float(np.median(np.abs(ratio[:some] - np.median(ratio[:some]))))
    left = scatter**2 - float(np.median(variance[:some]))
    return min(max(math.sqrt(max(left, 0.0)), LEAST_RATIO_FLOOR), 0.1)


def joined(parts: Sequence[TileStars], channels: int) -> TileStars:
    """The stars of several slabs of a tile as one list."""
    if not parts:
        empty = np.empty(0)
        return TileStars(x=empty, y=empty, flux=np.empty((channels, 0)), noise=np.empty((channels, 0)))
    return TileStars(
        x=np.concatenate([p.x for p in parts]), y=np.concatenate([p.y for p in parts]),
        flux=np.concatenate([p.flux for p in parts], axis=1), noise=np.concatenate([p.noise for p in parts], axis=1),
    )  # fmt: skip
