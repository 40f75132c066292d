"""Phases 4 to 6 in a worker: master tiles on one lattice -> the mosaic, its companions and its figures.

Phase 4 lays the grid round the tiles; Phase 5 solves gain, offset and plane of every tile and channel over all
overlaps at once and adds the tiles, each weighted by its inverse variance and feathered to its edges; Phase 6 writes
the pictures. All by bands of rows: memory is a band, whatever the size of the mosaic. The tiles go through the same
resampler as frames do; on a common lattice it passes their values through unchanged.

`mosaic.fits`: primary (C, H, W) or (H, W) float32, NaN where nothing was seen; `WEIGHT` of the same shape, inverse
variance ADU^-2; `COVERAGE` (H, W) distinct frames; `ALPHA` (H, W) 0..1; table `FRAMES`.
"""

from __future__ import annotations

import math
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zemosaicd import __version__, sphere
from zemosaicd.core.plan import box_of, union
from zemosaicd.model import FramePlan, Grid, LogNote, MosaicSpec, Plan, Reason, SessionFailed, TileSpec
from zemosaicd.science.distortion import recorded
from zemosaicd.science.overlaps import Overlap, sample_overlap, star_gain
from zemosaicd.science.photometry import TileCorrection, TileExtent, TileSolution, corrected, solve_tiles
from zemosaicd.science.preview import block_mean, quality, stretch
from zemosaicd.science.resample import NOTHING, Source, resample, source_box
from zemosaicd.science.stars import find_stars
from zemosaicd.work.fitswrite import FitsImage, FitsWriter, ImageSpec, write_fits
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PhaseMade
from zemosaicd.work.planfiles import read_plan
from zemosaicd.work.store import publish

F32 = NDArray[np.float32]

STAR_APERTURE_FWHM = 2.0
CFA_EDGE_PX, PLANE_EDGE_PX = 4.0, 1.0
"""How far inside a frame its samples begin: CFA frames, and planes off by fractions (science.resample's footprint)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """A master tile as Phase 5 sees it. `x0, y0`: its corner on the lattice, whole pixels."""

    spec: TileSpec
    path: Path
    x0: int
    y0: int

    def planes(self, first: int, last: int) -> tuple[F32, F32, F32, F32]:
        """Rows of the picture (C, h, W), its weight (C, h, W), coverage (h, W) and alpha (h, W)."""
        bands = []
        for name in ("", "WEIGHT", "COVERAGE", "ALPHA"):
            with FitsImage(self.path, name) as image:
                bands.append(image.rows(first, last).astype(np.float32))
        picture, weight, coverage, alpha = bands
        return _cube(picture), _cube(weight), coverage, alpha

    def window(self, x0: int, y0: int, x1: int, y1: int) -> F32:
        """The picture's part of a box of the lattice, (C, h, w)."""
        with FitsImage(self.path) as image:
            rows = image.rows(y0 - self.y0, y1 - self.y0)
        return np.ascontiguousarray(_cube(rows)[:, :, x0 - self.x0 : x1 - self.x0])


def _cube(planes: F32) -> F32:
    """(C, h, W) whatever the number of channels."""
    return planes if planes.ndim == 3 else planes[np.newaxis]


def make_mosaic(job: MakeMosaic) -> PhaseMade:
    """Runs Phases 4 to 6 for one mosaic."""
    started = time.perf_counter()
    plan = read_plan(Path(job.plan_path))
    spec = next(m for m in plan.mosaics if m.name == job.name)
    tiles = _tiles(plan, spec, job.tiles)
    if not tiles:
        raise SessionFailed(Reason(rule="no_tiles", message=f"mosaic {job.name}: no master tile was made"))
    grid = union((t.spec.grid for t in tiles), spec.lattice)
    solution = solve_tiles(list(_overlaps(tiles, plan, job.settings)), [_extent(t) for t in tiles], spec.channels)
    frames = _frames(plan, tiles, job.without)
    rows = _band_rows(grid, spec.channels, job.settings)
    small = _write(job, spec, grid, tiles, solution, frames, rows)
    if job.settings.preview:
        _write_preview(Path(job.preview), small, job.settings.preview_max_px)
    figures = {
        "width": grid.width,
        "height": grid.height,
        "scale_arcsec": sphere.scale_arcsec(grid.wcs),
        "predicted_mb": round(_band_bytes(grid, spec.channels, rows) / 1e6, 1),
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


def _tiles(plan: Plan, spec: MosaicSpec, made: Sequence[tuple[int, str]]) -> list[Tile]:
    specs = {t.tile: t for t in plan.tiles}
    tiles = []
    for number, path in sorted(made):
        x0, y0, _, _ = box_of(specs[number].grid, spec.lattice)
        tiles.append(Tile(spec=specs[number], path=Path(path), x0=x0, y0=y0))
    return tiles


def _frames(plan: Plan, tiles: Sequence[Tile], without: Sequence[str]) -> list[FramePlan]:
    """The distinct frames that are in the mosaic, in canonical order."""
    ids = dict.fromkeys(f for t in tiles for f in t.spec.frames if f not in set(without))
    return sorted((plan.frames[f] for f in ids), key=lambda f: (f.facts.observed_s or 0.0, f.frame))


def _extent(tile: Tile) -> TileExtent:
    width, height = tile.spec.grid.width, tile.spec.grid.height
    return TileExtent(
        x=tile.x0 + (width - 1) / 2,
        y=tile.y0 + (height - 1) / 2,
        half_px=max(width, height) / 2,
        frames=len(tile.spec.frames),
    )


# --- Phase 5: what the tiles have in common ------------------------------------------------------------------------


def _overlaps(tiles: Sequence[Tile], plan: Plan, settings: MosaicSettings) -> Iterator[Overlap]:
    """Blocks and star flux ratios of every pair of tiles that share sky, a stripe of rows at a time."""
    for i, a in enumerate(tiles):
        for j in range(i + 1, len(tiles)):
            b = tiles[j]
            x0, y0 = max(a.x0, b.x0), max(a.y0, b.y0)
            x1 = min(a.x0 + a.spec.grid.width, b.x0 + b.spec.grid.width)
            y1 = min(a.y0 + a.spec.grid.height, b.y0 + b.spec.grid.height)
            if x1 - x0 < 2 or y1 - y0 < 2:
                continue
            stripe = max(256, settings.band_budget_bytes // (16 * a.spec.channels * (x1 - x0)) // 16 * 16)
            fwhm = max(plan.frames[f].fwhm_px for t in (a, b) for f in t.spec.frames[:50])
            for top in range(y0, y1, stripe):
                box = (x0, top, x1, min(top + stripe, y1))
                wa, wb = a.window(*box), b.window(*box)
                overlap = sample_overlap(i, j, wa, wb, x0, top, star_gain=_star_gain(wa, wb, fwhm))
                if overlap is not None:
                    yield overlap


def _star_gain(a: F32, b: F32, fwhm_px: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Flux ratio of the stars in an overlap, found on the mean of the first tile's channels; None without stars."""
    both = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    if not both.any() or not math.isfinite(fwhm_px):
        return None
    mean = np.where(both, a.mean(axis=0, dtype=np.float32), np.float32(np.nan))
    stars = find_stars(np.ascontiguousarray(mean), "", limit=300)
    if not len(stars):
        return None
    return star_gain(a, b, stars.x, stars.y, STAR_APERTURE_FWHM * fwhm_px)


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
        }
        for s in solution.seams
    ]
    worst = max((abs(v) for s in solution.seams for v in s.after_sigma if math.isfinite(v)), default=None)
    return {"pairs": pairs, "worst_sigma": worst, "parts": solution.components}


def _photometry(solution: TileSolution, tiles: Sequence[Tile]) -> dict[str, Any]:
    return {
        str(t.spec.tile): {
            "gain": c.gain,
            "offset_adu": c.offset,
            "gain_measured": c.gain_measured,
            "part": c.component,
        }
        for t, c in zip(tiles, solution.tiles, strict=True)
    }


# --- the coadd, band by band ---------------------------------------------------------------------------------------


def _band_bytes(grid: Grid, channels: int, rows: int) -> int:
    """Sums and output of a band, and one tile's part of it with its resampled copy."""
    return rows * grid.width * (channels * (8 * 3 + 4 * 2) + (2 * channels + 2) * 4 * 3)


def _band_rows(grid: Grid, channels: int, settings: MosaicSettings) -> int:
    return max(16, min(grid.height, settings.band_budget_bytes // _band_bytes(grid, channels, 1)))


def _write(
    job: MakeMosaic,
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
    x0, y0, _, _ = box_of(grid, spec.lattice)
    shared = _shared(tiles)
    small: list[F32] = []
    with write_fits(Path(job.mosaic), _images(job, spec, grid, frames, len(tiles)), overwrite=True) as writer:
        for row0 in range(0, grid.height, rows):
            count = min(rows, grid.height - row0)
            band = _Band(spec.channels, count, grid.width)
            for tile, correction in zip(tiles, solution.tiles, strict=True):
                _add_tile(band, tile, correction, grid, (x0, y0), row0)
            picture = _write_band(writer, band, row0, _overcount(shared, frames, grid, row0, count))
            small.append(block_mean(picture, factor))
        writer.table("FRAMES", _frames_table(frames, tiles))
    return np.concatenate(small, axis=1)


class _Band:
    """The sums of one band of the mosaic: float64 (C, h, W), and (h, W) for coverage and alpha."""

    def __init__(self, channels: int, rows: int, width: int) -> None:
        self.value = np.zeros((channels, rows, width))
        self.weight = np.zeros((channels, rows, width))
        self.squared = np.zeros((channels, rows, width))
        self.coverage = np.zeros((rows, width), np.int64)
        self.deepest = np.zeros((rows, width), np.int64)
        self.alpha = np.zeros((rows, width), np.float32)


def _add_tile(
    band: _Band, tile: Tile, correction: TileCorrection, grid: Grid, corner: tuple[int, int], row0: int
) -> None:
    """Adds one tile's part of the band: corrected picture, inverse variance times feather as weight.

    `corner`: x and y of the grid on the lattice. A tile that is scaled by g has g^2 the variance.
    """
    channels, rows, width = band.value.shape
    extent = tile.spec.grid
    left, right = max(0, tile.x0 - corner[0]), min(width, tile.x0 + extent.width - corner[0])
    matrix = sphere.homography(grid.wcs, extent.wcs)
    window = (left, row0, right, row0 + rows)
    box = source_box(matrix, window, extent.width, extent.height)
    if box == NOTHING:
        return
    picture, weight, coverage, alpha = tile.planes(box[1], box[3])
    cube = np.concatenate([picture, weight, coverage[np.newaxis], alpha[np.newaxis]])
    source = Source(pixels=cube, corner=(0, box[1]), width=extent.width, height=extent.height)
    planes, seen = resample(source, matrix, window)
    if not seen.any():
        return
    ivar = np.where(seen, planes[channels : 2 * channels], 0.0).astype(np.float64)
    ivar /= np.square(correction.gain)[:, np.newaxis, np.newaxis]
    feather = np.where(seen, planes[2 * channels + 1], np.float32(0.0))
    w = ivar * feather
    picture = corrected(planes[:channels], correction, corner[0] + left, corner[1] + row0)
    here = (slice(None), slice(left, right))
    band.value[:, *here] += np.where(seen, picture, 0.0) * w
    band.weight[:, *here] += w
    band.squared[:, *here] += w * feather
    counted = np.where(seen, np.rint(planes[2 * channels]), 0.0).astype(np.int64)
    band.coverage[here] += counted
    band.deepest[here] = np.maximum(band.deepest[here], counted)
    band.alpha[here] = np.minimum(np.float32(1.0), band.alpha[here] + feather)


def _write_band(writer: FitsWriter, band: _Band, row0: int, overcount: NDArray[np.int64]) -> F32:
    """Writes the band's rows of every picture; returns the picture's."""
    good = band.weight > 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        picture = np.where(good, band.value / band.weight, np.nan).astype(np.float32)
        # Inverse variance of sum(w v) / sum(w) with w = alpha * ivar: (sum w)^2 / sum(alpha w).
        ivar = np.where(good, band.weight**2 / band.squared, 0.0).astype(np.float32)
    coverage = np.maximum(band.deepest, band.coverage - overcount)
    flat = len(picture) == 1
    writer.write("", row0, picture[0] if flat else picture)
    writer.write("WEIGHT", row0, ivar[0] if flat else ivar)
    writer.write("COVERAGE", row0, np.minimum(coverage, np.iinfo(np.uint16).max).astype(np.uint16))
    writer.write("ALPHA", row0, band.alpha)
    return picture


# --- distinct frames -----------------------------------------------------------------------------------------------


def _shared(tiles: Sequence[Tile]) -> dict[str, int]:
    """Frames that are in several tiles, and in how many more than one (R8: COVERAGE counts distinct frames)."""
    users = Counter(f for t in tiles for f in t.spec.frames)
    return {f: n - 1 for f, n in users.items() if n > 1}


def _overcount(
    shared: dict[str, int], frames: Sequence[FramePlan], grid: Grid, row0: int, rows: int
) -> NDArray[np.int64]:
    """How often too many the tiles' coverages count a frame, (rows, W), from the frames' footprints."""
    extra = np.zeros((rows, grid.width), np.int64)
    if not shared:
        return extra
    x, y = np.arange(grid.width)[np.newaxis, :], np.arange(row0, row0 + rows)[:, np.newaxis]
    for frame in frames:
        if frame.frame not in shared:
            continue
        m = sphere.homography(grid.wcs, frame.wcs)
        w = m[6] * x + m[7] * y + m[8]
        u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
        if frame.distortion is not None:
            u, v = recorded(frame.distortion, u, v)  # NaN beyond the sensor: outside
        edge = CFA_EDGE_PX if frame.facts.bayer else PLANE_EDGE_PX
        inside = (w > 0) & (u >= edge) & (v >= edge)
        inside &= (u <= frame.facts.width - 1 - edge) & (v <= frame.facts.height - 1 - edge)
        extra += shared[frame.frame] * inside
    return extra


# --- Phase 6: what is written --------------------------------------------------------------------------------------


def _images(job: MakeMosaic, spec: MosaicSpec, grid: Grid, frames: Sequence[FramePlan], tiles: int) -> list[ImageSpec]:
    shape = (grid.height, grid.width)
    cube = (spec.channels, *shape) if spec.channels > 1 else shape
    first = frames[0].facts
    cards: dict[str, Any] = {
        "BUNIT": ("ADU", "of one frame, at the reference's sky"),
        "OBJECT": first.object_name,
        "FILTER": spec.filter_name,
        "INSTRUME": first.camera,
        "TELESCOP": first.telescope,
        "NCOMBINE": (len(frames), "distinct frames"),
        "EXPTIME": (first.exposure_s, "[s] of one frame"),
        "EXPTOTAL": (sum(f.facts.exposure_s for f in frames), "[s] of all frames together"),
        "NTILES": (tiles, "master tiles"),
        "CREATOR": f"zemosaicd {__version__}",
        "SESSION": job.session,
        "REVISION": job.revision,
    }
    if first.observed_s is not None:
        cards["DATE-OBS"] = datetime.fromtimestamp(first.observed_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        cards["MJD-OBS"] = math.floor(first.observed_s) / 86400.0 + 40587.0  # without it, readers warn and add it
    if spec.channels == 3:
        cards["CTYPE3"] = ("RGB", "planes are red, green, blue")
    return [
        ImageSpec(name="", shape=cube, wcs=grid.wcs, cards=cards),
        ImageSpec(name="WEIGHT", shape=cube, wcs=grid.wcs, cards={"BUNIT": ("ADU-2", "inverse variance")}),
        ImageSpec(name="COVERAGE", shape=shape, dtype="uint16", wcs=grid.wcs, cards={"BUNIT": "frames"}),
        ImageSpec(name="ALPHA", shape=shape, wcs=grid.wcs),
    ]


def _frames_table(frames: Sequence[FramePlan], tiles: Sequence[Tile]) -> dict[str, Any]:
    """One row a frame: where it is from, where it went, and what it was worth."""
    home = {f: t.spec.tile for t in reversed(tiles) for f in t.spec.frames}
    centres = [sphere.position(sphere.centre_of(Grid(wcs=f.wcs, width=f.facts.width, height=f.facts.height)))
               for f in frames]  # fmt: skip
    return {
        "NAME": [Path(f.path).name for f in frames],
        "FRAME": [f.frame for f in frames],
        "TILE": [home[f.frame] for f in frames],
        "OBSERVED": [f.facts.observed_s if f.facts.observed_s is not None else math.nan for f in frames],
        "EXPTIME": [f.facts.exposure_s for f in frames],
        "RA": [c[0] for c in centres],
        "DEC": [c[1] for c in centres],
        "TRANSPARENCY": [f.transparency for f in frames],
        "SKY": [float(np.mean(f.sky_adu)) for f in frames],
        "NOISE": [float(np.mean(f.noise_adu)) for f in frames],
        "FWHM": [f.fwhm_px for f in frames],
        "STARS": [f.stars for f in frames],
        "RESIDUAL": [f.residual_px for f in frames],
        "SOLVER": [f.solver for f in frames],
    }


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
