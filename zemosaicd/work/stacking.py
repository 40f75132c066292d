"""Phase 3 in a worker: the frames of one tile, each with its transform to the tile's grid, combined band by band.

Aligned copies never exist: for each band of output rows every frame gives just the rows that fall there, is warped
(and demosaiced) onto the band, brought to the reference's sky and flux, judged and averaged. Peak memory is one band
of samples, whatever the number of frames (M5), and the band's height leaves no trace in the pixels.

A master tile is a FITS file: picture (C, H, W) float32 in the reference frame's ADU, NaN where nothing was seen;
`WEIGHT` (C, H, W) inverse variance a pixel, ADU^-2; `COVERAGE` (H, W) frames that contribute in all channels (V1);
`ALPHA` (H, W) 0..1, rising from every edge of the data (its feather).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.plan import band_bytes, band_of
from zemosaicd.model import FramePlan, LogNote, Plan, Reason, TileFailed, TileSpec
from zemosaicd.science import combine, coverage
from zemosaicd.science.resample import Source, resample_band, source_rows_needed
from zemosaicd.work.fitswrite import CardValue, FitsWriter, ImageSpec, write_fits
from zemosaicd.work.jobs import PhaseMade, StackSettings, StackTile
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.store import NpyPlane

F64 = NDArray[np.float64]
TRANSPARENCY_LIMITS = (0.05, 20.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """How the frames of a tile are brought to its reference: n frames, c channels, float64.

    normalised = pixel * gain + offset; `weights` are inverse variances of the normalised samples (or all 1).
    """

    gain: F64
    offset: F64
    weights: F64
    noise: combine.NoiseModel


def stack_tile(job: StackTile) -> PhaseMade:
    """Runs Phase 3 for one tile and publishes it."""
    started = time.perf_counter()
    plan = read_plan(Path(job.plan_path))
    spec = next(t for t in plan.tiles if t.tile == job.tile)
    frames = [plan.frames[f] for f in spec.frames if f not in job.without]
    if not frames:
        message = f"tile {spec.tile} has no frame left"
        raise TileFailed(Reason(rule="mastertile_error_no_valid_images_from_cache", message=message))
    output = Path(job.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figures, stats = _stack(plan, spec, frames, job.settings, output)
    return PhaseMade(
        figures=figures,
        notes=(LogNote(level="debug", event="MT_COVERAGE_STATS", fields=stats),),
        seconds=time.perf_counter() - started,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def levels_of(frames: Sequence[FramePlan], reference: FramePlan, by_noise: bool) -> Levels:
    """Sky and flux of each frame against the reference; weights n/variance (DESIGN: depth is the number of frames)."""
    low, high = TRANSPARENCY_LIMITS
    sky = np.array([f.sky_adu for f in frames], np.float64)
    noise = np.array([f.noise_adu for f in frames], np.float64)
    photon = np.array([f.photon_adu for f in frames], np.float64)
    transparency = np.clip([f.transparency for f in frames], low, high)[:, np.newaxis]
    gain = np.broadcast_to(1.0 / transparency, sky.shape).copy()
    zero = np.array(reference.sky_adu, np.float64)
    variance = (noise * gain) ** 2
    return Levels(
        gain=gain,
        offset=zero - sky * gain,
        weights=1.0 / variance if by_noise else np.ones_like(variance),
        noise=combine.NoiseModel(variance=variance, photon=photon * gain, pedestal=zero),
    )


def _stack(
    plan: Plan, spec: TileSpec, frames: Sequence[FramePlan], settings: StackSettings, output: Path
) -> tuple[dict[str, object], dict[str, object]]:
    """Writes the tile; returns its figures and its coverage's (V7)."""
    height, width = spec.grid.height, spec.grid.width
    levels = levels_of(frames, plan.frames[spec.reference], settings.weights == "noise")
    rule = combine.Rule(
        method=combine.Method(settings.rejection),
        average=combine.Average(settings.combine),
        k_low=settings.kappa_low,
        k_high=settings.kappa_high,
    )
    rows, columns = shape = band_of(spec, settings.band_budget_bytes)
    covered = np.zeros((height, width), np.bool_)
    shallowest, deepest, rejected, samples = len(frames), 0, 0, 0
    with write_fits(output, _images(spec, len(frames)), overwrite=True, mode=0o600) as writer:
        for row0 in range(0, height, rows):
            count = min(rows, height - row0)
            windows = [
                _window(spec, frames, levels, rule, (row0, count), (col0, min(columns, width - col0)))
                for col0 in range(0, width, columns)
            ]
            band = windows[0] if len(windows) == 1 else _side_by_side(windows)
            seen = band.count > 0
            covered[row0 : row0 + len(seen)] = seen
            shallowest = min(shallowest, int(band.count.min(initial=len(frames), where=seen)))
            deepest = max(deepest, int(band.count.max(initial=0)))
            rejected, samples = rejected + int(band.rejected.sum()), samples + int(band.samples.sum())
            picture = np.where((band.weight > 0) & seen[:, :, np.newaxis], band.mean, np.float32(np.nan))
            writer.write("", row0, _planes(picture))
            writer.write("WEIGHT", row0, _planes(np.where(seen[:, :, np.newaxis], band.weight, np.float32(0))))
            writer.write("COVERAGE", row0, band.count)
        if not deepest:
            reason = Reason(rule="empty_tile", value=0, threshold=1, message=f"tile {spec.tile}: no pixel was seen")
            raise TileFailed(reason)  # F31: a reason, not a black tile
        _write_alpha(writer, covered, settings.feather_fraction * min(_short_side(frames), height, width))
    seen_fraction = float(covered.mean())
    stats: dict[str, object] = {
        "tile_id": spec.tile,
        "shape": f"{height}x{width}",
        "min": 0 if seen_fraction < 1.0 else shallowest,
        "max": deepest,
        "nonzero_frac": round(seen_fraction, 4),
        "n_used": len(frames),
    }
    return {
        "frames": len(frames),
        "coverage_max": deepest,
        "seen_fraction": seen_fraction,
        "rejected_pct": round(100.0 * rejected / max(1, samples), 3),
        "predicted_mb": round(band_bytes(spec, shape) / 1e6, 1),
    }, stats


def _short_side(frames: Sequence[FramePlan]) -> int:
    return min(min(f.facts.width, f.facts.height) for f in frames)


def _images(spec: TileSpec, frames: int) -> list[ImageSpec]:
    height, width = spec.grid.height, spec.grid.width
    cube = (spec.channels, height, width) if spec.channels > 1 else (height, width)
    cards: dict[str, CardValue | tuple[CardValue, str]] = {
        "BUNIT": "ADU",
        "NCOMBINE": (frames, "frames in this tile"),
        "TILE": spec.tile,
        "GROUP": spec.group,
    }
    return [
        ImageSpec(name="", shape=cube, wcs=spec.grid.wcs, cards=cards),
        ImageSpec(name="WEIGHT", shape=cube, wcs=spec.grid.wcs, cards={"BUNIT": "ADU-2"}),
        ImageSpec(name="COVERAGE", shape=(height, width), dtype="uint16", wcs=spec.grid.wcs),
        ImageSpec(name="ALPHA", shape=(height, width), wcs=spec.grid.wcs),
    ]


def _planes(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, W, C) to the file's (C, h, W), or (h, W) for one channel."""
    return band[:, :, 0] if band.shape[2] == 1 else np.moveaxis(band, 2, 0)


def _write_alpha(writer: FitsWriter, covered: NDArray[np.bool_], feather_px: float) -> None:
    writer.write("ALPHA", 0, coverage.edge_weight(covered, feather_px))


def _window(
    spec: TileSpec,
    frames: Sequence[FramePlan],
    levels: Levels,
    rule: combine.Rule,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> combine.Combined:
    """One window (first, count) of the stack, with the neighbours' rows and columns that its judgement needs."""
    halo = combine.halo_of(*rows, spec.grid.height)
    side = combine.halo_of(*columns, spec.grid.width)
    top, left = rows[0] - halo[0], columns[0] - side[0]
    shape = (len(frames), rows[1] + sum(halo), columns[1] + sum(side))
    samples = np.empty((*shape, spec.channels), np.float32)
    seen = np.empty(shape, np.bool_)
    for i, frame in enumerate(frames):
        _warp(frame, spec, (top, left), (samples[i], seen[i]))
        combine.normalise_band(samples[i], levels.offset[i], levels.gain[i])
    return combine.combine_band(samples, seen, levels.weights, rule, levels.noise, halo=halo, side=side)


def _side_by_side(windows: Sequence[combine.Combined]) -> combine.Combined:
    """The windows of one band as a band: only a tile of very many frames is stacked in windows (M5)."""
    return combine.Combined(
        mean=np.concatenate([w.mean for w in windows], axis=1),
        weight=np.concatenate([w.weight for w in windows], axis=1),
        count=np.concatenate([w.count for w in windows], axis=1),
        rejected=np.sum([w.rejected for w in windows], axis=0),
        samples=np.sum([w.samples for w in windows], axis=0),
    )


def _warp(
    frame: FramePlan, spec: TileSpec, corner: tuple[int, int], into: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> None:
    """The rows of one frame that fall on a window with this (top, left) corner, read and warped onto it."""
    matrix = sphere.homography(spec.grid.wcs, frame.wcs)
    facts, (first, col0) = frame.facts, corner
    values, seen = into
    count, width = seen.shape
    top, bottom = source_rows_needed(
        matrix, first, count, width, facts.height, facts.width,
        bayer=facts.bayer, distortion=frame.distortion, col0=col0,
    )  # fmt: skip
    if top >= bottom:
        values[...], seen[...] = 0.0, False
        return
    with NpyPlane(Path(frame.cache)) as plane:
        slab = plane.rows(top, bottom)
    source = Source(pixels=slab, bayer=facts.bayer, row0=top, height=facts.height, distortion=frame.distortion)
    resample_band(source, matrix, first, count, width, col0=col0, into=into)
