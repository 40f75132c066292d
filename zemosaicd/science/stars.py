"""Star lists: what was detected on a frame, and what a catalogue holds.

Knows one plane at a time: detection by sep on the binned green (or binned mono) plane, centroids and shapes by an own
windowed kernel on the full-resolution luminance. Never asks where on the sky a frame lies. Recipe and constants:
`experiments-astrometry.md` sections 1 and 7.1. Positions are 0-based sensor pixels (x column, y row).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import sep
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.frame import binned_green, luminance

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BACKGROUND_PX = 64
THRESHOLD_SIGMA = 4.0
MINIMUM_AREA = 4
DEBLEND_CONTRAST = 0.005
MATCHED_FILTER = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], np.float32)
SIGMA_TO_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
WINDOW_FACTOR = 1.3
WINDOW_REACH = 3.0
APERTURE_FWHM = 1.0
"""Radius of the flux aperture in true FWHM. sep's own FWHM shrinks with cloud and noise, and flux would with it."""
SHAPE_STARS = 60
SHAPE_WINDOW = 0.4
"""Variance of the shape's window in that of the star: narrower than the star, so that Moffat wings count for little."""
SMALLEST_WINDOW = 0.6
MAX_WANDER_PX = 2.5
TRAIL_ELLIPTICITY = 0.6
TRAIL_MARGIN = 0.3
SMALLEST_SIDE_PX = 32
BOX_VARIANCE = 0.25
"""Variance per axis that the 2x2 box of the luminance adds to an image (two points half a pixel either side)."""

_MAGIC = b"ZSL1"
_COLUMNS = ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StarList:
    """The stars of one frame, brightest first; all arrays (n,).

    `x, y` float64, 0-based sensor pixels (held to float32, 1e-4 px); `flux` ADU within 0.6 sep-FWHM on the binned
    green (or binned mono) plane; `snr` that flux over its sky noise; `fwhm_px` full-resolution pixels; `ellipticity`
    1 - b/a. Shapes that could not be measured are NaN.
    """

    x: Float64
    y: Float64
    flux: Float32
    snr: Float32
    fwhm_px: Float32
    ellipticity: Float32

    def __len__(self) -> int:
        return len(self.x)

    def to_bytes(self) -> bytes:
        """24 bytes a star after an 8-byte head: magic with version, count, then one little-endian float32 a column."""
        columns = [np.asarray(getattr(self, name), "<f4").tobytes() for name in _COLUMNS]
        return struct.pack("<4sI", _MAGIC, len(self)) + b"".join(columns)

    @staticmethod
    def from_bytes(data: bytes) -> StarList:
        """The inverse of `to_bytes`; ValueError for anything else."""
        head = struct.calcsize("<4sI")
        if len(data) < head or data[:4] != _MAGIC:
            raise ValueError("not a star list of this version")
        count = struct.unpack("<4sI", data[:head])[1]
        if len(data) != head + 4 * count * len(_COLUMNS):
            raise ValueError("the star list is cut short or too long")
        values = np.frombuffer(data, "<f4", offset=head).reshape(len(_COLUMNS), count)
        return _star_list(values.astype(np.float64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CatalogueStars:
    """Stars of a catalogue, brightest first: `ra_deg`, `dec_deg` float64 (n,) ICRS, `mag` float32 (n,)."""

    ra_deg: Float64
    dec_deg: Float64
    mag: Float32

    def __len__(self) -> int:
        return len(self.ra_deg)


def find_stars(plane: Float32, bayer: str, limit: int = 600) -> StarList:
    """The brightest `limit` stars of a frame, (H, W) float32 with hot pixels repaired; NaN is no data (V3).

    `bayer` is the block at the array's origin ("GRBG", ...), "" for mono. Detection: sep at 4 sigma on the binned
    green (mono: 2x2 mean), 64 px background cells; where sep's buffers overflow the threshold is doubled until it
    fits. Centroids: Gaussian window of 1.3 sep-FWHM on the 2x2-box luminance (mono: the plane itself). Dropped: no
    data under the centroid window, a centroid that wanders more than 2.5 px, and trails (ellipticity over 0.6 and 0.3
    over the frame's median, so that a trailed *frame* keeps its stars and shows its shape).
    """
    pixels = np.ascontiguousarray(plane, np.float32)
    if min(pixels.shape) < SMALLEST_SIDE_PX:
        return _star_list(np.empty((6, 0)))
    small = binned_green(pixels, bayer) if bayer else _binned_mono(pixels)
    found, clean, noise = _extract(small)
    if not len(found):
        return _star_list(np.empty((6, 0)))
    found = _without_trails(found[np.lexsort((found["x"], found["y"], -found["flux"]))])[:limit]
    fwhm_binned = _binned_fwhm(found)
    image, offset = (luminance(pixels), 0.5) if bayer else (pixels, 0.0)
    window = WINDOW_FACTOR * 2.0 * fwhm_binned / SIGMA_TO_FWHM
    measured = _measure(image, 2.0 * found["x"] + 0.5 - offset, 2.0 * found["y"] + 0.5 - offset, window, 2.0 * offset)
    measured[:, :2] += offset
    radius = _aperture_binned(measured[:, 2], fwhm_binned)
    flux, error, _ = sep.sum_circle(clean, found["x"], found["y"], radius, err=noise)
    snr = flux / np.maximum(error, 1e-30)
    stars = np.vstack([measured[:, 0], measured[:, 1], flux, snr, measured[:, 2], measured[:, 3]])
    stars = stars[:, np.isfinite(stars[:3]).all(axis=0) & (flux > 0.0)]
    return _star_list(stars[:, np.lexsort((stars[0], stars[1], -stars[2]))])


def shape(stars: StarList) -> tuple[float, float]:
    """(fwhm_px, ellipticity): medians over the 60 brightest stars, full-resolution pixels; NaN without stars.

    The FWHM is that of the Gaussian that matches the star's core (adaptive moments, the 2x2 box taken out): within
    5 % of the truth for Gaussian and Moffat profiles from 2 px up. `experiments-astrometry.md` counts in sep's moments
    on the binned green instead, which are 1.7 times the truth; the window and aperture factors here are in that unit.
    The ellipticity, too, is that of the full-resolution image: sep's on the binned plane is two to three times lower.
    """
    fwhm, ellipticity = stars.fwhm_px[:SHAPE_STARS], stars.ellipticity[:SHAPE_STARS]
    known = np.isfinite(fwhm) & np.isfinite(ellipticity)
    if not known.any():
        return math.nan, math.nan
    return float(np.median(fwhm[known])), float(np.median(ellipticity[known]))


def _star_list(columns: Float64) -> StarList:
    """A star list from rows x, y, flux, snr, fwhm, ellipticity; positions rounded to the float32 of `to_bytes`."""
    x, y, flux, snr, fwhm, ellipticity = columns.astype(np.float32)
    return StarList(
        x=x.astype(np.float64), y=y.astype(np.float64), flux=flux, snr=snr, fwhm_px=fwhm, ellipticity=ellipticity
    )


def _binned_mono(plane: Float32) -> Float32:
    """Mean of each 2x2 block, (H // 2, W // 2); value [j, i] belongs to (2 i + 0.5, 2 j + 0.5)."""
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    a, b = plane[0:rows:2, 0:columns:2], plane[0:rows:2, 1:columns:2]
    c, d = plane[1:rows:2, 0:columns:2], plane[1:rows:2, 1:columns:2]
    return np.asarray(0.25 * (a + b + c + d), np.float32)


def _extract(small: Float32) -> tuple[NDArray[Any], Float32, float]:
    """(sources, background-subtracted plane, noise) of a binned plane."""
    hole = ~np.isfinite(small)
    mask = hole if hole.any() else None
    if hole.all():
        return np.empty(0), small, 0.0
    filled = np.where(hole, np.float32(0.0), small) if mask is not None else small
    background = sep.Background(filled, mask=mask, bw=BACKGROUND_PX, bh=BACKGROUND_PX)
    noise = float(background.globalrms)
    clean = np.asarray(filled - background.back(), np.float32)
    if mask is not None:
        clean[hole] = 0.0
    if not noise > 0.0:
        return np.empty(0), clean, noise
    threshold = THRESHOLD_SIGMA * noise
    while True:
        try:
            found = sep.extract(
                clean, threshold, mask=mask, minarea=MINIMUM_AREA, filter_kernel=MATCHED_FILTER,
                deblend_cont=DEBLEND_CONTRAST,
            )  # fmt: skip
        except Exception as error:
            # sep raises plain Exception; too much above the threshold is a matter of the threshold (F30).
            if not any(word in str(error) for word in ("pixel buffer full", "overflow")) or threshold > clean.max():
                raise
            threshold *= 2.0
        else:
            return found, clean, noise


def _without_trails(found: NDArray[Any]) -> NDArray[Any]:
    """Sources without those that are much longer than wide, measured against the frame's own shape."""
    found = found[(found["a"] > 0.0) & (found["b"] > 0.0)]
    if not len(found):
        return found
    ellipticity = 1.0 - found["b"] / found["a"]
    limit = max(TRAIL_ELLIPTICITY, float(np.median(ellipticity[:SHAPE_STARS])) + TRAIL_MARGIN)
    return found[ellipticity <= limit]


def _aperture_binned(fwhm_px: Float64, fwhm_binned: float) -> float:
    """Radius of the flux aperture, binned px: from the true FWHM of the brightest stars, else from sep's (1.7 x it)."""
    known = fwhm_px[np.isfinite(fwhm_px)][:SHAPE_STARS]
    fwhm = float(np.median(known)) if len(known) else 2.0 * fwhm_binned / 1.7
    return 0.5 * APERTURE_FWHM * fwhm


def _binned_fwhm(found: NDArray[Any]) -> float:
    """sep's FWHM in binned pixels: 2.3548 sqrt(ab), median of the 60 brightest, within 1 to 15 px."""
    if not len(found):
        return 1.0
    size = np.sqrt(found["a"][:SHAPE_STARS] * found["b"][:SHAPE_STARS])
    return min(15.0, max(1.0, SIGMA_TO_FWHM * float(np.median(size))))


@njit(cache=True, nogil=True)
def _ring_sky(image: Float32, x: float, y: float, inner: float, outer: float, scratch: Float32) -> float:
    """Median of the pixels between two radii; NaN for fewer than 8 finite ones."""
    height, width = image.shape
    n = 0
    for j in range(max(0, int(y - outer)), min(height, int(y + outer) + 2)):
        for i in range(max(0, int(x - outer)), min(width, int(x + outer) + 2)):
            r2 = (i - x) ** 2 + (j - y) ** 2
            if inner * inner < r2 <= outer * outer and np.isfinite(image[j, i]):
                scratch[n] = image[j, i]
                n += 1
    return float(np.median(scratch[:n])) if n >= 8 else np.nan


@njit(cache=True, nogil=True)
def _moments(image: Float32, x: float, y: float, sky: float, window: float, reach: float) -> tuple[float, ...]:
    """Windowed sums about (x, y): weight, first moments dx, dy, second moments xx, yy, xy. NaN if data are missing."""
    height, width = image.shape
    s = sx = sy = sxx = syy = sxy = 0.0
    r = int(reach) + 1
    cx, cy = round(x), round(y)
    for j in range(cy - r, cy + r + 1):
        for i in range(cx - r, cx + r + 1):
            dx, dy = i - x, j - y
            r2 = dx * dx + dy * dy
            if r2 > reach * reach:
                continue
            if i < 0 or j < 0 or i >= width or j >= height or not np.isfinite(image[j, i]):
                return np.nan, np.nan, np.nan, np.nan, np.nan, np.nan
            w = (image[j, i] - sky) * math.exp(-0.5 * r2 / (window * window))
            s += w
            sx += w * dx
            sy += w * dy
            sxx += w * dx * dx
            syy += w * dy * dy
            sxy += w * dx * dy
    return s, sx, sy, sxx, syy, sxy


@njit(cache=True, nogil=True)
def _centroid(image: Float32, x0: float, y0: float, sky: float, window: float) -> tuple[float, float]:
    """Windowed centroid from a start: x += 2 sum(w I dx) / sum(w I) until the step is below 0.001 px; NaN if lost."""
    x, y = x0, y0
    for _ in range(20):
        s, sx, sy, _, _, _ = _moments(image, x, y, sky, window, WINDOW_REACH * window)
        if not s > 0.0:
            return np.nan, np.nan
        dx, dy = 2.0 * sx / s, 2.0 * sy / s
        x, y = x + dx, y + dy
        if (x - x0) ** 2 + (y - y0) ** 2 > MAX_WANDER_PX**2:
            return np.nan, np.nan
        if dx * dx + dy * dy < 1e-6:
            break
    return x, y


@njit(cache=True, nogil=True)
def _adaptive_shape(image: Float32, x: float, y: float, sky: float, window: float, box: float) -> tuple[float, float]:
    """(FWHM, ellipticity) by adaptive moments: the window follows the star's size, and is then divided out.

    For a Gaussian star S seen through a Gaussian window W the measured moments M obey M^-1 = S^-1 + W^-1. `box` is
    the variance per axis that the image's own smoothing added.
    """
    w2 = window * window
    xx = yy = xy = 0.0
    for _ in range(8):
        s, sx, sy, sxx, syy, sxy = _moments(image, x, y, sky, math.sqrt(w2), WINDOW_REACH * math.sqrt(w2))
        if not s > 0.0:
            return np.nan, np.nan
        mxx, myy, mxy = sxx / s - (sx / s) ** 2, syy / s - (sy / s) ** 2, sxy / s - sx * sy / (s * s)
        det = mxx * myy - mxy * mxy
        if mxx <= 0.0 or myy <= 0.0 or det <= 0.0:
            return np.nan, np.nan
        ixx, iyy, ixy = myy / det - 1.0 / w2, mxx / det - 1.0 / w2, -mxy / det
        idet = ixx * iyy - ixy * ixy
        if ixx <= 0.0 or idet <= 0.0:
            return np.nan, np.nan
        xx, yy, xy = iyy / idet, ixx / idet, -ixy / idet
        before = w2
        w2 = min(max(SHAPE_WINDOW * math.sqrt(xx * yy - xy * xy), SMALLEST_WINDOW), window * window)
        if abs(w2 - before) < 0.01 * before:
            break
    xx, yy = xx - box, yy - box
    middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    if middle - half <= 0.0:
        return np.nan, np.nan
    a, b = math.sqrt(middle + half), math.sqrt(middle - half)
    return SIGMA_TO_FWHM * math.sqrt(a * b), 1.0 - b / a


@njit(cache=True, nogil=True)
def _measure(image: Float32, xs: Float64, ys: Float64, window: float, smoothed: float) -> Float64:
    """(n, 4): x, y, FWHM, ellipticity of sources at starting places, window sigma in px; NaN where lost.

    `smoothed` 1: the image is a 2x2 box mean, 0: it is not.
    """
    inner, outer = WINDOW_REACH * window, WINDOW_REACH * window + 4.0
    scratch = np.empty(int(2.0 * outer + 4.0) ** 2, np.float32)
    out = np.empty((len(xs), 4))
    for k in range(len(xs)):
        sky = _ring_sky(image, xs[k], ys[k], inner, outer, scratch)
        x, y = _centroid(image, xs[k], ys[k], sky, window)
        fwhm, ellipticity = np.nan, np.nan
        if np.isfinite(x):
            fwhm, ellipticity = _adaptive_shape(image, x, y, sky, window, smoothed * BOX_VARIANCE)
        out[k, 0], out[k, 1], out[k, 2], out[k, 3] = x, y, fwhm, ellipticity
    return out
