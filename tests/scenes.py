"""Synthetic frames on disk, and the tiles and mosaics that the work rooms make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from zemosaicd import codec, sphere
from zemosaicd.model import Distortion, FramePlan, Grid, Plan, Wcs
from zemosaicd.science.frame import find_hot_pixels
from zemosaicd.work.jobs import MakeMosaic, MosaicSettings, PhaseMade, StackSettings, StackTile
from zemosaicd.work.store import write_npy

Array = NDArray[Any]
Star = tuple[float, float, float]
"""x, y on a base plane, and flux in ADU."""

SIGMA_PX = 1.6
SKY = 1000.0
SITES = {"RGGB": ((0, 0), (1, 0), (0, 1), (1, 1)), "GRBG": ((1, 0), (0, 0), (1, 1), (0, 1))}
"""(x, y) of the red, both green and the blue photosites of a cell."""
COLOURS = (0.8, 1.0, 0.6)
"""Flux of a star in red, green and blue, of its flux."""


def render(
    wcs: Wcs, width: int, height: int, base: Wcs, stars: Sequence[Star], bayer: str = "", lens: Distortion | None = None
) -> Array:
    """float64 (H, W): sky and Gaussian stars at places of `base`, as a frame there sees them; mono, or a CFA."""
    x, y = np.arange(width)[np.newaxis, :], np.arange(height)[:, np.newaxis]
    light = np.zeros((height, width))
    m = sphere.homography(base, wcs)
    for at_x, at_y, flux in stars:
        u, v = sphere.apply_plane(m, at_x, at_y)
        u, v = sphere.recorded_pixel(lens, u, v) if lens else (u, v)
        r2 = (x - u) ** 2 + (y - v) ** 2
        light += flux * np.exp(-0.5 * r2 / SIGMA_PX**2) / (2 * np.pi * SIGMA_PX**2)
    return SKY + light * (_colour_of_sites(width, height, bayer) if bayer else 1.0)


def _colour_of_sites(width: int, height: int, bayer: str) -> Array:
    share = np.empty((height, width))
    for (x, y), colour in zip(SITES[bayer], (0, 1, 1, 2), strict=True):
        share[y::2, x::2] = COLOURS[colour]
    return share


def caches(folder: Path, frames: Sequence[FramePlan], pixels: Callable[[int, FramePlan], Array]) -> list[FramePlan]:
    """The frames with caches in the folder: pixels (frame's index, frame) -> (H, W) or (H, W, C)."""
    folder.mkdir(exist_ok=True)
    made = [replace(f, cache=str(folder / f"{f.frame}.npy")) for f in frames]
    for i, frame in enumerate(made):
        write_npy(Path(frame.cache), pixels(i, frame).astype(np.float32), overwrite=True)
    return made


def on_grid(plan: Plan, grid: Grid) -> Plan:
    """A plan of one tile with that tile on another grid, so that frames may lie on whole pixels of it."""
    (tile,), (mosaic,) = plan.tiles, plan.mosaics
    return replace(plan, tiles=(replace(tile, grid=grid),), mosaics=(replace(mosaic, lattice=grid.wcs),))


def write_plan(folder: Path, plan: Plan) -> Path:
    """The plan's file."""
    path = folder / "plan.json"
    path.write_text(codec.dumps(plan))
    return path


def stack(
    folder: Path, plan: Plan, tile: int = 1, *, without: Sequence[str] = (), name: str = "", **settings: Any
) -> tuple[Path, PhaseMade]:
    """Phase 3 for one tile: the master tile's path and what the job reports."""
    output = folder / f"master_tile_{tile}{name}.fits"
    job = StackTile(
        plan_path=str(write_plan(folder, plan)),
        tile=tile,
        without=tuple(without),
        output=str(output),
        settings=StackSettings(**settings),
    )
    return output, job.run()


def stack_all(folder: Path, plan: Plan, **settings: Any) -> tuple[tuple[int, str], ...]:
    """Every tile of a plan: number and path."""
    return tuple((t.tile, str(stack(folder, plan, t.tile, **settings)[0])) for t in plan.tiles)


def mosaic(
    folder: Path, plan: Plan, tiles: Sequence[tuple[int, str]], *, without: Sequence[str] = (),
    supers: tuple[tuple[int, tuple[int, ...]], ...] = (), **settings: Any,
) -> tuple[Path, PhaseMade]:  # fmt: skip
    """Phases 4 to 6: the mosaic's path and what the job reports."""
    job = MakeMosaic(
        plan_path=str(write_plan(folder, plan)),
        name=plan.mosaics[0].name,
        tiles=tuple(tiles),
        without=tuple(without),
        mosaic=str(folder / "mosaic.fits"),
        preview=str(folder / "preview.png"),
        session="night",
        revision=1,
        settings=MosaicSettings(**settings),
        supers=supers,
    )
    return folder / "mosaic.fits", job.run()


def planes(path: Path) -> dict[str, Array]:
    """Every picture of a FITS file by its name, as astropy reads it; "" is the primary."""
    with fits.open(path, memmap=False) as file:
        named = {
            str(h.header.get("EXTNAME", "")): h.data for h in file if isinstance(h.data, np.ndarray) and h.is_image
        }
        return {name: np.asarray(data, data.dtype.newbyteorder("=")) for name, data in named.items()}


def flux(plane: Array, x: float, y: float, radius: float = 9.0) -> float:
    """Aperture flux over the median of the ring outside."""
    rows, columns = np.indices(plane.shape)
    distance = np.hypot(columns - x, rows - y)
    inside, ring = distance <= radius, (distance > radius + 1) & (distance <= radius + 5)
    return float(plane[inside].sum() - inside.sum() * np.median(plane[ring]))


def repair_hot_pixels(plane: Array, bayer: bool) -> tuple[Array, int]:
    """(float32 (H, W) copy with hot pixels replaced, how many): those that `find_hot_pixels` is sure of."""
    repaired = np.array(plane, np.float32, order="C")
    hot = find_hot_pixels(repaired, bayer)
    repaired.reshape(-1)[hot.place[hot.sure]] = hot.value[hot.sure]
    return repaired, int(hot.sure.sum())
