"""Compiled interpolation kernels: one source image, or a slab of its pixels, to one window of an output grid.

Positions are float64 from the absolute pixel of the grid, one full homography a pixel, no running sum, then whole
numbers of 1/512 px (CFA) or 1/1024 px: any split into bands, windows and slabs gives the same bits (M5). A row's
positions are found first, as that loop vectorises; a camera's distortion bends them after the homography. No kernel
uses what is outside its slab (behind its last pixel it may load SPARE floats), and the only fast-math flag is fused
multiply-add, so a tap that is NaN or infinite shows in its sum and is caught there (V3).

Weights come from tables of 1024 phases (nearest), a row of taps a phase.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.taps import LANES, plane_taps_4, plane_taps_6

Pixels = NDArray[np.float32]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Places = NDArray[np.int32]
Kinds = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom, whole pixels; right and bottom are excluded."""

PHASES = 1024
CFA_UNIT, PIXEL_UNIT = 512, 1024
"""Steps a pixel that positions are rounded to; a CFA lattice of 2 px then has 1024 phases too."""
HIDDEN = -(2**30)
"""Position of what lies behind the tangent plane or absurdly far away."""
FARTHEST_PX = 1.0e6
BAYER_REACH = 4
"""Every tap of 4x4 Bayer kernels lies less than this many px from the position, in x and in y."""
WIDE_REACH = 6
"""The same for 6x6 taps. Between the two, at a frame's rim, 4x4 taps are used."""
CHUNK = 128
"""Pixels of a row whose taps are looked up together."""
NOT_SEEN, NARROW, WIDE = 0, 1, 2
PIXEL_REACH = 3
"""Taps on whole pixels lie within this many px."""


def keys_table(a: float) -> Pixels:
    """Flat float32 table of Keys(a) weights (Keys 1981, IEEE ASSP 29, 1153): 4 taps (offsets -1 to 2) a phase."""
    f = np.arange(PHASES + 1, dtype=np.float64)[:, np.newaxis] / PHASES
    t = np.abs(f - np.arange(-1, 3))
    inner = (a + 2.0) * t**3 - (a + 3.0) * t**2 + 1.0
    outer = a * t**3 - 5.0 * a * t**2 + 8.0 * a * t - 4.0 * a
    return _flat(np.where(t < 1.0, inner, np.where(t < 2.0, outer, 0.0)))


def lanczos_table() -> Pixels:
    """Flat float32 table of Lanczos-3 weights (Duchon 1979), of sum 1: 6 taps (offsets -2 to 3) a phase."""
    return table_of(lambda d: np.asarray(np.sinc(d) * np.sinc(d / 3.0)))


def table_of(kernel: Callable[[Numbers], Numbers]) -> Pixels:
    """The same of any kernel of distances in px that reaches 3 px."""
    d = np.abs(np.arange(PHASES + 1, dtype=np.float64)[:, np.newaxis] / PHASES - np.arange(-2, 4))
    weight = np.where(d < 3.0, kernel(d), 0.0)
    weight = np.where(np.abs(weight) < 1e-12, 0.0, weight)
    return _flat(weight / weight.sum(axis=1, keepdims=True))


def kriging_table(fwhm: float, curvature: float) -> Pixels:
    """Flat float32 table of 6 taps a phase that predict best what lies between, where all light is spread by a PSF.

    Universal kriging (Matheron 1969) with the autocorrelation of a Gaussian of `fwhm` lattice steps as covariance, a
    thousandth of it as noise, and the sky's level, slope, curvature and third order kept: sum w = 1, sum w d = 0,
    sum w d^2 = `curvature`, sum w d^3 = 0, with d the distance of a tap. A curvature below 0 sharpens a little.
    """
    offsets, phases = np.arange(-2.0, 4.0), np.arange(PHASES + 1) / PHASES
    twice = 2.0 * 2.0 * (fwhm / (2.0 * math.sqrt(2.0 * math.log(2.0)))) ** 2
    d = offsets - phases[:, np.newaxis]
    trend = np.stack([np.ones_like(d), d, d**2, d**3], axis=1)
    system = np.zeros((PHASES + 1, 10, 10))
    system[:, :6, :6] = np.exp(-((offsets[:, np.newaxis] - offsets) ** 2) / twice) + 1e-3 * np.eye(6)
    system[:, 6:, :6], system[:, :6, 6:] = trend, trend.transpose(0, 2, 1)
    wanted = np.zeros((PHASES + 1, 10, 1))
    wanted[:, :6, 0], wanted[:, 6:, 0] = np.exp(-(d**2) / twice), (1.0, 0.0, curvature, 0.0)
    return _flat(np.asarray(np.linalg.solve(system, wanted)[:, :6, 0], np.float64))


def _flat(weights: Numbers) -> Pixels:
    """Weights (phases, taps) as `science.taps` wants them: rows one after the other, those of 6 taps filled up to 8."""
    taps = weights.shape[1]
    rows = np.zeros((len(weights), LANES[taps]), np.float32)
    rows[:, :taps] = weights
    return rows.reshape(-1)


@njit(cache=True, nogil=True, fastmath={"contract"})
def bend(x: Numbers, y: Numbers, lens: Numbers) -> None:
    """Ideal positions, float64 (n,), become recorded ones in place; NaN beyond the border where the polynomial holds.

    `lens`: centre x, y, 1 / half diagonal, how far x and y may lie from the centre, then 7 coefficients of x and 7 of
    y in the order of `model.Distortion`. One loop without branches: the compiler does several positions at once.
    """
    x0, y0, scale, far_x, far_y = lens[0], lens[1], lens[2], lens[3], lens[4]
    a0, a1, a2, a3, a4, a5, a6 = lens[5], lens[6], lens[7], lens[8], lens[9], lens[10], lens[11]
    b0, b1, b2, b3, b4, b5, b6 = lens[12], lens[13], lens[14], lens[15], lens[16], lens[17], lens[18]
    for i in range(len(x)):
        dx, dy = x[i] - x0, y[i] - y0
        u, v = dx * scale, dy * scale
        uu, uv, vv = u * u, u * v, v * v
        sx = uu * (a0 + a3 * u + a4 * v) + vv * (a2 + a5 * u + a6 * v) + uv * a1
        sy = uu * (b0 + b3 * u + b4 * v) + vv * (b2 + b5 * u + b6 * v) + uv * b1
        inside = (abs(dx) <= far_x) & (abs(dy) <= far_y)
        x[i] = x[i] + sx if inside else math.nan
        y[i] = y[i] + sy if inside else math.nan


@njit(cache=True, nogil=True, fastmath={"contract"})
def positions(
    m: Numbers, lens: Numbers, y: int, col0: int, unit: int, at: Numbers, x_out: Places, y_out: Places
) -> None:
    """Source positions of a row's grid pixels from column `col0` on, in 1/unit px; HIDDEN where there are none.

    `lens`: from the ideal to the recorded position (`bend`; empty: the same). `at` float64 (2, n): scratch.
    """
    row, scale, sx, sy = float(y), float(unit), at[0], at[1]
    m0, m3, m6 = m[0], m[3], m[6]
    cx, cy, cw = m[1] * row + m[2], m[4] * row + m[5], m[7] * row + m[8]
    for c in range(x_out.shape[0]):
        x = np.float64(col0 + c)
        w = m6 * x + cw
        inverse = 1.0 / w if w > 0.0 else math.nan
        sx[c], sy[c] = (m0 * x + cx) * inverse, (m3 * x + cy) * inverse
    if lens.shape[0] > 0:
        bend(sx, sy, lens)
    for c in range(x_out.shape[0]):
        near = (abs(sx[c]) < FARTHEST_PX) & (abs(sy[c]) < FARTHEST_PX)  # False for NaN
        x_out[c] = np.int32(math.floor(sx[c] * scale + 0.5)) if near else np.int32(HIDDEN)
        y_out[c] = np.int32(math.floor(sy[c] * scale + 0.5)) if near else np.int32(HIDDEN)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _square(flat: Pixels, width: int, u: int, v: int, table: Pixels) -> np.float32:
    """4x4 taps about (u, v), in 1/1024 of a square lattice of this width."""
    return plane_taps_4(
        flat, ((v >> 10) - 1) * width + (u >> 10) - 1, width, table, (u & 1023) * 4, (v & 1023) * 4
    )  # fmt: skip


@njit(cache=True, nogil=True, fastmath={"contract"})
def _wide_square(flat: Pixels, width: int, u: int, v: int, table: Pixels) -> np.float32:
    """6x6 taps about (u, v), likewise."""
    return plane_taps_6(
        flat, ((v >> 10) - 2) * width + (u >> 10) - 2, width, table, (u & 1023) * 8, (v & 1023) * 8
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _bayer_places(
    xs: Places, ys: Places, slab: Box, site: tuple[int, int], rim: int, places: Places, kind: Kinds
) -> None:
    """What `warp_bayer` needs of positions `xs`, `ys` (n,), in steps of CFA_UNIT: one loop that runs on vectors.

    `kind` (n,): NOT_SEEN, NARROW (4x4 taps) or WIDE (6x6, `rim` steps inside the slab and more). `places` (3, 3, n), a
    colour: where in its flat plane 6x6 taps begin, and where in a table of 8 a phase the weights of columns and rows.
    """
    rx, ry = site
    height, w2 = slab[3] - slab[1], (slab[2] - slab[0] + 1) // 2
    x0, y0, shift, deep = CFA_UNIT * slab[0], CFA_UNIT * slab[1], CFA_UNIT * ((rx + ry + 1) % 2), height // 2
    low, high_x, high_y = CFA_UNIT * BAYER_REACH, CFA_UNIT * (slab[2] - slab[0] - 1), CFA_UNIT * (height - 1)
    red, green, blue = places[0], places[1], places[2]
    for c in range(len(xs)):
        x, y = np.int64(xs[c]) - x0, np.int64(ys[c]) - y0
        seen = (x >= low) & (x <= high_x - low) & (y >= low) & (y <= high_y - low)
        far = (x >= rim) & (x <= high_x - rim) & (y >= rim) & (y <= high_y - rim)
        kind[c] = np.uint8(seen) + np.uint8(seen & far)
        u, v = x - CFA_UNIT * rx, y - CFA_UNIT * ry
        red[0, c] = ((v >> 10) - 2) * w2 + (u >> 10) - 2
        red[1, c], red[2, c] = (u & 1023) << 3, (v & 1023) << 3
        u, v = x - CFA_UNIT * (1 - rx), y - CFA_UNIT * (1 - ry)
        blue[0, c] = ((v >> 10) - 2) * w2 + (u >> 10) - 2
        blue[1, c], blue[2, c] = (u & 1023) << 3, (v & 1023) << 3
        # green begins at the smallest p and the largest q: q falls from row to row of taps, so its fraction mirrors
        p, q = x + y + shift, x - y + shift
        first = (q >> 10) + 3
        green[0, c] = (first + deep) * height + (p >> 10) - 2 - first
        green[1, c], green[2, c] = (p & 1023) << 3, (1024 - (q & 1023)) << 3


@njit(cache=True, nogil=True)
def _settle(red: Pixels, green: Pixels, blue: Pixels, kind: Kinds, seen: Flags) -> int:
    """Which pixels (n,) have taps, and finite values in all colours (`seen`); how many."""
    n = 0
    for c in range(len(red)):
        total = red[c] + green[c] + blue[c]
        good = (total - total == np.float32(0.0)) & (kind[c] != NOT_SEEN)
        seen[c] = good
        n += good
    return n


@njit(cache=True, nogil=True, fastmath={"contract"})
def warp_bayer(
    red: Pixels, green: Pixels, blue: Pixels, site: tuple[int, int], slab: Box,
    m: Numbers, lens: Numbers, row0: int, col0: int,
    narrow: Pixels, wide: Pixels, green_wide: Pixels, out: Pixels, seen: Flags,
) -> None:  # fmt: skip
    """Fused demosaic and warp of a CFA slab into out (3, rows, width) and seen (rows, width).

    `red`, `blue`: the photosites of a colour, (H, W); `green`: its quincunx laid out as `science.lattices` says.
    `slab`: the box of the image that they come from, its corner on even pixels; `site`: (x, y) of the red photosite in
    a 2x2 cell, blue lies diagonally opposite. `m`: grid pixel to ideal source pixel, 9 float64; `lens`: from there to
    the recorded one (`bend`; empty: the same). `narrow`: a 4-tap table; `wide`, `green_wide`: 6-tap tables of red and
    blue and of green, or both empty. Seen: at least BAYER_REACH px inside the slab on all sides, in front of the
    tangent plane (w > 0), every tap of all three colours finite. Not seen: value 0.
    """
    w2, height, width = red.shape[1], slab[3] - slab[1], out.shape[2]
    r_flat, g_flat, b_flat = red.reshape(-1), green.reshape(-1), blue.reshape(-1)
    rim = CFA_UNIT * (WIDE_REACH if wide.shape[0] > 0 else slab[2] - slab[0] + height)
    xs, ys, at = np.empty(width, np.int32), np.empty(width, np.int32), np.empty((2, width))
    places, kind = np.empty((3, 3, CHUNK), np.int32), np.empty(CHUNK, np.uint8)
    r_at, r_u, r_v = places[0, 0], places[0, 1], places[0, 2]
    g_at, g_u, g_v = places[1, 0], places[1, 1], places[1, 2]
    b_at, b_u, b_v = places[2, 0], places[2, 1], places[2, 2]
    for r in range(out.shape[1]):
        positions(m, lens, row0 + r, col0, CFA_UNIT, at, xs, ys)
        for start in range(0, width, CHUNK):
            end = min(start + CHUNK, width)
            _bayer_places(xs[start:end], ys[start:end], slab, site, rim, places, kind)
            o_r, o_g, o_b = out[0, r, start:end], out[1, r, start:end], out[2, r, start:end]
            for c in range(end - start):
                if kind[c] == WIDE:
                    o_r[c] = plane_taps_6(r_flat, r_at[c], w2, wide, r_u[c], r_v[c])
                    o_g[c] = plane_taps_6(g_flat, g_at[c], 1 - height, green_wide, g_u[c], g_v[c])
                    o_b[c] = plane_taps_6(b_flat, b_at[c], w2, wide, b_u[c], b_v[c])
                elif kind[c] == NARROW:  # one step further in on each axis, and a table of 4 a phase
                    o_r[c] = plane_taps_4(r_flat, r_at[c] + w2 + 1, w2, narrow, r_u[c] >> 1, r_v[c] >> 1)
                    o_g[c] = plane_taps_4(g_flat, g_at[c] - height + 2, 1 - height, narrow, g_u[c] >> 1, g_v[c] >> 1)
                    o_b[c] = plane_taps_4(b_flat, b_at[c] + w2 + 1, w2, narrow, b_u[c] >> 1, b_v[c] >> 1)
            good = seen[r, start:end]
            if _settle(o_r, o_g, o_b, kind, good) < end - start:
                for c in range(end - start):
                    if not good[c]:
                        o_r[c] = o_g[c] = o_b[c] = np.float32(0.0)


@njit(cache=True, nogil=True, fastmath={"contract"})
def warp_planes(
    cube: Pixels, slab: Box, m: Numbers, lens: Numbers, row0: int, col0: int, narrow: Pixels, wide: Pixels,
    out: Pixels, seen: Flags,
) -> None:  # fmt: skip
    """Warp a slab (C, h, w) into out (C, rows, width) and seen (rows, width), each plane by itself.

    `m`, `lens`: as in `warp_bayer`. `narrow`, `wide`: 4- and 6-tap tables; `wide` may be empty. A position on a pixel
    centre (within 1/2048 px) takes that pixel's value unchanged and needs no other, so images on one lattice are placed
    exactly, up to their borders. Elsewhere all taps must lie in the slab (4x4 of them at its rim) and be finite in all
    channels. Not seen: value 0.
    """
    channels, height, width = cube.shape
    flat, plane = cube.reshape(-1), height * width
    x0, y0 = PIXEL_UNIT * slab[0], PIXEL_UNIT * slab[1]
    rim = 2 if wide.shape[0] > 0 else max(width, height)
    xs, ys, at = np.empty(out.shape[2], np.int32), np.empty(out.shape[2], np.int32), np.empty((2, out.shape[2]))
    for r in range(out.shape[1]):
        positions(m, lens, row0 + r, col0, PIXEL_UNIT, at, xs, ys)
        for c in range(out.shape[2]):
            x, y = np.int64(xs[c]) - x0, np.int64(ys[c]) - y0
            ix, iy = x >> 10, y >> 10
            exact = (x & 1023) == 0 and (y & 1023) == 0
            good = 0 <= ix < width and 0 <= iy < height
            good = good and (exact or (1 <= ix < width - 2 and 1 <= iy < height - 2))
            if good:
                far = rim <= ix < width - rim - 1 and rim <= iy < height - rim - 1
                total = np.float32(0.0)
                for k in range(channels):
                    # whole cells of 1024 steps, so that the plane is part of the position
                    v = y + ((k * height) << 10)
                    if exact:
                        value = flat[k * plane + iy * width + ix]
                    elif far:
                        value = _wide_square(flat, width, x, v, wide)
                    else:
                        value = _square(flat, width, x, v, narrow)
                    out[k, r, c] = value
                    total += value - value
                good = total == 0.0
            seen[r, c] = good
            if not good:
                for k in range(channels):
                    out[k, r, c] = 0.0
