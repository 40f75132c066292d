"""Islands: which footprints hang together on the sky, and which share none of it.

Pure. Two frames touch if their footprints have inner points in common; what is joined by a chain of touching frames is
one island. Islands are told apart on the sphere, so neither poles nor the RA wrap nor a projection come into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zemosaicd import sphere
from zemosaicd.core.canvas import footprint_of, grid_of
from zemosaicd.model import FramePlan
from zemosaicd.parts import Parts

EDGE = 1e-12
"""Corners on an edge do not make two footprints overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A footprint: its corners in order, its middle, and how far (degrees) its corners are from that."""

    corners: tuple[sphere.Vector, ...]
    middle: sphere.Vector
    radius_deg: float


def islands(groups: Sequence[list[FramePlan]]) -> list[list[list[FramePlan]]]:
    """Pointings -> islands of them, in the order of their first pointings; pointings keep their order.

    A function of the footprints alone: in which order pairs are compared leaves no trace.
    """
    shapes = [[_shape(f) for f in group] for group in groups]
    caps = [_cap(s) for s in shapes]
    parts = Parts(len(groups))
    for i in range(len(groups)):
        for j in range(i):
            if not parts.joined(i, j) and _near(caps[i], caps[j]) and _meet(shapes[i], shapes[j]):
                parts.join(i, j)
    return [[groups[i] for i in members] for members in parts.members()]


def _shape(frame: FramePlan) -> _Shape:
    corners = tuple(footprint_of(frame))
    middle = sphere.centre_of(grid_of(frame))
    return _Shape(corners=corners, middle=middle, radius_deg=max(sphere.separation_deg(middle, c) for c in corners))


def _cap(shapes: Sequence[_Shape]) -> _Shape:
    """A cap that holds a whole pointing."""
    middle = shapes[0].middle
    return _Shape(
        corners=(),
        middle=middle,
        radius_deg=max(sphere.separation_deg(middle, s.middle) + s.radius_deg for s in shapes),
    )


def _near(a: _Shape, b: _Shape) -> bool:
    return sphere.separation_deg(a.middle, b.middle) < a.radius_deg + b.radius_deg


def _meet(these: Sequence[_Shape], those: Sequence[_Shape]) -> bool:
    return any(_near(a, b) and overlap(a.corners, b.corners) for a in these for b in those)


def overlap(a: Sequence[sphere.Vector], b: Sequence[sphere.Vector]) -> bool:
    """Whether two convex polygons on the sphere, smaller than a hemisphere together, have inner points in common.

    Separating axes: if they have none, the great circle of an edge of one of them lies between them.
    """
    return not (_parted(a, b) or _parted(b, a))


def _parted(a: Sequence[sphere.Vector], b: Sequence[sphere.Vector]) -> bool:
    """Whether an edge of `a` has all of `b` on its outer side."""
    middle = sphere.mean_direction(a)
    for p, q in zip(a, [*a[1:], a[0]], strict=True):
        pole = p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]
        side = 1.0 if _dot(pole, middle) > 0.0 else -1.0
        if all(side * _dot(pole, v) <= EDGE for v in b):
            return True
    return False


def _dot(a: sphere.Vector, b: sphere.Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
