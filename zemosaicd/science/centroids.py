"""Where a star's light is centred and how wide it is, on the full-resolution plane round a first guess.

Knows pixels and places; never how a star was found. Recipe and constants: `experiments-astrometry.md` sections 1 and
7.1. A Bayer plane is read as luminance, the mean of the 2x2 block that starts at each pixel, which has no colour
pattern at any Bayer order; value [y, x] of it belongs to the sensor position (x + 0.5, y + 0.5).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.robust import median_of

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SIGMA_TO_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
WINDOW_REACH = 3.0
RING_PX = 4.0
WINDOW_PX = 1.4
"""Sigma of the centroid window in px, for a FWHM of 1 px; it grows with the root (`window_px`). Scatter about the joint
solution (rms per axis, px, SNR > 16) for 1.0, 1.2, 1.4, 1.6, 1.8: M 94, 23 frames, .062, .062, .064, .068, .072;
NGC 7023 .056, .054, .055, .057, .061; M 27 .090, .082, .080, .080, .082. Simulated stars of SNR 20 to 40 (sigma per
axis) .052, .057, .063, .072, .084, of SNR over 160 .013, .012, .012, .012, .013."""
SHAPE_WINDOW = 0.4
"""Variance of the shape's window in that of the star: narrower than the star, so that Moffat wings count for little."""
SMALLEST_WINDOW = 0.6
LINE = 0.5
"""What fills the window along one axis, and is less than 1 / LINE times as wide as a star (variance) along the other,
is a line."""
MAX_WANDER_PX, MAX_WANDER = 2.5, 1.0
"""How far a centroid may end from where its star was found: px, or sigmas of the window if that is more."""
BOX_VARIANCE = 0.25
"""Variance per axis that the 2x2 box of the luminance adds to an image (two points half a pixel either side)."""


def window_px(fwhm_px: float) -> float:
    """Sigma of the centroid window for stars of a FWHM: 1.4 sqrt(FWHM), px.

    Sharp stars want it wide for their size (a real star of 10 s is lumpy), stars out of focus narrow (neighbours).
    """
    return WINDOW_PX * math.sqrt(fwhm_px)


def measure_stars(plane: Float32, bayer: bool, x: Float64, y: Float64, fwhm_px: float) -> Float64:
    """(4, n): x, y, FWHM and ellipticity of stars near places `x, y` (n,), in sensor px of `plane` (H, W) float32.

    x, y: centroid under a Gaussian window (`window_px` of `fwhm_px`, the FWHM to expect), cut at 3 sigma, over the
    median of a ring outside; NaN where it ends further away than 2.5 px and the window's sigma, or where data are
    missing under the window. FWHM and ellipticity (1 - b/a): of the Gaussian that matches the core, by adaptive
    moments (after Bernstein and Jarvis 2002, AJ 123, 583); NaN where there is none, as of a line, infinity and 0 where
    the light is as wide as the window (the plateau of a saturated star), 0 and 0 where it is thinner than the box of
    the luminance, which is taken out (a hot pixel, a cosmic ray). The pixel itself is not taken out.
    """
    offset = 0.5 if bayer else 0.0
    window = window_px(fwhm_px)
    variance = (fwhm_px / SIGMA_TO_FWHM) ** 2
    measured = _measure(np.ascontiguousarray(plane, np.float32), bayer, x - offset, y - offset, window, variance)
    measured[:2] += offset
    return np.asarray(measured)


@njit(cache=True, nogil=True)
def _cut(plane: Float32, box: bool, left: int, top: int, out: Float32) -> None:
    """The image from (left, top) into `out`, NaN beyond the border; `box`: as luminance.

    The last row and column of the luminance use the one before the last again (same colours).
    """
    height, width = plane.shape
    side = len(out)
    start, end = min(max(0, left), width), max(0, min(width - 1, left + side))
    for j in range(side):
        y, target = top + j, out[j]
        target[:] = np.nan
        if y < 0 or y >= height or start >= end:
            continue
        here, below = plane[y], plane[y + 1 if y + 1 < height else max(0, height - 2)]
        inner = target[start - left : end - left]
        if box:
            a, b, c, d = here[start:end], here[start + 1 : end + 1], below[start:end], below[start + 1 : end + 1]
            for i in range(len(inner)):
                inner[i] = np.float32(0.25) * (a[i] + b[i] + c[i] + d[i])
        else:
            inner[:] = here[start:end]
        if end == width - 1 and end < left + side:
            before = max(0, end - 1)
            last = np.float32(0.25) * (here[end] + here[before] + below[end] + below[before])
            target[end - left] = last if box else here[end]


@njit(cache=True, nogil=True)
def _ring_sky(cut: Float32, x: float, y: float, inner: float, outer: float, scratch: Float32) -> float:
    """Median of one pixel in four between two radii; NaN for fewer than 8 finite ones."""
    n = 0
    for j in range(0, len(cut), 2):
        dy2 = (j - y) ** 2
        far2, near2 = outer * outer - dy2, inner * inner - dy2
        row = cut[j, ::2]
        for i in range(len(row)):
            r2 = (2 * i - x) ** 2
            scratch[n] = row[i]
            n += (r2 <= far2) & (r2 > near2) & np.isfinite(row[i])
    return median_of(scratch[:n]) if n >= 8 else np.nan


@njit(cache=True, nogil=True)
def _moments(
    cut: Float32, x: float, y: float, sky: float, window: float, columns: Float64
) -> tuple[float, float, float, float, float, float]:
    """Windowed sums about (x, y): weight, first moments dx, dy, second moments xx, yy, xy. NaN if data are missing.

    Summed down the columns first (`columns`: scratch, (3, side)), which runs on vectors and gives one order of sums on
    every machine.
    """
    side, reach = len(cut), WINDOW_REACH * window
    inverse = -0.5 / (window * window)
    left, right = max(0, math.ceil(x - reach)), min(side, int(x + reach) + 1)
    columns[:, left:right] = 0.0
    for j in range(max(0, math.ceil(y - reach)), min(side, int(y + reach) + 1)):
        dy = j - y
        half = math.sqrt(max(0.0, reach * reach - dy * dy))
        start, end = max(0, math.ceil(x - half)), min(side, int(x + half) + 1)
        row = cut[j, start:end]
        light, first, second = columns[0, start:end], columns[1, start:end], columns[2, start:end]
        w = math.exp(inverse * dy * dy)
        w1, w2 = w * dy, w * dy * dy
        for i in range(len(row)):
            v = row[i] - sky
            light[i] += w * v
            first[i] += w1 * v
            second[i] += w2 * v
    s = sx = sy = sxx = syy = sxy = 0.0
    for i in range(left, right):
        dx = i - x
        w = math.exp(inverse * dx * dx)
        s += w * columns[0, i]
        sx += w * dx * columns[0, i]
        sxx += w * dx * dx * columns[0, i]
        sy += w * columns[1, i]
        sxy += w * dx * columns[1, i]
        syy += w * columns[2, i]
    return s, sx, sy, sxx, syy, sxy


@njit(cache=True, nogil=True)
def _centroid(
    cut: Float32, x0: float, y0: float, sky: float, window: float, gain: float, columns: Float64
) -> tuple[float, float]:
    """Windowed centroid from a start: x += gain sum(w I dx) / sum(w I) until the step is below 0.002 px; NaN if lost.

    `gain`: 1 + (star's sigma / window's)^2, the step that lands on the centre of a Gaussian star at once.
    """
    x, y = x0, y0
    for _ in range(20):
        s, sx, sy, _, _, _ = _moments(cut, x, y, sky, window, columns)
        if not s > 0.0:
            return np.nan, np.nan
        dx, dy = gain * sx / s, gain * sy / s
        x, y = x + dx, y + dy
        if (x - x0) ** 2 + (y - y0) ** 2 > max(MAX_WANDER_PX, MAX_WANDER * window) ** 2:
            return np.nan, np.nan
        if dx * dx + dy * dy < 4e-6:
            break
    return x, y


@njit(cache=True, nogil=True)
def _adaptive_shape(
    cut: Float32, x: float, y: float, sky: float, start: float, window: float, box: float, columns: Float64
) -> tuple[float, float]:
    """(FWHM, ellipticity) by adaptive moments: the window follows the star's size, and is then divided out.

    For a Gaussian star S seen through a Gaussian window W the measured moments M obey M^-1 = S^-1 + W^-1. `start`:
    variance of the star to begin with; `window`: sigma of the widest window. `box` is the variance per axis that the
    image's own smoothing added.
    """
    w2 = min(max(SHAPE_WINDOW * start, SMALLEST_WINDOW), window * window)
    xx = yy = xy = 0.0
    for _ in range(8):
        s, sx, sy, sxx, syy, sxy = _moments(cut, x, y, sky, math.sqrt(w2), columns)
        if not s > 0.0:
            return np.nan, np.nan
        mxx, myy, mxy = sxx / s - (sx / s) ** 2, syy / s - (sy / s) ** 2, sxy / s - sx * sy / (s * s)
        det = mxx * myy - mxy * mxy
        if mxx <= 0.0 or myy <= 0.0 or det <= 0.0:
            return np.nan, np.nan
        ixx, iyy, ixy = myy / det - 1.0 / w2, mxx / det - 1.0 / w2, -mxy / det
        middle, half = 0.5 * (ixx + iyy), math.hypot(0.5 * (ixx - iyy), ixy)
        if middle <= half:  # as wide as the window along one axis; along the other, too?
            return (np.inf, 0.0) if (middle + half) * start < LINE else (np.nan, np.nan)
        idet = ixx * iyy - ixy * ixy
        xx, yy, xy = iyy / idet, ixx / idet, -ixy / idet
        before = w2
        w2 = min(max(SHAPE_WINDOW * math.sqrt(xx * yy - xy * xy), SMALLEST_WINDOW), window * window)
        if abs(w2 - before) < 0.01 * before:
            break
    xx, yy = xx - box, yy - box
    middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    if middle - half <= 0.0:
        return 0.0, 0.0
    a, b = math.sqrt(middle + half), math.sqrt(middle - half)
    return SIGMA_TO_FWHM * math.sqrt(a * b), 1.0 - b / a


@njit(cache=True, nogil=True)
def _measure(plane: Float32, box: bool, xs: Float64, ys: Float64, window: float, variance: float) -> Float64:
    """(4, n): what `measure_stars` says, in px of the image (luminance or plane); `variance`: of a star to expect."""
    extra = BOX_VARIANCE if box else 0.0
    gain = 1.0 + (variance + extra) / (window * window)
    inner, outer = WINDOW_REACH * window, WINDOW_REACH * window + RING_PX
    half = math.ceil(outer) + 1  # further than a star wanders
    side = 2 * half + 1
    cut, scratch = np.empty((side, side), np.float32), np.empty(side * side, np.float32)
    columns = np.empty((3, side))
    out = np.empty((4, len(xs)))
    for k in range(len(xs)):
        left, top = round(xs[k]) - half, round(ys[k]) - half
        _cut(plane, box, left, top, cut)
        x0, y0 = xs[k] - left, ys[k] - top
        sky = _ring_sky(cut, x0, y0, inner, outer, scratch)
        x, y = _centroid(cut, x0, y0, sky, window, gain, columns)
        fwhm, ellipticity = np.nan, np.nan
        if np.isfinite(x):
            fwhm, ellipticity = _adaptive_shape(cut, x, y, sky, variance + extra, window, extra, columns)
        out[0, k], out[1, k], out[2, k], out[3, k] = x + left, y + top, fwhm, ellipticity
    return out
