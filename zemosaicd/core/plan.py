"""Phase 2: a closed set of frames becomes a tile plan.

Pure and deterministic: the same frames and settings give the same plan, whatever order they arrived in (C7). Frames
that may not mix (filter, telescope, camera, exposure, gain, binning, size, Bayer pattern, mount mode, scale) never
share a group (C3); within one they share a pointing, and, where `group_rotation_deg` asks for it, an orientation. Every
tile's grid is a window of its mosaic's lattice (one tangent plane, one scale, one orientation, whole-pixel offsets), so
a tile lands in the mosaic without a second interpolation; only where the mosaic is too wide for a tangent plane
(core.canvas) has each group one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from zemosaicd import sphere
from zemosaicd.core import mount
from zemosaicd.core.canvas import alike, area_of, choose, cut, grid_of, lattice, union, window
from zemosaicd.core.islands import islands
from zemosaicd.model import FrameId, FramePlan, Grid, LeftOut, MosaicSpec, MountMode, Plan, Reason, TileSpec, Wcs

HALO = 10
"""Rows (and columns) that a window carries for its neighbours, both sides together (science.combine), and those that
drizzle wants to know besides."""
LOW_ROWS, LEAST_SIDE = 96, 16
"""Windows of whole rows have at least so many of them; no window is narrower than the second."""
BREADTH = 4.0
"""Columns for each row of the others: caches are read by whole rows, and samples are visited by rows. Windows of 1,000
and 2,000 frames take a tenth less time than squares; twice as broad gains nothing more."""


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
    projection: str = "auto"
    islands: str = "one"
    altaz_cleanup_requested: bool = False
    band_budget_bytes: int = 512 << 20
    cell_size: float = 1.0
    merge_overlap: float = 0.0


SEVERAL = "several"
"""`islands`: each part of the sky that touches no other becomes a mosaic of its own."""

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
        f"{f.scale_arcsec:.4g}",
    )


def at_their_scales(frames: Sequence[FramePlan]) -> list[FramePlan]:
    """The frames, each with the scale that its camera was found to have (`FrameFacts.scale_arcsec`).

    That is the median of the camera's frames; where they are not all alike, since its telescope was changed and no
    card says so, of those about this one. So frames of two scales are of two kinds.
    """
    found: dict[FrameId, float] = {}
    for sensor in sorted({f.facts.sensor for f in frames}):
        scales = {f.frame: sphere.scale_arcsec(f.wcs) for f in frames if f.facts.sensor == sensor}
        for part in alike(scales):
            found |= dict.fromkeys(part, scales[part[len(part) // 2]])
    return [replace(f, facts=replace(f.facts, scale_arcsec=found[f.frame])) for f in frames]


def mosaic_key(frame: FramePlan) -> str:
    """What separates mosaics: filter, and colour against mono (default policy: same filter)."""
    return f"{frame.facts.filter_name or 'none'}-{'rgb' if frame.facts.channels == 3 else 'mono'}"


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
        grid = grid_of(frame)
        centre = sphere.centre_of(grid)
        short_deg = min(frame.facts.width, frame.facts.height) * sphere.scale_arcsec(frame.wcs) / 3600.0
        best: tuple[float, list[FramePlan]] | None = None
        for group in groups:
            away = sphere.separation_deg(centre, sphere.centre_of(grid_of(group[0])))
            near = away <= settings.group_radius_fraction * short_deg
            if near and _turn_deg(grid, grid_of(group[0])) <= settings.group_rotation_deg:
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


def together(groups: list[list[FramePlan]], settings: PlanSettings) -> tuple[list[list[FramePlan]], list[LeftOut]]:
    """Drops pointings so far from the rest that the mosaic would be nearly all empty (a wrong field, a slew)."""
    left_out: list[LeftOut] = []
    groups = list(groups)
    while len(groups) > 1 and (reason := _too_wide(groups, settings)) is not None:
        centres = [sphere.mean_direction(sphere.centre_of(grid_of(f)) for f in g) for g in groups]
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
    base = choose(frames, settings.projection, settings.orientation)[0]
    box = window(frames, base)
    if box is None:
        return Reason(rule="far_from_target", value=None, threshold=90.0, message="no plane holds them all")
    area = area_of(box)
    fine = sphere.scale_arcsec(base)
    ratio = area / sum(
        g[0].facts.width * g[0].facts.height * (sphere.scale_arcsec(g[0].wcs) / fine) ** 2 for g in groups
    )
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
    shares, dropped = shares_of(ordered, settings)
    tiles: list[TileSpec] = []
    mosaics: list[MosaicSpec] = []
    for share in shares:
        flat = share.base.projection == sphere.TAN
        made = (deal if deal and flat else deal_groups)(share.groups, share.base, share.name, len(tiles), settings)
        tiles += made
        mosaics.append(spec_of(share, made))
    used = {f for t in tiles for f in t.frames}
    return Plan(
        frames={f.frame: f for f in ordered if f.frame in used},
        tiles=tuple(tiles),
        mosaics=tuple(mosaics),
        left_out=(*left_out, *dropped),
        mount_modes=counts,
        contains_altaz=counts[MountMode.ALT_AZ] > 0,
        altaz_cleanup=enabled,
        altaz_decision=decision,
        disk_bytes=disk_bytes(tiles, mosaics),
        memory_bytes=max((window_bytes(t, window_of(t, settings.band_budget_bytes)) for t in tiles), default=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What becomes one mosaic: pointings, their lattice, why that has its projection, and of how many parts that share
    no sky it is."""

    name: str
    groups: list[list[FramePlan]]
    base: Wcs
    why: str
    parts: int


def shares_of(ordered: Sequence[FramePlan], settings: PlanSettings) -> tuple[list[Share], list[LeftOut]]:
    """The mosaics-to-be of frames in canonical order, and the frames that are in none."""
    shares: list[Share] = []
    dropped: list[LeftOut] = []
    for name in sorted({mosaic_key(f) for f in ordered}):
        members = [f for f in ordered if mosaic_key(f) == name]
        groups: list[list[FramePlan]] = []
        for kind in sorted({kind_of(f) for f in members}):
            groups += pointings([f for f in members if kind_of(f) == kind], settings)
        found, lost = divided(name, groups, settings, settings.min_frames)
        shares += found
        dropped += lost
    return shares, dropped


def divided(
    name: str, groups: list[list[FramePlan]], settings: PlanSettings, least: int
) -> tuple[list[Share], list[LeftOut]]:
    """The pointings of one filter as one mosaic, or, where islands shall be several, as one each. `least`: frames that
    a pointing must have."""
    dropped: list[LeftOut] = []
    several = settings.islands == SEVERAL
    if several:
        groups, dropped = _enough(groups, least)
    kept: list[list[list[FramePlan]]] = []
    for part in islands(groups) if several else [groups]:
        near, far = together(part, settings)
        enough, few = _enough(near, least)
        dropped += far + few
        kept += [enough] if enough else []
    shares = []
    for number, part in enumerate(kept, 1):
        base, why = choose([f for g in part for f in g], settings.projection, settings.orientation)
        own = name if len(kept) == 1 else f"{name}-part{number}"
        shares.append(Share(name=own, groups=part, base=base, why=why, parts=len(islands(part))))
    return shares, dropped


def _enough(groups: list[list[FramePlan]], least: int) -> tuple[list[list[FramePlan]], list[LeftOut]]:
    """The pointings with so many frames, and the frames of the others."""
    few = [_too_few(f, len(g), least) for g in groups if len(g) < least for f in g]
    return [g for g in groups if len(g) >= least], few


def spec_of(share: Share, tiles: Sequence[TileSpec]) -> MosaicSpec:
    """The mosaic of these tiles."""
    facts = share.groups[0][0].facts
    return MosaicSpec(
        name=share.name,
        filter_name=facts.filter_name,
        channels=facts.channels,
        lattice=share.base,
        tiles=tuple(t.tile for t in tiles),
        projection_reason=share.why,
        parts=share.parts,
    )


def _too_few(frame: FramePlan, count: int, least: int) -> LeftOut:
    reason = Reason(rule="too_few_frames", value=count, threshold=least, message=f"{count} frames at this pointing")
    return LeftOut(frame=frame.frame, path=frame.path, reason=reason)


def deal_groups(
    groups: list[list[FramePlan]], base: Wcs, mosaic: str, first: int, settings: PlanSettings
) -> list[TileSpec]:
    """One tile a batch of a group, with its window of the lattice; if that is no tangent plane, of the group's own."""
    tiles: list[TileSpec] = []
    for number, group in enumerate(groups, 1):
        plane = base if base.projection == sphere.TAN else lattice(group, settings.orientation)
        for start, stop in batches(len(group), settings.batch_cap, settings.batch_overlap):
            part = group[start:stop]
            box = window(part, plane)
            if box is None:  # together() keeps groups on the near side
                raise ValueError("a group lies on the far side of its own tangent plane")
            tiles.append(
                TileSpec(
                    tile=first + len(tiles) + 1,
                    mosaic=mosaic,
                    group=f"{mosaic}-{number}",
                    frames=tuple(f.frame for f in part),
                    reference=reference_of(part),
                    grid=cut(plane, box),
                    channels=part[0].facts.channels,
                    mount_mode=part[0].mount_mode,
                )
            )
    return tiles


def tile_bytes(grid: Grid, channels: int) -> int:
    """Size on disk of a tile or mosaic: picture and weight in float32 a channel, coverage, rejected, alpha."""
    return grid.width * grid.height * (8 * channels + 8) + 64 * 2880


def spec_bytes(tile: TileSpec) -> int:
    """Size on disk of a master tile; an alt-az one may have its picture twice, with its mask and without."""
    twice = tile.grid.width * tile.grid.height * 4 * tile.channels if tile.mount_mode is MountMode.ALT_AZ else 0
    return tile_bytes(tile.grid, tile.channels) + twice


def disk_bytes(tiles: Sequence[TileSpec], mosaics: Sequence[MosaicSpec]) -> int:
    """Size on disk of tiles and mosaics together."""
    total = sum(spec_bytes(t) for t in tiles)
    for m in mosaics:
        total += tile_bytes(union((t.grid for t in tiles if t.tile in m.tiles), m.lattice), m.channels)
    return total


def window_of(tile: TileSpec, budget_bytes: int, threads: int = 1) -> tuple[int, int]:
    """(rows, columns) of the windows that this tile is stacked in under the budget (M5), all about equally large.

    Whole rows where the budget allows LOW_ROWS of them, as many windows as `threads` share evenly; else BREADTH times
    as broad as high, and no stripes: what a window carries for its neighbours is computed twice. Never less than
    LEAST_SIDE px: the halo cannot be divided further.
    """
    width, height = tile.grid.width, tile.grid.height
    room = budget_bytes / _pixel_bytes(tile)
    rows = int(room / (width + HALO)) - HALO
    if rows >= min(LOW_ROWS, height):
        return _even(height, rows, threads), width
    rows = min(height, max(LEAST_SIDE, int(math.sqrt(room / BREADTH)) - HALO))
    columns = min(width, max(LEAST_SIDE, int(room / (rows + HALO)) - HALO))
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
