"""Batches of a sweep (D2): frames in time order that each cover the field, as mega tiles on the mosaic's own grid.

Pure. A smart telescope in mosaic mode wanders over its field; ten frames or so have seen nearly all of it. A batch is
closed when it has its frames and covers enough; what is left at the end joins the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from zemosaicd.core.canvas import Box, convex_hull, cut, window
from zemosaicd.core.cells import outline
from zemosaicd.core.plan import PlanSettings, canonical, kind_of, reference_of
from zemosaicd.model import FramePlan, LeftOut, LogNote, Reason, TileSpec, Wcs

LEAST_FRAMES, TARGET_FRAMES = 5, 10
LEAST_COVERED = 0.92
RASTER = 128
"""The field is told by so many columns and rows of points."""

BLURRED, LEAST_SHARP, REST = 1.5, 3, 0.05
"""A frame whose stars are so many times as wide as the median's is left out of mega tiles where so many sharper ones
have seen all but this part of what it has."""

Point = tuple[float, float]


def deal_sweeps(
    groups: Sequence[Sequence[FramePlan]],
    base: Wcs,
    mosaic: str,
    first: int,
    settings: PlanSettings,
    failed: bool = False,
) -> tuple[list[TileSpec], list[LogNote]]:
    """The mega tiles of a mosaic: one a batch; without a batch that covers the field one of all frames (mosaic-first);
    none where frames of different kinds may not mix (C3), which is then classic's. With a note for each step back.
    `failed`: no mega tile of a batch could be made, so there shall be one of all frames.
    """
    frames = canonical(f for group in groups for f in group)
    box = window(frames, base)
    kinds = len({kind_of(f) for f in frames})
    if box is None or kinds > 1:
        why = f"{mosaic}: frames of {kinds} kinds do not mix"
        return [], [_warning("sds_and_mosaic_first_failed_fallback_mastertiles", why)]
    notes: list[LogNote] = []
    parts = [] if failed else batches_of(frames, box, base)
    if not parts:
        why = f"{mosaic}: no {LEAST_FRAMES} frames or more cover {LEAST_COVERED:.0%} of the field"
        why = f"{mosaic}: no mega tile could be made" if failed else why
        notes.append(_warning("sds_failed_fallback_mosaic_first", why))
        parts = [frames]
    reference = reference_of(frames)
    tiles = [
        TileSpec(
            tile=first + number, mosaic=mosaic, group=f"{mosaic}-{number}", frames=tuple(f.frame for f in part),
            reference=reference, grid=cut(base, box), channels=part[0].facts.channels, mount_mode=part[0].mount_mode,
        )
        for number, part in enumerate(parts, 1)
    ]  # fmt: skip
    return tiles, notes


def without_blurred(groups: Sequence[Sequence[FramePlan]], base: Wcs) -> tuple[list[list[FramePlan]], list[LeftOut]]:
    """The pointings without frames that were out of focus or trailed, and these.

    In a master tile they weigh less and are outvoted. A mega tile has often nothing but them at a pixel, and Phase 5
    weighs tiles by their noise: one such frame of nine dimmed the cores of a pointing's stars by 4 %.
    """
    frames = canonical(f for group in groups for f in group)
    sizes = sorted(f.fwhm_px for f in frames if f.fwhm_px > 0.0)
    box = window(frames, base)
    limit = BLURRED * sizes[len(sizes) // 2] if sizes else math.inf
    doubtful = [f for f in frames if f.fwhm_px > limit]
    if box is None or not doubtful:
        return [list(g) for g in groups], []
    seen = {f.frame: points_in(convex_hull(outline(f, base, 0.0)), box) for f in frames}
    deep = [0] * LEAST_SHARP
    for mask in (seen[f.frame] for f in frames if not f.fwhm_px > limit):
        for k in range(LEAST_SHARP - 1, 0, -1):
            deep[k] |= deep[k - 1] & mask
        deep[0] |= mask
    out = {
        f.frame: _blurred(f, limit)
        for f in doubtful
        if (seen[f.frame] & ~deep[-1]).bit_count() <= REST * seen[f.frame].bit_count()
    }
    return [kept for g in groups if (kept := [f for f in g if f.frame not in out])], list(out.values())


def _blurred(frame: FramePlan, limit: float) -> LeftOut:
    message = f"stars are {frame.fwhm_px:.1f} px wide, {limit:.1f} px is the most in a mega tile"
    value, threshold = round(frame.fwhm_px, 2), round(limit, 2)
    reason = Reason(rule="blurred", value=value, threshold=threshold, message=message)
    return LeftOut(frame=frame.frame, path=frame.path, reason=reason)


def _warning(event: str, reason: str) -> LogNote:
    return LogNote(level="warning", event=event, fields={"reason": reason})


def batches_of(frames: Sequence[FramePlan], box: Box, base: Wcs) -> list[list[FramePlan]]:
    """Frames (in time order) in batches (`in_batches`) that each cover the field: what all frames together see."""
    seen = [points_in(convex_hull(outline(f, base, 0.0)), box) for f in frames]
    return [list(frames[first:last]) for first, last in in_batches(seen)]


def in_batches(seen: Sequence[int]) -> list[tuple[int, int]]:
    """First and last + 1 of batches of 10 frames, or as many more as it needs, that each cover 92 % of the field; the
    last may have 5, and what is left over joins it.

    `seen`: the points that each frame sees, a bit each. [] if not even one batch covers all that they see together.
    """
    field = 0
    for mask in seen:
        field |= mask
    enough = LEAST_COVERED * field.bit_count()
    done: list[tuple[int, int]] = []
    first, covered = 0, 0
    for last, mask in enumerate(seen, 1):
        covered |= mask
        if last - first >= TARGET_FRAMES and covered.bit_count() >= enough:
            done.append((first, last))
            first, covered = last, 0
    if len(seen) - first >= LEAST_FRAMES and covered.bit_count() >= enough:
        done.append((first, len(seen)))
    elif done:
        done[-1] = done[-1][0], len(seen)
    return done


def points_in(hull: Sequence[Point], box: Box) -> int:
    """The points of a box's raster inside a convex polygon, a bit each, row by row."""
    step_x, step_y = (box[2] - box[0]) / RASTER, (box[3] - box[1]) / RASTER
    edges = list(zip(hull, [*hull[1:], hull[0]], strict=True))
    mask = 0
    for row in range(RASTER):
        y = box[1] + (row + 0.5) * step_y
        xs = [xa + (y - ya) * (xb - xa) / (yb - ya) for (xa, ya), (xb, yb) in edges if min(ya, yb) <= y < max(ya, yb)]
        if xs:
            low = max(0, math.ceil((min(xs) - box[0]) / step_x - 0.5))
            high = min(RASTER - 1, math.floor((max(xs) - box[0]) / step_x - 0.5))
            if high >= low:
                mask |= ((1 << (high - low + 1)) - 1) << (row * RASTER + low)
    return mask
