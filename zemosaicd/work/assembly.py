"""Phases 4 to 6 in a worker: master tiles -> the mosaic, its companions and its figures.

Phase 4 lays the grid round the tiles; Phase 5 solves gain, offset and plane of every tile and channel over all
overlaps at once and adds the tiles, each weighted by its inverse variance and feathered to its edges; Phase 6 writes
the pictures. All by bands of rows: memory is a band and the rows of the tiles in it, whatever the size of the mosaic.
A tile lies where its own header says: on the mosaic's lattice its pixels pass unchanged, anywhere else and in any
projection they are interpolated (Lanczos-3).

`mosaic.fits`: primary (C, H, W) or (H, W) float32, NaN where nothing was seen; `WEIGHT` of the same shape, inverse
variance ADU^-2; `COVERAGE` (H, W) distinct frames and `REJECTED` (H, W) those of which a sample was rejected, where
tiles say (not in mode existing); `ALPHA` (H, W) 0..1; table `FRAMES`. Its header has the
certificate (work.certificate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.canvas import union
from zemosaicd.core.modes import MODES
from zemosaicd.core.supertiles import super_spec
from zemosaicd.model import FramePlan, Grid, LogNote, MosaicSpec, Plan, Reason, SessionFailed
from zemosaicd.science.coadd import Slab, Sums
from zemosaicd.science.kernels import lanczos_table
from zemosaicd.science.placement import forget_nodes, place
from zemosaicd.science.preview import Quality, block_mean, quality, stretch
from zemosaicd.science.tilesolve import TileCorrection, TileSolution, solve_tiles
from zemosaicd.science.tilestars import character, darkest_level, gaps
from zemosaicd.work.certificate import certify
from zemosaicd.work.coadding import Coadd, add_all, band_rows
from zemosaicd.work.fitswrite import OWN_BUDGET, write_fits
from zemosaicd.work.jobs import MakeMosaic, PhaseMade
from zemosaicd.work.judging import judgement_of
from zemosaicd.work.measuring import Tile, extents_of, open_tile, overlaps_of
from zemosaicd.work.meter import Meter
from zemosaicd.work.mosaicfile import certificate_cards, frames_table, images_of
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.seams import seam_figures
from zemosaicd.work.secondpass import second_pass
from zemosaicd.work.store import publish

F32 = NDArray[np.float32]

REHEARSED_PX = 72
SMALL_PICTURES = 3
"""What the preview takes, in pictures of its size: bands and the whole of them, then 8-bit ones and their file."""


def make_mosaic(job: MakeMosaic) -> PhaseMade:
    """Runs Phases 4 to 6 for one mosaic."""
    meter = Meter()
    plan = read_plan(Path(job.plan_path))
    spec = next(m for m in plan.mosaics if m.name == job.name)
    threads = max(1, job.settings.threads)
    with ExitStack() as files, ThreadPoolExecutor(threads) as pool:
        files.callback(forget_nodes)
        grid, tiles = _tiles(plan, spec, job, files, pool)
        solution = solve_tiles(overlaps_of(tiles, pool.map), extents_of(plan, tiles), spec.channels)
        factor = max(1, -(-max(grid.width, grid.height) // job.settings.preview_max_px))
        frames = _frames(plan, tiles, job.without)
        judges = MODES[plan.mode].judges_tiles
        coadd = Coadd(
            grid=grid,
            channels=spec.channels,
            tiles=tiles,
            corrections=solution.tiles,
            frames=frames,
            mode=MODES[plan.mode],
            rows=band_rows(grid, spec.channels, factor, job.settings.band_budget_bytes, len(tiles) if judges else 0),
            factor=factor,
            judgement=judgement_of(frames, plan.frames[tiles[0].spec.reference]) if judges else None,
        )
        even = None
        if job.settings.two_pass and coadd.mode.feathers and len(tiles) > 1:
            coadd, even = second_pass(coadd, threads)
        with write_fits(Path(job.mosaic), images_of(job, spec, coadd), overwrite=True) as writer:
            small = add_all(coadd, writer, threads)
            shown, measured = pool.submit(_show, job, small), pool.submit(quality, small)
            sharp = [t.character.fwhm_px / t.scale for t in tiles if math.isfinite(t.character.fwhm_px)]
            sharpness = float(np.median(sharp)) if sharp else math.nan
            counts = MODES[plan.mode].counts_frames
            certificate = certify(writer, grid, spec.channels, sharpness, counts_frames=counts)
            seams = seam_figures(solution, tiles, {n for n, _ in job.supers})
            writer.describe("", certificate_cards(certificate, seams, tiles))
            writer.table("FRAMES", frames_table(coadd.frames, tiles))
        shown.result()
        picture = _picture_figures(measured.result())
    figures = {
        "width": grid.width,
        "height": grid.height,
        "scale_arcsec": sphere.scale_arcsec(grid.wcs),
        "predicted_mb": meter.predicted_mb(coadd.band_bytes(threads) + SMALL_PICTURES * small.nbytes),
        "seams": seams,
        "certificate": certificate,
        "photometry": _photometry(solution, tiles),
        "second_pass": even,
        "picture": picture,
    }
    return PhaseMade(
        figures=figures,
        notes=_notes(figures, grid),
        seconds=meter.seconds,
        peak_rss_mb=meter.peak_rss_mb,
    )


def rehearse() -> None:
    """Adds and shows a small made-up tile: whoever has done that has compiled, or loaded, what most mosaics run."""
    side = REHEARSED_PX
    y, x = np.mgrid[0:side, 0:side]
    star = 500.0 * np.exp(-((x - side // 2) ** 2 + (y - side // 2) ** 2) / 5.0)
    cube = np.stack([(y * x * 7.0 + x * x * x) % 61.0 + star] * 3).astype(np.float32)
    gaps(cube)
    character([cube], darkest_level(cube))
    placement = place(lambda across, down: (across, down), (0, 0, side, side), side, side)
    nothing = (0.0,) * len(cube)
    correction = TileCorrection(
        gain=(1.0,) * len(cube), pivot=nothing, offset=nothing, slope_x=nothing, slope_y=nothing, x=0.0, y=0.0,
        gain_measured=(True,) * len(cube), component=0,
    )  # fmt: skip
    sums = Sums(len(cube), side, side)
    for rows in (side, side // 2):  # a whole band, and the last one
        sums.begin(0, rows)
        slab = Slab(pixels=cube, row0=0, weight=np.ones_like(cube), alpha=np.ones((side, side), np.float32))
        sums.add(slab, placement, correction, np.ones(len(cube)), lanczos_table())
        small = block_mean(sums.finish()[0], 2)
    stretch(small)
    quality(small)


def _tiles(
    plan: Plan, spec: MosaicSpec, job: MakeMosaic, files: ExitStack, pool: ThreadPoolExecutor
) -> tuple[Grid, list[Tile]]:
    """The mosaic's grid, and the tiles on it, opened and surveyed."""
    specs = {t.tile: t for t in plan.tiles}
    specs |= {number: super_spec(number, [specs[t] for t in members], spec) for number, members in job.supers}
    made = sorted(job.tiles)
    if not made:
        raise SessionFailed(Reason(rule="no_tiles", message=f"mosaic {job.name}: no master tile was made"))
    grid = union((specs[number].grid for number, _ in made), spec.lattice)
    scratch = Path(job.plan_path).parent
    budget = job.settings.budget if MODES[plan.mode].takes_pictures else OWN_BUDGET

    def opened(one: tuple[int, str]) -> Tile:
        number, path = one
        tile = open_tile(specs[number], Path(path), grid, job.settings.feather_fraction, budget, scratch)
        files.callback(tile.file.close)
        return tile

    return grid, list(pool.map(opened, made))


def _frames(plan: Plan, tiles: Sequence[Tile], without: Sequence[str]) -> list[FramePlan]:
    """The distinct frames that are in the mosaic, in canonical order."""
    ids = dict.fromkeys(f for t in tiles for f in t.spec.frames if f not in set(without))
    return sorted((plan.frames[f] for f in ids), key=lambda f: (f.facts.observed_s or 0.0, f.frame))


# --- figures -------------------------------------------------------------------------------------------------------


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


# --- Phase 6 -------------------------------------------------------------------------------------------------------


def _show(job: MakeMosaic, small: F32) -> None:
    """Writes the preview, if one is wanted."""
    if not job.settings.preview:
        return
    picture = stretch(small, job.settings.preview_max_px)
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.shape[2] == 3 else picture
    done, data = cv2.imencode(".png", ordered)
    if not done:
        raise SessionFailed(Reason(rule="preview", message="the preview could not be encoded"))
    with publish(Path(job.preview), overwrite=True) as file:
        file.write(data.tobytes())


def _picture_figures(q: Quality) -> dict[str, Any]:
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
    notes = [LogNote(level="info", event="mosaic_assembled", fields=fields)]
    if even := figures["second_pass"]:
        notes.append(LogNote(level="info", event="second_pass_done", fields=even))
    return tuple(notes)
