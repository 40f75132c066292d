"""The canvas of a mosaic: which projection, its lattice, and the windows of it that footprints take (Phases 2 and 4).

A narrow mosaic lies on one tangent plane. Away from its tangent point TAN stretches areas by 1 / cos^3: 1 % at 4.7
degrees, 10 % at 14.3, 54 % at 30. So "auto" takes ZEA, on which all pixels have the same area, from 10 % on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from zemosaicd import sphere
from zemosaicd.model import FramePlan, Grid, LogNote, Plan, Wcs

K = TypeVar("K", int, str)
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 on a lattice, in whole pixels; x1 and y1 are excluded."""

AUTO = "auto"
MOST_STRETCH = 1.1
"""The most that "auto" lets TAN stretch an area: reached 14.3 degrees from the tangent point."""
PLATE_DEG = {sphere.CAR: (170.0, 80.0), sphere.HPX: (170.0, 40.0)}
"""How far from the centre, in native longitude and latitude, a projection has neither seam nor gore."""
DISC_DEG = 170.0
"""The same of ZEA, in any direction: opposite its centre a point becomes a circle."""
ALIKE = 1.05
"""Scales that differ by less are one camera's."""
FINEST = 2.0
"""So many times finer than the median frame's a mosaic's pixels are at most: a pixel of sky costs disk space, whoever
has seen it."""
OUTLINE_PX = 32
"""A tile's outline is followed in steps of this on its way to another projection."""


def choose(frames: Sequence[FramePlan], projection: str, orientation: str) -> tuple[Wcs, str]:
    """The lattice of a mosaic of these frames, and why it has this projection. `projection`: as asked for, or "auto".

    What cannot hold the frames in one piece (CAR and HPX near their native poles) gives way to ZEA.
    """
    middle = sphere.mean_direction(sphere.centre_of(grid_of(f)) for f in frames)
    points = [v for f in frames for v in footprint_of(f)]
    reach = max(sphere.separation_deg(middle, v) for v in points)
    if projection == AUTO:
        stretch = 1.0 / math.cos(math.radians(reach)) ** 3 if reach < 89.0 else math.inf
        chosen = sphere.TAN if stretch <= MOST_STRETCH else sphere.ZEA
        size = f"{2 * reach:.1f} degrees across: TAN stretches areas by {100 * (stretch - 1):.3g} %"
        return lattice(frames, orientation, chosen), f"{size}, {100 * (MOST_STRETCH - 1):.0f} % is the most"
    if _holds(projection, middle, points):
        return lattice(frames, orientation, projection), "mosaic.projection"
    why = f"{2 * reach:.1f} degrees across, which {projection} does not show in one piece"
    return lattice(frames, orientation, sphere.ZEA), why


def _holds(projection: str, middle: sphere.Vector, points: Iterable[sphere.Vector]) -> bool:
    """Whether a CAR or HPX plane round `middle` shows all points without a break; others are left to `window`."""
    if projection not in PLATE_DEG:
        return True
    most_x, most_y = PLATE_DEG[projection]
    ra, dec = sphere.position(middle)
    plate = Wcs(ra_deg=ra, dec_deg=dec, x_px=0.0, y_px=0.0, cd=(1.0, 0.0, 0.0, 1.0), projection=sphere.CAR)
    places = [sphere.sky_to_pixel(plate, v) for v in points]
    return all(p is not None and abs(p[0]) <= most_x and abs(p[1]) <= most_y for p in places)


def notes(plan: Plan) -> list[LogNote]:
    """What is said of the mosaics' planes, and of islands that are in one of them."""
    said = []
    for m in plan.mosaics:
        fields: dict[str, object] = {
            "mosaic": m.name, "projection": m.lattice.projection, "reason": m.projection_reason
        }  # fmt: skip
        said.append(LogNote(level="info", event="mosaic_projection", fields=fields))
        if m.parts > 1:
            fields = {"mosaic": m.name, "parts": m.parts}
            said.append(LogNote(level="warning", event="mosaic_islands", fields=fields))
    return said


def grid_of(frame: FramePlan) -> Grid:
    """A frame's own pixels."""
    return Grid(wcs=frame.wcs, width=frame.facts.width, height=frame.facts.height)


def footprint_of(frame: FramePlan) -> Sequence[sphere.Vector]:
    """Directions of a frame's outer corners; where the camera bends them, with the middles of the edges."""
    if frame.distortion is None:
        return sphere.footprint(grid_of(frame))
    m, ring = sphere.sky_matrix(frame.wcs), sphere.edge_points(frame.facts.width, frame.facts.height)
    return [sphere.apply(m, *sphere.ideal_pixel(frame.distortion, x, y)) for x, y in ring]


def lattice(frames: Sequence[FramePlan], orientation: str, projection: str = sphere.TAN) -> Wcs:
    """The plane of a mosaic: at the mean direction of its frames, at their scale (`scale_of`).

    "north": north up, east left. "auto": turned to the rectangle of least area round all footprints (rotating
    calipers), by the quarter turn that keeps north nearest to up.
    """
    grids = [grid_of(f) for f in frames]
    ra, dec = sphere.position(sphere.mean_direction(sphere.centre_of(g) for g in grids))
    s = scale_of(sphere.scale_arcsec(g.wcs) for g in grids) / 3600.0
    if projection == sphere.HPX:
        s *= math.sqrt(sphere.HPX_AREA)  # so that its pixels have the frames' solid angle
    north = Wcs(ra_deg=ra, dec_deg=dec, x_px=0.0, y_px=0.0, cd=(-s, 0.0, 0.0, s), projection=projection)
    if orientation == "north":
        return north
    points = [p for f in frames for v in footprint_of(f) if (p := sphere.sky_to_pixel(north, v)) is not None]
    turn = _least_rectangle_rad(points)
    c, n = math.cos(turn), math.sin(turn)
    return replace(north, cd=(-s * c, s * n, s * n, s * c))


def scale_of(scales_arcsec: Iterable[float]) -> float:
    """The scale of a mosaic of frames of these scales: the median of those of the finest camera.

    On coarser pixels its frames would lose light and sharpness for good; on finer ones nothing is lost, there are only
    more of them, which FINEST bounds.
    """
    scales = sorted(scales_arcsec)
    fine = [s for s in scales if s <= ALIKE * scales[0]]
    return max(fine[len(fine) // 2], scales[len(scales) // 2] / FINEST)


def alike(scales_arcsec: Mapping[K, float]) -> list[list[K]]:
    """Whose scales lie together, finest first: a step of more than ALIKE parts two cameras."""
    order: list[K] = sorted(scales_arcsec, key=lambda k: (scales_arcsec[k], k))
    parts: list[list[K]] = []
    for i, k in enumerate(order):
        if i == 0 or scales_arcsec[k] > ALIKE * scales_arcsec[order[i - 1]]:
            parts.append([])
        parts[-1].append(k)
    return parts


def _least_rectangle_rad(points: Sequence[tuple[float, float]]) -> float:
    """Turn in (-pi/4, pi/4] of the least rectangle round the points; an edge of it lies on the hull."""
    hull = convex_hull(points)
    best_area, best_turn = math.inf, 0.0
    for (x0, y0), (x1, y1) in zip(hull, hull[1:] + hull[:1], strict=True):
        turn = math.atan2(y1 - y0, x1 - x0)
        turn -= math.pi / 2 * round(turn / (math.pi / 2))
        c, s = math.cos(turn), math.sin(turn)
        us = [c * x + s * y for x, y in hull]
        vs = [c * y - s * x for x, y in hull]
        area = (max(us) - min(us)) * (max(vs) - min(vs))
        if area < best_area * (1.0 - 1e-9):
            best_area, best_turn = area, turn
    return best_turn


def convex_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted(set(points))

    def half(sequence: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for p in sequence:
            while len(chain) >= 2 and _cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(ordered) + half(reversed(ordered))


def _cross(o: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def window(frames: Iterable[FramePlan], base: Wcs) -> Box | None:
    """The whole-pixel box of the lattice that holds all footprints; None if one lies on the far side of the sky."""
    seen = [v for f in frames for v in footprint_of(f)]
    points = [sphere.sky_to_pixel(base, v) for v in seen]
    if not points or any(p is None for p in points):
        return None
    if base.projection != sphere.TAN:
        middle = sphere.direction(base.ra_deg, base.dec_deg)
        if any(sphere.separation_deg(middle, v) > DISC_DEG for v in seen):
            return None
    xs, ys = [p[0] for p in points if p], [p[1] for p in points if p]
    # A footprint's edge runs half a pixel outside its outermost pixel centres; centres inside it are kept.
    return math.ceil(min(xs)), math.ceil(min(ys)), math.floor(max(xs)) + 1, math.floor(max(ys)) + 1


def cut(base: Wcs, box: Box) -> Grid:
    """The grid of a window of a lattice."""
    x0, y0, x1, y1 = box
    wcs = replace(base, x_px=base.x_px - x0, y_px=base.y_px - y0)
    return Grid(wcs=wcs, width=x1 - x0, height=y1 - y0)


def union(grids: Iterable[Grid], base: Wcs) -> Grid:
    """The window of the lattice that holds all given grids (Phase 4)."""
    boxes = [box_of(g, base) for g in grids]
    return cut(
        base,
        (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)),
    )


def box_of(grid: Grid, base: Wcs) -> Box:
    """Where a window lies on its lattice; of a tile in a plane of its own, the box round its outline.

    ValueError if some of that is on the far side of the sky.
    """
    if grid.wcs.projection != base.projection:
        return _box_round(grid, base)
    x0, y0 = round(base.x_px - grid.wcs.x_px), round(base.y_px - grid.wcs.y_px)
    return x0, y0, x0 + grid.width, y0 + grid.height


def _box_round(grid: Grid, base: Wcs) -> Box:
    ends = [sphere.sky_to_pixel(base, sphere.pixel_to_sky(grid.wcs, x, y)) for x, y in _outline(grid)]
    xs, ys = [p[0] for p in ends if p], [p[1] for p in ends if p]
    if len(xs) < len(ends):
        raise ValueError("a tile lies on the far side of its mosaic")
    # A pixel more: between two points of the outline it bends.
    return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1


def _outline(grid: Grid) -> Iterator[tuple[float, float]]:
    ring = sphere.corners(grid.width, grid.height)
    for (xa, ya), (xb, yb) in zip(ring, ring[1:] + ring[:1], strict=True):
        steps = math.ceil(max(grid.width, grid.height) / OUTLINE_PX)
        yield from ((xa + (xb - xa) * i / steps, ya + (yb - ya) * i / steps) for i in range(steps))


def area_of(box: Box) -> int:
    """Pixels of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])
