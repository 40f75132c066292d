"""The certificate: what a written mosaic is measured to be, before it is published (Phase 6).

Read back from the file: noise against what WEIGHT promises, the places of catalogue stars, how much of it was seen and
how deeply. Only small windows and every so-manieth row are read, so that the cost hardly grows with the mosaic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sep
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import Grid
from zemosaicd.science.projections import to_pixels
from zemosaicd.science.tilestars import pixel_noise
from zemosaicd.work.catalogue import read_cone
from zemosaicd.work.fitswrite import FitsWriter

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NOISE_WINDOWS, NOISE_WINDOW_PX = 6, 48
"""So many windows across and down, of this side."""
MOST_ROWS = 256
MOST_STARS, MOST_CATALOGUE_STARS = 300, 20000
ALONE_FWHM = 8.0
"""No other catalogue star is so near."""
SEARCH_FWHM = 1.5
STAR_SIGMA = 10.0
FALLBACK_FWHM_PX = 2.5


def certify(writer: FitsWriter, grid: Grid, channels: int, fwhm_px: float, *, counts_frames: bool) -> dict[str, Any]:
    """Figures of a mosaic whose every row is written. `fwhm_px`: of its stars, NaN where that is not known.

    `noise`: median standard deviation of a pixel a channel (`adu`), and its ratio to what WEIGHT says. `astrometry`:
    stars of the catalogue found in the mosaic (`stars` of `wanted`) and how far from where the WCS says (`rms_arcsec`,
    `median_arcsec`, `max_arcsec`). `coverage`: share of the picture that was `seen`; of that, share seen by at least
    half as many frames as the deepest part (`half_depth`); frames at the deepest and the median.
    """
    sharp = max(1.5, fwhm_px) if math.isfinite(fwhm_px) else FALLBACK_FWHM_PX
    noise = _noise(writer, grid, channels)
    return {
        "noise": noise,
        "astrometry": _astrometry(writer, grid, sharp),
        "coverage": _coverage(writer, grid, counts_frames=counts_frames),
    }


def _noise(writer: FitsWriter, grid: Grid, channels: int) -> dict[str, Any]:
    side = min(NOISE_WINDOW_PX, grid.width, grid.height)
    tops = np.unique(np.linspace(0, grid.height - side, NOISE_WINDOWS).astype(int))
    lefts = np.unique(np.linspace(0, grid.width - side, NOISE_WINDOWS).astype(int))
    measured, promised = [], []
    for top in tops.tolist():
        for left in lefts.tolist():
            box = left, top, left + side, top + side
            weight = writer.window("WEIGHT", box).reshape(channels, side, side)
            if not (weight > 0).all():
                continue
            picture = writer.window("", box).reshape(channels, side, side)
            measured.append([pixel_noise([plane]) for plane in picture])
            promised.append(1.0 / np.sqrt(np.median(weight, axis=(1, 2))))
    if not measured:
        return {"adu": None, "ratio": None, "windows": 0}
    adu = np.median(measured, axis=0)
    ratio = np.median(np.array(measured) / np.array(promised), axis=0)
    return {"adu": adu.tolist(), "ratio": ratio.tolist(), "windows": len(measured)}


def _astrometry(writer: FitsWriter, grid: Grid, fwhm_px: float) -> dict[str, Any]:
    x, y = _catalogue_places(grid, fwhm_px)
    half = math.ceil(4.0 * fwhm_px) + 3
    offsets, wanted = [], 0
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        left, top = round(px) - half, round(py) - half
        box = left, top, left + 2 * half + 1, top + 2 * half + 1
        if left < 0 or top < 0 or box[2] > grid.width or box[3] > grid.height:
            continue
        cut = writer.window("", box)
        plane = np.ascontiguousarray(cut.reshape(-1, *cut.shape[-2:]).mean(axis=0, dtype=np.float64))
        if not np.isfinite(plane).all():
            continue
        wanted += 1
        off = _offset(plane, px - left, py - top, fwhm_px)
        if off is not None:
            offsets.append(off)
    figures: dict[str, Any] = {"wanted": wanted, "stars": len(offsets)}
    if offsets:
        apart = np.array(offsets) * sphere.scale_arcsec(grid.wcs)
        rms, median, most = math.sqrt(float(np.mean(apart**2))), float(np.median(apart)), float(apart.max())
        figures |= {"rms_arcsec": rms, "median_arcsec": median, "max_arcsec": most}
    return figures


def _catalogue_places(grid: Grid, fwhm_px: float) -> tuple[F64, F64]:
    """Where on the grid stars of the catalogue are that stand alone; of many, evenly from bright to faint."""
    ra_deg, dec_deg = sphere.position(sphere.centre_of(grid))
    stars = read_cone(ra_deg, dec_deg, min(90.0, 1.02 * sphere.field_radius_deg(grid)), MOST_CATALOGUE_STARS)
    ra, dec = np.radians(stars.ra_deg), np.radians(stars.dec_deg)
    sky = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    x, y = to_pixels(grid.wcs, sky)
    inside = np.flatnonzero((x > 0) & (x < grid.width - 1) & (y > 0) & (y < grid.height - 1))
    x, y = x[inside], y[inside]
    some = np.arange(len(x))[:: max(1, len(x) // (2 * MOST_STARS))]
    chosen = [i for i, lone in zip(some.tolist(), _alone(x, y, some, ALONE_FWHM * fwhm_px), strict=True) if lone]
    return x[chosen[:MOST_STARS]], y[chosen[:MOST_STARS]]


def _alone(x: F64, y: F64, some: NDArray[np.int64], radius_px: float) -> list[bool]:
    """Whether each of some of the points has no other within a radius."""
    order = np.argsort(x, kind="stable")
    ends = (np.searchsorted(x[order], x[some] + sign * radius_px) for sign in (-1, 1))
    lone = []
    for i, first, last in zip(some, *ends, strict=True):
        near = order[first:last]
        lone.append(int((np.hypot(x[near] - x[i], y[near] - y[i]) <= radius_px).sum()) <= 1)
    return lone


def _offset(plane: F64, x: float, y: float, fwhm_px: float) -> float | None:
    """How far from (x, y) the star lies that is there, px; None where none stands out."""
    rim = np.concatenate([plane[0], plane[-1], plane[1:-1, 0], plane[1:-1, -1]])
    level = float(np.median(rim))
    sigma = 1.4826 * float(np.median(np.abs(rim - level)))
    light = plane - level
    near, reach = (round(y), round(x)), math.ceil(SEARCH_FWHM * fwhm_px)
    core = light[near[0] - reach : near[0] + reach + 1, near[1] - reach : near[1] + reach + 1]
    if not core.max() > STAR_SIGMA * sigma:
        return None
    row, column = (int(v) for v in np.unravel_index(int(core.argmax()), core.shape))
    start = column + near[1] - reach, row + near[0] - reach
    at_x, at_y, flag = sep.winpos(light, [start[0]], [start[1]], [fwhm_px / 2.355])
    off = math.hypot(float(at_x[0]) - x, float(at_y[0]) - y)
    return off if not flag[0] and off <= SEARCH_FWHM * fwhm_px else None


def _coverage(writer: FitsWriter, grid: Grid, *, counts_frames: bool) -> dict[str, Any]:
    step = -(-grid.height // MOST_ROWS)
    name = "COVERAGE" if counts_frames else "ALPHA"
    rows = [writer.window(name, (0, row, grid.width, row + 1)) for row in range(step // 2, grid.height, step)]
    counts = np.concatenate([row.reshape(-1) for row in rows])
    seen = counts[counts > 0]
    figures: dict[str, Any] = {"seen": len(seen) / len(counts)}
    if counts_frames and len(seen):
        deepest = int(seen.max())
        figures |= {"deepest": deepest, "median": float(np.median(seen))}
        figures["half_depth"] = float((2 * seen.astype(np.int64) >= deepest).mean())
    return figures
