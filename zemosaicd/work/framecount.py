"""COVERAGE and REJECTED of a mosaic: how many distinct frames each pixel has seen (R8), and how many were rejected
there, band by band.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import FramePlan, Grid
from zemosaicd.science.distortion import recorded
from zemosaicd.science.projections import to_pixels, to_sky
from zemosaicd.work.measuring import Tile
from zemosaicd.work.tilefiles import COVERAGE, REJECTED

Flags = NDArray[np.bool_]
F64 = NDArray[np.float64]
Grids = NDArray[np.int64]

CFA_EDGE_PX, PLANE_EDGE_PX = 4.0, 1.0
"""How far inside a frame its samples begin: CFA frames, and planes off by fractions (science.resample's footprint)."""


class FrameCount:
    """The counts of the band that is being added: the sum of the tiles', less what frames count that are in several."""

    def __init__(self, tiles: Sequence[Tile], frames: Sequence[FramePlan], grid: Grid) -> None:
        users = Counter(f for t in tiles for f in t.spec.frames)
        self._shared = {f.frame: f for f in frames if users[f.frame] > 1}
        self._grid = grid
        self._parts: list[_Part] = []

    def add(self, tile: Tile, first: int, kept: Flags, band: tuple[int, int], rejected: Flags | None = None) -> None:
        """Takes up a tile's part of the band of rows `band`, first and last + 1: the tile's rows from `first` on, where
        `kept` (h, W) says that they are in the picture, and `rejected` that all frames of the tile were left out.

        Of a tile that is interpolated it is what the nearest pixels have seen: a count is one off, at most, on the
        pixels on which the edge of a frame that tiles share lies.
        """
        out = np.zeros_like(kept) if rejected is None else rejected
        self._take(tile, first, len(kept), band, lambda _, pixels: (kept[pixels], out[pixels]))

    def add_merged(self, tile: Tile, kept: Flags, band: tuple[int, int], rejected: Flags) -> None:
        """The same with flags of the band's own pixels, (rows, W)."""
        _, (first, last) = tile.placement.columns_and_rows(*band)
        if first < last:
            self._take(tile, first, last - first, band, lambda here, _: (kept[here], rejected[here]))

    def _take(self, tile: Tile, first: int, height: int, band: tuple[int, int], flags: Callable[..., Any]) -> None:
        counted = tile.file.rows(first, first + height, COVERAGE)[0].astype(np.int64)
        lost = np.zeros_like(counted)
        if tile.file.has(REJECTED):
            lost += tile.file.rows(first, first + height, REJECTED)[0].astype(np.int64)
        here, pixels, outside = self._pixels(tile, first, height, band)
        counted, lost = counted[pixels], lost[pixels]
        kept, rejected = flags(here, pixels)
        lost += np.where(rejected, counted, 0)
        counted = np.where(kept, counted, 0)
        counted[outside] = lost[outside] = 0
        shared = frozenset(f for f in tile.spec.frames if f in self._shared)
        self._parts.append(_Part(here=here, counted=counted, lost=lost, shared=shared))

    def _pixels(
        self, tile: Tile, first: int, height: int, band: tuple[int, int]
    ) -> tuple[tuple[slice, slice], tuple[Any, Any], Any]:
        """Where of the band a tile lies, and there the index of each pixel among the tile's rows from `first` on; what
        of it is outside them."""
        shift, row0 = tile.placement.shift, band[0]
        if shift is not None:
            left, right = max(0, shift[0]), min(self._grid.width, shift[0] + tile.file.width)
            top = first + shift[1] - row0
            here = slice(top, top + height), slice(left, right)
            return here, np.s_[:, left - shift[0] : right - shift[0]], np.s_[:0]
        (left, right), _ = tile.placement.columns_and_rows(*band)
        left, right = max(0, left), max(0, left, min(self._grid.width, right))
        x, y = tile.placement.nearest((left, right), band)
        outside = (x < 0) | (x >= tile.file.width) | (y < first) | (y >= first + height)
        pixels = np.where(outside, 0, y - first), np.where(outside, 0, x)
        return (slice(0, band[1] - row0), slice(left, right)), pixels, outside

    def finish(self, row0: int, rows: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """The band's counts (rows, W), and the rejected: a frame that two tiles rejected counts twice there. The next
        band begins."""
        total, deepest, rejected = np.zeros((3, rows, self._grid.width), np.int64)
        for part in self._parts:
            total[part.here] += part.counted
            deepest[part.here] = np.maximum(deepest[part.here], part.counted)
            rejected[part.here] += part.lost
        counts = np.maximum(deepest, total - self._overcount(row0, rows))
        self._parts.clear()
        return _uint16(counts), _uint16(rejected)

    def _overcount(self, row0: int, rows: int) -> NDArray[np.int64]:
        """How often too many the tiles' coverages count a frame, (rows, W), from the frames' footprints and from which
        of its tiles are in the picture."""
        extra = np.zeros((rows, self._grid.width), np.int64)
        if not any(part.shared for part in self._parts):
            return extra
        x, y = np.arange(self._grid.width)[np.newaxis, :], np.arange(row0, row0 + rows)[:, np.newaxis]
        for name, frame in self._shared.items():
            uses = np.zeros_like(extra)
            for part in self._parts:
                if name in part.shared:
                    uses[part.here] += part.counted > 0
            u, v, w = self._in_frame(frame, x, y)
            if frame.distortion is not None:
                u, v = recorded(frame.distortion, u, v)  # NaN beyond the sensor: outside
            edge = CFA_EDGE_PX if frame.facts.bayer else PLANE_EDGE_PX
            inside = (w > 0) & (u >= edge) & (v >= edge)
            inside &= (u <= frame.facts.width - 1 - edge) & (v <= frame.facts.height - 1 - edge)
            extra += np.maximum(uses - 1, 0) * inside
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A tile's part of a band: where, the frames counted and the frames lost there, and which frames others share."""

    here: tuple[slice, slice]
    counted: NDArray[np.int64]
    lost: NDArray[np.int64]
    shared: frozenset[str]


def _uint16(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
