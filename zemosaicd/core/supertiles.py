"""Phase 4.5's decisions: which master tiles become super tiles, and what Phase 5 then takes in their place. Pure.

Two tiles of one mosaic belong together where their footprints share so much of the smaller one's area; what hangs
together becomes one super tile, in parts of at most MOST_MEMBERS. A footprint is the convex hull of what the tile's
frames see of the lattice, so no pixel is read for the decision.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from zemosaicd.core.canvas import convex_hull, union
from zemosaicd.core.cells import outline
from zemosaicd.core.events import TileDone, TilesMerged
from zemosaicd.core.plan import tile_bytes
from zemosaicd.model import MosaicSpec, Plan, TileSpec
from zemosaicd.parts import Parts

Point = tuple[float, float]

LEAST_MEMBERS, MOST_MEMBERS = 2, 64


def with_supers(plan: Plan, overlap: float) -> Plan:
    """The plan with its super tiles, numbered on from its tiles. `overlap`: the least share of the smaller of two
    footprints that joins them; 0: no tile is merged."""
    if overlap <= 0.0:
        return plan
    specs = {t.tile: t for t in plan.tiles}
    number = max(specs, default=0)
    supers: dict[int, tuple[int, ...]] = {}
    extra = 0
    for mosaic in plan.mosaics:
        hulls = {t: _footprint(plan, specs[t], mosaic) for t in mosaic.tiles}
        for members in groups(hulls, overlap):
            number += 1
            supers[number] = members
            made = super_spec(number, [specs[t] for t in members], mosaic)
            extra += tile_bytes(made.grid, made.channels)
    return replace(plan, supers=supers, disk_bytes=plan.disk_bytes + extra)


def _footprint(plan: Plan, spec: TileSpec, mosaic: MosaicSpec) -> list[Point]:
    return convex_hull([p for f in spec.frames for p in outline(plan.frames[f], mosaic.lattice, 0.0)])


def groups(hulls: Mapping[int, Sequence[Point]], overlap: float) -> list[tuple[int, ...]]:
    """Connected components of two tiles or more, each cut into even parts of at most MOST_MEMBERS; ascending."""
    tiles = sorted(hulls)
    span = [(min(x for x, _ in hulls[t]), max(x for x, _ in hulls[t])) for t in tiles]
    order = sorted(range(len(tiles)), key=lambda i: span[i][0])
    parts = Parts(len(tiles))
    for place, a in enumerate(order):
        for b in order[place + 1 :]:
            if span[b][0] > span[a][1]:
                break
            if not parts.joined(a, b) and shared(hulls[tiles[a]], hulls[tiles[b]]) >= overlap:
                parts.join(a, b)
    found = ([tiles[i] for i in members] for members in parts.members() if len(members) >= LEAST_MEMBERS)
    return [chunk for part in found for chunk in _chunks(part)]


def _chunks(part: Sequence[int]) -> list[tuple[int, ...]]:
    """As few parts of a row as may be, about equally long: none is left with a single member."""
    count = -(-len(part) // MOST_MEMBERS)
    edges = [len(part) * i // count for i in range(count + 1)]
    return [tuple(part[a:b]) for a, b in pairwise(edges)]


def shared(a: Sequence[Point], b: Sequence[Point]) -> float:
    """Area of the intersection of two convex polygons (counter-clockwise) over the smaller one's, 0 to 1."""
    smaller = min(area(a), area(b))
    return min(1.0, area(_clipped(a, b)) / smaller) if smaller > 0.0 else 0.0


def area(polygon: Sequence[Point]) -> float:
    """Area of a convex polygon, counter-clockwise (the shoelace formula)."""
    ring = zip(polygon, [*polygon[1:], *polygon[:1]], strict=True)
    return max(0.0, 0.5 * math.fsum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in ring))


def _clipped(subject: Sequence[Point], window: Sequence[Point]) -> list[Point]:
    """What of a convex polygon lies in another one (Sutherland and Hodgman 1974)."""
    found = list(subject)
    for (x0, y0), (x1, y1) in zip(window, [*window[1:], *window[:1]], strict=True):
        side = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in found]
        kept: list[Point] = []
        for i, (x, y) in enumerate(found):
            before = side[i - 1]
            if (before < 0.0) != (side[i] < 0.0):
                t = before / (before - side[i])
                px, py = found[i - 1]
                kept.append((px + t * (x - px), py + t * (y - py)))
            if side[i] >= 0.0:
                kept.append((x, y))
        found = kept
    return found


def super_spec(number: int, members: Sequence[TileSpec], mosaic: MosaicSpec) -> TileSpec:
    """The super tile of these tiles: all their frames, each once, on the window of the lattice that holds them."""
    return TileSpec(
        tile=number,
        mosaic=mosaic.name,
        group=f"{mosaic.name}-super-{number}",
        frames=tuple(dict.fromkeys(f for t in members for f in t.frames)),
        reference=members[0].reference,
        grid=union((t.grid for t in members), mosaic.lattice),
        channels=members[0].channels,
        mount_mode=members[0].mount_mode,
    )


def members_done(plan: Plan, number: int, done: Container[int]) -> tuple[int, ...]:
    """The members of a super tile that were made; () where too few were, and each goes into the mosaic by itself."""
    there = tuple(t for t in plan.supers[number] if t in done)
    return there if len(there) >= LEAST_MEMBERS else ()


def pending_supers(
    plan: Plan, done: Container[int], merged: Container[int], unmerged: Container[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Super tiles that are neither made nor given up, with their members, once no tile is pending."""
    open_ = (n for n in plan.supers if n not in merged and n not in unmerged)
    return [(n, members) for n in open_ if (members := members_done(plan, n, done))]


def supers_of(spec: MosaicSpec, merged: Mapping[int, TilesMerged]) -> dict[int, TilesMerged]:
    """The super tiles of a mosaic that were made."""
    return {n: m for n, m in sorted(merged.items()) if set(m.members) <= set(spec.tiles)}


def parts_of_mosaic(
    spec: MosaicSpec, done: Mapping[int, TileDone], merged: Mapping[int, TilesMerged]
) -> tuple[tuple[int, str], ...]:
    """What Phase 5 adds: number and path of the super tiles, and of the tiles that are in none."""
    supers = supers_of(spec, merged)
    inside = {t for m in supers.values() for t in m.members}
    alone = ((t, done[t].path) for t in spec.tiles if t in done and t not in inside)
    return (*alone, *((n, m.path) for n, m in supers.items()))
