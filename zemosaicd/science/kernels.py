"""Compiled interpolation kernels: one source image, or a slab of its rows, to one band of an output grid.

Coordinates are float64 from the absolute pixel of the grid, one full homography a pixel, no running sum: any band split
gives the same bits (M5). They are made a row at a time, in loops that compile to vector instructions. Pixels are
float32. No kernel reads outside its slab, and the only fast-math flag is fused multiply-add, so a tap that is NaN or
infinite shows in its sum and is caught there (V3). A camera's distortion bends positions after the homography; an empty
`lens` leaves them as they are.

Keys' cubic convolution (Keys 1981, IEEE ASSP 29, 1153), weights from a table of 1024 phases (nearest). The table is
exact at phase 0, so a position on a pixel centre returns that pixel's value.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]

PHASES = 1024
BAYER_REACH = 4
"""Every tap of the three Bayer kernels lies less than this many px from the position, in x and in y."""
CUBIC_REACH = 2
"""The same for 4x4 taps on whole pixels."""

# Indices are unsigned: numba then leaves out the test for negative ones in the innermost loop.
_ONE, _TWO, _THREE, _FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)


def keys_table(a: float) -> Pixels:
    """Flat float32 table of Keys(a) weights: 4 taps (offsets -1, 0, 1, 2) for each of 1024 + 1 phases, of sum 1."""
    f = np.arange(PHASES + 1, dtype=np.float64) / PHASES
    near, far = np.stack([f, 1.0 - f]), np.stack([1.0 + f, 2.0 - f])
    inner = (a + 2.0) * near**3 - (a + 3.0) * near**2 + 1.0
    outer = a * far**3 - 5.0 * a * far**2 + 8.0 * a * far - 4.0 * a
    table = np.stack([outer[0], inner[0], inner[1], outer[1]], axis=1).astype(np.float32)
    return np.ascontiguousarray(table.reshape(-1))


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
def _positions(m: Numbers, lens: Numbers, y: float, col0: int, at_x: Numbers, at_y: Numbers) -> None:
    """Source positions of the pixels of row y of the grid, columns from col0; NaN where there is none."""
    m0, m3, m6 = m[0], m[3], m[6]
    cx, cy, cw = m[1] * y + m[2], m[4] * y + m[5], m[7] * y + m[8]
    for c in range(len(at_x)):
        x = float(col0 + c)
        w = m6 * x + cw
        inverse = 1.0 / w if w > 0.0 else math.nan
        at_x[c], at_y[c] = (m0 * x + cx) * inverse, (m3 * x + cy) * inverse
    if len(lens) > 0:
        bend(at_x, at_y, lens)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _taps(
    flat: Pixels, base: np.uint64, step: np.uint64, stride: np.uint64, fu: float, fv: float, table: Pixels
) -> np.float32:
    """Sum of 4x4 taps from flat[base]: `step` apart along u, `stride` apart along v; fractions fu, fv in [0, 1]."""
    ku, kv = _FOUR * np.uint64(fu * PHASES + 0.5), _FOUR * np.uint64(fv * PHASES + 0.5)
    u0, u1, u2, u3 = table[ku], table[ku + _ONE], table[ku + _TWO], table[ku + _THREE]
    total = np.float32(0.0)
    b = base
    for _ in range(4):
        row = (u0 * flat[b] + u1 * flat[b + step]) + (u2 * flat[b + _TWO * step] + u3 * flat[b + _THREE * step])
        total += table[kv] * row
        kv += _ONE
        b += stride
    return total


@njit(cache=True, nogil=True, fastmath={"contract"})
def _square_lattice(
    flat: Pixels, width: int, x: float, y: float, ox: int, oy: int, row0: int, table: Pixels
) -> np.float32:
    """Value at (x, y) of the colour whose photosites are (ox + 2i, oy + 2j): red or blue. x, y >= BAYER_REACH."""
    u, v = 0.5 * (x - ox), 0.5 * (y - oy)
    iu, iv = int(u), int(v)
    base = np.uint64((2 * iv - 2 + oy - row0) * width + 2 * iu - 2 + ox)
    return _taps(flat, base, _TWO, np.uint64(2 * width), u - iu, v - iv, table)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _quincunx(flat: Pixels, width: int, x: float, y: float, shift: int, row0: int, table: Pixels) -> np.float32:
    """Value at (x, y) of green: a square lattice in p = (x+y)/2, q = (x-y)/2, its sites where x + shift + y is even."""
    p, q = 0.5 * (x + shift + y), 0.5 * (x + shift - y)
    ip, iq = int(p), math.floor(q)
    # From the tap of smallest p and largest q: +p is one pixel down-right, -q one down-left, so q's fraction mirrors.
    base = np.uint64((ip - iq - 3 - row0) * width + ip + iq + 1 - shift)
    return _taps(flat, base, np.uint64(width + 1), np.uint64(width - 1), p - ip, 1.0 - (q - iq), table)


@njit(cache=True, nogil=True, fastmath={"contract"})
def warp_bayer(
    slab: Pixels, slab_row0: int, height: int, red: tuple[int, int], m: Numbers, lens: Numbers, row0: int, col0: int,
    table_rb: Pixels, table_g: Pixels, out: Pixels, seen: Flags,
) -> None:  # fmt: skip
    """Fused demosaic and warp of a CFA slab (h, W) into out (rows, width, 3) and seen (rows, width).

    `red`: (x, y) of the red photosite in the image's first 2x2 cell; blue lies diagonally opposite. `m`: grid pixel to
    ideal source pixel, 9 float64; `lens`: from there to the recorded one (`bend`; empty: the same). Seen: at least
    BAYER_REACH px inside the image (and slab) on all sides, in front of the tangent plane (w > 0), every tap of all
    three colours finite. Not seen: value 0.
    """
    slab_rows, source_width = slab.shape
    flat = slab.reshape(-1)
    rx, ry = red
    shift = (rx + ry + 1) % 2
    low_y, high_y = max(0, slab_row0) + BAYER_REACH, min(height, slab_row0 + slab_rows) - 1 - BAYER_REACH
    high_x = source_width - 1 - BAYER_REACH
    at_x, at_y = np.empty(out.shape[1]), np.empty(out.shape[1])
    for r in range(out.shape[0]):
        _positions(m, lens, float(row0 + r), col0, at_x, at_y)
        for c in range(out.shape[1]):
            sx, sy = at_x[c], at_y[c]
            good = False
            if BAYER_REACH <= sx <= high_x and low_y <= sy <= high_y:
                r_value = _square_lattice(flat, source_width, sx, sy, rx, ry, slab_row0, table_rb)
                g_value = _quincunx(flat, source_width, sx, sy, shift, slab_row0, table_g)
                b_value = _square_lattice(flat, source_width, sx, sy, 1 - rx, 1 - ry, slab_row0, table_rb)
                total = r_value + g_value + b_value
                good = total - total == 0.0
                out[r, c, 0], out[r, c, 1], out[r, c, 2] = r_value, g_value, b_value
            seen[r, c] = good
            if not good:
                out[r, c, 0] = out[r, c, 1] = out[r, c, 2] = 0.0


@njit(cache=True, nogil=True, fastmath={"contract"})
def _copy_pixel(slab: Pixels, ix: int, iy: int, target: Pixels) -> bool:
    """target[:] = slab[iy, ix]; False if that lies outside or is not finite."""
    if not (0 <= ix < slab.shape[1] and 0 <= iy < slab.shape[0]):
        return False
    good = True
    for k in range(slab.shape[2]):
        value = slab[iy, ix, k]
        target[k] = value
        good = good and value - value == 0.0
    return good


@njit(cache=True, nogil=True, fastmath={"contract"})
def _cubic_pixel(
    flat: Pixels, shape: tuple[int, int, int], ix: int, iy: int, fx: float, fy: float, table: Pixels, target: Pixels
) -> bool:
    """target[:] = cubic convolution at (ix + fx, iy + fy); False if a tap lies outside the slab or is not finite."""
    rows, width, channels = shape
    if not (1 <= ix < width - 2 and 1 <= iy < rows - 2):
        return False
    good = True
    base = np.uint64(((iy - 1) * width + ix - 1) * channels)
    for k in range(channels):
        value = _taps(flat, base + np.uint64(k), np.uint64(channels), np.uint64(width * channels), fx, fy, table)
        target[k] = value
        good = good and value - value == 0.0
    return good


@njit(cache=True, nogil=True, fastmath={"contract"})
def warp_pixels(
    slab: Pixels, slab_row0: int, m: Numbers, lens: Numbers, row0: int, col0: int, table: Pixels,
    out: Pixels, seen: Flags,
) -> None:  # fmt: skip
    """Warp a slab (h, W, C) into out (rows, width, C) and seen (rows, width) by 4x4 cubic convolution.

    `m`: grid pixel to ideal source pixel; `lens`: from there to the recorded one (`bend`; empty: the same).

    A position within half a phase (1/2048 px) of a pixel centre takes that pixel's value unchanged and needs nothing
    else, so images on one lattice are placed exactly, up to their borders. Elsewhere all 16 taps must lie in the image
    and be finite in all channels. Not seen: value 0.
    """
    shape = slab.shape
    flat = slab.reshape(-1)
    last_x, last_y = float(shape[1]), float(shape[0])
    at_x, at_y = np.empty(out.shape[1]), np.empty(out.shape[1])
    for r in range(out.shape[0]):
        _positions(m, lens, float(row0 + r), col0, at_x, at_y)
        for c in range(out.shape[1]):
            # the slab's first row goes off after the position is known to full-image bits: same bits for any slab
            sx, sy = at_x[c], at_y[c]
            good = False
            if -1.0 < sx < last_x and -1.0 < sy - slab_row0 < last_y:
                ix, iy = math.floor(sx), math.floor(sy)
                fx, fy = sx - ix, sy - iy
                kx, ky = int(fx * PHASES + 0.5), int(fy * PHASES + 0.5)
                if (kx == 0 or kx == PHASES) and (ky == 0 or ky == PHASES):
                    good = _copy_pixel(slab, ix + kx // PHASES, iy + ky // PHASES - slab_row0, out[r, c])
                else:
                    good = _cubic_pixel(flat, shape, ix, iy - slab_row0, fx, fy, table, out[r, c])
            seen[r, c] = good
            if not good:
                out[r, c, :] = 0.0
