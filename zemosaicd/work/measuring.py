"""What Phase 5 must know of its tiles before it adds them: where they lie, noise, gaps, and what they share.

Each tile is read twice here, by rows: once to see whether it has gaps and how noisy and how sharp it is, and once where
it overlaps others, for the block medians and stars of `science.overlaps`. Nothing is kept but these few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.core.canvas import Box, box_of
from zemosaicd.core.modes import MODES
from zemosaicd.core.plan import kind_of
from zemosaicd.model import Grid, Plan, TileSpec
from zemosaicd.science.coverage import edge_weight
from zemosaicd.science.overlaps import BLOCK_PX, Overlap, TileSample, TileStars, fill_levels, joined, overlap_of
from zemosaicd.science.placement import MAX_ERROR_PX, WIDE_ERROR_PX, Placement, Transform, place
from zemosaicd.science.tilesolve import TileExtent
from zemosaicd.science.tilestars import (
    RING_OUTER,
    Character,
    aperture_fluxes,
    character,
    darkest_level,
    find_peaks,
    gaps,
    mean_plane,
)
from zemosaicd.work.fitsblocks import Budget
from zemosaicd.work.skymaps import grid_to_image, image_to_grid, sky_map
from zemosaicd.work.tilefiles import ALPHA, CHUNK_ROWS, PICTURE, UNMASKED, WEIGHT, ZEROS, TileFile, refuse_blank

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

STRIPS, STRIP_ROWS = 3, 96
STRIPE_PX, STARS_A_STRIPE = 256, 60
"""Rows of the grid that are sampled at a time, and the most stars of a tile that are measured there."""
MAX_BLOCKS = 1000
"""So many blocks tell all that two tiles differ by."""
THIN_BLOCK_PX = 8
THIN_PX = 4 * BLOCK_PX
"""Where the widest overlap of a tile is thinner than this, blocks of half the side are taken."""
STAR_APERTURE_FWHM = 2.5
LEAST_APERTURE_PX, LARGEST_APERTURE_PX = 3.0, 20.0
BLURRED = 4.0
"""A tile so many times less sharp than the others does not set their aperture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """A master tile as Phase 5 sees it. `feather_px`: how far in from its edges its weight rises; `whole`: it has data
    everywhere."""

    spec: TileSpec
    file: TileFile
    placement: Placement
    to_grid: Transform
    feather_px: float
    character: Character
    whole: bool

    @property
    def extent(self) -> TileExtent:
        """Its place for the photometric solve."""
        x0, y0, x1, y1 = self.placement.box
        half, frames = max(x1 - x0, y1 - y0) / 2, len(self.spec.frames)
        return TileExtent(x=(x0 + x1 - 1) / 2, y=(y0 + y1 - 1) / 2, half_px=half, frames=frames)

    @property
    def scale(self) -> float:
        """Pixels of the tile along a pixel of the grid."""
        return 1.0 / math.sqrt(self.placement.area)


def open_tile(spec: TileSpec, path: Path, grid: Grid, feather_fraction: float, budget: Budget, scratch: Path) -> Tile:
    """Opens, places and surveys a tile. Raises Rejected, Incomplete, OSError."""
    file = TileFile(path, budget, scratch)
    try:
        sky = sky_map(file.cards, file.width, file.height)
        box = box_of(spec.grid, grid.wcs)
        most = MAX_ERROR_PX if grid.wcs.projection == sphere.TAN else WIDE_ERROR_PX
        placement = place(grid_to_image(sky, grid), box, file.width, file.height, most)
        known, whole = _survey(file)
        feather_px = feather_fraction * min(file.width, file.height)
        if not whole and not file.has(ALPHA):
            _feather(file, feather_px)
        file.release()
    except BaseException:
        file.close()
        raise
    return Tile(
        spec=spec, file=file, placement=placement, to_grid=image_to_grid(sky, grid), feather_px=feather_px,
        character=known, whole=whole,
    )  # fmt: skip


def _survey(file: TileFile) -> tuple[Character, bool]:
    """Noise and sharpness from three strips, and whether all of the tile has data."""
    blank, zero, darkest = _scan(file)
    size = math.prod(file.shape)
    if file.floating and zero > ZEROS * size:
        file.zero_is_empty = True
        blank, _, darkest = _scan(file)
    if blank >= size:
        raise refuse_blank(file.path)
    high = min(STRIP_ROWS, file.height)
    tops = sorted({round((i + 1) * file.height / (STRIPS + 1) - high / 2) for i in range(STRIPS)})
    tops = [max(0, min(top, file.height - high)) for top in tops]
    known = character([file.rows(top, top + high, _measured(file)) for top in tops], darkest)
    if not all(math.isfinite(n) and n > 0 for n in known.noise):  # no strip had data: whatever there is will do
        noise = tuple(n if math.isfinite(n) and n > 0 else 1.0 for n in known.noise)
        known = replace(known, noise=noise, floor=(-math.inf,) * len(noise))
    return known, blank == 0


def _measured(file: TileFile) -> str:
    """The picture that is measured: what a mask hides counts too (work.masking)."""
    return UNMASKED if file.has(UNMASKED) else PICTURE


def _scan(file: TileFile) -> tuple[int, int, F32]:
    """How many values are not finite and how many are 0, and the level of the darkest part of each channel."""
    blank = zero = 0
    darkest = np.full(file.shape[0], np.inf, np.float32)
    for first in range(0, file.height, CHUNK_ROWS):
        rows = file.rows(first, min(first + CHUNK_ROWS, file.height))
        more_blank, more_zero = gaps(rows)
        blank, zero = blank + more_blank, zero + more_zero
        darkest = np.minimum(darkest, darkest_level(rows))
    return blank, zero, darkest


def _feather(file: TileFile, feather_px: float) -> None:
    """The feather of a tile with gaps, by rows: farther from a gap than the feather is wide is as good as far away."""
    halo = math.ceil(feather_px) + 2
    for first in range(0, file.height, CHUNK_ROWS):
        last = min(first + CHUNK_ROWS, file.height)
        top, bottom = max(0, first - halo), min(file.height, last + halo)
        valid = np.asarray(np.isfinite(file.rows(top, bottom)).all(axis=0))
        file.keep_alpha(first, edge_weight(valid, feather_px)[first - top : last - top])


def extents_of(plan: Plan, tiles: Sequence[Tile]) -> list[TileExtent]:
    """The tiles' places for the photometric solve, and which of them belong together there."""
    mode = MODES[plan.mode]

    def extent(tile: Tile) -> TileExtent:
        camera = "" if mode.takes_pictures else "/".join(kind_of(plan.frames[tile.spec.reference]))
        return replace(tile.extent, camera=camera, unit=tile.spec.group if mode.one_sky else "")

    return [extent(t) for t in tiles]


# --- overlaps ------------------------------------------------------------------------------------------------------


def overlaps_of(tiles: Sequence[Tile], mapped: Callable[..., Iterable[Any]] = map) -> list[Overlap]:
    """What every pair of tiles that share sky has in common. `mapped`: `map`, or a pool's, for the tiles."""
    pairs = list(_pairs([t.placement.box for t in tiles]))
    block = _block_px(pairs, [t.placement.box for t in tiles])
    aperture = _aperture_px(tiles)
    neighbours: list[list[Box]] = [[] for _ in tiles]
    for i, j, box in pairs:
        neighbours[i].append(box)
        neighbours[j].append(box)

    def sample(tile: Tile, boxes: list[Box]) -> TileSample | None:
        return _sample(tile, boxes, block, aperture) if boxes else None

    samples = list(mapped(sample, tiles, neighbours))
    found = []
    for i, j, _ in pairs:
        a, b = samples[i], samples[j]
        overlap = overlap_of(i, j, a, b) if a is not None and b is not None else None
        if overlap is not None:
            found.append(overlap)
    return found


def _pairs(boxes: Sequence[Box]) -> Iterator[tuple[int, int, Box]]:
    """Pairs of tiles (first < second) whose windows of the grid meet, and where; only neighbours in y are compared."""
    order = sorted(range(len(boxes)), key=lambda i: boxes[i][1])
    met = []
    for place_, i in enumerate(order):
        for j in order[place_ + 1 :]:
            if boxes[j][1] >= boxes[i][3]:
                break
            a, b = boxes[i], boxes[j]
            box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
            if box[2] - box[0] >= 2 and box[3] - box[1] >= 2:
                met.append((min(i, j), max(i, j), box))
    yield from sorted(met)


def _block_px(pairs: Sequence[tuple[int, int, Box]], boxes: Sequence[Box]) -> int:
    """Side of the blocks, so that several lie across the overlaps that hold the mosaic together."""
    widest = [0] * len(boxes)
    for i, j, (x0, y0, x1, y1) in pairs:
        for t in (i, j):
            widest[t] = max(widest[t], min(x1 - x0, y1 - y0))
    thin = [w for w in widest if w]
    return THIN_BLOCK_PX if thin and min(thin) < THIN_PX else BLOCK_PX


def _aperture_px(tiles: Sequence[Tile]) -> float:
    """Radius of the star aperture on the grid: of the least sharp tile, so that seeing does not count as gain."""
    sizes = [t.character.fwhm_px / t.scale for t in tiles if math.isfinite(t.character.fwhm_px)]
    if not sizes:
        return LEAST_APERTURE_PX
    widest = min(max(sizes), BLURRED * float(np.median(sizes)))
    return min(max(STAR_APERTURE_FWHM * widest, LEAST_APERTURE_PX), LARGEST_APERTURE_PX)


def _sample(tile: Tile, boxes: Sequence[Box], block: int, aperture_px: float) -> TileSample:
    """Block medians and stars of a tile where its neighbours are."""
    x0, y0, x1, y1 = tile.placement.box
    origin = x0 // block, y0 // block
    shared, wanted = np.zeros((2, -(-y1 // block) - origin[1], -(-x1 // block) - origin[0]), np.bool_)
    for box in boxes:
        _mark(shared, wanted, origin, box, block)
    level = np.full((tile.file.shape[0], *shared.shape), np.nan, np.float32)
    radius = aperture_px * tile.scale
    halo = math.ceil(RING_OUTER * radius) + 8
    noise = np.array(tile.character.noise, np.float64)
    stars = []
    for top in range(0, len(shared), STRIPE_PX // block):
        bottom = min(top + STRIPE_PX // block, len(shared))
        if not shared[top:bottom].any():
            continue
        stripe = (origin[1] + top) * block, (origin[1] + bottom) * block
        _, (first, last) = tile.placement.columns_and_rows(*stripe)
        if first >= last:
            continue
        core = first, last
        first, last = max(0, first - halo), min(tile.file.height, last + halo)
        slab = tile.file.rows(first, last, _measured(tile.file))
        fill_levels(level, wanted, origin, block, (top, bottom), slab, first, tile.placement, noise)
        stars.append(_stars(tile, slab, first, core, stripe, shared, origin, block, radius))
    tile.file.release()
    return TileSample(
        block_px=block, x_block=origin[0], y_block=origin[1], level=level, noise=noise,
        stars=joined(stars, len(level)),
    )  # fmt: skip


def _mark(shared: Flags, wanted: Flags, origin: tuple[int, int], box: Box, block: int) -> None:
    """Marks the blocks of one overlap as shared, and those to be measured as wanted: of a large one every second or
    third and so on along diagonals, the same ones in both tiles."""
    rows, columns = np.arange(box[1] // block, -(-box[3] // block)), np.arange(box[0] // block, -(-box[2] // block))
    here = np.s_[rows[0] - origin[1] : rows[-1] + 1 - origin[1], columns[0] - origin[0] : columns[-1] + 1 - origin[0]]
    shared[here] = True
    wanted[here] |= (rows[:, np.newaxis] + columns[np.newaxis, :]) % -(-rows.size * columns.size // MAX_BLOCKS) == 0


def _stars(
    tile: Tile, slab: F32, slab_row0: int, core: tuple[int, int], stripe: tuple[int, int], shared: Flags,
    origin: tuple[int, int], block: int, radius_px: float,
) -> TileStars:  # fmt: skip
    """The brightest stars of a slab of the tile, in its rows `core`, that lie in shared blocks of this stripe of the
    grid."""
    plane, sigma = mean_plane(slab, tile.character.noise)
    x, y, _, peak = find_peaks(plane, sigma, core[0] - slab_row0, core[1] - slab_row0)
    grid_x, grid_y = tile.to_grid(x, y + slab_row0)
    column, row = (
        np.floor((v + 0.5) / block).astype(np.int64) - o for v, o in ((grid_x, origin[0]), (grid_y, origin[1]))
    )
    inside = (column >= 0) & (column < shared.shape[1]) & (row >= 0) & (row < shared.shape[0])
    inside &= (grid_y + 0.5 >= stripe[0]) & (grid_y + 0.5 < stripe[1])
    inside[inside] = shared[row[inside], column[inside]]
    best = np.flatnonzero(inside)[np.argsort(-peak[inside], kind="stable")[:STARS_A_STRIPE]]
    x, y, grid_x, grid_y = (v[best] for v in (x, y, grid_x, grid_y))
    flux, noise = aperture_fluxes(slab, x, y, radius_px, tile.character.noise)
    area = _areas(tile.to_grid, x, y + slab_row0)
    good = np.isfinite(flux).all(axis=0) & np.isfinite(area)
    return TileStars(x=grid_x[good], y=grid_y[good], flux=(flux * area)[:, good], noise=(noise * area)[:, good])


def _areas(to_grid: Transform, x: F64, y: F64) -> F64:
    """A pixel of the tile in pixels of the grid, at each position: light in an aperture counts by area."""
    (ax, ay), (bx, by) = to_grid(x - 0.5, y), to_grid(x + 0.5, y)
    (cx, cy), (dx, dy) = to_grid(x, y - 0.5), to_grid(x, y + 0.5)
    return np.asarray(np.abs((bx - ax) * (dy - cy) - (by - ay) * (dx - cx)))


def inverse_variance(tile: Tile) -> F64:
    """(C,): of a pixel of a tile without WEIGHT; for one with, what its weights are multiplied by."""
    if tile.file.has(WEIGHT):
        return np.ones(tile.file.shape[0])
    return 1.0 / np.square(np.array(tile.character.noise, np.float64))
