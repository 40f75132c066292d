"""Detection: which places of one plane stand out of the sky like stars.

Knows a single binned plane, (H, W) float32, NaN for no data; never colours, sensors or catalogues. Sky and noise from
a coarse mesh, a 3x3 matched filter, a threshold; pixels above it run uphill to the peak they belong to (a watershed),
and peaks that do not rise above the pass to a higher one are given to it, so that noise in the wings of a star, the
plateau of a saturated one and the knots of a satellite's trail are parts, not stars. After Bertin and Arnouts (1996,
A&AS 117, 393) in what is measured, and Edelsbrunner, Letscher and Zomorodian (2002) in how peaks are told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.robust import block_statistics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

MESH_PX = 64
MESH_STRIDE = 4
NOISE_STEP_PX = 2
"""Noise is told from pixels this far apart: those of a resampled picture are correlated with their neighbours."""
QUIETEST = 0.5
"""No part of the mesh counts as less noisy than this share of the median: padding has no noise at all."""
THRESHOLD_SIGMA = 3.5
"""In sigma of the unfiltered plane: 9.3 of the filtered one. At 3.0 real frames gave an eighth more stars, but no
better registration."""
FULLEST = 0.5
"""More than this share of the plane above the threshold is no field of stars: the threshold is doubled (F30)."""
MINIMUM_AREA = 4
RISE_SIGMA = 2.0
RISE_SHARE = 0.2
"""A peak is a star of its own if it rises above the pass to a higher one by both."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sources:
    """What was found, in no particular order; all arrays float64 (n,), px of the plane.

    `x, y`: centroid of the part above half the peak, 0-based; `flux`: sum over the isophote at the threshold; `area`
    of it; `major, minor`: standard deviations along the axes of the part above half the peak, `half_area` its area;
    `noise`: standard deviation of one pixel of the plane there.
    """

    x: Float64
    y: Float64
    flux: Float64
    area: Float64
    major: Float64
    minor: Float64
    half_area: Float64
    noise: Float64

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """Sky and noise of a plane on a coarse mesh, float32 (rows, columns) each; cells of equal size cover the plane."""

    level: Float32
    noise: Float32


def measure_mesh(plane: Float32) -> Mesh | None:
    """The mesh of a plane in cells of about 64 px, both medians over 3x3 cells; None if it holds no noise at all.

    Cells without data take the median of the others.
    """
    height = plane.shape[0]
    stride = min(MESH_STRIDE, max(1, height // MESH_PX))
    statistics = block_statistics(plane, MESH_PX, NOISE_STEP_PX, stride)
    level, noise = statistics[:, :, 0], statistics[:, :, 1]
    known = np.isfinite(level) & (noise > 0.0)
    if not known.any():
        return None
    typical = float(np.median(noise[known]))
    level = _smoothed(np.where(known, level, np.median(level[known])))
    noise = _smoothed(np.where(known, noise, typical))
    return Mesh(level=level.astype(np.float32), noise=np.maximum(noise, QUIETEST * typical).astype(np.float32))


def subtract_level(plane: Float32, mesh: Mesh) -> None:
    """Takes the sky off a plane (H, W), in place, by bilinear interpolation of the mesh; not finite becomes 0."""
    _subtract(plane, mesh.level)


def find_sources(clean: Float32, mesh: Mesh) -> Sources:
    """Sources of a plane less its sky (see the module), at 3.5 sigma and 4 connected px of the filtered plane."""
    height, width = clean.shape
    threshold = THRESHOLD_SIGMA
    pixels, values = _above(clean, mesh.noise, threshold)
    while len(pixels) > FULLEST * clean.size:
        threshold *= 2.0
        pixels, values = _above(clean, mesh.noise, threshold)
    first, second = _adjacent(pixels, width)
    basin, peaks = _watershed(values, first, second)
    noise = _noise_at(mesh.noise, pixels[peaks], height, width)
    owner = _merged(values, basin, peaks, noise, first, second)
    table = _measured(pixels, values, owner[basin], peaks, width)
    names = ("x", "y", "flux", "area", "major", "minor", "half_area")
    keep = table[3] >= MINIMUM_AREA
    return Sources(**dict(zip(names, table[:, keep], strict=True)), noise=noise[keep])


def _smoothed(cells: Float64) -> Float64:
    """Median over 3x3 cells; beyond the border lies what continues a slope."""
    padded = np.pad(cells, 1, mode="reflect", reflect_type="odd")
    rows, columns = cells.shape
    around = [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    return np.asarray(np.median(np.stack(around), axis=0))


@njit(cache=True, nogil=True)
def _row_of_mesh(cells: Float32, y: int, height: int, width: int, out: Float32) -> None:
    """Bilinear interpolation of cells into row y of a plane (height, width); level beyond the outer cells' centres."""
    rows, columns = cells.shape
    v = min(max((y + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
    r, below = int(v), min(int(v) + 1, rows - 1)
    fraction = np.float32(v - r)
    start = 0
    for c in range(columns + 1):
        left, right = max(c - 1, 0), min(c, columns - 1)
        a = cells[r, left] + fraction * (cells[below, left] - cells[r, left])
        b = cells[r, right] + fraction * (cells[below, right] - cells[r, right])
        centre = np.float32((c - 0.5) * width / columns - 0.5)
        slope = (b - a) * np.float32(columns / width)
        end = width if c == columns else math.ceil((c + 0.5) * width / columns - 0.5)
        part = out[start:end]
        for x in range(len(part)):
            part[x] = a + slope * (np.float32(start + x) - centre)
        start = end


@njit(cache=True, nogil=True)
def _subtract(plane: Float32, cells: Float32) -> None:
    """What `subtract_level` says."""
    height, width = plane.shape
    sky = np.empty(width, np.float32)
    for y in range(height):
        _row_of_mesh(cells, y, height, width, sky)
        row = plane[y]
        for x in range(width):
            v = row[x] - sky[x]
            row[x] = v if np.isfinite(v) else np.float32(0.0)


def _noise_at(cells: Float32, at: Int32, height: int, width: int) -> Float64:
    """Noise of the mesh cells that hold the pixels `at` (flat indices)."""
    rows, columns = cells.shape
    return cells[at // width * rows // height, at % width * columns // width].astype(np.float64)


@njit(cache=True, nogil=True)
def _above(clean: Float32, noise: Float32, threshold: float) -> tuple[Int32, Float32]:
    """(flat index, value) of each pixel above `threshold` sigma in the filtered plane, in raster order.

    The filter is [1 2 1] / 4 in x and in y; beyond the border lies sky (0).
    """
    height, width = clean.shape
    pixels, values = np.empty(clean.size, np.int32), np.empty(clean.size, np.float32)
    nothing, sigma = np.zeros(width, np.float32), np.empty(width, np.float32)
    line, smooth = np.zeros(width + 2, np.float32), np.empty(width, np.float32)
    left, middle, right = line[:width], line[1 : width + 1], line[2:]
    n, limit = 0, np.float32(threshold)
    for y in range(height):
        above, here = clean[y - 1] if y else nothing, clean[y]
        below = clean[y + 1] if y + 1 < height else nothing
        for x in range(width):
            middle[x] = above[x] + below[x] + np.float32(2.0) * here[x]
        _row_of_mesh(noise, y, height, width, sigma)
        found = False
        for x in range(width):
            smooth[x] = np.float32(0.0625) * (left[x] + right[x] + np.float32(2.0) * middle[x])
            found |= smooth[x] > limit * sigma[x]
        if found:
            for x in range(width):
                pixels[n], values[n] = y * width + x, smooth[x]
                n += smooth[x] > limit * sigma[x]
    return pixels[:n].copy(), values[:n].copy()


@njit(cache=True, nogil=True)
def _adjacent(pixels: Int32, width: int) -> tuple[Int32, Int32]:
    """Places in the list `pixels` (flat indices in raster order) of all pairs that touch, corners too."""
    first, second = np.empty(4 * len(pixels), np.int32), np.empty(4 * len(pixels), np.int32)
    n = below = 0
    for k in range(len(pixels)):
        at, x = pixels[k], pixels[k] % width
        if k + 1 < len(pixels) and x + 1 < width and pixels[k + 1] == at + 1:
            first[n], second[n] = k, k + 1
            n += 1
        low, high = at + width - (1 if x else 0), at + width + (1 if x + 1 < width else 0)
        while below < len(pixels) and pixels[below] < low:
            below += 1
        other = below
        while other < len(pixels) and pixels[other] <= high:
            first[n], second[n] = k, other
            n += 1
            other += 1
    return first[:n].copy(), second[:n].copy()


@njit(cache=True, nogil=True)
def _watershed(values: Float32, first: Int32, second: Int32) -> tuple[Int32, Int32]:
    """(basin of each pixel, place of each basin's peak): every pixel runs to its highest neighbour, up to a peak.

    Of equal neighbours the first counts as higher, so that a plateau has few peaks and no ring.
    """
    uphill = np.arange(len(values)).astype(np.int32)
    for pair in range(len(first)):
        low, high = second[pair], first[pair]
        if values[high] < values[low]:
            low, high = high, low
        best = uphill[low]
        if values[high] > values[best] or (values[high] == values[best] and high < best):
            uphill[low] = high
    basin = np.full(len(values), -1, np.int32)
    peaks, n = np.empty(len(values), np.int32), 0
    for k in range(len(values)):
        top = k
        while uphill[top] != top:
            top = uphill[top]
        if basin[top] < 0:
            basin[top] = n
            peaks[n] = top
            n += 1
        basin[k] = basin[top]
        uphill[k] = top
    return basin, peaks[:n].copy()


@njit(cache=True, nogil=True)
def _root(owner: Int32, k: int) -> int:
    """The basin that owns basin k in the end; halves the way there for the next who asks."""
    while owner[k] != k:
        owner[k] = owner[owner[k]]
        k = owner[k]
    return k


@njit(cache=True, nogil=True)
def _merged(values: Float32, basin: Int32, peaks: Int32, noise: Float64, first: Int32, second: Int32) -> Int32:
    """Which basin each basin belongs to: one that does not rise enough above its highest pass joins what lies beyond.

    A pass is the lower of two adjacent pixels of different basins. They are crossed from the highest down, so that a
    basin's parts are together before it is judged.
    """
    passes, n = np.empty(len(first), np.int32), 0
    for pair in range(len(first)):
        passes[n] = pair
        n += basin[first[pair]] != basin[second[pair]]
    passes = passes[:n]
    level = np.minimum(values[first[passes]], values[second[passes]])
    owner = np.arange(len(peaks)).astype(np.int32)
    for k in np.argsort(-level, kind="mergesort"):
        a, b = _root(owner, basin[first[passes[k]]]), _root(owner, basin[second[passes[k]]])
        if values[peaks[a]] < values[peaks[b]]:
            a, b = b, a
        if values[peaks[b]] - level[k] < max(RISE_SIGMA * noise[b], RISE_SHARE * level[k]):
            owner[b] = a
    for k in range(len(owner)):
        owner[k] = _root(owner, k)
    return owner


@njit(cache=True, nogil=True)
def _measured(pixels: Int32, values: Float32, owner: Int32, peaks: Int32, width: int) -> Float64:
    """(7, basins): x, y, flux, area, major, minor, half_area as `Sources` has them; area 0 for a basin that is owned.

    `owner`: basin of each pixel in the end. A pixel's own width (1 / 12) is part of the variances.
    """
    sums = np.zeros((len(peaks), 9))
    for k in range(len(pixels)):
        s, peak = sums[owner[k]], peaks[owner[k]]
        value = values[k]
        s[0] += value
        s[1] += 1.0
        if value >= 0.5 * values[peak]:
            dx = pixels[k] % width - pixels[peak] % width
            dy = pixels[k] // width - pixels[peak] // width
            s[2] += value
            s[3] += value * dx
            s[4] += value * dy
            s[5] += value * dx * dx
            s[6] += value * dy * dy
            s[7] += value * dx * dy
            s[8] += 1.0
    out = np.zeros((7, len(peaks)))
    for b in range(len(peaks)):
        s = sums[b]
        if s[1] > 0.0:
            mx, my = s[3] / s[2], s[4] / s[2]
            xx, yy = s[5] / s[2] - mx * mx + 1.0 / 12.0, s[6] / s[2] - my * my + 1.0 / 12.0
            middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), s[7] / s[2] - mx * my)
            out[0, b], out[1, b] = pixels[peaks[b]] % width + mx, pixels[peaks[b]] // width + my
            out[2, b], out[3, b], out[6, b] = s[0], s[1], s[8]
            out[4, b], out[5, b] = math.sqrt(middle + half), math.sqrt(max(middle - half, 0.0))
    return out
