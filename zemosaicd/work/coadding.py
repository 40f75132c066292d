"""The tiles of a mosaic added band by band, each band written before the next is begun.

Memory is a band and the rows of the tiles in it, whatever the size of the mosaic. The bands are shared out to a few
threads, each a stretch of rows with readers of its own; what a band becomes does not depend on who makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zemosaicd.core.modes import Mode
from zemosaicd.model import FramePlan, Grid
from zemosaicd.science.coadd import REACH, Slab, Sums
from zemosaicd.science.combine import HALO
from zemosaicd.science.easing import NO_EASE, Ease
from zemosaicd.science.kernels import lanczos_table
from zemosaicd.science.outliers import Judgement
from zemosaicd.science.preview import block_mean
from zemosaicd.science.tilesolve import TileCorrection
from zemosaicd.work.fitswrite import FitsWriter
from zemosaicd.work.framecount import FrameCount
from zemosaicd.work.judging import judged, judging_bytes
from zemosaicd.work.measuring import Tile, inverse_variance
from zemosaicd.work.tilefiles import ALPHA, PICTURE, WEIGHT, SlidingRows

F32 = NDArray[np.float32]

SUMS_BYTES = 4 << 20
"""The sums of a band: small enough to stay in a processor's cache while its tiles are added."""
LEAST_ROWS = 32
"""But not so few rows that what bands share of a tile's rows costs more than the bands."""
LEAST_BANDS = 2
"""A thread that has fewer bands than this to make is not worth its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coadd:
    """What a mosaic is added from. `rows`: of a band; `factor`: by how much the preview is smaller; `eases`: of each
    tile, in a second pass; `judgement`: how its tiles are judged against each other; None: they are not."""

    grid: Grid
    channels: int
    tiles: Sequence[Tile]
    corrections: Sequence[TileCorrection]
    frames: Sequence[FramePlan]
    mode: Mode
    rows: int
    factor: int
    eases: Sequence[Ease] = ()
    judgement: Judgement | None = None

    @property
    def bands(self) -> int:
        """How many bands there are."""
        return -(-self.grid.height // self.rows)

    def band_bytes(self, threads: int) -> int:
        """Predicted memory: sums and output of a band, and the slabs of its tiles where these are most."""
        slabs = [0] * self.bands
        for t in self.tiles:
            planes = self.channels * (1 + t.file.has(WEIGHT)) + t.file.has(ALPHA)
            top, bottom = max(0, t.placement.box[1] // self.rows), -(-t.placement.box[3] // self.rows)
            for band in range(top, min(len(slabs), bottom)):
                _, (first, last) = t.placement.columns_and_rows(band * self.rows, (band + 1) * self.rows)
                slabs[band] += (last - first + 2 * REACH) * t.file.width * planes * 4
        sums = self.rows * self.grid.width * (self.channels * (8 * 3 + 4 * 2 + 4) + 4 + 16)
        if self.judgement is not None:
            sums += judging_bytes(len(self.tiles), self.channels, self.rows)
        return min(threads, self.bands) * (sums + 2 * max(slabs, default=0))

    @property
    def halo(self) -> int:
        """Rows beyond a band that are read of the tiles which are judged."""
        return 0 if self.judgement is None else HALO


def band_rows(grid: Grid, channels: int, factor: int, budget_bytes: int, deep: int = 0) -> int:
    """Rows of a band: whole rows of the preview, and so few that the sums stay in a cache, and that what is read of
    `deep` tiles which all cover the grid stays in the budget."""
    row = 24 * channels * grid.width
    rows = max(1, min(grid.height, max(LEAST_ROWS, SUMS_BYTES // row), budget_bytes // (row + deep * 2 * row)))
    return max(factor, rows // factor * factor)


def add_all(coadd: Coadd, writer: FitsWriter, threads: int) -> F32:
    """Adds and writes the whole mosaic; returns the picture reduced to the preview's size, (C, h, w)."""
    count = max(1, min(threads, coadd.bands // LEAST_BANDS))
    edges = [coadd.bands * i // count for i in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        parts = list(pool.map(lambda i: _add_bands(coadd, writer, edges[i], edges[i + 1]), range(count)))
    return np.concatenate(parts, axis=1)


def _add_bands(coadd: Coadd, writer: FitsWriter, first: int, last: int) -> F32:
    """Bands `first` to `last`, one after the other; returns the preview's rows of them."""
    grid, rows, halo = coadd.grid, coadd.rows, coadd.halo
    judges = coadd.judgement is not None
    counts = FrameCount(coadd.tiles, coadd.frames, grid) if coadd.mode.counts_frames else None
    eases = coadd.eases or [NO_EASE] * len(coadd.tiles)
    each = zip(coadd.tiles, coadd.corrections, eases, strict=True)
    waiting = sorted((TileRows(t, c, e) for t, c, e in each), key=lambda t: t.box[1])
    active: list[TileRows] = []
    small, table, sums = [], lanczos_table(), Sums(coadd.channels, min(rows, grid.height), grid.width)
    for row0 in range(first * rows, min(last * rows, grid.height), rows):
        end = min(row0 + rows, grid.height)
        while waiting and waiting[0].box[1] < end + halo:
            active.append(waiting.pop(0))
        active = sorted((t for t in active if not t.over(row0 - halo)), key=lambda t: t.number)  # in tiles' order
        sums.begin(row0, end - row0)
        for tile, slab in _slabs(coadd, active, row0, end):
            tile.add(sums, slab, table)
            if counts is not None:
                kept = np.asarray(np.isfinite(slab.pixels).all(axis=0))
                counts.add(tile.tile, slab.row0, kept, (row0, end), ~kept if judges else None)
        small.append(block_mean(_write_band(writer, sums, counts), coadd.factor))
    for tile in active:
        tile.close()
    return np.concatenate(small, axis=1)


def _slabs(coadd: Coadd, active: Sequence[TileRows], row0: int, end: int) -> Iterator[tuple[TileRows, Slab]]:
    """What each tile gives to the rows of a band: all of it, or what the others leave of it."""
    if coadd.judgement is None:
        read = ((tile, tile.read(row0, end)) for tile in active)
        yield from ((tile, slab) for tile, slab in read if slab is not None)
        return
    wide = [(tile, tile.read(max(0, row0 - HALO), end + HALO)) for tile in active]
    seen = [(tile, slab) for tile, slab in wide if slab is not None]
    places = [tile.shift for tile, _ in seen]
    slabs = judged(
        [slab for _, slab in seen], places, [tile.correction for tile, _ in seen], (row0, end), coadd.grid.width,
        coadd.judgement,
    )  # fmt: skip
    yield from ((tile, slab) for (tile, _), slab in zip(seen, slabs, strict=True) if slab.pixels.shape[1])


def _write_band(writer: FitsWriter, sums: Sums, counts: FrameCount | None) -> F32:
    """Writes the band's rows of every picture; returns the picture's."""
    picture, ivar = sums.finish()
    flat = len(picture) == 1
    writer.write("", sums.row0, picture[0] if flat else picture)
    writer.write("WEIGHT", sums.row0, ivar[0] if flat else ivar)
    if counts is not None:
        seen, rejected = counts.finish(sums.row0, len(sums.alpha))
        writer.write("COVERAGE", sums.row0, seen)
        writer.write("REJECTED", sums.row0, rejected)
    writer.write("ALPHA", sums.row0, sums.alpha)
    return picture


class TileRows:
    """What a stretch of bands takes from one tile, with a reader of its own."""

    def __init__(self, tile: Tile, correction: TileCorrection, ease: Ease = NO_EASE) -> None:
        self.tile, self.correction, self._ease = tile, correction, ease
        self.box, self.number = tile.placement.box, tile.spec.tile
        self._ivar = inverse_variance(tile)
        self._floor = np.array(tile.character.floor, np.float32)
        self._file = tile.file.again()
        names = [n for n in (PICTURE, WEIGHT, ALPHA) if n == PICTURE or tile.file.has(n)]
        self._rows = {name: SlidingRows(self._file, name) for name in names}

    @property
    def shift(self) -> tuple[int, int]:
        """The grid's column and row of the tile's first pixel."""
        if self.tile.placement.shift is None:
            raise ValueError(f"tile {self.number} does not lie on the mosaic's lattice")
        return self.tile.placement.shift

    def read(self, row0: int, end: int) -> Slab | None:
        """What the tile gives to rows `row0` to `end` of the grid; None for nothing."""
        placement = self.tile.placement
        _, (first, last) = placement.columns_and_rows(row0, end)
        if first >= last:
            return None
        halo = 0 if placement.shift is not None else REACH
        first, last = max(0, first - halo), min(placement.height, last + halo)
        planes = {name: rows.get(first, last) for name, rows in self._rows.items()}
        extra = {"weight": planes[WEIGHT]} if WEIGHT in planes else {}
        extra |= {"alpha": planes[ALPHA][0]} if ALPHA in planes else {}
        return Slab(pixels=planes[PICTURE], row0=first, feather_px=self.tile.feather_px, floor=self._floor, **extra)

    def add(self, sums: Sums, slab: Slab, table: F32) -> None:
        """Adds what was read."""
        sums.add(slab, self.tile.placement, self.correction, self._ivar, table, self._ease)

    def over(self, row: int) -> bool:
        """Whether no band from this row on needs the tile; then its rows and its file are let go."""
        if self.box[3] > row:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Lets go of rows and file."""
        self._rows.clear()
        self._file.release()
