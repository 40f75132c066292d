"""Cells of a mosaic's lattice (D3): butted windows that cover the union, each with every frame that touches it.

Pure. Neighbouring cells share no pixel, so no sample counts twice in WEIGHT; they share their frames, the reference
that these come to, and the sky that was solved over all of them, so that a pixel is the same whichever cell it falls
into and no seam has to be mended. Frames of different kinds never mix (C3): each kind has cells of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from zemosaicd import sphere
from zemosaicd.core.canvas import Box, convex_hull, cut, window
from zemosaicd.core.plan import PlanSettings, canonical, kind_of, reference_of
from zemosaicd.model import FrameId, FramePlan, TileSpec, Wcs

Point = tuple[float, float]

SURE_PX = 6.0
"""So far inside a frame's edge its samples certainly begin (the warp of a Bayer frame needs 4 px round a sample)."""


def deal_cells(
    groups: Sequence[Sequence[FramePlan]], base: Wcs, mosaic: str, first: int, settings: PlanSettings
) -> list[TileSpec]:
    """The cells of all pointings of a mosaic, kind by kind, row by row; numbers go on from `first`.

    All cells of a kind have one reference, whether it touches them or not: its level and scale are theirs.
    """
    frames = canonical(f for group in groups for f in group)
    cells: list[TileSpec] = []
    for number, kind in enumerate(sorted({kind_of(f) for f in frames}), 1):
        mine = [f for f in frames if kind_of(f) == kind]
        box = window(mine, base)
        if box is None:  # together() keeps groups on the near side
            raise ValueError("a group lies on the far side of its own tangent plane")
        cells += _cells_of(mine, box, base, TileSpec(
            tile=first + len(cells), mosaic=mosaic, group=f"{mosaic}-{number}", frames=(), reference=reference_of(mine),
            grid=cut(base, box), channels=mine[0].facts.channels, mount_mode=mine[0].mount_mode,
        ), settings)  # fmt: skip
    return cells


def _cells_of(
    frames: Sequence[FramePlan], box: Box, base: Wcs, like: TileSpec, settings: PlanSettings
) -> list[TileSpec]:
    side = settings.cell_size * min(min(f.facts.width, f.facts.height) for f in frames)
    whole = [convex_hull(outline(f, base, 0.0)) for f in frames]
    sure = [convex_hull(outline(f, base, SURE_PX)) for f in frames]
    made: list[TileSpec] = []
    for cell in divide(box, side):
        touching = [i for i, hull in enumerate(whole) if meets(hull, cell)]
        if not any(meets(sure[i], cell) for i in touching):
            continue  # a hole of the mosaic: no pixel of it would have data
        ids: tuple[FrameId, ...] = tuple(frames[i].frame for i in touching)
        made.append(
            TileSpec(
                tile=like.tile + len(made) + 1, mosaic=like.mosaic, group=like.group, frames=ids,
                reference=like.reference, grid=cut(base, cell), channels=like.channels, mount_mode=like.mount_mode,
            )
        )  # fmt: skip
    return made


def divide(box: Box, side_px: float) -> list[Box]:
    """The box in rows and columns of the fewest parts that are no longer than `side_px`, as even as whole pixels go."""
    xs, ys = _cuts(box[0], box[2], side_px), _cuts(box[1], box[3], side_px)
    return [(x0, y0, x1, y1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]


def _cuts(low: int, high: int, side_px: float) -> list[int]:
    parts = max(1, math.ceil((high - low) / max(1.0, side_px)))
    return [low + (high - low) * i // parts for i in range(parts + 1)]


def outline(frame: FramePlan, base: Wcs, inset_px: float) -> list[Point]:
    """A frame's outline on the lattice, `inset_px` inside its edge; where the camera bends it, with the edges' middles.

    Raises ValueError for a frame on the far side of the lattice's plane.
    """
    width, height = frame.facts.width, frame.facts.height
    factor_x, factor_y = (max(0.0, 1.0 - 2.0 * inset_px / side) for side in (width, height))
    middle = (width - 1) / 2, (height - 1) / 2
    ring = sphere.corners(width, height) if frame.distortion is None else sphere.edge_points(width, height)
    to_sky = sphere.sky_matrix(frame.wcs)
    points: list[Point] = []
    for x, y in ring:
        x, y = middle[0] + factor_x * (x - middle[0]), middle[1] + factor_y * (y - middle[1])
        if frame.distortion is not None:
            x, y = sphere.ideal_pixel(frame.distortion, x, y)
        place = sphere.sky_to_pixel(base, sphere.apply(to_sky, x, y))
        if place is None:
            raise ValueError(f"{frame.path}: on the far side of the lattice")
        points.append(place)
    return points


def meets(hull: Sequence[Point], cell: Box) -> bool:
    """Whether a convex polygon meets the rectangle that a cell's pixel centres span (separating axes)."""
    x0, y0, x1, y1 = cell[0], cell[1], cell[2] - 1, cell[3] - 1
    rectangle = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    axes = [(1.0, 0.0), (0.0, 1.0)]
    axes += [(ya - yb, xb - xa) for (xa, ya), (xb, yb) in zip(hull, [*hull[1:], hull[0]], strict=True)]
    return not any(_apart(hull, rectangle, axis) for axis in axes)


def _apart(a: Iterable[Point], b: Iterable[Point], axis: Point) -> bool:
    along_a = [x * axis[0] + y * axis[1] for x, y in a]
    along_b = [x * axis[0] + y * axis[1] for x, y in b]
    return max(along_a) < min(along_b) or max(along_b) < min(along_a)
