"""Phase 2: a closed set of frames becomes a tile plan.

Pure and deterministic: the same frames and settings give the same plan, whatever order they arrived in (C7). Frames
that may not mix (filter, telescope, camera, exposure, gain, binning, size, Bayer pattern, mount mode) never share a
group (C3); within a group they share a pointing, and, where `group_rotation_deg` asks for it, an orientation. Every
tile's grid is a window of its mosaic's lattice (one tangent plane, one scale, one orientation, whole-pixel offsets), so
a tile lands in the mosaic without a second interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from zemosaicd import sphere
from zemosaicd.core import mount
from zemosaicd.model import FrameId, FramePlan, Grid, LeftOut, MosaicSpec, MountMode, Plan, Reason, TileSpec, Wcs

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 on a lattice, in whole pixels; x1 and y1 are excluded."""

HALO = 10
"""Rows (and columns) that a window carries for its neighbours, both sides together (science.combine), and those that
drizzle wants to know besides."""
LOW_ROWS, LEAST_SIDE = 96, 16
"""Windows of whole rows have at least so many of them; no window is narrower than the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What the plan depends on besides the frames (table [plan] of the configuration, and what bears on it)."""

    batch_cap: int = 0
    batch_overlap: int = 0
    group_radius_fraction: float = 0.35
    group_rotation_deg: float = 180.0
    min_frames: int = 1
    max_mosaic_pixels: int = 1_000_000_000
    sparse_limit: float = 12.0
    orientation: str = "auto"
    altaz_cleanup_requested: bool = False
    band_budget_bytes: int = 512 << 20
    cell_size: float = 1.0
    merge_overlap: float = 0.0


Deal = Callable[[list[list[FramePlan]], Wcs, str, int, PlanSettings], list[TileSpec]]
"""How a mosaic's pointings become tiles of its lattice: (pointings, lattice, mosaic, tiles so far, settings)."""


def canonical(frames: Iterable[FramePlan]) -> list[FramePlan]:
    """Canonical order: by start of exposure, then by content."""
    return sorted(frames, key=lambda f: (f.facts.observed_s or 0.0, f.frame))


def kind_of(frame: FramePlan) -> tuple[str, ...]:
    """What separates groups besides where they look (C3). Frames of different kinds never mix."""
    f = frame.facts
    return (
        mosaic_key(frame),
        f.telescope,
        f.camera,
        f"{f.exposure_s:g}s",
        f.gain,
        f.binning,
        f"{f.width}x{f.height}",
        f.bayer,
        frame.mount_mode.value,
    )


def mosaic_key(frame: FramePlan) -> str:
    """What separates mosaics: filter, and colour against mono (default policy: same filter)."""
    return f"{frame.facts.filter_name or 'none'}-{'rgb' if frame.facts.channels == 3 else 'mono'}"


def _grid(frame: FramePlan) -> Grid:
    return Grid(wcs=frame.wcs, width=frame.facts.width, height=frame.facts.height)


def _footprint(frame: FramePlan) -> Sequence[sphere.Vector]:
    """Directions of a frame's outer corners; where the camera bends them, with the middles of the edges."""
    if frame.distortion is None:
        return sphere.footprint(_grid(frame))
    m, ring = sphere.sky_matrix(frame.wcs), sphere.edge_points(frame.facts.width, frame.facts.height)
    return [sphere.apply(m, *sphere.ideal_pixel(frame.distortion, x, y)) for x, y in ring]


def _turn_deg(a: Grid, b: Grid) -> float:
    """Angle between two frames' rectangles, modulo half a turn: a meridian flip covers the same sky.

    Measured in b's plane, not against north: beside a pole, north turns from frame to frame.
    """
    m = sphere.homography(a.wcs, b.wcs)
    x, y = (a.width - 1) / 2, (a.height - 1) / 2
    (x0, y0), (x1, y1) = sphere.apply_plane(m, x, y), sphere.apply_plane(m, x, y + 1.0)
    d = math.degrees(math.atan2(x1 - x0, y1 - y0)) % 180.0
    return min(d, 180.0 - d)


def pointings(frames: Sequence[FramePlan], settings: PlanSettings) -> list[list[FramePlan]]:
    """Frames of one kind, in canonical order, gathered round the first frame of each pointing and orientation."""
    groups: list[list[FramePlan]] = []
    for frame in frames:
        grid = _grid(frame)
        centre = sphere.centre_of(grid)
        short_deg = min(frame.facts.width, frame.facts.height) * sphere.scale_arcsec(frame.wcs) / 3600.0
        best: tuple[float, list[FramePlan]] | None = None
        for group in groups:
            away = sphere.separation_deg(centre, sphere.centre_of(_grid(group[0])))
            near = away <= settings.group_radius_fraction * short_deg
            if near and _turn_deg(grid, _grid(group[0])) <= settings.group_rotation_deg:
                best = min(best or (away, group), (away, group), key=lambda pair: pair[0])
        if best is None:
            groups.append([frame])
        else:
            best[1].append(frame)
    return groups


def batches(count: int, cap: int, overlap: int) -> list[tuple[int, int]]:
    """Even ranges that cover `count` frames with at most `cap` in each, neighbours sharing `overlap` frames (R8)."""
    if cap <= 0 or count <= cap:
        return [(0, count)]
    shared = min(overlap, cap - 1)
    number = math.ceil((count - shared) / (cap - shared))
    length = math.ceil((count + (number - 1) * shared) / number)
    return [(i * (length - shared), min(i * (length - shared) + length, count)) for i in range(number)]


def reference_of(frames: Sequence[FramePlan]) -> FrameId:
    """The frame that others are held against: most stars, sharpest, least noise; ties go to the first."""

    def merit(frame: FramePlan) -> float:
        if not math.isfinite(frame.fwhm_px):  # no star of it could be measured
            return 0.0
        noise = sum(frame.noise_adu) / max(1, len(frame.noise_adu))
        clear = sum(frame.transparency) / max(1, len(frame.transparency))
        return frame.stars * clear / max(1e-6, frame.fwhm_px**2 * max(noise, 1e-6))

    return max(frames, key=merit).frame


def lattice(frames: Sequence[FramePlan], orientation: str) -> Wcs:
    """The tangent plane of a mosaic: at the mean direction of its frames, at their median scale.

    "north": north up, east left. "auto": turned to the rectangle of least area round all footprints (rotating
    calipers), by the quarter turn that keeps north nearest to up.
    """
    grids = [_grid(f) for f in frames]
    ra, dec = sphere.position(sphere.mean_direction(sphere.centre_of(g) for g in grids))
    scales = sorted(sphere.scale_arcsec(g.wcs) for g in grids)
    s = scales[len(scales) // 2] / 3600.0
    north = Wcs(ra_deg=ra, dec_deg=dec, x_px=0.0, y_px=0.0, cd=(-s, 0.0, 0.0, s))
    if orientation == "north":
        return north
    points = [p for f in frames for v in _footprint(f) if (p := sphere.sky_to_pixel(north, v)) is not None]
    turn = _least_rectangle_rad(points)
    c, n = math.cos(turn), math.sin(turn)
    return Wcs(ra_deg=ra, dec_deg=dec, x_px=0.0, y_px=0.0, cd=(-s * c, s * n, s * n, s * c))


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
    points = [sphere.sky_to_pixel(base, v) for f in frames for v in _footprint(f)]
    if not points or any(p is None for p in points):
        return None
    xs, ys = [p[0] for p in points if p], [p[1] for p in points if p]
    # A footprint's edge runs half a pixel outside its outermost pixel centres; centres inside it are kept.
    return math.ceil(min(xs)), math.ceil(min(ys)), math.floor(max(xs)) + 1, math.floor(max(ys)) + 1


def cut(base: Wcs, box: Box) -> Grid:
    """The grid of a window of a lattice."""
    x0, y0, x1, y1 = box
    wcs = Wcs(ra_deg=base.ra_deg, dec_deg=base.dec_deg, x_px=base.x_px - x0, y_px=base.y_px - y0, cd=base.cd)
    return Grid(wcs=wcs, width=x1 - x0, height=y1 - y0)


def union(grids: Iterable[Grid], base: Wcs) -> Grid:
    """The window of the lattice that holds all given windows of it (Phase 4)."""
    boxes = [box_of(g, base) for g in grids]
    return cut(
        base,
        (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)),
    )


def box_of(grid: Grid, base: Wcs) -> Box:
    """Where a window lies on its lattice."""
    x0, y0 = round(base.x_px - grid.wcs.x_px), round(base.y_px - grid.wcs.y_px)
    return x0, y0, x0 + grid.width, y0 + grid.height


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def together(groups: list[list[FramePlan]], settings: PlanSettings) -> tuple[list[list[FramePlan]], list[LeftOut]]:
    """Drops pointings so far from the rest that the mosaic would be nearly all empty (a wrong field, a slew)."""
    left_out: list[LeftOut] = []
    groups = list(groups)
    while len(groups) > 1 and (reason := _too_wide(groups, settings)) is not None:
        centres = [sphere.mean_direction(sphere.centre_of(_grid(f)) for f in g) for g in groups]
        main = _main(groups, centres)
        away = [sphere.separation_deg(main, c) for c in centres]
        farthest = groups.pop(away.index(max(away)))
        message = f"{max(away):.2f} deg from the other frames: {reason.message}"
        value = reason.value if reason.value is not None else round(max(away), 2)
        far = replace(reason, value=value, message=message)
        left_out += [LeftOut(frame=f.frame, path=f.path, reason=far) for f in farthest]
    return groups, left_out


def _main(groups: Sequence[Sequence[FramePlan]], centres: Sequence[sphere.Vector]) -> sphere.Vector:
    """The centre of the largest group; of several such, of the one that has most of the others about it."""
    largest = max(len(g) for g in groups)

    def remoteness(centre: sphere.Vector) -> float:
        return sorted(sphere.separation_deg(centre, c) for c in centres)[len(centres) // 2]

    return min((c for g, c in zip(groups, centres, strict=True) if len(g) == largest), key=remoteness)


def _too_wide(groups: Sequence[Sequence[FramePlan]], settings: PlanSettings) -> Reason | None:
    """Why these pointings make no mosaic together; None if they do."""
    frames = [f for g in groups for f in g]
    box = window(frames, lattice(frames, settings.orientation))
    if box is None:
        return Reason(rule="far_from_target", value=None, threshold=90.0, message="no tangent plane holds them all")
    area = _area(box)
    ratio = area / sum(g[0].facts.width * g[0].facts.height for g in groups)
    if ratio > settings.sparse_limit:
        message = f"the mosaic would be {ratio:.0f} times its tiles' area"
        return Reason(rule="far_from_target", value=round(ratio, 1), threshold=settings.sparse_limit, message=message)
    if area > settings.max_mosaic_pixels:
        message = f"the mosaic would have {area} pixels"
        return Reason(rule="far_from_target", value=area, threshold=settings.max_mosaic_pixels, message=message)
    return None


def make_plan(
    frames: Iterable[FramePlan], left_out: Sequence[LeftOut], settings: PlanSettings, deal: Deal | None = None
) -> Plan:
    """The tile plan of a closed set of solved frames; `left_out` are frames that already have a reason.

    `deal`: None for one tile a batch of a pointing.
    """
    ordered = canonical(frames)
    counts = mount.summary(f.mount_mode for f in ordered)
    enabled, decision = mount.global_cleanup(counts, settings.altaz_cleanup_requested)
    tiles: list[TileSpec] = []
    mosaics: list[MosaicSpec] = []
    dropped = list(left_out)
    for name in sorted({mosaic_key(f) for f in ordered}):
        members = [f for f in ordered if mosaic_key(f) == name]
        groups: list[list[FramePlan]] = []
        for kind in sorted({kind_of(f) for f in members}):
            groups += pointings([f for f in members if kind_of(f) == kind], settings)
        groups, far = together(groups, settings)
        small = [g for g in groups if len(g) < settings.min_frames]
        dropped += far + [_too_few(f, len(g), settings.min_frames) for g in small for f in g]
        groups = [g for g in groups if len(g) >= settings.min_frames]
        if not groups:
            continue
        base = lattice([f for g in groups for f in g], settings.orientation)
        made = (deal or deal_groups)(groups, base, name, len(tiles), settings)
        tiles += made
        mosaics.append(
            MosaicSpec(
                name=name,
                filter_name=members[0].facts.filter_name,
                channels=members[0].facts.channels,
                lattice=base,
                tiles=tuple(t.tile for t in made),
            )
        )
    used = {f for t in tiles for f in t.frames}
    return Plan(
        frames={f.frame: f for f in ordered if f.frame in used},
        tiles=tuple(tiles),
        mosaics=tuple(mosaics),
        left_out=tuple(dropped),
        mount_modes=counts,
        contains_altaz=counts[MountMode.ALT_AZ] > 0,
        altaz_cleanup=enabled,
        altaz_decision=decision,
        disk_bytes=disk_bytes(tiles, mosaics),
        memory_bytes=max((window_bytes(t, window_of(t, settings.band_budget_bytes)) for t in tiles), default=0),
    )


def _too_few(frame: FramePlan, count: int, least: int) -> LeftOut:
    reason = Reason(rule="too_few_frames", value=count, threshold=least, message=f"{count} frames at this pointing")
    return LeftOut(frame=frame.frame, path=frame.path, reason=reason)


def deal_groups(
    groups: list[list[FramePlan]], base: Wcs, mosaic: str, first: int, settings: PlanSettings
) -> list[TileSpec]:
    """One tile a batch of a group, with its window of the lattice."""
    tiles: list[TileSpec] = []
    for number, group in enumerate(groups, 1):
        for start, stop in batches(len(group), settings.batch_cap, settings.batch_overlap):
            part = group[start:stop]
            box = window(part, base)
            if box is None:  # together() keeps groups on the near side
                raise ValueError("a group lies on the far side of its own tangent plane")
            tiles.append(
                TileSpec(
                    tile=first + len(tiles) + 1,
                    mosaic=mosaic,
                    group=f"{mosaic}-{number}",
                    frames=tuple(f.frame for f in part),
                    reference=reference_of(part),
                    grid=cut(base, box),
                    channels=part[0].facts.channels,
                    mount_mode=part[0].mount_mode,
                )
            )
    return tiles


def tile_bytes(grid: Grid, channels: int) -> int:
    """Size on disk of a tile or mosaic: picture and weight in float32 a channel, coverage, rejected, alpha."""
    return grid.width * grid.height * (8 * channels + 8) + 64 * 2880


def disk_bytes(tiles: Sequence[TileSpec], mosaics: Sequence[MosaicSpec]) -> int:
    """Size on disk of tiles and mosaics together."""
    total = sum(tile_bytes(t.grid, t.channels) for t in tiles)
    for m in mosaics:
        total += tile_bytes(union((t.grid for t in tiles if t.tile in m.tiles), m.lattice), m.channels)
    return total


def window_of(tile: TileSpec, budget_bytes: int, threads: int = 1) -> tuple[int, int]:
    """(rows, columns) of the windows that this tile is stacked in under the budget (M5), all about equally large.

    Whole rows where the budget allows LOW_ROWS of them, as many windows as `threads` share evenly; else about square:
    what a window carries for its neighbours is computed twice, and a square carries least. Never less than LEAST_SIDE
    px: the halo cannot be divided further.
    """
    width, height = tile.grid.width, tile.grid.height
    room = budget_bytes / _pixel_bytes(tile)
    rows = int(room / (width + HALO)) - HALO
    if rows >= min(LOW_ROWS, height):
        return _even(height, rows, threads), width
    side = max(LEAST_SIDE, int(math.sqrt(room)) - HALO)
    rows = min(side, height)
    columns = min(width, max(side, int(room / (rows + HALO)) - HALO))
    return _even(height, rows), _even(width, columns)


def _even(total: int, most: int, multiple: int = 1) -> int:
    """Length of the fewest equal parts, none longer than `most`, their number a multiple of `multiple`."""
    parts = -(-total // max(1, most))
    return -(-total // (-(-parts // multiple) * multiple))


def window_bytes(tile: TileSpec, window: tuple[int, int]) -> int:
    """Predicted memory of a window of so many rows and columns with its halo, and of the rows that it fills."""
    rows, columns = min(window[0] + HALO, tile.grid.height), min(window[1] + HALO, tile.grid.width)
    filled = window[0] * tile.grid.width * (8 * tile.channels + 4) if window[1] < tile.grid.width else 0
    return rows * columns * _pixel_bytes(tile) + filled


def _pixel_bytes(tile: TileSpec) -> int:
    """Every frame's samples and code, and what one frame on its way and the combiner's own planes take."""
    return len(tile.frames) * (4 * tile.channels + 1) + 32 + 28 * tile.channels
