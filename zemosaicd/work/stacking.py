"""Phase 3 in a worker: the frames of one tile, each with its transform to the tile's grid, combined window by window.

Aligned copies never exist: for each window of the output every frame gives just the box that falls there, is levelled
to the reference's sky and flux, warped (and demosaiced) onto the window, judged and averaged. Peak memory is the
windows at work, whatever the number of frames (M5), and neither their shape nor how many are made at once leaves a
trace in the pixels.

A master tile is a FITS file: picture (C, H, W) float32 in the reference frame's ADU, NaN where nothing was seen;
`WEIGHT` (C, H, W) inverse variance a pixel, ADU^-2; `COVERAGE` (H, W) frames that contribute in all channels (V1);
`REJECTED` (H, W) frames of which a sample was rejected; `ALPHA` (H, W) 0..1, rising from every edge of the data,
or of what is covered well (work.masking); where an alt-az mask may come, `UNMASKED`: the picture without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core.plan import window_bytes, window_of
from zemosaicd.model import FramePlan, LogNote, Reason, TileFailed, TileSpec
from zemosaicd.science import combine
from zemosaicd.work.fitswrite import CardValue, ImageSpec, write_fits
from zemosaicd.work.jobs import PhaseMade, StackSettings, StackTile
from zemosaicd.work.masking import TileMask, trimmed
from zemosaicd.work.members import Room, Stack, drizzled, stack_of
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.witness import recovered_stars

F64 = NDArray[np.float64]

LARGEST_WINDOW_BYTES = 128 << 20
"""More memory than this saves no time,"""
FRAME_SHARE_BYTES = 256 << 10
"""unless it leaves each of many frames less than this: to fetch a box of a frame costs time, however small it is."""


def stack_tile(job: StackTile) -> PhaseMade:
    """Runs Phase 3 for one tile and publishes it."""
    meter = Meter()
    plan = read_plan(Path(job.plan_path))
    spec = next(t for t in plan.tiles if t.tile == job.tile)
    frames = [plan.frames[f] for f in spec.frames if f not in job.without]
    if not frames:
        message = f"tile {spec.tile} has no frame left"
        raise TileFailed(Reason(rule="mastertile_error_no_valid_images_from_cache", message=message))
    output = Path(job.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    planned = job.settings.threads * window_bytes(spec, _window(spec, job.settings))
    stack, notes = drizzled(stack_of(plan, spec, frames, job.settings), job.settings)
    mask = TileMask(plan, spec, len(frames), job.settings.mask)
    with _bands(stack, _window(spec, job.settings), job.settings.threads) as bands:
        stars = recovered_stars(stack, frames, plan.frames[spec.reference])
        images = _images(spec, len(frames), stars, mask.gated)
        figures, told = _stack(bands, spec, frames, job.settings, mask, images, output)
    notes += told
    if mask.trim:
        notes.append(trimmed(output, images, mask.trim, spec.tile))
    return PhaseMade(
        figures=figures | {"injected": stars, "predicted_mb": meter.predicted_mb(planned)},
        notes=tuple(notes),
        seconds=meter.seconds,
        peak_rss_mb=meter.peak_rss_mb,
    )


class _Tally:
    """What is counted while the windows come in."""

    def __init__(self, frames: int) -> None:
        self.shallowest, self.deepest, self.rejected, self.samples = frames, 0, 0, 0

    def add(self, band: combine.Combined) -> None:
        """Counts a band."""
        self.shallowest = min(self.shallowest, int(band.count.min(initial=self.shallowest, where=band.count > 0)))
        self.deepest = max(self.deepest, int(band.count.max(initial=0)))
        self.rejected += int(band.rejected.sum())
        self.samples += int(band.samples.sum())


def _stack(
    bands: Iterator[tuple[int, combine.Combined]],
    spec: TileSpec,
    frames: Sequence[FramePlan],
    settings: StackSettings,
    mask: TileMask,
    images: Sequence[ImageSpec],
    output: Path,
) -> tuple[dict[str, object], list[LogNote]]:
    """Writes the tile; returns its figures and what is to be said of its coverage and alpha (V7)."""
    height, width = spec.grid.height, spec.grid.width
    tally = _Tally(len(frames))
    with write_fits(output, images, overwrite=True, mode=0o600) as writer:
        for row0, band in bands:
            seen = band.count > 0
            mask.add(row0, band)
            tally.add(band)
            picture = _planes(np.where((band.weight > 0) & seen, band.mean, np.float32(np.nan)))
            for name in ("", "UNMASKED") if mask.gated else ("",):
                writer.write(name, row0, picture)
            writer.write("WEIGHT", row0, _planes(np.where(seen, band.inverse_variance, np.float32(0))))
            writer.write("COVERAGE", row0, band.count)
            writer.write("REJECTED", row0, band.lost)
        if not tally.deepest:
            reason = Reason(rule="empty_tile", value=0, threshold=1, message=f"tile {spec.tile}: no pixel was seen")
            raise TileFailed(reason)  # F31: a reason, not a black tile
        short = min(min(f.facts.width, f.facts.height) for f in frames)
        notes = mask.write(writer, settings.feather_fraction * min(short, height, width))
    seen_fraction = float(mask.covered.mean())
    stats: dict[str, object] = {
        "tile_id": spec.tile,
        "shape": f"{height}x{width}",
        "min": 0 if seen_fraction < 1.0 else tally.shallowest,
        "max": tally.deepest,
        "nonzero_frac": round(seen_fraction, 4),
        "n_used": len(frames),
    }
    return {
        "frames": len(frames),
        "coverage_max": tally.deepest,
        "seen_fraction": seen_fraction,
        "rejected_pct": round(100.0 * tally.rejected / max(1, tally.samples), 3),
    }, [LogNote(level="debug", event="MT_COVERAGE_STATS", fields=stats), *notes]


def _window(spec: TileSpec, settings: StackSettings) -> tuple[int, int]:
    """Rows and columns of a window, of which each thread makes one at a time."""
    worth = max(LARGEST_WINDOW_BYTES, FRAME_SHARE_BYTES * len(spec.frames))
    budget = min(settings.band_budget_bytes // settings.threads, worth)
    return window_of(spec, budget, settings.threads)


@contextmanager
def _bands(stack: Stack, window: tuple[int, int], threads: int) -> Iterator[Iterator[tuple[int, combine.Combined]]]:
    """(first row, band) of the tile from top to bottom; `threads` windows are made at once, and few more wait. The
    first are begun before the block is.

    The kernels let go of the interpreter, so threads of one worker share its cores; the order of what is written, and
    every bit of it, stays.
    """
    height, width = stack.spec.grid.height, stack.spec.grid.width
    rows = [(r, min(window[0], height - r)) for r in range(0, height, window[0])]
    columns = [(c, min(window[1], width - c)) for c in range(0, width, window[1])]
    waiting = deque((r, c) for r in rows for c in columns)
    made: deque[Future[combine.Combined]] = deque()
    rooms: SimpleQueue[Room] = SimpleQueue()
    for _ in range(threads):
        rooms.put(Room())

    def make(part: tuple[tuple[int, int], tuple[int, int]]) -> combine.Combined:
        room = rooms.get()
        try:
            return stack.window(*part, room)
        finally:
            rooms.put(room)

    with ThreadPoolExecutor(threads) as pool:

        def begin() -> None:
            while waiting and len(made) <= threads:  # one more than are made, for while a band is written
                made.append(pool.submit(make, waiting.popleft()))

        def bands() -> Iterator[tuple[int, combine.Combined]]:
            for row0, _ in rows:
                parts: list[combine.Combined] = []
                while len(parts) < len(columns):
                    begin()
                    parts.append(made.popleft().result())
                yield row0, parts[0] if len(parts) == 1 else _side_by_side(parts)

        begin()
        try:
            yield bands()
        finally:
            for future in made:
                future.cancel()


def _side_by_side(windows: Sequence[combine.Combined]) -> combine.Combined:
    """The windows of one band as a band."""
    return combine.Combined(
        mean=np.concatenate([w.mean for w in windows], axis=2),
        weight=np.concatenate([w.weight for w in windows], axis=2),
        inverse_variance=np.concatenate([w.inverse_variance for w in windows], axis=2),
        count=np.concatenate([w.count for w in windows], axis=1),
        lost=np.concatenate([w.lost for w in windows], axis=1),
        rejected=np.sum([w.rejected for w in windows], axis=0),
        samples=np.sum([w.samples for w in windows], axis=0),
    )


def _images(spec: TileSpec, frames: int, stars: Mapping[str, Any], unmasked: bool) -> list[ImageSpec]:
    height, width = spec.grid.height, spec.grid.width
    cube = (spec.channels, height, width) if spec.channels > 1 else (height, width)
    cards: dict[str, CardValue | tuple[CardValue, str]] = {
        "BUNIT": "ADU",
        "NCOMBINE": (frames, "frames in this tile"),
        "TILE": spec.tile,
        "GROUP": spec.group,
    }
    if stars:
        worst = max(stars["flux_ratio"], key=lambda ratio: abs(ratio - 1.0))
        cards["INJFLUX"] = (float(f"{worst:.6g}"), "recovered flux of injected stars, worst channel")
        cards["INJPOS"] = (float(f"{stars['offset_px']:.6g}"), "[pix] misplacement of injected stars")
    images = [
        ImageSpec(name="", shape=cube, wcs=spec.grid.wcs, cards=cards),
        ImageSpec(name="WEIGHT", shape=cube, wcs=spec.grid.wcs, cards={"BUNIT": "ADU-2"}),
        ImageSpec(name="COVERAGE", shape=(height, width), dtype="uint16", wcs=spec.grid.wcs),
        ImageSpec(name="REJECTED", shape=(height, width), dtype="uint16", wcs=spec.grid.wcs),
        ImageSpec(name="ALPHA", shape=(height, width), wcs=spec.grid.wcs),
    ]
    if unmasked:
        images.append(ImageSpec(name="UNMASKED", shape=cube, wcs=spec.grid.wcs, cards={"BUNIT": "ADU"}))
    return images


def _planes(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, h, W) as the file has it: (h, W) for one channel."""
    return band[0] if len(band) == 1 else band
