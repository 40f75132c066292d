"""Star lists: what was detected on a frame, and what a catalogue holds.

Knows one plane at a time: detection on the binned green (or binned mono) plane (`science.detection`), centroids and
shapes on the full-resolution luminance (`science.centroids`), fluxes on the binned plane again, and a colour at a time
on the samples of that colour alone; what has not the shape of the frame's stars is left out. Never asks where on the
sky a frame lies. After the recipe of `experiments-astrometry.md`, sections 1 and 7.1; where that counts in a "FWHM" of
1.7 times the truth, this house counts in the true one. Positions are 0-based sensor pixels (x column, y row).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.centroids import SIGMA_TO_FWHM, measure_stars
from zemosaicd.science.detection import Sources, find_sources, measure_mesh, subtract_level
from zemosaicd.science.frame import binned_green, binned_mono, colour_offsets
from zemosaicd.science.robust import kth_smallest

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

APERTURE_FWHM = 1.0
"""Radius of the flux aperture in FWHM."""
FWHM_RANGE_PX = (1.2, 18.0)
"""Stars of frames beyond this are found and measured as if the frame were at its end."""
FILTER_FWHM2 = SIGMA_TO_FWHM**2 * 2.25
"""What binning and matched filter add to the square of the FWHM, px^2."""
SHAPE_STARS = 60
TRAIL_ELLIPTICITY = 0.6
TRAIL_MARGIN = 0.3
THINNEST = 0.6
"""Of the frame's width across (FWHM of the minor axis). Of simulated stars 1 in 1000 is below 0.73 of it, and of
cosmic rays 1 in 1000 above 0.56."""
WIDEST, WIDE_SNR = 1.8, 50.0
"""Fainter than this SNR no star is so much wider than the others: not saturated, but a knot of a nebula or a trail."""
SMALLEST_SIDE_PX = 32
COLOUR_STARS = 200
"""The brightest of a frame, which tell its colours well enough (to 0.3 %); the others have none."""
RING_STEPS = 2.5
"""Width of the ring that tells the sky of a star in one colour, which begins at 2 radii of the aperture and 1 more."""

_MAGIC = b"ZSL2"
_HEAD = "<4sII"
_COLUMNS = ("x", "y", "flux", "snr", "fwhm_px", "ellipticity")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StarList:
    """The stars of one frame, brightest first; all arrays (n,).

    `x, y` float64, 0-based sensor pixels (held to float32, 1e-4 px); `flux` ADU within one FWHM of the
    frame, summed over pixels of the binned green (or binned mono) plane; `snr` that flux over its sky noise; `fwhm_px`
    full-resolution pixels; `ellipticity` 1 - b/a. Shapes that could not be measured (saturated stars) are NaN.
    `colours` (n, C): flux in ADU within the same radius, a channel, summed over samples of that channel; NaN where they
    are not all there, and for all but the brightest. None: mono, `flux` is all there is.
    """

    x: Float64
    y: Float64
    flux: Float32
    snr: Float32
    fwhm_px: Float32
    ellipticity: Float32
    colours: Float32 | None = None

    def __len__(self) -> int:
        return len(self.x)

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> StarList:
        """Some of the stars: a mask (n,) or their indices."""
        some = {name: getattr(self, name)[which] for name in _COLUMNS}
        return StarList(**some, colours=None if self.colours is None else self.colours[which])

    def to_bytes(self) -> bytes:
        """24 bytes a star and 4 a colour after a 12-byte head: magic with version, count, colours, then one
        little-endian float32 a column.
        """
        colours = np.empty((len(self), 0), np.float32) if self.colours is None else self.colours
        columns = [getattr(self, name) for name in _COLUMNS] + list(colours.T)
        data = b"".join(np.asarray(column, "<f4").tobytes() for column in columns)
        return struct.pack(_HEAD, _MAGIC, len(self), colours.shape[1]) + data

    @staticmethod
    def from_bytes(data: bytes) -> StarList:
        """The inverse of `to_bytes`; ValueError for anything else."""
        head = struct.calcsize(_HEAD)
        if len(data) < head or data[:4] != _MAGIC:
            raise ValueError("not a star list of this version")
        _, count, colours = struct.unpack(_HEAD, data[:head])
        if len(data) != head + 4 * count * (len(_COLUMNS) + colours):
            raise ValueError("the star list is cut short or too long")
        values = np.frombuffer(data, "<f4", offset=head).reshape(len(_COLUMNS) + colours, count)
        stars = _star_list(values[: len(_COLUMNS)].astype(np.float64))
        rest = values[len(_COLUMNS) :].T.astype(np.float32)
        return replace(stars, colours=rest) if colours else stars


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

    `bayer` is the block at the array's origin ("GRBG", ...), "" for mono. Detection on the binned green (mono: 2x2
    mean), centroids on the 2x2-box luminance (mono: the plane itself). Dropped: no data under the centroid window, a
    centroid that wanders off, trails (ellipticity over 0.6 and 0.3 over the frame's median, so that a trailed *frame*
    keeps its stars and shows its shape), and what is thinner or wider than the frame's stars (cosmic rays, hot pixels
    that were not repaired; knots of nebulae). Of what is dropped by its shape, `limit` has been used up. `colours` are
    left to `with_colours`.
    """
    pixels = np.ascontiguousarray(plane, np.float32)
    nothing = _star_list(np.empty((6, 0)))
    if min(pixels.shape) < SMALLEST_SIDE_PX:
        return nothing
    small = binned_green(pixels, bayer) if bayer else binned_mono(pixels)
    mesh = measure_mesh(small)
    if mesh is None:
        return nothing
    subtract_level(small, mesh)
    found = find_sources(small, mesh)
    if not len(found):
        return nothing
    best = _without_trails(found, np.lexsort((found.x, found.y, -found.flux)))[:limit]
    x, y = 2.0 * found.x[best] + 0.5, 2.0 * found.y[best] + 0.5
    fwhm_px = _frame_fwhm(pixels, bool(bayer), x, y, found.half_area[best])
    measured = measure_stars(pixels, bool(bayer), x, y, fwhm_px)
    places = 0.5 * (measured[0] - 0.5), 0.5 * (measured[1] - 0.5), 0.5 * APERTURE_FWHM * fwhm_px
    flux, area = aperture_flux(small, *places)
    # Over a ring of its own, where there is one: the mesh does not know how the sky slopes at a frame's edge, where the
    # stars lie that neighbours share (2.4 % of a star's light at one edge, 0.7 % at the other, under a steep sky).
    local = _ring_flux(small, *places)
    flux = np.where(np.isfinite(local), local, flux)
    snr = flux / (found.noise[best] * np.sqrt(area))
    keep = (flux > 0.0) & _like_stars(measured[2], measured[3], snr)
    measured[2:, ~np.isfinite(measured[2])] = np.nan
    stars = np.vstack([measured[:2], flux, snr, measured[2:]])[:, keep]
    return _star_list(stars[:, np.lexsort((stars[0], stars[1], -stars[2]))])


def with_colours(stars: StarList, pixels: Float32, bayer: str) -> StarList:
    """The stars of a frame with their flux a channel; `pixels` (H, W) CFA, or (H, W, C). Mono: as they are.

    Each of a CFA's four kinds of photosites by itself, over the mean of the middle half of a ring (12-bit steps would
    show in a median); green is the mean of two. Stars of the binned green are wider, of which seeing would make a tint
    (0.8 % for 12 % of FWHM). A star's place is that of all its light.
    """
    if pixels.ndim == 2 and not bayer:
        return stars
    fwhm_px = shape(stars)[0]
    radius = min(max(fwhm_px, FWHM_RANGE_PX[0]), FWHM_RANGE_PX[1]) if math.isfinite(fwhm_px) else FWHM_RANGE_PX[0]
    x, y = stars.x[:COLOUR_STARS], stars.y[:COLOUR_STARS]
    if pixels.ndim == 3:
        columns = [_ring_flux(pixels[:, :, c], x, y, APERTURE_FWHM * radius) for c in range(pixels.shape[2])]
    else:
        sites = colour_offsets(bayer, "R") + colour_offsets(bayer, "G") + colour_offsets(bayer, "B")
        red, green, other, blue = (
            _ring_flux(pixels[row::2, column::2], 0.5 * (x - column), 0.5 * (y - row), 0.5 * APERTURE_FWHM * radius)
            for row, column in sites
        )
        columns = [red, 0.5 * (green + other), blue]
    colours = np.full((len(stars), len(columns)), np.nan, np.float32)
    colours[:COLOUR_STARS] = np.stack(columns, axis=1)
    return replace(stars, colours=colours)


def shape(stars: StarList) -> tuple[float, float]:
    """(fwhm_px, ellipticity): medians over the 60 brightest stars, full-resolution pixels; NaN without stars.

    The FWHM is that of the Gaussian that matches the star's core (adaptive moments, the 2x2 box taken out): within
    6 % of the truth for Gaussian and Moffat profiles from 2 px up.
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


def _without_trails(found: Sources, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sources (indices, in `order`) without those much longer than wide, measured against the frame's own shape."""
    ellipticity = 1.0 - found.minor[order] / found.major[order]
    limit = max(TRAIL_ELLIPTICITY, float(np.median(ellipticity[:SHAPE_STARS])) + TRAIL_MARGIN)
    return order[ellipticity <= limit]


def _like_stars(fwhm: Float64, ellipticity: Float64, snr: Float64) -> NDArray[np.bool_]:
    """Which sources, brightest first, have the width of the frame's stars; one without any width has not.

    A cosmic ray is thinner across than any star, a knot of a nebula or of a trail is wider; bright sources may be
    wide, since saturation widens stars.
    """
    across = fwhm * np.sqrt(1.0 - ellipticity)
    known = np.flatnonzero(np.isfinite(across) & (across > 0.0))[:SHAPE_STARS]
    if not len(known):
        return np.isfinite(across) & (across > 0.0)
    thin = across < THINNEST * np.median(across[known])
    wide = (fwhm > WIDEST * np.median(fwhm[known])) & (snr < WIDE_SNR)
    return np.asarray(~np.isnan(across) & ~thin & ~wide)


def _frame_fwhm(pixels: Float32, bayer: bool, x: Float64, y: Float64, half_area: Float64) -> float:
    """The frame's FWHM, px, within FWHM_RANGE_PX: median of the brightest stars' shapes, else of their sizes."""
    across2 = 16.0 / math.pi * float(np.median(half_area[:SHAPE_STARS])) - FILTER_FWHM2
    start = min(max(math.sqrt(max(across2, 0.0)), FWHM_RANGE_PX[0]), FWHM_RANGE_PX[1])
    fwhm = measure_stars(pixels, bayer, x[:SHAPE_STARS], y[:SHAPE_STARS], start)[2]
    known = fwhm[np.isfinite(fwhm) & (fwhm > 0.0)]
    return min(max(float(np.median(known)), FWHM_RANGE_PX[0]), FWHM_RANGE_PX[1]) if len(known) else start


@njit(cache=True, nogil=True)
def aperture_flux(clean: Float32, x: Float64, y: Float64, radius: float) -> tuple[Float64, Float64]:
    """(flux, area in px) of circles about x, y (n,) on a plane (H, W); pixels on the rim count by 5x5 sub-pixels.

    What lies beyond the plane counts neither as light nor as area; NaN flux for a NaN position.
    """
    height, width = clean.shape
    flux, area = np.empty(len(x)), np.empty(len(x))
    for k in range(len(x)):
        flux[k], area[k] = np.nan, np.nan
        if not (np.isfinite(x[k]) and np.isfinite(y[k])):
            continue
        total = share = 0.0
        for j in range(max(0, round(y[k] - radius)), min(height, round(y[k] + radius) + 1)):
            for i in range(max(0, round(x[k] - radius)), min(width, round(x[k] + radius) + 1)):
                w = _share_inside(i - x[k], j - y[k], radius)
                total += w * clean[j, i]
                share += w
        flux[k], area[k] = total, share
    return flux, area


@njit(cache=True, nogil=True)
def _ring_flux(plane: Float32, x: Float64, y: Float64, radius: float) -> Float64:
    """Flux of circles about x, y (n,) on a plane (H, W) over the sky of a ring about each; NaN where the circle leaves
    the plane or holds no data, or fewer than 8 pixels of the ring are there.
    """
    height, width = plane.shape
    inner, outer = 2.0 * radius + 1.0, 2.0 * radius + 1.0 + RING_STEPS
    half = math.ceil(radius + 0.5)
    ring, flux = np.empty((2 * math.ceil(outer) + 2) ** 2, np.float32), np.full(len(x), np.nan)
    for k in range(len(x)):
        i0, j0 = round(x[k]), round(y[k])
        if i0 < half or j0 < half or i0 + half >= width or j0 + half >= height:
            continue
        n = _ring_pixels(plane, x[k], y[k], inner, outer, ring)
        if n < 8:
            continue
        total = share = 0.0
        for j in range(j0 - half, j0 + half + 1):
            for i in range(i0 - half, i0 + half + 1):
                w = _share_inside(i - x[k], j - y[k], radius)
                if w > 0.0:
                    total += w * plane[j, i]
                    share += w
        flux[k] = total - share * _middle_mean(ring[:n])
    return flux


@njit(cache=True, nogil=True)
def _ring_pixels(plane: Float32, x: float, y: float, inner: float, outer: float, ring: Float32) -> int:
    """Puts the finite pixels between two radii round (x, y) into `ring`; how many."""
    height, width = plane.shape
    n = 0
    for j in range(max(0, math.ceil(y - outer)), min(height, math.floor(y + outer) + 1)):
        row, dy2 = plane[j], (j - y) ** 2
        far = math.sqrt(max(0.0, outer * outer - dy2))
        near = math.sqrt(inner * inner - dy2) if dy2 < inner * inner else -1.0
        start, end = max(0, math.ceil(x - far)), min(width, math.floor(x + far) + 1)
        hole = max(start, math.ceil(x - near)), min(end, math.floor(x + near) + 1)
        for first, last in ((start, hole[0]), (max(hole), end)) if near >= 0.0 else ((start, end), (end, end)):
            for i in range(first, last):
                ring[n] = row[i]
                n += np.isfinite(row[i])
    return n


@njit(cache=True, nogil=True)
def _middle_mean(values: Float32) -> float:
    """Mean of the middle half of the values float32 (n,) in their order, all finite, n > 1."""
    quarter = len(values) // 4
    low, high = kth_smallest(values, quarter), kth_smallest(values, len(values) - quarter - 1)
    total, below, within = 0.0, 0, 0
    for v in values:
        below += v < low
        within += v < high
        total += float(v) * (low <= v < high)
    # of those that equal a limit as many count as the middle half has room for
    more = (below - quarter) * float(low) + (len(values) - quarter - within) * float(high)
    return (total + more) / (len(values) - 2 * quarter)


@njit(cache=True, nogil=True)
def _share_inside(dx: float, dy: float, radius: float) -> float:
    """Share of a pixel centred at (dx, dy) inside a circle about the origin, by 5x5 sub-pixels at the rim."""
    distance2 = dx * dx + dy * dy
    if radius > 0.71 and distance2 <= (radius - 0.71) ** 2:
        return 1.0
    if distance2 >= (radius + 0.71) ** 2:
        return 0.0
    n = 0
    for j in range(-2, 3):
        for i in range(-2, 3):
            n += (dx + 0.2 * i) ** 2 + (dy + 0.2 * j) ** 2 <= radius * radius
    return n / 25.0
