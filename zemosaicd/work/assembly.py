"""Phases 4 to 6 in a worker: master tiles -> the mosaic, its companions and its figures.

Phase 4 lays the grid round the tiles; Phase 5 solves gain, offset and plane of every tile and channel over all
overlaps at once and adds the tiles, each weighted by its inverse variance and feathered to its edges; Phase 6 writes
the pictures. All by bands of rows: memory is a band and the rows of the tiles in it, whatever the size of the mosaic.
A tile lies where its own header says: on the mosaic's lattice its pixels pass unchanged, anywhere else and in any
projection they are interpolated (Lanczos-3).

`mosaic.fits`: primary (C, H, W) or (H, W) float32, NaN where nothing was seen; `WEIGHT` of the same shape, inverse
variance ADU^-2; `COVERAGE` (H, W) distinct frames, where tiles say (not in mode existing); `ALPHA` (H, W) 0..1; table
`FRAMES`.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.modes import MODES
from zemosaicd.core.plan import union
from zemosaicd.model import FramePlan, Grid, LogNote, MosaicSpec, Plan, Reason, SessionFailed
from zemosaicd.science.coadd import REACH, Slab, Sums, lanczos_table
from zemosaicd.science.preview import block_mean, quality, stretch
from zemosaicd.science.tilesolve import TileCorrection, TileSolution, solve_tiles
from zemosaicd.work.fitswrite import OWN_BUDGET, FitsWriter, write_fits
from zemosaicd.work.framecount import FrameCount
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PhaseMade
from zemosaicd.work.measuring import Tile, inverse_variance, open_tile, overlaps_of
from zemosaicd.work.mosaicfile import frames_table, images_of
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.store import publish
from zemosaicd.work.tilefiles import ALPHA, PICTURE, WEIGHT, SlidingRows

F32 = NDArray[np.float32]

SUMS_BYTES = 8 << 20
"""The sums of a band: small enough to stay in a processor's cache while its tiles are added."""
LEAST_ROWS = 16


def make_mosaic(job: MakeMosaic) -> PhaseMade:
    """Runs Phases 4 to 6 for one mosaic."""
    started = time.perf_counter()
    plan = read_plan(Path(job.plan_path))
    spec = next(m for m in plan.mosaics if m.name == job.name)
    with ExitStack() as files:
        grid, tiles = _tiles(plan, spec, job, files)
        solution = solve_tiles(overlaps_of(tiles), [t.extent for t in tiles], spec.channels)
        frames = _frames(plan, tiles, job.without)
        rows = _band_rows(grid, spec.channels, job.settings)
        small = _write(job, plan, spec, grid, tiles, solution, frames, rows)
    if job.settings.preview:
        _write_preview(Path(job.preview), small, job.settings.preview_max_px)
    figures = {
        "width": grid.width,
        "height": grid.height,
        "scale_arcsec": sphere.scale_arcsec(grid.wcs),
        "predicted_mb": round(_band_bytes(grid, spec.channels, rows, tiles) / 1e6, 1),
        "seams": _seams(solution, tiles),
        "photometry": _photometry(solution, tiles),
        "picture": _picture(small),
    }
    return PhaseMade(
        figures=figures,
        notes=_notes(figures, grid),
        seconds=time.perf_counter() - started,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _tiles(plan: Plan, spec: MosaicSpec, job: MakeMosaic, files: ExitStack) -> tuple[Grid, list[Tile]]:
    """The mosaic's grid, and the tiles on it, opened and surveyed."""
    specs = {t.tile: t for t in plan.tiles}
    made = sorted(job.tiles)
    if not made:
        raise SessionFailed(Reason(rule="no_tiles", message=f"mosaic {job.name}: no master tile was made"))
    grid = union((specs[number].grid for number, _ in made), spec.lattice)
    scratch = Path(job.plan_path).parent
    budget = job.settings.budget if MODES[plan.mode].takes_pictures else OWN_BUDGET
    tiles = []
    for number, path in made:
        tile = open_tile(specs[number], Path(path), grid, job.settings.feather_fraction, budget, scratch)
        files.callback(tile.file.close)
        tiles.append(tile)
    return grid, tiles


def _frames(plan: Plan, tiles: Sequence[Tile], without: Sequence[str]) -> list[FramePlan]:
    """The distinct frames that are in the mosaic, in canonical order."""
    ids = dict.fromkeys(f for t in tiles for f in t.spec.frames if f not in set(without))
    return sorted((plan.frames[f] for f in ids), key=lambda f: (f.facts.observed_s or 0.0, f.frame))


# --- figures -------------------------------------------------------------------------------------------------------


def _seams(solution: TileSolution, tiles: Sequence[Tile]) -> dict[str, Any]:
    """The step across every overlap before and after, ADU and in sigmas of the pixel noise; the worst of them."""
    pairs = [
        {
            "tiles": [tiles[s.first].spec.tile, tiles[s.second].spec.tile],
            "blocks": s.blocks,
            "before_adu": s.before_adu,
            "after_adu": s.after_adu,
            "after_sigma": s.after_sigma,
            "uneven_adu": s.uneven_adu,
            "stars": s.stars,
            "gain_off_mag": s.gain_off_mag,
            "shift_px": s.shift_px,
        }
        for s in solution.seams
    ]
    worst = max((abs(v) for s in solution.seams for v in s.after_sigma if math.isfinite(v)), default=None)
    gains = [abs(v) for s in solution.seams for v in s.gain_off_mag if math.isfinite(v)]
    return {
        "pairs": pairs,
        "worst_sigma": worst,
        "parts": solution.components,
        "gain_off_mag": float(np.median(gains)) if gains else None,
    }


def _photometry(solution: TileSolution, tiles: Sequence[Tile]) -> dict[str, Any]:
    return {
        str(t.spec.tile): {
            "gain": c.gain,
            "offset_adu": c.offset,
            "slope_x_adu_px": c.slope_x,
            "slope_y_adu_px": c.slope_y,
            "gain_measured": c.gain_measured,
            "noise_adu": t.character.noise,
            "fwhm_px": t.character.fwhm_px,
            "placement_error_px": t.placement.error_px,
            "part": c.component,
        }
        for t, c in zip(tiles, solution.tiles, strict=True)
    }


# --- the coadd, band by band ---------------------------------------------------------------------------------------


def _band_bytes(grid: Grid, channels: int, rows: int, tiles: Sequence[Tile] = ()) -> int:
    """Sums and output of a band, and the slabs of the tiles in it at the band where they are most."""
    bands = [0] * (-(-grid.height // rows))
    for t in tiles:
        planes = channels + (channels if t.file.has(WEIGHT) else 0) + t.file.has(ALPHA)
        for band in range(max(0, t.placement.box[1] // rows), min(len(bands), -(-t.placement.box[3] // rows))):
            _, (first, last) = t.placement.columns_and_rows(band * rows, (band + 1) * rows)
            bands[band] += (last - first + 2 * REACH) * t.file.width * planes * 4
    return rows * grid.width * (channels * (8 * 3 + 4 * 2 + 4) + 4 + 16) + 2 * max(bands, default=0)


def _band_rows(grid: Grid, channels: int, settings: MosaicSettings) -> int:
    budget = min(SUMS_BYTES, settings.band_budget_bytes)
    return max(LEAST_ROWS, min(grid.height, budget // (24 * channels * grid.width)))


class _TileRows:
    """What the bands take from one tile, one after the other."""

    def __init__(self, tile: Tile, correction: TileCorrection) -> None:
        self.tile, self._correction = tile, correction
        self._ivar = inverse_variance(tile)
        self._floor = np.array(tile.character.floor, np.float32)
        names = [n for n in (PICTURE, WEIGHT, ALPHA) if n == PICTURE or tile.file.has(n)]
        self._rows = {name: SlidingRows(tile.file, name) for name in names}

    def add(self, sums: Sums, count: int, table: F32) -> Slab | None:
        """Adds the tile's part of a band; returns what was read for it, None if it has no part in it."""
        placement = self.tile.placement
        _, (first, last) = placement.columns_and_rows(sums.row0, sums.row0 + count)
        if first >= last:
            return None
        halo = 0 if placement.shift is not None else REACH
        first, last = max(0, first - halo), min(placement.height, last + halo)
        planes = {name: rows.get(first, last) for name, rows in self._rows.items()}
        extra = {"weight": planes[WEIGHT]} if WEIGHT in planes else {}
        extra |= {"alpha": planes[ALPHA][0]} if ALPHA in planes else {}
        slab = Slab(pixels=planes[PICTURE], row0=first, feather_px=self.tile.feather_px, floor=self._floor, **extra)
        sums.add(slab, placement, self._correction, self._ivar, table)
        return slab

    def over(self, row: int) -> bool:
        """Whether no band from this row on needs the tile."""
        return self.tile.placement.box[3] <= row

    def close(self) -> None:
        """Lets go of its rows and its file."""
        self._rows.clear()
        self.tile.file.release()


def _write(
    job: MakeMosaic,
    plan: Plan,
    spec: MosaicSpec,
    grid: Grid,
    tiles: Sequence[Tile],
    solution: TileSolution,
    frames: Sequence[FramePlan],
    rows: int,
) -> F32:
    """Writes mosaic.fits; returns the picture reduced to the preview's size, (C, h, w)."""
    factor = max(1, -(-max(grid.width, grid.height) // job.settings.preview_max_px))
    rows = max(factor, rows // factor * factor)
    mode = MODES[plan.mode]
    coverage = FrameCount(tiles, frames, grid) if mode.counts_frames else None
    waiting = sorted(
        (_TileRows(t, c) for t, c in zip(tiles, solution.tiles, strict=True)), key=lambda t: t.tile.placement.box[1]
    )
    active: list[_TileRows] = []
    small, table, sums = [], lanczos_table(), Sums(spec.channels, min(rows, grid.height), grid.width)
    images = images_of(job, spec, grid, frames, tiles, mode)
    with write_fits(Path(job.mosaic), images, overwrite=True) as writer:
        for row0 in range(0, grid.height, rows):
            count = min(rows, grid.height - row0)
            while waiting and waiting[0].tile.placement.box[1] < row0 + count:
                active.append(waiting.pop(0))
            active.sort(key=lambda t: t.tile.spec.tile)  # sums are in the tiles' order, whatever the bands
            sums.begin(row0, count)
            for part in active:
                slab = part.add(sums, count, table)
                if coverage is not None and slab is not None:
                    coverage.add(part.tile, slab, row0, count)
            small.append(block_mean(_write_band(writer, sums, coverage), factor))
            for part in [p for p in active if p.over(row0 + count)]:
                part.close()
                active.remove(part)
        writer.table("FRAMES", frames_table(frames, tiles))
    return np.concatenate(small, axis=1)


def _write_band(writer: FitsWriter, sums: Sums, coverage: FrameCount | None) -> F32:
    """Writes the band's rows of every picture; returns the picture's."""
    picture, ivar = sums.finish()
    flat = len(picture) == 1
    writer.write("", sums.row0, picture[0] if flat else picture)
    writer.write("WEIGHT", sums.row0, ivar[0] if flat else ivar)
    if coverage is not None:
        writer.write("COVERAGE", sums.row0, coverage.finish(sums.row0, len(sums.alpha)))
    writer.write("ALPHA", sums.row0, sums.alpha)
    return picture


# --- Phase 6 -------------------------------------------------------------------------------------------------------


def _write_preview(path: Path, small: F32, max_px: int) -> None:
    picture = stretch(small, max_px)
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.shape[2] == 3 else picture
    done, data = cv2.imencode(".png", ordered)
    if not done:
        raise SessionFailed(Reason(rule="preview", message="the preview could not be encoded"))
    with publish(path, overwrite=True) as file:
        file.write(data.tobytes())


def _picture(small: F32) -> dict[str, Any]:
    q = quality(small)
    return {"sky_adu": q.sky, "noise_adu": q.noise, "unevenness_adu": q.unevenness, "filled": q.filled}


def _notes(figures: dict[str, Any], grid: Grid) -> tuple[LogNote, ...]:
    seams = figures["seams"]
    worst = seams["worst_sigma"]
    fields: dict[str, object] = {
        "width": grid.width,
        "height": grid.height,
        "overlaps": len(seams["pairs"]),
        "worst_seam_sigma": 0.0 if worst is None else round(worst, 3),
    }
    return (LogNote(level="info", event="mosaic_assembled", fields=fields),)
