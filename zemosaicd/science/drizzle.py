"""CFA drizzle: every photosite drops its light onto the grid by itself, about what the ordinary stack found there.

Drizzle (Fruchter & Hook 2002, PASP 114, 144) at the grid's own scale, each colour from its own photosites only. A
photosite is a square of `pixfrac` grid pixels, parallel to the grid's axes, about the place where its centre lies; what
it adds to a pixel is weighed by the area that they share, times its frame's weight. What drops is not its value v but
what that has above the stack's picture m at its own place, and the pixel becomes

    m + sum(w (v - m there)) / sum(w)

which is one step of the iteration of Fruchter (2011, PASP 123, 497). Where interpolation passes a share F of a detail
and drops a share D, this passes 1 - (1 - D)(1 - F): undersampled stars get nearly as narrow as photosites saw them, and
it hardly matters any more where in a pixel the drops happen to fall. Noise of a single pixel is higher than in the
ordinary stack, as few photosites serve it, but its neighbours' is not the same noise.

Pixels gather their drops, from one frame after the other: float64 sums in the order of the frames, the same bits for
every cut into windows (M5). Which samples count is what the judge of the ordinary stack says of the same frame at the
same pixel (`codes` as in science.medians): it compares like with like, frames that one kernel has warped, so that stars
lose no light to it, and every rule by name holds for drizzle too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.model import Distortion
from zemosaicd.science.combine import Combined
from zemosaicd.science.distortion import lens_of
from zemosaicd.science.kernels import PIXEL_REACH, PIXEL_UNIT, Box, positions
from zemosaicd.science.lattices import Levels, level_cfa, level_slab
from zemosaicd.science.medians import GROWN, UNSEEN, Codes, Integers, Numbers, Pixels
from zemosaicd.science.resample import NOTHING, RED_SITE, Kernel, Source, resample, source_box
from zemosaicd.sphere import Matrix

GRADIENT = 1.2
"""The judge's gradient term (science.combine): undersampled stars differ more from frame to frame than others."""
LEAST_FRAMES = 20
"""Where fewer frames looked, interpolation is better: by chance a colour has almost no drops on some pixels."""
LEAST_LIGHT = 0.25
"""Drops on a pixel, as a part of what falls on the average one, below which it keeps what the ordinary stack made."""
LEAST_EVEN = 0.9
"""Share of the pixels that must have so much, in every colour, for a tile to be drizzled."""
PROBES, PROBE_PX = 3, 6
"""Places that are looked at, along a side of the tile, and pixels along a side of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where a frame looks: grid pixel to ideal source pixel, and what its camera makes of that."""

    matrix: Matrix
    width: int
    height: int
    bayer: str
    distortion: Distortion | None


class Drops:
    """What has fallen on a window, of drops `pixfrac` wide; `picture` (C, rows + 2, width + 2): its ordinary stack with
    a pixel more on every side, NaN where there is none.

    `light` (C, rows, width): sum of weight times what a value is above the picture; `weight`; `power`: sum of squared
    weight times variance. float64. They lie in `memory`, any float32 array of 12 numbers a pixel and channel that
    nobody needs any more: of 12 frames and more the samples are so many (M5).
    """

    def __init__(self, picture: Pixels, pixfrac: float, memory: Pixels | None = None) -> None:
        channels, rows, width = picture.shape[0], picture.shape[1] - 2, picture.shape[2] - 2
        size = channels * rows * width
        room = np.empty(12 * size, np.float32) if memory is None else memory.reshape(-1)
        sums = room[: 6 * size].view(np.float64).reshape(3, channels, rows, width)
        sums[...] = 0.0
        self._pixfrac, self._shape = pixfrac, room[6 * size : 12 * size].reshape(channels, rows, width, 6)
        self.light, self.weight, self.power = sums
        for plane, shape in zip(picture, self._shape, strict=True):
            _shape_of(plane, shape)

    def add(
        self, source: Source, matrix: Matrix, window: Box, codes: Codes, weights: Numbers, variance: Numbers
    ) -> None:
        """Lets a frame's photosites fall on a window of the grid, where `codes` (rows, width) keeps them.

        `weights`, `variance` (C,): the frame's. A photosite that is not finite drops nothing.
        """
        m, lens, colours = np.array(matrix, np.float64), lens_of(source.distortion), _colours(source.bayer)
        levels, pixels = source.levels or Levels.plain(source.channels), np.ascontiguousarray(source.usable())
        if source.bayer:
            planes = np.empty((1, *pixels.shape), np.float32)
            level_cfa(pixels, source.corner, colours, levels.middle, levels.radius, levels.table, planes[0])
        else:
            planes = np.asarray(level_slab(pixels, source.box, None, levels))
        at = (window[0], window[1])
        _drop(
            planes, colours, source.corner, m, lens, at, self._pixfrac, np.ascontiguousarray(codes), weights, variance,
            self._shape, self.light, self.weight, self.power,
        )  # fmt: skip

    def fallen(self, weights: Numbers | Pixels, bayer: str) -> NDArray[np.bool_]:
        """(rows, width): enough in every channel. `weights` (C, rows, width): of the frames whose drops are kept."""
        enough = np.ones(self.weight.shape[1:], np.bool_)
        for k, share in enumerate((0.25, 0.5, 0.25) if bayer else (1.0,) * len(self.weight)):
            enough &= self.weight[k] > LEAST_LIGHT * self._pixfrac**2 * share * weights[k]
        return enough

    def onto(self, stack: Combined, bayer: str) -> None:
        """Puts drizzled pixels into the stack of the same window, wherever enough has fallen on them.

        Its weights, counts and figures stay: they are of the frames.
        """
        good = self.fallen(stack.weight, bayer) & (stack.count.astype(np.int64) + stack.lost >= LEAST_FRAMES)
        for light in self.light:
            good &= np.isfinite(light)
        for k, weight in enumerate(self.weight):
            weight, middle = weight[good], self._shape[k, ..., 0][good]
            stack.mean[k][good] = middle + self.light[k][good] / weight
            stack.inverse_variance[k][good] = weight**2 / self.power[k][good]


def evenness(views: Sequence[View], width: int, height: int, pixfrac: float) -> tuple[int, float]:
    """(frames at the deepest place; share of pixels that get light enough) of a grid, looked at in a few places.

    The share counts pixels that at least LEAST_FRAMES look at; 0 where there are none.
    """
    deepest, good, looked_at = 0, 0, 0
    for top in _spread(height):
        for left in _spread(width):
            window = left, top, min(width, left + PROBE_PX), min(height, top + PROBE_PX)
            count, drops = _probe(views, window, pixfrac)
            deep = count >= LEAST_FRAMES
            weights = np.broadcast_to(count.astype(np.float64), drops.weight.shape)
            deepest, looked_at = max(deepest, int(count.max())), looked_at + int(deep.sum())
            good += int((drops.fallen(weights, views[0].bayer) & deep).sum())
    return deepest, good / max(1, looked_at)


def _spread(total: int) -> list[int]:
    return sorted({round((total - PROBE_PX) * (i + 0.5) / PROBES) for i in range(PROBES)} if total > PROBE_PX else {0})


def _probe(views: Sequence[View], window: Box, pixfrac: float) -> tuple[Integers, Drops]:
    """Frames that look at the pixels of a window, and what they drop there, each of weight 1."""
    channels, shape = 3 if views[0].bayer else 1, (window[3] - window[1], window[2] - window[0])
    count, drops, one = (
        np.zeros(shape, np.int64),
        Drops(np.zeros((channels, shape[0] + 2, shape[1] + 2), np.float32), pixfrac),
        np.ones(channels),
    )
    for view in views:
        box = source_box(
            view.matrix, window, view.width, view.height, bayer=bool(view.bayer), distortion=view.distortion
        )
        if box == NOTHING:
            continue
        source = Source(
            pixels=np.ones((box[3] - box[1], box[2] - box[0]), np.float32), bayer=view.bayer, corner=box[:2],
            width=view.width, height=view.height, distortion=view.distortion,
        )  # fmt: skip
        _, seen = resample(source, view.matrix, window, kernel=Kernel.CATMULL_ROM)
        count += seen
        drops.add(source, view.matrix, window, np.where(seen, np.uint8(0), UNSEEN), one, one)
    return count, drops


def _shape_of(picture: Pixels, out: Pixels) -> None:
    """out (rows, width, 6): a picture (rows + 2, width + 2) about each inner pixel, to second order.

    Value, slopes along x and y, half the curvatures along x and y, and the mixed term: the parabola through the pixel
    and its neighbours.
    """
    mid, left, right = picture[1:-1, 1:-1], picture[1:-1, :-2], picture[1:-1, 2:]
    up, down, half = picture[:-2, 1:-1], picture[2:, 1:-1], np.float32(0.5)
    out[..., 0] = mid
    out[..., 1], out[..., 2] = half * (right - left), half * (down - up)
    out[..., 3], out[..., 4] = half * (left + right) - mid, half * (up + down) - mid
    out[..., 5] = half * half * (picture[2:, 2:] - picture[2:, :-2] - picture[:-2, 2:] + picture[:-2, :-2])


def _colours(bayer: str) -> Integers:
    """(2, 2): channel of a photosite by the parity of its row and column; all 0 without a CFA."""
    colours = np.zeros((2, 2), np.int64)
    if bayer:
        x, y = RED_SITE[bayer]
        colours[:] = 1
        colours[y, x], colours[1 - y, 1 - x] = 0, 2
    return colours


@njit(cache=True, nogil=True, inline="always")
def _shared(distance: float, pixfrac: float) -> float:
    """Length that a pixel shares with a drop, along one axis."""
    return max(0.0, min(pixfrac, 0.5 * (1.0 + pixfrac) - abs(distance)))


@njit(cache=True, nogil=True)
def _drop(
    planes: Pixels, colours: Integers, corner: tuple[int, int], m: Numbers, lens: Numbers, at: tuple[int, int],
    pixfrac: float, codes: Codes, weights: Numbers, variance: Numbers, shape: Pixels,
    light: Numbers, weight: Numbers, power: Numbers,
) -> None:  # fmt: skip
    """Adds the drops of one frame to light, weight, power (C, rows, width).

    planes (P, h, w): levelled photosites whose first is `corner` (x, y) of the frame; of one plane for several channels
    `colours` tells which. `m`, `lens`: grid pixel to source (kernels.positions). `at`: (column, row) of the window.
    Near a pixel the way to the frame is taken as linear, which is true to some thousandths of a pixel.
    """
    count, height, width = planes.shape
    channels, rows, columns = weight.shape
    mosaic, reach, whole = count < channels, 0.5 * (1.0 + pixfrac), np.uint8((1 << channels) - 1)
    xs, ys, scratch = np.empty(columns, np.int32), np.empty(columns, np.int32), np.empty((2, columns))
    for r in range(rows):
        row = float(at[1] + r)
        positions(m, lens, at[1] + r, at[0], PIXEL_UNIT, scratch, xs, ys)
        for c in range(columns):
            code = codes[r, c]
            if code & (UNSEEN | GROWN) != 0 or code & whole == whole:
                continue
            column, x, y = float(at[0] + c), xs[c] / PIXEL_UNIT, ys[c] / PIXEL_UNIT
            scale = 1.0 / (m[6] * column + m[7] * row + m[8])
            xu, xv = (m[0] - x * m[6]) * scale, (m[1] - x * m[7]) * scale
            yu, yv = (m[3] - y * m[6]) * scale, (m[4] - y * m[7]) * scale
            area = 1.0 / (xu * yv - xv * yu)
            far_x = min(reach * (abs(xu) + abs(xv)), float(PIXEL_REACH))
            far_y = min(reach * (abs(yu) + abs(yv)), float(PIXEL_REACH))
            x, y = x - corner[0], y - corner[1]
            for j in range(max(0, math.ceil(y - far_y)), min(height - 1, math.floor(y + far_y)) + 1):
                for i in range(max(0, math.ceil(x - far_x)), min(width - 1, math.floor(x + far_x)) + 1):
                    u, v = (yv * (i - x) - xv * (j - y)) * area, (xu * (j - y) - yu * (i - x)) * area
                    part = _shared(u, pixfrac) * _shared(v, pixfrac)
                    if part <= 0.0:
                        continue
                    for plane in range(count):
                        k = colours[j % 2, i % 2] if mosaic else plane
                        value = np.float64(planes[plane, j, i])
                        if code & np.uint8(1 << k) != 0 or not math.isfinite(value):
                            continue
                        w = part * weights[k]
                        p = shape[k, r, c]
                        here = p[0] + u * (p[1] + u * p[3] + v * p[5]) + v * (p[2] + v * p[4])
                        light[k, r, c] += w * (value - here)
                        weight[k, r, c] += w
                        power[k, r, c] += w * w * variance[k]
