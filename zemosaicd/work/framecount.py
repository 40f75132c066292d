"""COVERAGE and REJECTED of a mosaic: how many distinct frames each pixel has seen (R8), and how many were rejected
there, band by band.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zemosaicd import sphere
from zemosaicd.model import FramePlan, Grid
from zemosaicd.science.distortion import recorded
from zemosaicd.work.measuring import Tile
from zemosaicd.work.tilefiles import COVERAGE, REJECTED

Flags = NDArray[np.bool_]

CFA_EDGE_PX, PLANE_EDGE_PX = 4.0, 1.0
"""How far inside a frame its samples begin: CFA frames, and planes off by fractions (science.resample's footprint)."""


class FrameCount:
    """The counts of the band that is being added: the sum of the tiles', less what frames count that are in several."""

    def __init__(self, tiles: Sequence[Tile], frames: Sequence[FramePlan], grid: Grid) -> None:
        users = Counter(f for t in tiles for f in t.spec.frames)
        self._shared = {f.frame: f for f in frames if users[f.frame] > 1}
        self._grid = grid
        self._parts: list[_Part] = []

    def add(self, tile: Tile, first: int, kept: Flags, row0: int, rejected: Flags | None = None) -> None:
        """Takes up a tile's part of the band that begins at row `row0`: its rows from `first` on, where `kept` (h, W)
        says that they are in the picture, and `rejected` that all frames of the tile were left out of it. Only tiles
        on the grid's own pixels count frames."""
        shift = tile.placement.shift
        if shift is None:
            raise ValueError(f"tile {tile.spec.tile} does not lie on the mosaic's lattice")
        last = first + len(kept)
        counted = tile.file.rows(first, last, COVERAGE)[0].astype(np.int64)
        lost = np.zeros_like(counted)
        if tile.file.has(REJECTED):
            lost += tile.file.rows(first, last, REJECTED)[0].astype(np.int64)
        if rejected is not None:
            lost[rejected] += counted[rejected]
        counted[~kept] = 0
        left, right = max(0, shift[0]), min(self._grid.width, shift[0] + tile.file.width)
        top, columns = first + shift[1] - row0, slice(left - shift[0], right - shift[0])
        self._parts.append(
            _Part(
                here=(slice(top, top + len(counted)), slice(left, right)),
                counted=counted[:, columns],
                lost=lost[:, columns],
                shared=frozenset(f for f in tile.spec.frames if f in self._shared),
            )
        )

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
            m = sphere.homography(self._grid.wcs, frame.wcs)
            w = m[6] * x + m[7] * y + m[8]
            u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
            if frame.distortion is not None:
                u, v = recorded(frame.distortion, u, v)  # NaN beyond the sensor: outside
            edge = CFA_EDGE_PX if frame.facts.bayer else PLANE_EDGE_PX
            inside = (w > 0) & (u >= edge) & (v >= edge)
            inside &= (u <= frame.facts.width - 1 - edge) & (v <= frame.facts.height - 1 - edge)
            extra += np.maximum(uses - 1, 0) * inside
        return extra


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A tile's part of a band: where, the frames counted and the frames lost there, and which frames others share."""

    here: tuple[slice, slice]
    counted: NDArray[np.int64]
    lost: NDArray[np.int64]
    shared: frozenset[str]


def _uint16(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
