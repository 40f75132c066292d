"""Phase 4.5 in a worker: master tiles that see almost the same sky become one super tile.

They are brought to one level as Phase 5 would do it (gain, offset and plane of each, a channel, from all overlaps at
once), then judged and averaged pixel by pixel (science.supers), so that what one tile alone has of a satellite is
outvoted by the others. All lie on the mosaic's lattice: nothing is interpolated a second time; a tile of anybody's that
lies elsewhere is interpolated here, once, instead of in Phase 5. By bands of rows, whatever the number and size of the
tiles; the files of the tiles are only read.

A super tile has the pictures of a master tile (work.stacking), WEIGHT and ALPHA always, COVERAGE and REJECTED where
tiles count frames: COVERAGE the distinct frames of the tiles that are in a pixel in all channels, REJECTED what the
tiles had rejected, and all frames of a tile that was itself rejected there.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core.cards import number, text
from zemosaicd.core.modes import MODES, Mode
from zemosaicd.core.supertiles import super_spec
from zemosaicd.model import FramePlan, LogNote, Plan, Reason, TileFailed, TileSpec
from zemosaicd.science.coadd import Sums
from zemosaicd.science.kernels import lanczos_table
from zemosaicd.science.outliers import Judgement
from zemosaicd.science.supers import SuperBand, halo_of, merge
from zemosaicd.science.tilesolve import TileCorrection, solve_tiles
from zemosaicd.work.coadding import TileRows
from zemosaicd.work.fitswrite import OWN_BUDGET, CardValue, FitsWriter, ImageSpec, write_fits
from zemosaicd.work.framecount import FrameCount
from zemosaicd.work.jobs import MergeTiles, PhaseMade
from zemosaicd.work.judging import judgement_of
from zemosaicd.work.measuring import Tile, extents_of, open_tile, overlaps_of
from zemosaicd.work.meter import Meter
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.seams import seam_cards, seam_figures

Cards = dict[str, CardValue | tuple[CardValue, str]]

LEAST_ROWS = 8


def merge_tiles(job: MergeTiles) -> PhaseMade:
    """Runs Phase 4.5 for one super tile and publishes it."""
    meter = Meter()
    plan = read_plan(Path(job.plan_path))
    threads = max(1, job.settings.threads)
    with ExitStack() as files, ThreadPoolExecutor(threads) as pool:
        spec, tiles = _tiles(plan, job, files, pool)
        solution = solve_tiles(overlaps_of(tiles, pool.map), extents_of(plan, tiles), spec.channels)
        mode = MODES[plan.mode]
        frames = [plan.frames[f] for f in spec.frames if f not in job.without]
        stack = _Stack(
            spec=spec,
            tiles=tiles,
            corrections=solution.tiles,
            frames=frames,
            mode=mode,
            light=None if mode.takes_pictures else judgement_of(frames, plan.frames[tiles[0].spec.reference]),
            rows=band_rows(spec, len(tiles), job.settings.band_budget_bytes // threads),
        )
        seams = seam_figures(solution, tiles)
        images = _images(stack, seams)
        output = Path(job.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with write_fits(output, images, overwrite=True, mode=0o600) as writer:
            tallies = list(pool.map(lambda part: _bands(stack, writer, *part), _stretches(stack, threads)))
    seen, lost = (sum(t[i] for t in tallies) for i in (0, 1))
    if not seen:
        raise TileFailed(Reason(rule="empty_tile", value=0, threshold=1, message=f"super tile {job.tile}: no pixel"))
    rejected_pct = round(100.0 * lost / seen, 3)
    figures = {
        "tile": job.tile,
        "tiles": [t.spec.tile for t in tiles],
        "frames": len(stack.frames),
        "rejected_pct": rejected_pct,
        "worst_sigma": seams["worst_sigma"],
        "gain_off_mag": seams["gain_off_mag"],
        "scatter_mag": seams["scatter_mag"],
        "gain": [c.gain for c in solution.tiles],
        "offset_adu": [c.offset for c in solution.tiles],
        "predicted_mb": meter.predicted_mb(threads * (stack.rows + 8) * _row_bytes(spec, len(tiles))),
    }
    fields: dict[str, object] = {
        "tile": job.tile,
        "tiles": len(tiles),
        "frames": len(stack.frames),
        "rejected_pct": rejected_pct,
    }
    return PhaseMade(
        figures=figures,
        notes=(LogNote(level="info", event="super_tile_made", fields=fields),),
        seconds=meter.seconds,
        peak_rss_mb=meter.peak_rss_mb,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """What a super tile is made from. `rows`: of a band, without its halo."""

    spec: TileSpec
    tiles: Sequence[Tile]
    corrections: Sequence[TileCorrection]
    frames: Sequence[FramePlan]
    mode: Mode
    light: Judgement | None
    rows: int


def _tiles(plan: Plan, job: MergeTiles, files: ExitStack, pool: ThreadPoolExecutor) -> tuple[TileSpec, list[Tile]]:
    """The super tile, and its members on its grid, opened and surveyed."""
    specs = {t.tile: t for t in plan.tiles}
    members = sorted(job.members)
    mosaic = next(m for m in plan.mosaics if members[0][0] in m.tiles)
    spec = super_spec(job.tile, [specs[n] for n, _ in members], mosaic)
    budget = job.settings.budget if MODES[plan.mode].takes_pictures else OWN_BUDGET
    scratch = Path(job.plan_path).parent

    def opened(one: tuple[int, str]) -> Tile:
        tile = open_tile(specs[one[0]], Path(one[1]), spec.grid, job.settings.feather_fraction, budget, scratch)
        files.callback(tile.file.close)
        return tile

    return spec, list(pool.map(opened, members))


def band_rows(spec: TileSpec, tiles: int, budget_bytes: int) -> int:
    """Rows of a band under the budget; no pixel depends on it."""
    return max(LEAST_ROWS, min(spec.grid.height, budget_bytes // _row_bytes(spec, tiles) - 8))


def _row_bytes(spec: TileSpec, tiles: int) -> int:
    """Samples, weights, alpha and flags of every tile, sums, and what the judgement needs of its own."""
    channels = spec.channels
    return spec.grid.width * (tiles * (16 * channels + 10) + 60 * channels + 32)


def _stretches(stack: _Stack, threads: int) -> list[tuple[int, int]]:
    """The bands shared out to the threads: first and last + 1."""
    bands = -(-stack.spec.grid.height // stack.rows)
    count = min(threads, bands)
    edges = [bands * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _bands(stack: _Stack, writer: FitsWriter, first: int, last: int) -> tuple[int, int]:
    """Bands `first` to `last`, one after the other; how many samples were seen and how many rejected."""
    grid, rows = stack.spec.grid, stack.rows
    readers = [TileRows(t, c) for t, c in zip(stack.tiles, stack.corrections, strict=True)]
    counts = FrameCount(stack.tiles, stack.frames, grid) if stack.mode.counts_frames else None
    sums, table = Sums(stack.spec.channels, min(grid.height, rows + 8), grid.width), lanczos_table()
    seen = lost = 0
    for row0 in range(first * rows, min(last * rows, grid.height), rows):
        band = _band(readers, sums, table, (row0, min(row0 + rows, grid.height)), stack)
        _write(stack, writer, counts, band, row0)
        seen += int(band.kept.sum()) + int(band.rejected.sum())
        lost += int(band.rejected.sum())
    for reader in readers:
        reader.close()
    return seen, lost


def _band(
    readers: Sequence[TileRows], sums: Sums, table: NDArray[np.float32], rows: tuple[int, int], stack: _Stack
) -> SuperBand:
    """One band of the super tile: each tile as the mosaic would take it, levelled, then all of them as one."""
    row0, end = rows
    halo = halo_of(row0, end - row0, stack.spec.grid.height)
    top, bottom = row0 - halo[0], end + halo[1]
    channels, width = sums.value.shape[0], sums.value.shape[2]
    samples, ivar = np.empty((2, len(readers), channels, bottom - top, width), np.float32)
    alpha = np.empty((len(readers), bottom - top, width), np.float32)
    for i, reader in enumerate(readers):
        sums.begin(top, bottom - top)
        if (slab := reader.read(top, bottom)) is not None:
            reader.add(sums, slab, table)
        samples[i], ivar[i] = sums.finish()
        alpha[i] = sums.alpha
    return merge(samples, ivar, alpha, halo, stack.light)


def _write(stack: _Stack, writer: FitsWriter, counts: FrameCount | None, band: SuperBand, row0: int) -> None:
    """Writes a band of every picture."""
    rows = band.picture.shape[1]
    flat = len(band.picture) == 1
    writer.write("", row0, band.picture[0] if flat else band.picture)
    writer.write("WEIGHT", row0, band.weight[0] if flat else band.weight)
    if counts is not None:
        for tile, kept, rejected in zip(stack.tiles, band.kept, band.rejected, strict=True):
            counts.add_merged(tile, kept, (row0, row0 + rows), rejected)
        covered, lost = counts.finish(row0, rows)
        writer.write("COVERAGE", row0, covered)
        writer.write("REJECTED", row0, lost)
    writer.write("ALPHA", row0, band.alpha)


def _images(stack: _Stack, seams: dict[str, Any]) -> list[ImageSpec]:
    """The pictures of a super tile and what its header says: what its tiles said, and how they agreed."""
    spec, wcs = stack.spec, stack.spec.grid.wcs
    shape = spec.grid.height, spec.grid.width
    cube = (spec.channels, *shape) if spec.channels > 1 else shape
    cards: Cards = {"TILE": spec.tile, "GROUP": spec.group, "NTILES": (len(stack.tiles), "master tiles in this one")}
    units = {text(t.file.cards, "BUNIT") for t in stack.tiles}
    if len(units) == 1 and (unit := units.pop()):
        cards["BUNIT"] = unit
    if stack.mode.counts_frames:
        cards["NCOMBINE"] = (len(stack.frames), "distinct frames")
    for key, worst in (("INJFLUX", lambda v: abs(v - 1.0)), ("INJPOS", lambda v: v)):
        told = [float(v) for t in stack.tiles if (v := number(t.file.cards, key)) is not None]
        if told:
            cards[key] = (max(told, key=worst), "of injected stars, its worst master tile")
    cards |= seam_cards(seams)
    counted = ("COVERAGE", "REJECTED") if stack.mode.counts_frames else ()
    return [
        ImageSpec(name="", shape=cube, wcs=wcs, cards=cards),
        ImageSpec(name="WEIGHT", shape=cube, wcs=wcs, cards={"BUNIT": "ADU-2"}),
        *(ImageSpec(name=name, shape=shape, dtype="uint16", wcs=wcs) for name in counted),
        ImageSpec(name="ALPHA", shape=shape, wcs=wcs),
    ]
