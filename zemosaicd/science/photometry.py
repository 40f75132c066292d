"""Photometry between frames and between tiles: transparency, gain, offset and plane, solved over all overlaps.

Frames: the transparency of each against a reference, from the ratio of star fluxes. Tiles: on the mosaic's common
lattice two tiles see the same sky, so that block medians of their overlap, taken on the same pixels, differ only by
gain, offset and slope. Gain comes from stars in the overlap, or from a regression where the overlap has real
structure (a nebula); never from the level of the background, which is not starlight (else it is 1). Offset and
plane: one robust (Huber) least squares per channel over all overlaps at once. Nothing is clipped at 0 and no minimum
is subtracted; the overall sky stays. After Montage's background planes and PixInsight's PhotometricMosaic, in idea.

A tile's correction is `gain * (pixel - pivot) + pivot + offset + slope_x (x - x_c) + slope_y (y - y_c)`, lattice px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from zemosaicd.model import Wcs
from zemosaicd.science.matching import one_to_one
from zemosaicd.science.overlaps import (
    BLOCK_PX,
    FLUX_RATIO_FLOOR,
    GAIN_FLOOR,
    MIN_COMMON_STARS,
    Overlap,
    weighted_median,
)
from zemosaicd.science.registration import sky_vectors
from zemosaicd.science.stars import StarList
from zemosaicd.sphere import ARCSEC_RAD, scale_arcsec

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

MIN_STAR_SNR = 10.0
MATCH_PX = 2.0
DYNAMIC_RANGE = 20.0
"""Spread of an overlap's structure over its block noise from which a regression may tell the gain."""
GAIN_PRIOR = 0.3
HUBER = 1.5
ROUNDS = 12
MAX_EFFECTIVE_BLOCKS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScale:
    """Transparency of a frame relative to the reference (flux = transparency x reference flux).

    `sigma`: its standard error, NaN if unknown; `stars`: how many it rests on; `measured` false: fewer than 3 stars in
    common, 1.0 assumed.
    """

    transparency: float
    sigma: float
    stars: int
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TileExtent:
    """A tile's centre on the lattice and half its longer side, px; how many frames it holds."""

    x: float
    y: float
    half_px: float
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """One overlap before and after: median step first - second, ADU a channel, and its ratio to the pixel noise.

    `uneven_adu`: 90th percentile of |block residual| after the correction. `blocks`: how many blocks it rests on.
    """

    first: int
    second: int
    blocks: int
    before_adu: tuple[float, ...]
    after_adu: tuple[float, ...]
    after_sigma: tuple[float, ...]
    uneven_adu: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCorrection:
    """A tile's correction, tuples in channel order; see the module's formula. Slopes in ADU a lattice px."""

    gain: tuple[float, ...]
    pivot: tuple[float, ...]
    offset: tuple[float, ...]
    slope_x: tuple[float, ...]
    slope_y: tuple[float, ...]
    x: float
    y: float
    gain_measured: tuple[bool, ...]
    component: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSolution:
    """Corrections of all tiles, the seams, and how many parts the graph of overlaps falls into (1: all connected)."""

    tiles: tuple[TileCorrection, ...]
    seams: tuple[Seam, ...]
    components: int


def frame_scales(stars: Sequence[StarList], solutions: Sequence[Wcs], reference: int) -> tuple[FrameScale, ...]:
    """Transparency of each frame against frame `reference`, from star flux ratios (weighted median).

    Stars are matched on the sky within 2 px; those below SNR 10 in either frame are left out. Fluxes must be on one
    scale (same exposure and gain). Fewer than 3 common stars: 1.0 with `measured` false.
    """
    ref = _bright(stars[reference])
    there = sky_vectors(solutions[reference], stars[reference].x[ref], stars[reference].y[ref])
    result = []
    for mine, wcs in zip(stars, solutions, strict=True):
        pick = _bright(mine)
        here = sky_vectors(wcs, mine.x[pick], mine.y[pick])
        own, other, _ = one_to_one(here, there, MATCH_PX * scale_arcsec(wcs) * ARCSEC_RAD)
        result.append(_scale(mine, pick[own], stars[reference], ref[other]))
    return tuple(result)


def _bright(stars: StarList) -> I64:
    return np.flatnonzero((stars.snr >= MIN_STAR_SNR) & (stars.flux > 0))


def _scale(mine: StarList, own: I64, reference: StarList, other: I64) -> FrameScale:
    if len(own) < MIN_COMMON_STARS:
        return FrameScale(transparency=1.0, sigma=math.nan, stars=len(own), measured=False)
    ratio = np.log(mine.flux[own].astype(np.float64) / reference.flux[other])
    variance = 1 / mine.snr[own].astype(np.float64) ** 2 + 1 / reference.snr[other] ** 2 + FLUX_RATIO_FLOOR**2
    centre, sigma = weighted_median(ratio, 1 / variance)
    return FrameScale(transparency=math.exp(centre), sigma=sigma, stars=len(own), measured=True)


def solve_tiles(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], channels: int) -> TileSolution:
    """Gain, offset and plane of every tile and channel from all overlaps at once (SPEC phase 5).

    Gains: weighted least squares of ln ratios, 1 for the tile with most frames of each connected part. Offsets and
    slopes: Huber, in units of the block noise, with slopes drawn towards 0 as far as the overlaps leave them open; in
    each connected part the mean offset and the mean slope are 0, so that the overall sky stays. Tiles without overlaps
    are left as they are.
    """
    n = len(tiles)
    components, label = _parts([o.first for o in overlaps], [o.second for o in overlaps], n)
    gain, pivot = np.ones((channels, n)), np.zeros((channels, n))
    measured = np.zeros((channels, n), bool)
    planes = np.zeros((channels, n, 3))
    for k in range(channels):
        gain[k], measured[k] = _gains(overlaps, tiles, k)
        pivot[k] = _pivots(overlaps, n, k)
        planes[k] = _planes(overlaps, tiles, label, gain[k], pivot[k], k)
    corrections = tuple(
        TileCorrection(
            gain=_tuple(gain[:, i]), pivot=_tuple(pivot[:, i]), offset=_tuple(planes[:, i, 0]),
            slope_x=_tuple(planes[:, i, 1]), slope_y=_tuple(planes[:, i, 2]), x=t.x, y=t.y,
            gain_measured=tuple(bool(m) for m in measured[:, i]), component=int(label[i]),
        )
        for i, t in enumerate(tiles)
    )  # fmt: skip
    return TileSolution(tiles=corrections, seams=tuple(_seam(o, corrections) for o in overlaps), components=components)


def _parts(first: Sequence[int], second: Sequence[int], n: int) -> tuple[int, I64]:
    """How many connected parts n tiles fall into under these links, and the part of each."""
    links = np.array(first, np.int64), np.array(second, np.int64)
    count, label = connected_components(sparse.coo_matrix((np.ones(len(first)), links), shape=(n, n)), directed=False)
    return int(count), label.astype(np.int64)


def corrected(cube: F32, correction: TileCorrection, x0: int, y0: int) -> F32:
    """A window (C, H, W) of a tile at lattice (x0, y0), float32, corrected. NaN stays NaN; nothing is clipped."""
    _, height, width = cube.shape
    x, y = np.arange(width) + (x0 - correction.x), np.arange(height) + (y0 - correction.y)
    out = np.empty_like(cube)
    for k in range(cube.shape[0]):
        g, p = correction.gain[k], correction.pivot[k]
        flat = (1 - g) * p + correction.offset[k]
        plane = (flat + correction.slope_x[k] * x)[None, :] + (correction.slope_y[k] * y)[:, None]
        out[k] = cube[k] * np.float32(g) + plane.astype(np.float32)
    return out


def _tuple(values: F64) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _pair_gain(o: Overlap, k: int) -> tuple[float, float] | None:
    """(ln(first / second), sigma) of an overlap from its stars and its structure; None if neither tells."""
    known = []
    if math.isfinite(o.gain[k]) and o.gain[k] > 0:
        known.append((math.log(o.gain[k]), max(float(o.gain_sigma[k]), GAIN_FLOOR)))
    regression = _regression(o.x, o.y, o.a[k].astype(np.float64), o.b[k].astype(np.float64))
    if regression is not None:
        known.append(regression)
    if not known:
        return None
    weight = [1 / s**2 for _, s in known]
    return sum(g * w for (g, _), w in zip(known, weight, strict=True)) / sum(weight), 1 / math.sqrt(sum(weight))


def _regression(x: F64, y: F64, a: F64, b: F64) -> tuple[float, float] | None:
    """Gain from the structure two tiles share once each has lost its own plane; None without dynamic range.

    Slope = sign-true ratio of scatters (reduced major axis) over blocks that agree, which neither tile's noise biases.
    """
    if len(a) < 30:
        return None
    design = np.stack([np.ones_like(x), (x - x.mean()) / (np.ptp(x) + 1), (y - y.mean()) / (np.ptp(y) + 1)], axis=1)
    keep = np.ones(len(a), bool)
    for _ in range(4):
        basis, _ = np.linalg.qr(design[keep])
        u, v = (c[keep] - basis @ (basis.T @ c[keep]) for c in (a, b))
        ss, tt, st = float(u @ u), float(v @ v), float(u @ v)
        if st <= 0:
            return None
        gain = math.sqrt(ss / tt)
        off = np.zeros(len(a))
        off[keep] = u - gain * v
        noise = 1.4826 * float(np.median(np.abs(off[keep]))) / math.hypot(1, gain)
        fresh = keep & (np.abs(off) <= 4 * max(noise, 1e-12) * math.hypot(1, gain))
        if int(fresh.sum()) < 30 or np.array_equal(fresh, keep):
            break
        keep = fresh
    spread = math.sqrt(tt / len(v))
    if spread < DYNAMIC_RANGE * noise:
        return None
    return math.log(gain), max(noise * math.sqrt(2) / (spread * math.sqrt(len(v))), GAIN_FLOOR / 2)


def _gains(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], k: int) -> tuple[F64, Bools]:
    """Correcting factor of each tile: 1 / (its response), 1 for the richest tile of each connected part."""
    n = len(tiles)
    rows = [(o.first, o.second, *known) for o in overlaps if (known := _pair_gain(o, k)) is not None]
    normal, right, measured = np.zeros((n, n)), np.zeros(n), np.zeros(n, bool)
    np.fill_diagonal(normal, 1 / GAIN_PRIOR**2)
    for i, j, ratio, sigma in rows:
        w = 1 / sigma**2
        normal[i, i] += w
        normal[j, j] += w
        normal[i, j] -= w
        normal[j, i] -= w
        right[i] += w * ratio
        right[j] -= w * ratio
        measured[i] = measured[j] = True
    response = np.linalg.solve(normal, right) if n else right
    # A gain graph may be cut where the overlap graph is not: each of its parts has its own anchor.
    _, part = _parts([r[0] for r in rows], [r[1] for r in rows], n)
    for p in np.unique(part):
        mine = np.flatnonzero(part == p)
        anchor = max(mine.tolist(), key=lambda i: (tiles[i].frames, -i))
        response[mine] -= response[anchor]
    return np.exp(-response), measured


def _pivots(overlaps: Sequence[Overlap], n: int, k: int) -> F64:
    """The level that a tile's gain turns about: the median of its overlaps, so that gain and offset do not mix."""
    seen: list[list[F32]] = [[] for _ in range(n)]
    for o in overlaps:
        seen[o.first].append(o.a[k])
        seen[o.second].append(o.b[k])
    return np.array([float(np.median(np.concatenate(s))) if s else 0.0 for s in seen])


def _planes(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], label: I64, gain: F64, pivot: F64, k: int) -> F64:
    """(n, 3): offset, slope x, slope y of each tile by Huber least squares, unknowns in ADU at the tile's edge."""
    n = len(tiles)
    result = np.zeros((n, 3))
    if not overlaps:
        return result
    difference = [_difference(o, gain, pivot, k) for o in overlaps]
    step = np.array([np.median(d) for d in difference])
    noise = np.array([_deplaned_sigma(o, d) for o, d in zip(overlaps, difference, strict=True)])
    inner = np.concatenate([d - s for d, s in zip(difference, step, strict=True)])
    # Slopes are believed a priori up to what the overlaps show: their steps, and their spread inside.
    prior = 3 * max(float(np.median(noise)), 1.4826 * float(np.median(np.abs(inner))), float(np.median(np.abs(step))))
    jacobian, owner = _design(overlaps, tiles)
    target = np.concatenate(difference)
    share = np.array([min(1.0, MAX_EFFECTIVE_BLOCKS / len(d)) for d in difference])[owner]
    sigma = noise[owner]
    damping = np.tile([1e-6, 1.0, 1.0], n) / max(prior, 1e-9) ** 2
    weight = share.copy()
    for _ in range(ROUNDS):
        scaled = sparse.diags(weight / sigma**2)
        normal = (jacobian.T @ scaled @ jacobian + sparse.diags(damping)).tocsc()
        solution = splu(normal).solve(jacobian.T @ (scaled @ target))
        off = np.abs(target - jacobian @ solution) / sigma
        weight = share * np.minimum(1.0, HUBER / np.maximum(off, 1e-12))
    half = np.array([t.half_px for t in tiles])
    result = solution.reshape(n, 3) / np.stack([np.ones(n), half, half], axis=1)
    return _gauged(result, tiles, label)


def _difference(o: Overlap, gain: F64, pivot: F64, k: int) -> F64:
    """second - first after gains: what offset and plane of first minus those of second must make up."""
    a = gain[o.first] * (o.a[k].astype(np.float64) - pivot[o.first]) + pivot[o.first]
    b = gain[o.second] * (o.b[k].astype(np.float64) - pivot[o.second]) + pivot[o.second]
    return np.asarray(b - a)


def _deplaned_sigma(o: Overlap, difference: F64) -> float:
    """Scatter of an overlap's blocks about their own plane; never less than pixel noise can be in a block's median."""
    design = np.stack([np.ones_like(o.x), o.x - o.x.mean(), o.y - o.y.mean()], axis=1)
    fit, *_ = np.linalg.lstsq(design, difference, rcond=None)
    off = difference - design @ fit
    floor = 1e-4 * max(1.0, float(np.median(np.abs(o.a))))
    return max(
        1.4826 * float(np.median(np.abs(off - np.median(off)))), 0.3 * float(np.median(o.noise)) / BLOCK_PX, floor
    )


def _design(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent]) -> tuple[sparse.csr_matrix, I64]:
    """Rows: blocks; columns: 3 a tile (offset, slope x, slope y at the edge). Also the overlap that each row is of."""
    rows, columns, values, owner = [], [], [], []
    base = 0
    for which, o in enumerate(overlaps):
        index = base + np.arange(len(o.x))
        for tile, sign in ((o.first, 1.0), (o.second, -1.0)):
            t = tiles[tile]
            for c, v in enumerate((np.ones_like(o.x), (o.x - t.x) / t.half_px, (o.y - t.y) / t.half_px)):
                rows.append(index)
                columns.append(np.full(len(o.x), 3 * tile + c))
                values.append(sign * v)
        owner.append(np.full(len(o.x), which))
        base += len(o.x)
    parts = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix(parts, shape=(base, 3 * len(tiles))), np.concatenate(owner)


def _gauged(planes: F64, tiles: Sequence[TileExtent], label: I64) -> F64:
    """Take one common plane out of each connected part, so that its mean offset and mean slope are 0."""
    out = planes.copy()
    centre = np.array([(t.x, t.y) for t in tiles])
    for part in np.unique(label):
        mine = label == part
        slope = out[mine, 1:].mean(axis=0)
        out[mine, 1:] -= slope
        out[mine, 0] -= centre[mine] @ slope
        out[mine, 0] -= out[mine, 0].mean()
    return out


def _seam(o: Overlap, tiles: Sequence[TileCorrection]) -> Seam:
    before, after, uneven = [], [], []
    for k in range(len(o.a)):
        a, b = (_at(tiles[i], k, v[k], o.x, o.y) for i, v in ((o.first, o.a), (o.second, o.b)))
        before.append(float(np.median(o.a[k] - o.b[k])))
        after.append(float(np.median(a - b)))
        uneven.append(float(np.percentile(np.abs(a - b), 90)))
    sigma = [s / n if n > 0 else math.nan for s, n in zip(after, o.noise, strict=True)]
    return Seam(
        first=o.first, second=o.second, blocks=len(o.x), before_adu=tuple(before), after_adu=tuple(after),
        after_sigma=tuple(float(s) for s in sigma), uneven_adu=tuple(uneven),
    )  # fmt: skip


def _at(t: TileCorrection, k: int, value: F32, x: F64, y: F64) -> F64:
    flat = t.pivot[k] + t.offset[k] + t.slope_x[k] * (x - t.x) + t.slope_y[k] * (y - t.y)
    return np.asarray(t.gain[k] * (value.astype(np.float64) - t.pivot[k]) + flat)
