"""COVERAGE and REJECTED of a mosaic: how many distinct frames each pixel has seen (R8), and how many were rejected
there, band by band.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import FramePlan, Grid
from zemosaicd.science.coadd import Slab
from zemosaicd.science.distortion import recorded
from zemosaicd.science.projections import to_pixels, to_sky
from zemosaicd.work.measuring import Tile
from zemosaicd.work.tilefiles import COVERAGE, REJECTED

F64 = NDArray[np.float64]
Grids = NDArray[np.int64]

CFA_EDGE_PX, PLANE_EDGE_PX = 4.0, 1.0
"""How far inside a frame its samples begin: CFA frames, and planes off by fractions (science.resample's footprint)."""


class FrameCount:
    """The counts of the band that is being added: the sum of the tiles', less what frames count that are in several."""

    def __init__(self, tiles: Sequence[Tile], frames: Sequence[FramePlan], grid: Grid) -> None:
        users = Counter(f for t in tiles for f in t.spec.frames)
        self._shared = {f: n - 1 for f, n in users.items() if n > 1}
        self._frames = [f for f in frames if f.frame in self._shared]
        self._grid = grid
        self._counts: list[tuple[slice, slice, NDArray[np.int64]]] = []
        self._rejected: list[tuple[slice, slice, NDArray[np.int64]]] = []

    def add(self, tile: Tile, slab: Slab, row0: int, rows: int) -> None:
        """Takes up a tile's part of the band; of one that is interpolated, what its nearest pixels have seen.

        So a count is one off, at most, on the pixels on which the edge of a frame that tiles share lies.
        """
        shift = tile.placement.shift
        last = slab.row0 + slab.pixels.shape[1]
        counted = tile.file.rows(slab.row0, last, COVERAGE)[0].astype(np.int64)
        counted[~np.isfinite(slab.pixels).all(axis=0)] = 0
        if shift is None:
            self._add_nearest(tile, slab, counted, row0, rows)
            return
        left, right = max(0, shift[0]), min(self._grid.width, shift[0] + tile.file.width)
        top = slab.row0 + shift[1] - row0
        here = slice(top, top + len(counted)), slice(left, right)
        columns = slice(left - shift[0], right - shift[0])
        self._counts.append((*here, counted[:, columns]))
        if tile.file.has(REJECTED):
            lost = tile.file.rows(slab.row0, last, REJECTED)[0].astype(np.int64)
            self._rejected.append((*here, lost[:, columns]))

    def _add_nearest(self, tile: Tile, slab: Slab, counted: NDArray[np.int64], row0: int, rows: int) -> None:
        (left, right), _ = tile.placement.columns_and_rows(row0, row0 + rows)
        left, right = max(0, left), min(self._grid.width, right)
        if left >= right:
            return
        x, y = tile.placement.nearest((left, right), (row0, row0 + rows))
        y = y - slab.row0
        inside = (x >= 0) & (x < counted.shape[1]) & (y >= 0) & (y < len(counted))
        here = slice(0, rows), slice(left, right)

        def there(values: NDArray[np.int64]) -> NDArray[np.int64]:
            found = np.zeros(x.shape, np.int64)
            found[inside] = values[y[inside], x[inside]]
            return found

        self._counts.append((*here, there(counted)))
        if tile.file.has(REJECTED):
            lost = tile.file.rows(slab.row0, slab.row0 + len(counted), REJECTED)[0].astype(np.int64)
            self._rejected.append((*here, there(lost)))

    def finish(self, row0: int, rows: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """The band's counts (rows, W), and the rejected: a frame that two tiles rejected counts twice there. The next
        band begins."""
        total = np.zeros((rows, self._grid.width), np.int64)
        deepest = np.zeros((rows, self._grid.width), np.int64)
        for y, x, counted in self._counts:
            total[y, x] += counted
            deepest[y, x] = np.maximum(deepest[y, x], counted)
        self._counts.clear()
        counts = np.maximum(deepest, total - self._overcount(row0, rows))
        rejected = np.zeros_like(total)
        for y, x, lost in self._rejected:
            rejected[y, x] += lost
        self._rejected.clear()
        return _uint16(counts), _uint16(rejected)

    def _overcount(self, row0: int, rows: int) -> NDArray[np.int64]:
        """How often too many the tiles' coverages count a frame, (rows, W), from the frames' footprints."""
        extra = np.zeros((rows, self._grid.width), np.int64)
        if not self._frames:
            return extra
        x, y = np.arange(self._grid.width)[np.newaxis, :], np.arange(row0, row0 + rows)[:, np.newaxis]
        for frame in self._frames:
            u, v, w = self._in_frame(frame, x, y)
            if frame.distortion is not None:
                u, v = recorded(frame.distortion, u, v)  # NaN beyond the sensor: outside
            edge = CFA_EDGE_PX if frame.facts.bayer else PLANE_EDGE_PX
            inside = (w > 0) & (u >= edge) & (v >= edge)
            inside &= (u <= frame.facts.width - 1 - edge) & (v <= frame.facts.height - 1 - edge)
            extra += self._shared[frame.frame] * inside
        return extra

    def _in_frame(self, frame: FramePlan, x: Grids, y: Grids) -> tuple[F64, F64, F64]:
        """Where pixels of the mosaic, columns x and rows y, lie in a frame; w is not positive behind it."""
        if self._grid.wcs.projection == sphere.TAN:
            m = sphere.homography(self._grid.wcs, frame.wcs)
            w = m[6] * x + m[7] * y + m[8]
            return (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w, w
        px, py = np.broadcast_arrays(x.astype(np.float64), y.astype(np.float64))
        u, v = to_pixels(frame.wcs, to_sky(self._grid.wcs, px.ravel(), py.ravel()))
        return u.reshape(px.shape), v.reshape(px.shape), np.where(np.isfinite(u), 1.0, -1.0).reshape(px.shape)


def _uint16(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
