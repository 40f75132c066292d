"""The photometric solve: gain, offset and plane of every tile and channel from all overlaps at once (SPEC phase 5).

Two tiles saw the same blocks of sky and the same stars (`science.overlaps`), so they differ only by gain, offset and
slope. Gain comes from stars, or from a regression where an overlap has real structure (a nebula); never from the level
of the background, which is not starlight. Offset and plane: one robust (Huber) least squares over the blocks of all
overlaps. Nothing is clipped at 0 and no minimum is subtracted; the overall sky stays. After Montage's background planes
and PixInsight's PhotometricMosaic, in idea. The cost is linear in the blocks, and in the tiles of a long mosaic.

A tile's correction is `gain * (pixel - pivot) + pivot + offset + slope_x (x - x_c) + slope_y (y - y_c)`, grid px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zemosaicd.science.overlaps import GAIN_FLOOR, Overlap
from zemosaicd.science.pairsolve import order_along, parts_of, solve_pairs

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

DYNAMIC_RANGE = 20.0
"""Spread of an overlap's structure over its block noise from which a regression may tell the gain."""
STRUCTURE_FLOOR = 0.03
"""Error of a gain from structure that no noise tells: of what a lens dims and a plane does not take away, part looks
like more or less nebula. Stars say it better wherever there are some."""
GAIN_PRIOR = 0.3
HUBER = 1.5
NEXT_TO_NOTHING = 1e-10
ROUNDS = 12
SLOPES_SEEN = 3.0
"""A tile's slope may be so many times what the slopes of the overlaps' differences lead one to expect."""
MAX_EFFECTIVE_BLOCKS = 400
"""An overlap counts for so many blocks at most: beyond that it is not noise that limits it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileExtent:
    """A tile's centre on the grid and half its longer side, px; how many frames it holds.

    `camera`: who took these; the units of a mosaic are those of one. `unit`: tiles that name the same have come to one
    scale and sky before, and are corrected as one; "": each by itself.
    """

    x: float
    y: float
    half_px: float
    frames: int
    camera: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """One overlap before and after: median step first - second, ADU a channel, and its ratio to the pixel noise.

    `uneven_adu`: 90th percentile of |block residual| after the correction. `blocks`: how many blocks it rests on.
    `gain_off_mag`: what is left of the ratio of star fluxes, NaN without stars, `scatter_mag`: that of single stars;
    `stars`: how many; `shift_px`: how far they lie apart in the median, x and y.
    """

    first: int
    second: int
    blocks: int
    before_adu: tuple[float, ...]
    after_adu: tuple[float, ...]
    after_sigma: tuple[float, ...]
    uneven_adu: tuple[float, ...]
    gain_off_mag: tuple[float, ...]
    scatter_mag: tuple[float, ...]
    stars: int
    shift_px: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCorrection:
    """A tile's correction, tuples in channel order; see the module's formula. Slopes in ADU a grid px."""

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


def solve_tiles(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], channels: int) -> TileSolution:
    """Gain, offset and plane of every tile and channel from all overlaps at once.

    Gains: robust weighted least squares of ln ratios; in each connected part the tiles with most frames have a gain of
    1 in the mean. Offsets and slopes: Huber, in units of the block noise, with slopes drawn towards 0 as far as the
    overlaps leave them open; in each connected part the mean offset and the mean slope are 0, so that the overall sky
    stays. Where several cameras took a part, both are said of the tiles of the one with most frames (`_leading`), whose
    ADU and sky the part then has. Tiles without overlaps are left as they are.
    """
    members: dict[str | int, list[TileExtent]] = {}
    for i, tile in enumerate(tiles):
        members.setdefault(tile.unit or i, []).append(tile)
    number = {name: u for u, name in enumerate(members)}
    each = [number[tile.unit or i] for i, tile in enumerate(tiles)]
    whole = [_joined(m) for m in members.values()]
    between = [o for o in overlaps if each[o.first] != each[o.second]]
    joined = [replace(o, first=each[o.first], second=each[o.second]) for o in between]
    corrections, components = _solve(joined, whole, channels)
    own = tuple(corrections[e] for e in each)
    return TileSolution(tiles=own, seams=tuple(_seam(o, own) for o in overlaps), components=components)


def _joined(tiles: Sequence[TileExtent]) -> TileExtent:
    """What the tiles of one unit cover."""
    if len(tiles) == 1:
        return tiles[0]
    x0, x1 = min(t.x - t.half_px for t in tiles), max(t.x + t.half_px for t in tiles)
    y0, y1 = min(t.y - t.half_px for t in tiles), max(t.y + t.half_px for t in tiles)
    frames = sum(t.frames for t in tiles)
    return replace(tiles[0], x=(x0 + x1) / 2, y=(y0 + y1) / 2, half_px=max(x1 - x0, y1 - y0) / 2, frames=frames)


def _leading(tiles: Sequence[TileExtent], members: I64) -> I64:
    """Of these tiles, those of the camera that took most frames of them; of two such, of the first."""
    frames: dict[str, int] = {}
    for i in members:
        frames[tiles[i].camera] = frames.get(tiles[i].camera, 0) + tiles[i].frames
    camera = max(frames, key=lambda c: frames[c])
    return members[[tiles[i].camera == camera for i in members]]


def _solve(
    overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], channels: int
) -> tuple[tuple[TileCorrection, ...], int]:
    """The correction of each, and how many connected parts they make."""
    n = len(tiles)
    first, second = (np.array([getattr(o, side) for o in overlaps], np.int64) for side in ("first", "second"))
    components, label = parts_of(first.tolist(), second.tolist(), n)
    place = order_along(np.array([t.x for t in tiles]), np.array([t.y for t in tiles]))
    blocks = _Blocks.of(overlaps, tiles)
    gain, pivot, measured = np.ones((channels, n)), np.zeros((channels, n)), np.zeros((channels, n), bool)
    planes = np.zeros((channels, n, 3))
    for k in range(channels):
        gain[k], measured[k] = _gains(overlaps, tiles, place, k)
        pivot[k] = _pivots(overlaps, n, k)
        if overlaps:
            planes[k] = _gauged(_planes(overlaps, blocks, tiles, place, gain[k], pivot[k], k), tiles, label)
    corrections = tuple(
        TileCorrection(
            gain=_tuple(gain[:, i]), pivot=_tuple(pivot[:, i]), offset=_tuple(planes[:, i, 0]),
            slope_x=_tuple(planes[:, i, 1]), slope_y=_tuple(planes[:, i, 2]), x=t.x, y=t.y,
            gain_measured=tuple(bool(m) for m in measured[:, i]), component=int(label[i]),
        )
        for i, t in enumerate(tiles)
    )  # fmt: skip
    return corrections, components


def _tuple(values: F64) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


# --- gains ---------------------------------------------------------------------------------------------------------


def _gains(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent], place: I64, k: int) -> tuple[F64, Bools]:
    """Correcting factor of each tile: 1 / (its response)."""
    n = len(tiles)
    rows = [(o.first, o.second, *known) for o in overlaps if (known := _pair_gain(o, k)) is not None]
    measured = np.zeros(n, bool)
    if not rows:
        return np.ones(n), measured
    first, second = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    ratio, sigma = (np.array([r[i] for r in rows]) for i in (2, 3))
    measured[first] = measured[second] = True
    weight = 1 / sigma**2
    for _ in range(ROUNDS):
        own, right = np.full((n, 1, 1), 1 / GAIN_PRIOR**2), np.zeros((n, 1))
        for side, sign in ((first, 1.0), (second, -1.0)):
            np.add.at(own[:, 0, 0], side, weight)
            np.add.at(right[:, 0], side, sign * weight * ratio)
        response = solve_pairs(own, first, second, -weight[:, None, None], right, place)[:, 0]
        off = np.abs(ratio - response[first] + response[second]) / sigma
        weight = np.minimum(1.0, HUBER / np.maximum(off, 1e-12)) / sigma**2
    # The graph of gains may be cut where that of overlaps is not: each of its parts has its own scale.
    _, part = parts_of(first.tolist(), second.tolist(), n)
    frames = np.array([t.frames for t in tiles])
    for p in np.unique(part):
        mine, heads = np.flatnonzero(part == p), _leading(tiles, np.flatnonzero(part == p))
        response[mine] -= response[heads[frames[heads] == frames[heads].max()]].mean()
    return np.exp(-response), measured


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
    spread = 1.4826 * float(np.median(np.abs(v - np.median(v))))
    if spread < DYNAMIC_RANGE * noise:  # a few bright blocks are stars, and these have been measured
        return None
    return math.log(gain), max(noise * math.sqrt(2) / (spread * math.sqrt(len(v))), STRUCTURE_FLOOR)


def _pivots(overlaps: Sequence[Overlap], n: int, k: int) -> F64:
    """The level that a tile's gain turns about: the median of its overlaps, so that gain and offset do not mix."""
    seen: list[list[F32]] = [[] for _ in range(n)]
    for o in overlaps:
        seen[o.first].append(o.a[k])
        seen[o.second].append(o.b[k])
    return np.array([float(np.median(np.concatenate(s))) if s else 0.0 for s in seen])


# --- offsets and planes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blocks:
    """The blocks of all overlaps one after the other, where each overlap's begin, and how an overlap's plane in its own
    coordinates, u = (x - x_middle) / scale, follows from the planes of its tiles in theirs: (p, 3, 3) for each."""

    start: I64
    u: F64
    v: F64
    first: I64
    second: I64
    from_first: F64
    from_second: F64

    @staticmethod
    def of(overlaps: Sequence[Overlap], tiles: Sequence[TileExtent]) -> _Blocks:
        start = np.concatenate([[0], np.cumsum([len(o.x) for o in overlaps])]).astype(np.int64)
        u, v = np.empty(start[-1]), np.empty(start[-1])
        turns = np.zeros((2, len(overlaps), 3, 3))
        for p, o in enumerate(overlaps):
            x, y = float(o.x.mean()), float(o.y.mean())
            scale = max(float(np.ptp(o.x)), float(np.ptp(o.y)), 1.0) / 2
            u[start[p] : start[p + 1]], v[start[p] : start[p + 1]] = (o.x - x) / scale, (o.y - y) / scale
            for side, t in enumerate((tiles[o.first], tiles[o.second])):
                turns[side, p] = np.diag([1.0, scale / t.half_px, scale / t.half_px])
                turns[side, p, 0, 1:] = (x - t.x) / t.half_px, (y - t.y) / t.half_px
        first, second = (np.array([getattr(o, side) for o in overlaps], np.int64) for side in ("first", "second"))
        return _Blocks(start=start, u=u, v=v, first=first, second=second, from_first=turns[0], from_second=turns[1])


def _planes(
    overlaps: Sequence[Overlap], blocks: _Blocks, tiles: Sequence[TileExtent], place: I64, gain: F64, pivot: F64, k: int
) -> F64:
    """(n, 3): offset, slope x, slope y of each tile by Huber least squares, before the gauge."""
    n, difference = len(tiles), np.concatenate([_difference(o, gain, pivot, k) for o in overlaps])
    step, slopes, noise = _lone_planes(blocks, difference)
    for p, o in enumerate(overlaps):  # never less than pixel noise can be in a block's median
        noise[p] = max(noise[p], 0.3 * float(o.noise[k]) / o.block_px, 1e-7 * max(1.0, abs(float(np.median(o.a[k])))))
    # Slopes are believed a priori up to what the overlaps show, so that a long chain of tiles does not bend.
    steps = 3 * max(float(np.median(noise)), float(np.median(np.abs(step))), 1e-9)
    prior = min(steps, max(SLOPES_SEEN * float(np.median(np.abs(slopes))), 1e-3 * float(np.median(noise))))
    damping = np.diag([0.0, 1 / prior**2, 1 / prior**2])
    share = np.minimum(1.0, MAX_EFFECTIVE_BLOCKS / np.diff(blocks.start))
    relative = np.zeros((len(overlaps), 3))
    solution = np.zeros((n, 3))
    for turn in range(ROUNDS):
        limit = HUBER * noise if turn else np.full(len(noise), np.inf)
        moments, sums = _moments(blocks.start, blocks.u, blocks.v, difference, relative, limit)
        moments, sums = moments * (share / noise**2)[:, None, None], sums * (share / noise**2)[:, None]
        own, right = np.tile(damping, (n, 1, 1)), np.zeros((n, 3))
        for side, turns, sign in ((blocks.first, blocks.from_first, 1.0), (blocks.second, blocks.from_second, -1.0)):
            np.add.at(own, side, np.einsum("pai,pab,pbj->pij", turns, moments, turns))
            np.add.at(right, side, sign * np.einsum("pai,pa->pi", turns, sums))
        own += NEXT_TO_NOTHING * float(own[:, 0, 0].max()) * np.eye(3)  # a plane common to all tiles is open
        cross = -np.einsum("pai,pab,pbj->pij", blocks.from_first, moments, blocks.from_second)
        solution = solve_pairs(own, blocks.first, blocks.second, cross, right, place)
        relative = np.einsum("pij,pj->pi", blocks.from_first, solution[blocks.first])
        relative -= np.einsum("pij,pj->pi", blocks.from_second, solution[blocks.second])
    half = np.array([t.half_px for t in tiles])
    return solution / np.stack([np.ones(n), half, half], axis=1)


def _difference(o: Overlap, gain: F64, pivot: F64, k: int) -> F64:
    """second - first after gains: what offset and plane of first minus those of second must make up."""
    a = gain[o.first] * (o.a[k].astype(np.float64) - pivot[o.first]) + pivot[o.first]
    b = gain[o.second] * (o.b[k].astype(np.float64) - pivot[o.second]) + pivot[o.second]
    return np.asarray(b - a)


@njit(cache=True, nogil=True)
def _moments(start: I64, u: F64, v: F64, difference: F64, plane: F64, limit: F64) -> tuple[F64, F64]:
    """Per overlap sum of w (1, u, v)(1, u, v)' and of w d (1, u, v); w = min(1, limit / |d - plane|) (Huber)."""
    pairs = len(start) - 1
    moments, sums = np.zeros((pairs, 3, 3)), np.zeros((pairs, 3))
    base = np.ones(3)
    for p in range(pairs):
        for i in range(start[p], start[p + 1]):
            base[1], base[2] = u[i], v[i]
            off = abs(difference[i] - plane[p, 0] - plane[p, 1] * u[i] - plane[p, 2] * v[i])
            weight = 1.0 if off <= limit[p] else limit[p] / off
            for a in range(3):
                sums[p, a] += weight * difference[i] * base[a]
                for b in range(3):
                    moments[p, a, b] += weight * base[a] * base[b]
    return moments, sums


def _lone_planes(blocks: _Blocks, difference: F64) -> tuple[F64, F64, F64]:
    """Each overlap by itself: the median of its differences; the slopes (p, 2) of their least-squares plane, in ADU
    at a tile's edge; the scatter (1.4826 MAD) about it."""
    count = np.diff(blocks.start)
    nothing, everything = np.zeros((len(count), 3)), np.full(len(count), np.inf)
    moments, sums = _moments(blocks.start, blocks.u, blocks.v, difference, nothing, everything)
    moments += 1e-9 * count[:, None, None] * np.eye(3)  # blocks in one row leave a slope open
    plane = np.linalg.solve(moments, sums[:, :, None])[:, :, 0]
    each = np.repeat(plane, count, axis=0)
    off = difference - each[:, 0] - each[:, 1] * blocks.u - each[:, 2] * blocks.v
    ends = blocks.start[1:-1]
    step = np.array([np.median(d) for d in np.split(difference, ends)])
    noise = np.array([1.4826 * np.median(np.abs(d - np.median(d))) for d in np.split(off, ends)])
    return step, plane[:, 1:] / blocks.from_first[:, [1, 2], [1, 2]], noise


def _gauged(planes: F64, tiles: Sequence[TileExtent], label: I64) -> F64:
    """Take one common plane out of each connected part, so that the mean of its leading camera's tiles is 0."""
    out = planes.copy()
    centre = np.array([(t.x, t.y) for t in tiles])
    for part in np.unique(label):
        mine, heads = label == part, _leading(tiles, np.flatnonzero(label == part))
        slope = out[heads, 1:].mean(axis=0)
        out[mine, 1:] -= slope
        out[mine, 0] -= centre[mine] @ slope
        out[mine, 0] -= out[heads, 0].mean()
    return out


# --- what is left --------------------------------------------------------------------------------------------------


def _seam(o: Overlap, tiles: Sequence[TileCorrection]) -> Seam:
    before, after, uneven, gains = [], [], [], []
    for k in range(len(o.a)):
        a, b = (_at(tiles[i], k, v[k], o.x, o.y) for i, v in ((o.first, o.a), (o.second, o.b)))
        before.append(float(np.median(o.a[k] - o.b[k])))
        after.append(float(np.median(a - b)))
        uneven.append(float(np.percentile(np.abs(a - b), 90)))
        ratio = float(o.gain[k]) * tiles[o.first].gain[k] / tiles[o.second].gain[k]
        gains.append(-2.5 * math.log10(ratio) if math.isfinite(ratio) and ratio > 0 else math.nan)
    sigma = [s / n if n > 0 else math.nan for s, n in zip(after, o.noise.tolist(), strict=True)]
    return Seam(
        first=o.first, second=o.second, blocks=len(o.x), before_adu=tuple(before), after_adu=tuple(after),
        after_sigma=tuple(sigma), uneven_adu=tuple(uneven), gain_off_mag=tuple(gains),
        scatter_mag=o.scatter_mag, stars=o.stars, shift_px=o.shift_px,
    )  # fmt: skip


def _at(t: TileCorrection, k: int, value: F32, x: F64, y: F64) -> F64:
    flat = t.pivot[k] + t.offset[k] + t.slope_x[k] * (x - t.x) + t.slope_y[k] * (y - t.y)
    return np.asarray(t.gain[k] * (value.astype(np.float64) - t.pivot[k]) + flat)
