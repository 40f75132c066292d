"""Tiles added into a band of the mosaic: each pixel is read once, interpolated, corrected, weighted and summed.

A tile comes as a slab of its rows, planes (C, h, W). One that lies on the grid's own pixels is added as it is; any
other is interpolated at the positions of its `Placement`: by a kernel of 6x6 taps, or, within 3 px of an edge or a
pixel without data, linearly between 4, or from the nearest, so that no covered sky is lost to a halo. So is what comes
out darker than the tile's darkest sky: there the kernel rings round a saturated star. A pixel is seen where the nearest
pixel of the tile has data, and nowhere else; nothing is extrapolated.

Kernels, measured on stars of 2.9 px FWHM at all phases: Lanczos-3 leaves them as they are (0.997 of their width) and
keeps 0.88 of the noise, Catmull-Rom widens them by 1.3 % (4 % at 2 px) and keeps 0.80; round a star that is clipped
sharply the first rings 2.9 % of its height deep, the second 1.7 %, before the rule above.

The sums are float64 and each is a function of the pixel alone: bands, slabs and their order leave no trace (M5). The
weight of a sample is its inverse variance, after the correction's gain, times the tile's feather there, over the pixels
of the grid that share one of the tile's (and, in a second pass, times what evens its share out: science.easing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.easing import NO_EASE, Ease, ease_of
from zemosaicd.science.kernels import PHASES
from zemosaicd.science.placement import Placement
from zemosaicd.science.taps import LANES, plane_taps_6
from zemosaicd.science.tilesolve import TileCorrection

Pixels = NDArray[np.float32]
Numbers = NDArray[np.float64]

COLUMNS = 128
FLOATS = LANES[6]
"""Of a row of the kernel's table."""
OUTSIDE, EDGE, INSIDE = 0, 1, 2
REACH = 3
"""Rows and columns that the kernel needs round a position."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slab:
    """Rows `row0` to `row0 + h` of a tile: `pixels` float32 (C, h, W), NaN without data.

    `weight` float32 (C, h, W) inverse variances, or of size 0: those of `TileNoise` everywhere. `alpha` float32 (h, W)
    the feather 0..1, or of size 0: it rises from the tile's own edges over `feather_px` (all of it has data then).
    `floor` float32 (C,): what is darker is no sky; of size 0: anything may be.
    """

    pixels: Pixels
    row0: int
    feather_px: float = 0.0
    weight: Pixels = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    alpha: Pixels = field(default_factory=lambda: np.empty((0, 0), np.float32))
    floor: Pixels = field(default_factory=lambda: np.empty(0, np.float32))


class Sums:
    """The sums of a band: float64 (C, rows, width), and alpha float32 (rows, width).

    The next band takes the memory of the one before, so that it stays in the processor's caches.
    """

    def __init__(self, channels: int, rows: int, width: int) -> None:
        self.row0 = 0
        self._sums = np.empty((3, channels, rows, width))
        self._alpha = np.empty((rows, width), np.float32)
        self._out = np.empty((2, channels, rows, width), np.float32)
        self.begin(0, rows)

    def begin(self, row0: int, rows: int) -> None:
        """All sums of the `rows` rows (as many as there is memory for, at most) from `row0` on become 0."""
        self.row0 = row0
        self.value, self.weight, self.squared = self._sums[:, :, :rows]
        self.alpha = self._alpha[:rows]
        for sums in (self.value, self.weight, self.squared, self.alpha):
            sums.fill(0.0)

    def add(
        self, slab: Slab, placement: Placement, correction: TileCorrection, ivar: Numbers, table: Pixels,
        ease: Ease = NO_EASE,
    ) -> None:  # fmt: skip
        """Adds a tile. `ivar` (C,): inverse variance of its pixels, ADU^-2, or what its weights are multiplied by.
        `ease`: what its weight, and nothing else, is multiplied by besides.

        ValueError if the slab lacks rows that the band needs.
        """
        rows = self.alpha.shape[0]
        (left, right), (top, bottom) = placement.columns_and_rows(self.row0, self.row0 + rows)
        if left >= right or top >= bottom:
            return
        halo = 0 if placement.shift is not None else REACH
        need = max(0, top - halo), min(placement.height, bottom + halo)
        have = slab.row0, slab.row0 + slab.pixels.shape[1]
        if need[0] < have[0] or need[1] > have[1]:
            raise ValueError(f"the band needs rows {need} of the tile, the slab holds {have}")
        columns = max(0, left), min(self.alpha.shape[1], right)
        change, scale = linear(correction), ivar / np.square(correction.gain)
        sums = self.value, self.weight, self.squared, self.alpha
        factors = _shared(ease.factor, placement), ease.x_block, ease.y_block
        if placement.shift is not None:
            _add_shifted(
                slab.pixels, slab.weight, slab.alpha, slab.row0, placement.height, placement.shift, slab.feather_px,
                change, scale, factors, sums, self.row0, columns,
            )  # fmt: skip
        else:
            lattice = placement.x_node, placement.y_node, placement.step
            floor = np.full(len(scale), np.finfo(np.float32).min, np.float32)  # minus infinity is no value either
            floor = np.maximum(floor, slab.floor) if slab.floor.size else floor
            _add_warped(
                slab.pixels, slab.weight, slab.alpha, slab.row0, placement.height, placement.nodes, lattice,
                slab.feather_px, floor, table, change, scale, factors, sums, self.row0, columns,
            )  # fmt: skip

    def clear(self, columns: tuple[int, int]) -> None:
        """All sums of these columns (first, last + 1) of the band become 0 again."""
        here = slice(*columns)
        for sums in (self.value, self.weight, self.squared, self.alpha):
            sums[..., here] = 0.0

    def finish(self) -> tuple[Pixels, Pixels]:
        """Picture and inverse variance, float32 (C, rows, width): NaN and 0 where nothing was seen.

        They are the band's until the next one is finished.
        """
        picture, ivar = self._out[:, :, : self.alpha.shape[0]]
        _finish(self.value, self.weight, self.squared, picture, ivar)
        return picture, ivar


def _shared(factor: Pixels, placement: Placement) -> Pixels:
    """An ease's factors for an image whose pixels are larger than the grid's: as many of these share one of them, and
    with it its noise."""
    if placement.shift is not None or placement.area <= 1.0:
        return factor
    own = factor if factor.size else np.ones((1, 1), np.float32)
    return own / np.float32(placement.area)


def linear(correction: TileCorrection) -> Numbers:
    """(4, C): gain, constant, slope along x and along y of what a tile's pixel becomes, in grid pixels."""
    gain, pivot, offset, slope_x, slope_y = (
        np.array(v, np.float64)
        for v in (correction.gain, correction.pivot, correction.offset, correction.slope_x, correction.slope_y)
    )
    constant = (1.0 - gain) * pivot + offset - slope_x * correction.x - slope_y * correction.y
    return np.stack([gain, constant, slope_x, slope_y])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_warped(
    slab: Pixels, weights: Pixels, alphas: Pixels, slab_row0: int, height: int, nodes: Numbers,
    lattice: tuple[int, int, int], feather: float, floor: Pixels, table: Pixels, change: Numbers, scale: Numbers,
    ease: tuple[Pixels, int, int], sums: tuple[Numbers, Numbers, Numbers, Pixels], row0: int, columns: tuple[int, int],
) -> None:  # fmt: skip
    """Adds a slab (C, h, W) at the places that its nodes give.

    By columns of COLUMNS pixels, so that what they take of the slab stays in the processor's nearest cache.
    """
    channels, rows, width = slab.shape
    flat = slab.reshape(-1)
    x_node, y_node, step = lattice
    first, last = max(columns[0], x_node * step), min(columns[1], (x_node + nodes.shape[2] - 1) * step)
    place, found = np.empty((5, COLUMNS)), np.empty((channels, COLUMNS), np.float32)
    for column in range(first // COLUMNS * COLUMNS, last, COLUMNS):
        left = max(first, column)
        n = min(last, column + COLUMNS) - left
        for r in range(sums[3].shape[0]):
            j = (row0 + r) // step - y_node
            if j < 0 or j + 1 >= nodes.shape[1]:
                continue
            low, high = n, 0
            for cell in range(left // step, (left + n - 1) // step + 1):
                start, end = max(0, cell * step - left), min(n, (cell + 1) * step - left)
                below = ((row0 + r) % step) / step
                kind = _places(
                    nodes, j, cell - x_node, below, step, cell * step - left, start, end, width, height, place
                )
                if kind == OUTSIDE:
                    for k in range(channels):
                        found[k, start:end] = np.nan
                    continue
                low, high = min(low, start), end
                for k in range(channels):
                    at = (k * rows - slab_row0) * width
                    if kind == EDGE or not _interpolate(flat, at, width, place, start, end, floor, table, found, k):
                        span = slab_row0, slab_row0 + rows, height
                        _mend(flat, at, span, width, place, start, end, floor, table, found, k)
            if low < high:
                _feather(alphas, slab_row0, width, height, feather, place, low, high)
                _sum(weights, slab_row0, place, found, low, high, change, scale, ease, sums, r, row0, left)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _places(
    nodes: Numbers, j: int, i: int, below: float, step: int, origin: int, start: int, end: int, width: int, height: int,
    place: Numbers,
) -> int:  # fmt: skip
    """place[0], place[1] = x, y in the tile of pixels start to end of a run that begins at `origin`, on cell (j, i).

    Returns where they lie: OUTSIDE the tile (or where it cannot be: NaN), at its EDGE, or well INSIDE, so that all of
    the kernel's taps, and the eight columns of its vectors, lie in the tile.
    """
    left_x = nodes[0, j, i] * (1.0 - below) + nodes[0, j + 1, i] * below
    left_y = nodes[1, j, i] * (1.0 - below) + nodes[1, j + 1, i] * below
    along_x = (nodes[0, j, i + 1] * (1.0 - below) + nodes[0, j + 1, i + 1] * below - left_x) / step
    along_y = (nodes[1, j, i + 1] * (1.0 - below) + nodes[1, j + 1, i + 1] * below - left_y) / step
    for q in range(start, end):
        place[0, q] = left_x + (q - origin) * along_x
    for q in range(start, end):
        place[1, q] = left_y + (q - origin) * along_y
    x0, x1, y0, y1 = place[0, start], place[0, end - 1], place[1, start], place[1, end - 1]
    if not (max(x0, x1) >= -0.5 and min(x0, x1) < width - 0.5 and max(y0, y1) >= -0.5 and min(y0, y1) < height - 0.5):
        return OUTSIDE
    inside = min(x0, x1) >= 2.0 and max(x0, x1) < width - 5 and min(y0, y1) >= 2.0 and max(y0, y1) < height - 3
    return INSIDE if inside else EDGE


@njit(cache=True, nogil=True, fastmath={"contract"})
def _interpolate(
    flat: Pixels, offset: int, width: int, place: Numbers, start: int, end: int, floor: Pixels, table: Pixels,
    found: Pixels, k: int,
) -> bool:  # fmt: skip
    """found[k, start:end] = a plane, whose pixel (0, 0) is flat[offset], at places that lie well inside the tile;
    returns whether all values are at or above their floor, which NaN is not."""
    good, corner, least = True, offset - 2 * width - 2, floor[k]
    for i in range(start, end):
        x, y = place[0, i], place[1, i]
        ix, iy = int(x), int(y)
        column, row = FLOATS * int((x - ix) * PHASES + 0.5), FLOATS * int((y - iy) * PHASES + 0.5)
        value = plane_taps_6(flat, corner + iy * width + ix, width, table, column, row)
        found[k, i] = value
        good = good and least <= value < np.inf
    return good


@njit(cache=True, nogil=True)
def _mend(
    flat: Pixels, offset: int, rows: tuple[int, int, int], width: int, place: Numbers, start: int, end: int,
    floor: Pixels, table: Pixels, found: Pixels, k: int,
) -> None:  # fmt: skip
    """found[k, start:end] = a plane at places near an edge, a gap or a ring: by the kernel if that gives a value, else
    by the nearest pixels, NaN where the nearest has no data. `rows`: the first and last + 1 in the slab, and all of the
    tile's. The outcome is that of each place alone, whatever its neighbours."""
    plane = flat[offset + rows[0] * width : offset + rows[1] * width].reshape(-1, width)
    for i in range(start, end):
        x, y = place[0, i], place[1, i]
        found[k, i] = np.nan
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < rows[2] - 0.5):
            continue
        inside = 2.0 <= x < width - 5 and 2.0 <= y < rows[2] - 3
        if not (inside and _interpolate(flat, offset, width, place, i, i + 1, floor, table, found, k)):
            found[k, i] = _near_edge(plane, x, y - rows[0])


@njit(cache=True, nogil=True)
def _near_edge(plane: Pixels, x: float, y: float) -> np.float32:
    """Value at (x, y) of a plane, NaN outside or without data: linear if its four neighbours have data, else nearest.

    For positions that lack a tap of the kernel. A pixel's own area counts as its data.
    """
    rows, width = plane.shape
    ix, iy = math.floor(x), math.floor(y)
    fx, fy = np.float32(x - ix), np.float32(y - iy)
    one = np.float32(1.0)
    if 0 <= ix < width - 1 and 0 <= iy < rows - 1:
        upper = plane[iy, ix] * (one - fx) + plane[iy, ix + 1] * fx
        lower = plane[iy + 1, ix] * (one - fx) + plane[iy + 1, ix + 1] * fx
        value = upper * (one - fy) + lower * fy
        if value - value == 0.0:
            return value
    nx, ny = math.floor(x + 0.5), math.floor(y + 0.5)
    return plane[ny, nx] if 0 <= nx < width and 0 <= ny < rows else np.float32(np.nan)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _feather(
    alphas: Pixels, slab_row0: int, width: int, height: int, feather: float, place: Numbers, start: int, end: int
) -> None:
    """place[2, start:end] = the tile's feather, 0 outside: from `alphas`, or that of `science.coverage` for a tile that
    has data everywhere."""
    for i in range(start, end):
        x, y = place[0, i], place[1, i]
        nearest = min(min(x + 1.0, width - x), min(y + 1.0, height - y))
        t = max(0.0, min(1.0, nearest / (feather + 1.0)))
        place[2, i] = t * t * (3.0 - 2.0 * t) if nearest >= 0.5 else 0.0
    if alphas.size:
        for i in range(start, end):
            if place[2, i] > 0.0:
                place[2, i] = alphas[math.floor(place[1, i] + 0.5) - slab_row0, math.floor(place[0, i] + 0.5)]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _weigh(found: Pixels, alpha: Numbers, eased: Numbers, ease: tuple[Pixels, int, int], x0: int, y: int) -> None:
    """alpha (n,) = 0 where a sample, (C, n), is not finite in one channel; eased = what is left, times its ease at the
    grid's pixels (x0 ..., y)."""
    for k in range(len(found)):
        values = found[k]
        for i in range(len(alpha)):
            alpha[i] = alpha[i] if values[i] - values[i] == 0.0 else 0.0
    ease_of(ease[0], ease[1], ease[2], x0, y, eased)
    for i in range(len(alpha)):
        eased[i] *= alpha[i]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _sum(
    weights: Pixels, slab_row0: int, place: Numbers, found: Pixels, start: int, end: int, change: Numbers,
    scale: Numbers, ease: tuple[Pixels, int, int], sums: tuple[Numbers, Numbers, Numbers, Pixels], r: int, row0: int,
    left: int,
) -> None:  # fmt: skip
    """Adds samples start to end, (C, n), to row r of the band, which begins at column `left` for them; what is not
    finite in one channel is in none."""
    here = slice(left + start, left + end)
    alpha, w, eased, alpha_sum = place[2, start:end], place[3, start:end], place[4, start:end], sums[3][r, here]
    _weigh(found[:, start:end], alpha, eased, ease, left + start, row0 + r)
    for k in range(len(found)):
        values, value, weight, squared = (
            found[k, start:end],
            sums[0][k, r, here],
            sums[1][k, r, here],
            sums[2][k, r, here],
        )
        gain, along, flat = change[0, k], change[2, k], change[1, k] + change[3, k] * (row0 + r)
        for i in range(len(alpha)):
            w[i] = scale[k] * eased[i]
        if weights.size:
            for i in range(len(alpha)):
                if alpha[i] > 0.0:
                    ix, iy = math.floor(place[0, start + i] + 0.5), math.floor(place[1, start + i] + 0.5)
                    w[i] *= weights[k, iy - slab_row0, ix]
        # One array written a loop, none read on condition: that is what compilers make vectors of.
        for i in range(len(alpha)):
            new = gain * values[i] + (flat + along * (left + start + i))
            value[i] += w[i] * (new if alpha[i] > 0.0 else 0.0)
        for i in range(len(alpha)):
            weight[i] += w[i]
        for i in range(len(alpha)):
            squared[i] += w[i] * eased[i]
    for i in range(len(alpha)):
        alpha_sum[i] = min(np.float32(1.0), alpha_sum[i] + np.float32(alpha[i]))


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_shifted(
    slab: Pixels, weights: Pixels, alphas: Pixels, slab_row0: int, height: int, shift: tuple[int, int],
    feather: float, change: Numbers, scale: Numbers, ease: tuple[Pixels, int, int],
    sums: tuple[Numbers, Numbers, Numbers, Pixels], row0: int, columns: tuple[int, int],
) -> None:  # fmt: skip
    """Adds a slab that lies on the grid's own pixels: the grid's (x, y) is the tile's (x - shift[0], y - shift[1])."""
    width = slab.shape[2]
    first, last = max(columns[0], shift[0]), min(columns[1], shift[0] + width)
    n = max(0, last - first)
    place = np.empty((5, n))
    for r in range(sums[3].shape[0]):
        y = row0 + r - shift[1]
        if not 0 <= y < height or not n:
            continue
        for i in range(n):
            place[0, i], place[1, i] = first - shift[0] + i, y
        found = slab[:, y - slab_row0, first - shift[0] : last - shift[0]]
        _feather(alphas, slab_row0, width, height, feather, place, 0, n)
        _sum(weights, slab_row0, place, found, 0, n, change, scale, ease, sums, r, row0, first)


@njit(cache=True, nogil=True)
def _finish(value: Numbers, weight: Numbers, squared: Numbers, picture: Pixels, ivar: Pixels) -> None:
    """Mean of the sums, and its inverse variance: w = a ivar of each tile, a its (eased) alpha, gives
    (sum w)^2 / sum(a w)."""
    channels, rows, width = value.shape
    for k in range(channels):
        for r in range(rows):
            for c in range(width):
                w = weight[k, r, c]
                seen = w > 0.0
                picture[k, r, c] = value[k, r, c] / w if seen else np.nan
                ivar[k, r, c] = w * w / squared[k, r, c] if seen else 0.0
