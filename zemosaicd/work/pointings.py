"""What ties pointings to each other before they are stacked together (D3): one scale of flux, one sky.

Within a pointing Phase 2 has solved both. Between two that share sky, scales follow from the stars in common, and skies
from differences of frames that are brought to the lattice just as the stack will bring them: there stars and nebula
cancel, and what stays is a plane for each pointing. Both are solved over all pairs of a kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.canvas import Box, cut, lattice, window
from zemosaicd.core.plan import PlanSettings, kind_of, pointings
from zemosaicd.model import FramePlan, FrameSky, Grid, Plan, TileSpec, Wcs
from zemosaicd.science.photometry import frame_scales
from zemosaicd.science.skylight import UNKNOWN
from zemosaicd.science.stars import StarList
from zemosaicd.work import members
from zemosaicd.work.jobs import StackSettings
from zemosaicd.work.planning import FixedPixels, Stars, ideal_stars

F64 = NDArray[np.float64]

COMPARED = 6
"""So many frames of a pointing are held against the same number of another's, for their scales ..."""
WARPED = 4
"""... and so many for their skies."""
BLOCK_PX = 32
STRIPS = 24
"""At most so many rows of blocks are looked at where two pointings overlap."""
LEAST_SEEN = 0.6
"""Of a block, which part both pointings must see."""
ROUNDS = 4
HUBER = 2.0
SLOPE_PRIOR = 0.02
"""How strongly a slope is drawn to 0, against one block at the edge of a field: only what nothing else tells."""


# --- one scale of flux ---------------------------------------------------------------------------------------------


def one_scale(frames: list[FramePlan], stars: Stars, settings: PlanSettings) -> list[FramePlan]:
    """Transparencies that hold within each pointing -> that hold over all pointings of a kind.

    The logarithms of the pointings' scales solve the differences that shared stars show (weighted least squares); the
    pointings with the most frames have scale 1 in the mean, as in Phase 5. One without shared stars keeps its own.
    """
    done: list[FramePlan] = []
    for kind in sorted({kind_of(f) for f in frames}):
        groups = pointings([f for f in frames if kind_of(f) == kind], settings)
        logs = _solve(len(groups), groups[0][0].facts.channels, _differences(groups, stars))
        most = max(len(g) for g in groups)
        logs -= logs[[i for i, g in enumerate(groups) if len(g) == most]].mean(axis=0)
        for group, log in zip(groups, logs, strict=True):
            done += [replace(f, transparency=tuple((np.array(f.transparency) * np.exp(log)).tolist())) for f in group]
    return done


def _differences(groups: Sequence[Sequence[FramePlan]], stars: Stars) -> list[tuple[int, int, F64, float]]:
    """(first, second, log of second's scale over first's (C,), its weight) for pointings that share stars."""
    found: list[tuple[int, int, F64, float]] = []
    for i, a in enumerate(groups):
        for j, b in enumerate(groups[:i]):
            if _near(a[0], b[0]):
                scales = [s for s in _compared(a, b, stars) if s[1] > 0.0]
                if len(scales) > 0:
                    weight = 1.0 / np.array([s[1] for s in scales]) ** 2
                    values = np.average([s[0] for s in scales], axis=0, weights=weight)
                    found.append((j, i, np.asarray(values), float(weight.mean())))
    return found


def _compared(a: Sequence[FramePlan], b: Sequence[FramePlan], stars: Stars) -> list[tuple[F64, float]]:
    """(log of a's scale over b's (C,), sigma) from frames of the two, their own transparencies taken out."""
    measured: list[tuple[F64, float]] = []
    mine = sorted(a, key=lambda f: -f.stars)[:COMPARED]
    for other in sorted(b, key=lambda f: -f.stars)[:COMPARED]:
        both = [other, *mine]
        scales = frame_scales([_evenly_lit(stars[f.frame], f) for f in both], [f.wcs for f in both], 0)
        for frame, scale in zip(mine, scales[1:], strict=True):
            if scale.measured:
                own = np.log(np.array(frame.transparency) / np.array(other.transparency))
                measured.append((np.log(np.array(scale.transparency)) - own, scale.sigma))
    return measured


def _evenly_lit(stars: StarList, frame: FramePlan) -> StarList:
    """The stars in their ideal places, with the fluxes that they would have in the middle of the sensor.

    What two pointings share lies at their edges, and by chance nearer to the middle of one of them: on a night of nine
    pointings and 15 % of vignetting that moved one by 0.4 % against the others.
    """
    terms = () if frame.sky is None else frame.sky.illumination
    width, height = frame.facts.width, frame.facts.height
    r2 = ((stars.x - (width - 1) / 2) ** 2 + (stars.y - (height - 1) / 2) ** 2) / ((width**2 + height**2) / 4)
    light = replace(UNKNOWN, terms=terms).at(r2)
    return replace(ideal_stars(stars, frame), flux=(stars.flux / light).astype(np.float32))


def _near(a: FramePlan, b: FramePlan) -> bool:
    grids = [Grid(wcs=f.wcs, width=f.facts.width, height=f.facts.height) for f in (a, b)]
    apart = sphere.separation_deg(*(sphere.centre_of(g) for g in grids))
    return apart < sum(sphere.field_radius_deg(g) for g in grids)


def _solve(count: int, channels: int, differences: Sequence[tuple[int, int, F64, float]]) -> F64:
    """(count, C) float64 of the least squares; of each connected part the mean is 0."""
    design, right = np.zeros((len(differences), count)), np.zeros((len(differences), channels))
    for row, (i, j, value, weight) in enumerate(differences):
        root = float(np.sqrt(weight))
        design[row, i], design[row, j], right[row] = -root, root, root * value
    if not differences:
        return np.zeros((count, channels))
    return np.asarray(np.linalg.lstsq(design, right, rcond=1e-10)[0])


# --- one sky -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shared:
    """What pointing `second` lies above pointing `first`: blocks at (u, v) of the lattice (m,), ADU (m, C)."""

    first: int
    second: int
    u: F64
    v: F64
    above: F64


def one_sky(frames: list[FramePlan], fixed: FixedPixels, settings: PlanSettings) -> list[FramePlan]:
    """Skies that hold within each pointing -> that hold over all pointings of a kind.

    A plane a pointing and channel is fitted to the differences (Huber); the mean plane of all is 0, as in Phase 5. One
    that shares no sky keeps its own.
    """
    done: list[FramePlan] = []
    for kind in sorted({kind_of(f) for f in frames}):
        groups = pointings([f for f in frames if kind_of(f) == kind], settings)
        base = lattice([f for g in groups for f in g], settings.orientation)
        boxes = [window(g, base) for g in groups]
        shared = [s for pair in _pairs(boxes) if (s := _difference(groups, *pair, base, fixed)) is not None]
        half = 0.5 * max(max(f.facts.width, f.facts.height) for f in groups[0])
        middles = np.array([(0.0, 0.0) if b is None else ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes])
        planes = _solve_planes(len(groups), shared, middles, half, groups[0][0].facts.channels)
        for group, plane, middle in zip(groups, planes, middles, strict=True):
            done += [_over(f, base, plane, middle, half, groups[0][0]) for f in group]
    return done


def _pairs(boxes: Sequence[Box | None]) -> Iterator[tuple[int, int, Box]]:
    for (i, a), (j, b) in itertools.combinations(enumerate(boxes), 2):
        if a is not None and b is not None:
            box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
            if min(box[2] - box[0], box[3] - box[1]) >= BLOCK_PX:
                yield i, j, box


def _difference(
    groups: Sequence[Sequence[FramePlan]], i: int, j: int, box: Box, base: Wcs, fixed: FixedPixels
) -> _Shared | None:
    """The blocks of two pointings' overlap, from their best frames."""
    stacks = []
    for group in (groups[i], groups[j]):
        there = (f for f in group if Path(f.cache).exists())  # of one that is gone for good the others must tell
        best = sorted(there, key=lambda f: (-f.stars, f.frame))[:WARPED]
        if not best:
            return None
        known = {f.frame: f for f in (*best, groups[0][0])}
        spec = TileSpec(
            tile=0, mosaic="", group="", frames=tuple(f.frame for f in best), reference=groups[0][0].frame,
            grid=cut(base, box), channels=best[0].facts.channels, mount_mode=best[0].mount_mode,
        )  # fmt: skip
        plan = Plan(frames=known, tiles=(), mosaics=(), fixed_pixels=fixed)
        stacks.append(members.stack_of(plan, spec, best, StackSettings(kernel="catmull_rom")))
    tops = range(0, box[3] - box[1] - BLOCK_PX + 1, BLOCK_PX)
    rows = [_row_of_blocks(stacks[0], stacks[1], top) for top in tops[:: max(1, -(-len(tops) // STRIPS))]]
    found = np.concatenate(rows)
    if not len(found):
        return None
    return _Shared(first=i, second=j, u=found[:, 0] + box[0], v=found[:, 1] + box[1], above=found[:, 2:])


def _row_of_blocks(a: members.Stack, b: members.Stack, top: int) -> F64:
    """(m, 2 + C): middle of each block that both see on the overlap's own pixels, and by how much b lies above a."""
    width = a.spec.grid.width // BLOCK_PX * BLOCK_PX
    (mine, seen_a), (other, seen_b) = (_mean(s, top, width) for s in (a, b))
    both = seen_a & seen_b
    off = np.where(both, other - mine, np.nan)
    blocks = off.reshape(len(off), BLOCK_PX, -1, BLOCK_PX).transpose(2, 0, 1, 3).reshape(-1, len(off), BLOCK_PX**2)
    enough = both.reshape(BLOCK_PX, -1, BLOCK_PX).mean(axis=(0, 2)) >= LEAST_SEEN
    x = (np.flatnonzero(enough) + 0.5) * BLOCK_PX - 0.5
    return np.column_stack([x, np.full(len(x), top + (BLOCK_PX - 1) / 2), np.nanmedian(blocks[enough], axis=2)])


def _mean(stack: members.Stack, top: int, width: int) -> tuple[F64, NDArray[np.bool_]]:
    """((C, h, w) mean of what the frames see of a strip, 0 where none does; (h, w) where all of them see)."""
    window = 0, top, width, top + BLOCK_PX
    values = np.empty((stack.spec.channels, BLOCK_PX, width), np.float32)
    seen, everywhere = np.empty((BLOCK_PX, width), np.bool_), np.ones((BLOCK_PX, width), np.bool_)
    total = np.zeros(values.shape)
    for member in stack.members:
        member.into(window, stack.kernel, stack.curvature, values, seen)
        total += np.where(seen, values, 0.0)
        everywhere &= seen
    return total / len(stack.members), everywhere


def _solve_planes(count: int, shared: Sequence[_Shared], middles: F64, half: float, channels: int) -> F64:
    """(count, C, 3) float64: level in the middle of each pointing and slopes a half field, mean 0 over all."""
    planes = np.zeros((count, channels, 3))
    rows = [_rows(s, middles, half) for s in shared]
    places = [np.concatenate([3 * p + np.arange(3) for p in (s.first, s.second)]) for s in shared]
    prior = np.diag(np.tile([1e-9, SLOPE_PRIOR, SLOPE_PRIOR], count))
    for k in range(channels if shared else 0):
        weights = [np.ones(len(s.u)) for s in shared]
        for _ in range(ROUNDS):
            normal, right = prior.copy(), np.zeros(3 * count)
            for s, row, place, weight in zip(shared, rows, places, weights, strict=True):
                normal[np.ix_(place, place)] += (row * weight[:, np.newaxis]).T @ row
                right[place] += row.T @ (weight * s.above[:, k])
            solved = np.linalg.solve(normal, right)
            off = [np.abs(s.above[:, k] - r @ solved[p]) for s, r, p in zip(shared, rows, places, strict=True)]
            limit = HUBER * max(1.4826 * float(np.median(np.concatenate(off))), 1e-9)
            weights = [np.minimum(1.0, limit / np.maximum(o, 1e-12)) for o in off]
        planes[:, k] = solved.reshape(count, 3)
    return _gauged(planes, middles, half)


def _rows(s: _Shared, middles: F64, half: float) -> F64:
    """(m, 6): a block is the second pointing's plane less the first's."""
    parts = []
    for sign, place in ((-1.0, s.first), (1.0, s.second)):
        x, y = (s.u - middles[place, 0]) / half, (s.v - middles[place, 1]) / half
        parts.append(sign * np.stack([np.ones_like(x), x, y], axis=1))
    return np.hstack(parts)


def _gauged(planes: F64, middles: F64, half: float) -> F64:
    """Takes one common plane out, so that mean level and mean slope are 0."""
    slope = planes[:, :, 1:].mean(axis=0)
    out = planes.copy()
    out[:, :, 1:] -= slope
    out[:, :, 0] -= (middles / half) @ slope.T
    out[:, :, 0] -= out[:, :, 0].mean(axis=0)
    return out


def _over(frame: FramePlan, base: Wcs, plane: F64, middle: F64, half: float, reference: FramePlan) -> FramePlan:
    """A frame whose sky has its pointing's plane (C, 3), in ADU of the reference, too."""
    width, height = frame.facts.width, frame.facts.height
    way = sphere.homography(frame.wcs, base)
    x, y = (width - 1) / 2, (height - 1) / 2

    def at(px: float, py: float) -> F64:
        u, v = sphere.apply_plane(way, px, py)
        return np.asarray(plane @ np.array([1.0, (u - middle[0]) / half, (v - middle[1]) / half]))

    scale = np.array(frame.transparency) * (sphere.scale_arcsec(frame.wcs) / sphere.scale_arcsec(reference.wcs)) ** 2
    level = np.array(frame.sky_adu) + scale * at(x, y)
    slope_x = scale * (at(x + width / 4, y) - at(x - width / 4, y)) / (width / 2)
    slope_y = scale * (at(x, y + height / 4) - at(x, y - height / 4)) / (height / 2)
    own = frame.sky or FrameSky(slope_x=(0.0,) * len(level), slope_y=(0.0,) * len(level))
    own = replace(
        own,
        slope_x=tuple(float(a + b) for a, b in zip(own.slope_x, slope_x, strict=True)),
        slope_y=tuple(float(a + b) for a, b in zip(own.slope_y, slope_y, strict=True)),
    )
    return replace(frame, sky_adu=tuple(float(a) for a in level), sky=own)
